import pytest
import torch
from torch import nn

from pgcli.algorithms._update import LargeNetwork, OptimiserSettings, Updater
from pgcli.errors import RunError
from pgcli.types import Batch


def settings(**changes):
    values = {
        "learning_rate": 0.1, "schedule": "constant", "schedule_c": 1.0, "schedule_offset": 0.0,
        "adam_epsilon": 1e-8, "max_grad_norm": None,
    }  # fmt: skip
    return OptimiserSettings(**(values | changes))


class Line(nn.Module):
    """w . x, two parameters in two tensors."""

    unit = "action"

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([[3.0]]))

    def once_differentiable(self):
        return self

    def forward(self, x):
        return self.a.sum() * x + self.b.squeeze() * x**2


def batch(n=8):
    x = torch.arange(n, dtype=torch.float32)[:, None] / n
    return Batch(
        observations=x,
        actions=x,
        mask=torch.ones(n, 1, dtype=torch.bool),
        weights=torch.full((n, 1), 1 / n),
        per_action=torch.full((n, 1), 1 / n),
        advantages=x,
    )


def squares(policy, batch, noise):
    loss = (policy(batch.observations).square() * batch.weights).sum()
    return loss, {"loss/policy": loss}


def updater(policy, total_steps=100, **changes):
    return Updater(policy, settings(**changes), total_steps=total_steps, seed=0)


def test_the_flat_optimiser_is_adam_with_clipping():
    ours, theirs = Line(), Line()
    mine = updater(ours, max_grad_norm=0.5, adam_epsilon=1e-5)
    reference = torch.optim.Adam(theirs.parameters(), lr=0.1, eps=1e-5)
    for _ in range(5):
        mine.one_step(squares, batch(), steps=8)
        reference.zero_grad()
        squares(theirs, batch(), None)[0].backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        reference.step()
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))


def large(policy, **changes):
    values = settings().model_dump() | {"warmup_updates": 0, "weight_decay": 0.0, "microbatch": None} | changes
    return Updater(policy, LargeNetwork(**values), total_steps=100, seed=0)


def test_weight_decay_is_decoupled_from_the_gradient():
    ours, theirs = Line(), Line()
    mine = large(ours, weight_decay=0.3)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.3)
    for _ in range(5):
        mine.one_step(squares, batch(), steps=8)
        reference.zero_grad()
        squares(theirs, batch(), None)[0].backward()
        reference.step()
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))


def test_the_learning_rate_rises_to_its_schedule():
    mine = large(Line(), warmup_updates=4, schedule="linear")
    rates = [mine.one_step(squares, batch(10), steps=10)["optimiser/learning_rate"] for _ in range(6)]
    # 10 of 100 actions each: the linear schedule's factors are 1, 0.9, 0.8, ...
    assert rates == pytest.approx([0.1 * 0.25, 0.09 * 0.5, 0.08 * 0.75, 0.07, 0.06, 0.05])


def test_metrics_are_means_over_all_gradient_steps_not_the_last_one():
    seen = []

    def loss(policy, batch, noise):
        total, terms = squares(policy, batch, noise)
        seen.append(total.item())
        return total, terms

    metrics = updater(Line()).epochs(loss, batch(), epochs=2, minibatches=2, steps=8)
    assert len(seen) == 4
    assert metrics["loss/total"] == pytest.approx(sum(seen) / 4)
    assert metrics["optimiser/gradient_steps"] == 4
    assert len(set(seen)) == 4


def test_every_epoch_uses_every_action_once_and_minibatches_stand_for_the_whole():
    used = []

    def loss(policy, batch, noise):
        used.append((batch.observations.flatten().tolist(), batch.weights.sum().item()))
        return squares(policy, batch, noise)

    updater(Line()).epochs(loss, batch(), epochs=1, minibatches=3, steps=8)  # 8 actions: 2 + 3 + 3, each of weight 3/8
    assert sorted(x for xs, _ in used for x in xs) == [i / 8 for i in range(8)]
    assert sorted(total for _, total in used) == pytest.approx([0.75, 1.125, 1.125])


def test_padding_is_cut_away_for_a_policy_without_memory():
    padded = batch()
    padded.mask = padded.mask.clone()
    padded.mask[3:] = False

    def loss(policy, batch, noise):
        assert batch.observations.tolist() == [0, 0.125, 0.25]
        return squares(policy, batch, noise)

    updater(Line()).one_step(loss, padded, steps=4)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ({"schedule": "constant"}, [0.1, 0.1, 0.1]),
        ({"schedule": "linear"}, [0.1, 0.092, 0.084]),  # 8 of 100 steps an update
        ({"schedule": "robbins_monro"}, [0.1, 0.05, 0.1 / 3]),  # 1/k
        (
            {"schedule": "robbins_monro", "schedule_c": 10.0, "schedule_offset": 9.0},
            [0.1, 1 / 11, 1 / 12],
        ),  # c / (k + 9)
    ],
)
def test_learning_rate_schedules(schedule, rates):
    one = updater(Line(), **schedule)
    found = [one.one_step(squares, batch(), steps=8)["optimiser/learning_rate"] for _ in range(3)]
    assert found == pytest.approx(rates)


def test_an_update_ends_after_the_step_whose_kl_exceeds_the_target():
    kls = iter([0.01, 0.02, 0.5, 0.01])

    def loss(policy, batch, noise):
        total, terms = squares(policy, batch, noise)
        return total, terms | {"policy/approx_kl": torch.tensor(next(kls))}

    metrics = updater(Line()).epochs(loss, batch(), epochs=4, minibatches=1, steps=8, target_kl=0.1)
    assert metrics["optimiser/gradient_steps"] == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stops_before_the_parameters_change_and_is_named(value):
    policy = Line()
    before = [p.clone() for p in policy.parameters()]
    one = updater(policy)

    def loss(policy, batch, noise):
        total, terms = squares(policy, batch, noise)
        entropy = torch.tensor(value)
        return total + entropy, terms | {"policy/entropy": entropy}

    with pytest.raises(RunError, match=rf"policy/entropy = {value}; stopped before the optimiser step"):
        one.one_step(loss, batch(), steps=8)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    assert not one.adam.first.any()


def test_a_gradient_that_is_not_finite_is_refused_though_the_loss_is():
    def loss(policy, batch, noise):
        zero = (policy.a * 0).sum()
        return torch.sqrt(zero), {"loss/policy": zero}  # d sqrt(x) / dx at 0

    with pytest.raises(RunError, match="optimiser/grad_norm = nan"):
        updater(Line()).one_step(loss, batch(), steps=8)


def test_a_restored_updater_goes_on_exactly():
    first, second = Line(), Line()
    one, two = updater(first, schedule="robbins_monro"), updater(second, schedule="robbins_monro")
    one.epochs(squares, batch(), epochs=2, minibatches=4, steps=8)
    second.load_state_dict(first.state_dict())
    two.load_state_dict({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in one.state_dict().items()})
    one.epochs(squares, batch(), epochs=2, minibatches=4, steps=8)
    two.epochs(squares, batch(), epochs=2, minibatches=4, steps=8)
    assert torch.equal(one.flat, two.flat)
    assert torch.equal(torch.cat([p.flatten() for p in second.parameters()]), two.flat)
