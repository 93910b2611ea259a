"""GRPO's family: what each of its choices does to a batch, by hand, and which choices do not go together."""

import math
from dataclasses import replace

import pytest
import torch

from pgcli.algorithms._ratio import METRICS, movement, spread
from pgcli.errors import InputError, RunError
from pgcli.experiment.build import build
from pgcli.experiment.config import compose

from .test_identities import Table, algorithm, tree

CONTROL = ["env=cartpole", "device=cpu", "tuned=none", "policy.hidden=[8]", "env.max_episode_steps=30"]


def two_groups():
    """Four episodes of lengths 2, 1, 2, 2 with returns 1, 0 | 3, 1; the last was cut by a limit."""
    policy = Table()
    rollout = replace(tree(policy), weights=None)
    rollout = type(rollout)(**{k: v[:4] if isinstance(v, torch.Tensor) else v for k, v in vars(rollout).items()})
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]]) > 0
    ends = torch.tensor([[0, 1], [1, 0], [0, 1], [0, 1]]) > 0
    truncated = torch.zeros_like(ends)
    truncated[3, 1] = True
    rewards = torch.tensor([[0, 1], [0, 0], [1, 2], [0, 1]], dtype=torch.float64)
    return policy, replace(
        rollout, mask=mask, rewards=rewards, terminated=ends & ~truncated, truncated=truncated,
        groups=torch.tensor([0, 0, 1, 1]),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words", "advantages"),
    [
        ("dr_grpo", [], [0.5, -0.5, 1, -1]),
        ("grpo", [], [1, -1, 1, -1]),
        ("grpo", ["algo.advantage=leave_one_out"], [1, -1, 2, -2]),
        ("grpo", ["algo.advantage=batch"], [x / (19 / 16) ** 0.5 for x in (0.5, -0.5, 1, -1)]),  # 1, 0, 3, 1
        ("maxrl", [], [1, -1, 0.5, -0.5]),
    ],
)
def test_the_advantages_of_each_variant(name, words, advantages):
    policy, rollout = two_groups()
    batch = algorithm(name, policy, *words).prepare(rollout)
    assert batch.advantages[:, 0].tolist() == pytest.approx(advantages, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "words", "weights"),
    [
        ("grpo", [], [[1 / 8, 1 / 8], [1 / 4, 0], [1 / 8, 1 / 8], [1 / 8, 1 / 8]]),
        ("dapo", [], [[1 / 7, 1 / 7], [1 / 7, 0], [1 / 7, 1 / 7], [1 / 7, 1 / 7]]),
        ("dr_grpo", ["algo.aggregation_length=5"], [[0.05, 0.05], [0.05, 0], [0.05, 0.05], [0.05, 0.05]]),
        ("maxrl", [], [[1 / 4, 1 / 4], [1 / 4, 0], [1 / 4, 1 / 4], [1 / 4, 1 / 4]]),
    ],
)
def test_the_weights_of_each_variant(name, words, weights):
    policy, rollout = two_groups()
    batch = algorithm(name, policy, *words).prepare(rollout)
    torch.testing.assert_close(batch.weights.double(), torch.tensor(weights, dtype=torch.float64), atol=1e-7, rtol=0)


def test_a_cut_episode_stays_in_its_baseline_and_leaves_the_loss():
    policy, rollout = two_groups()
    one = algorithm("dr_grpo", policy, "algo.mask_truncated=true", "algo.aggregation_length=1")
    batch = one.prepare(rollout)
    assert batch.advantages[:, 0].tolist() == [0.5, -0.5, 1, -1]
    third = pytest.approx(1 / 3)
    assert batch.weights.tolist() == [[third, third], [third, 0], [third, third], [0, 0]]
    assert rollout.mask.tolist()[3] == [True, True], "the rollout keeps its mask"


def test_a_batch_of_cut_episodes_alone_teaches_nothing_and_breaks_nothing():
    policy, rollout = two_groups()
    rollout.truncated = rollout.truncated.clone()
    rollout.truncated[:, 0] = True
    one = algorithm("grpo", policy, "algo.mask_truncated=true")
    total, _ = one.loss(policy, one.prepare(rollout), None)
    (gradient,) = torch.autograd.grad(total, [policy.logits])
    assert not gradient.any()


@pytest.mark.parametrize("minibatches", [1, 4])
def test_cut_episodes_alone_leave_the_policy_as_it_is(minibatches):
    words = [*CONTROL, "algo.num_groups=2", "algo.group_size=2", "algo.mask_truncated=true", "env.max_episode_steps=3"]
    parts = build(compose(["algo=grpo", *words, f"algo.minibatches={minibatches}"]))
    before = parts.algorithm.updater.flat.clone()
    rollout = parts.collector.collect(parts.policy)
    assert rollout.truncated.any(1).all()
    assert parts.algorithm.update(rollout) == {"rollout/masked": 1.0}
    assert parts.algorithm.updater.steps == rollout.steps
    rollout.truncated[0] = False
    metrics = parts.algorithm.update(rollout)
    assert metrics["rollout/masked"] == 0.75
    assert all(math.isfinite(value) for value in metrics.values())
    assert torch.equal(parts.algorithm.updater.flat, before), "all returns are equal"
    parts.close()


def test_a_clipped_reward_is_clipped_before_the_kl_is_taken_from_it():
    policy, rollout = two_groups()
    rollout = replace(rollout, reference_log_probs=rollout.log_probs - 1)
    words = ["algo.kl.placement=reward", "algo.kl.estimator=k1", "algo.kl.coefficient=0.1", "algo.reward_clip=0.5"]
    # Returns 1, 0, 3, 1 are held at 0.5, 0, 0.5, 0.5; prices 0.2, 0.1, 0.2, 0.2: 0.3, -0.1 | 0.3, 0.3.
    batch = algorithm("rloo", policy, *words).prepare(rollout)
    assert batch.advantages[:, 0].tolist() == pytest.approx([0.4, -0.4, 0, 0])
    assert rollout.rewards.sum().item() == 5


@pytest.mark.parametrize(
    ("name", "advantages"), [("grpo", [0.5, -0.5, -0.5, 0.5]), ("rloo", [1, -1, -1, 1])], ids=["grpo", "rloo"]
)
def test_a_return_is_held_within_the_clip_on_both_sides(name, advantages):
    # Returns 4, 0 | -9, 0 are held at 1, 0, -1, 0: a group's mean is 1/2 and -1/2, that of the others 0, 1 | 0, -1.
    policy, rollout = two_groups()
    rewards = torch.tensor([[1, 3], [0, 0], [-3, -6], [0, 0]], dtype=torch.float64)
    words = ["algo.reward_clip=1", *(["algo.advantage=centred"] if name == "grpo" else [])]
    batch = algorithm(name, policy, *words).prepare(replace(rollout, rewards=rewards))
    assert batch.advantages[:, 0].tolist() == pytest.approx(advantages)


def test_maxrl_is_for_returns_that_are_not_negative():
    policy, rollout = two_groups()
    maxrl = algorithm("maxrl", policy)
    rewards = torch.tensor([[0, 1], [0, 0], [0, 0], [0, 0]], dtype=torch.float64)
    assert maxrl.prepare(replace(rollout, rewards=rewards)).advantages[:, 0].tolist() == [1, -1, 0, 0]
    with pytest.raises(RunError, match=r"advantage=maxrl is for rewards of 0 or 1, and a return was -0.25"):
        maxrl.prepare(replace(rollout, rewards=rewards - torch.tensor([[0], [0.25], [0], [0]])))


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_gspo_s_ratio_is_the_geometric_mean_of_a_row_and_one_ratio_clips_all_of_it(advantage):
    # Ratios 4 and 1/2 in row 0: sqrt 2, above 1 + 0.3. Row 1 has one action, of ratio 1.2: inside.
    policy, rollout = two_groups()
    new = policy(rollout.observations, rollout.actions).log_probs
    log_ratios = torch.tensor([[math.log(4), -math.log(2)], [math.log(1.2), 9.0], [0, 0], [0, 0]], dtype=torch.float64)
    rollout = replace(rollout, log_probs=(new - log_ratios).detach(), rewards=rollout.rewards * advantage)
    one = algorithm("gspo", policy, "algo.clip={low: 0.3, high: 0.3}", "algo.advantage=centred")
    batch = one.prepare(rollout)
    a, b = 0.5 * advantage, -0.5 * advantage
    first = 1.3 * a if a > 0 else 2**0.5 * a
    x = new.detach().clone().requires_grad_()
    each = one.objective(x, batch)
    torch.testing.assert_close(each[0], torch.tensor([first, first], dtype=torch.float64))
    torch.testing.assert_close(each[1, 0], torch.tensor(1.2 * b, dtype=torch.float64))
    (gradient,) = torch.autograd.grad((each * batch.weights).sum(), x)
    # d sqrt(rho_0 rho_1) / d log pi_t = sqrt(rho_0 rho_1) / 2; a row weighs 1/4.
    slope = 0.0 if a > 0 else 2**0.5 / 2 * a / 4
    torch.testing.assert_close(gradient[0], torch.tensor([slope, slope], dtype=torch.float64))
    torch.testing.assert_close(gradient[1].tolist(), [1.2 * b / 4, 0.0])


@pytest.mark.parametrize("aggregation", ["sequence_sum", "token_mean", "constant"])
def test_gspo_refuses_to_count_a_long_episode_more_often(aggregation):
    with pytest.raises(InputError, match=r"one ratio and one term an episode.*take aggregation=sequence_mean"):
        compose(["algo=gspo", "env=sort", f"algo.aggregation={aggregation}"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["algo=grpo", "algo.aggregation_length=5"], "aggregation=sequence_mean has no aggregation_length"),
        (["algo=dr_grpo", "algo.aggregation=token_mean", "algo.aggregation_length=5"], "has no aggregation_length"),
        (["algo=ipo", "algo.label_smoothing=0.1"], "the loss ipo has no label_smoothing"),
        (["algo=dpo", "algo.gamma=0.5"], "the loss dpo has no gamma"),
        (["algo=nelder_mead", "algo.size=0.1", "algo.tolerance=0.5"], "take a smaller tolerance"),
        (["algo=cispo", "algo.dual_clip=3"], "dual_clip bounds a clipped objective, and cispo has none"),
        (["algo=cpi", "algo.dual_clip=3"], "it needs a clip_range"),
        (["algo=ppo", "algo.microbatch=2"], "take normalise_advantages=batch"),
        (["algo=grpo", "algo.group_size=1"], "compared with itself, so it needs 2 or more"),
        (
            ["algo=maxrl", "algo.kl={coefficient: 0.1, placement: reward, estimator: k1}"],
            "maxrl divides by a group's mean return.*take kl.placement=loss with kl.estimator=k3_corrected",
        ),
        (["algo=grpo", "algo.dual_clip=1"], "number > 1"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(words, says):
    with pytest.raises(InputError, match=says) as refused:
        compose(["env=cartpole", "tuned=none", *words])
    assert "\n" not in str(refused.value)


def test_gspo_s_minibatches_are_whole_rows_of_a_policy_without_memory():
    parts = build(compose(["algo=gspo", *CONTROL, "algo.num_groups=2", "algo.group_size=3", "algo.minibatches=2"]))
    rollout = parts.collector.collect(parts.policy)
    seen = []
    loss = parts.algorithm.loss

    def watched(policy, batch, noise):
        seen.append(batch.mask.sum(1).tolist())
        return loss(policy, batch, noise)

    parts.algorithm.loss = watched
    metrics = parts.algorithm.update(rollout)
    parts.close()
    assert [len(lengths) for lengths in seen] == [3, 3]
    assert sorted(length for lengths in seen for length in lengths) == sorted(rollout.mask.sum(1).tolist())
    assert metrics["policy/mismatch_max"] < 1e-5


MICROBATCHED = {
    "grpo": ["algo=grpo", "algo.num_groups=2", "algo.group_size=3", "algo.minibatches=1", "algo.epochs=2"],
    "gspo": ["algo=gspo", "algo.num_groups=2", "algo.group_size=3", "algo.minibatches=1", "algo.epochs=2"],
    "dapo": ["algo=dapo", "algo.num_groups=2", "algo.group_size=3", "algo.kl.coefficient=0.1"],
    "rloo": ["algo=rloo", "algo.num_groups=2", "algo.group_size=3"],
    "ppo": ["algo=ppo", "algo.num_envs=3", "algo.num_steps=9", "algo.normalise_advantages=batch", "algo.minibatches=2"],
    "reinforce": ["algo=reinforce", "algo.num_episodes=5"],
    "grpo on sort": ["algo=grpo", "algo.num_groups=2", "algo.group_size=3", "env=sort"],
    "dpo on story": ["algo=dpo", "algo.num_pairs=7", "algo.likelihood_coefficient=0.3", "env=story"],
    "kto on story": ["algo=kto", "algo.num_completions=10", "env=story"],
    "reward_model on story": ["algo=reward_model", "algo.num_pairs=7", "algo.ensemble=3", "env=story"],
    "process_reward on chain": ["algo=process_reward", "algo.num_completions=10", "algo.ensemble=2", "env=chain"],
    "raft on sort": ["algo=raft", "algo.num_groups=6", "algo.group_size=3", "env=sort"],
    "sft on sort": ["algo=sft", "algo.num_demonstrations=7", "env=sort"],
}  # fmt: skip


@pytest.mark.parametrize("name", MICROBATCHED)
def test_cutting_a_batch_to_fit_into_memory_changes_no_gradient(name):
    ends, reports = [], []
    for size in ("null", "4"):
        words = [*MICROBATCHED[name], f"algo.microbatch={size}", "algo.learning_rate=0.001"]
        parts = build(compose([*words, "device=cpu", "tuned=none"] if " on " in name else [*words, *CONTROL]))
        # Away from the reference: a margin of 0 has the sign of a rounding error, and accuracy counts signs.
        flat = parts.algorithm.updater.flat
        flat += 0.05 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
        reports.append(parts.algorithm.update(parts.collector.collect(parts.policy)))
        ends.append(parts.algorithm.updater.adam.gradient.clone())
        parts.close()
    torch.testing.assert_close(ends[0], ends[1], atol=1e-6, rtol=1e-5)
    assert reports[1] == pytest.approx(reports[0], rel=1e-4, abs=1e-5)


def test_the_ratios_of_an_update_are_looked_at_together_and_the_mismatch_at_its_first_step():
    # Two steps. First: log-ratios 0.001 and -0.002, and padding. Second: ratios 1.5 and 0.5.
    first = torch.tensor([[0.001, -0.002], [math.nan, 0.0]], dtype=torch.float64)
    second = torch.tensor([[1.5, 0.5], [1.0, 1.0]], dtype=torch.float64).log()
    weights = [torch.tensor([[0.25, 0.25], [0, 0.5]]).double(), torch.full((2, 2), 0.25).double()]
    found = movement([first, second], weights, low=0.2, high=0.4)
    assert set(found) == {key for key in METRICS if key.startswith("policy/")}
    assert found["policy/mismatch_mean"] == pytest.approx(0.25 * 0.001 + 0.25 * 0.002)
    assert found["policy/mismatch_max"] == pytest.approx(0.002)
    assert found["policy/ratio_max"] == pytest.approx(1.5)
    assert found["policy/ratio_min"] == pytest.approx(0.5)
    assert found["policy/clip_fraction_high"] == pytest.approx(0.25 / 2)
    assert found["policy/clip_fraction_low"] == pytest.approx(0.25 / 2)
    assert found["policy/clip_fraction"] == pytest.approx(0.25)
    # By rows, the second step has sqrt 0.75 and 1: nothing is out of range.
    rows = movement([first, second], weights, low=0.2, high=0.4, by_row=True)
    assert rows["policy/clip_fraction"] == 0
    assert rows["policy/ratio_min"] == pytest.approx(0.75**0.5)
    assert rows["policy/approx_kl"] == found["policy/approx_kl"], "the KL stays that of each action"


def test_the_spread_of_advantages_is_over_actions_and_without_padding():
    # Advantages 0.5, -0.5, 1 and -1 of rows of 2, 1, 2 and 2 actions: the mean is 0.5/7, that of the squares 4.75/7.
    policy, rollout = two_groups()
    batch = algorithm("grpo", policy, "algo.advantage=centred").prepare(rollout)
    batch.advantages = torch.where(batch.mask, batch.advantages, math.nan)
    found = spread(batch)
    assert found["advantage/mean"] == pytest.approx(0.5 / 7)
    assert found["advantage/std"] == pytest.approx((4.75 / 7 - (0.5 / 7) ** 2) ** 0.5)


def test_a_price_in_the_loss_or_none_in_the_reward_is_nothing_to_maxrl():
    for kl in ("{coefficient: 0.1, placement: loss}", "{coefficient: 0, placement: reward, estimator: k1}"):
        compose(["env=cartpole", "tuned=none", "algo=maxrl", f"algo.kl={kl}"])


def test_what_rose_above_the_range_is_not_what_fell_below_it():
    # Of four ratios 1.5 and 3 are above 1 + 0.4, and 0.7 is below 1 - 0.2; 1.3 is inside.
    ratios = torch.tensor([[1.5, 3.0], [0.7, 1.3]], dtype=torch.float64)
    found = movement([ratios.log()], [torch.full((2, 2), 0.25).double()], low=0.2, high=0.4)
    assert found["policy/clip_fraction_high"] == 0.5
    assert found["policy/clip_fraction_low"] == 0.25
    assert found["policy/clip_fraction"] == 0.75


def test_a_silent_group_still_feels_the_price_of_the_kl():
    policy, rollout = two_groups()
    rollout = replace(rollout, rewards=torch.zeros_like(rollout.rewards), reference_log_probs=rollout.log_probs - 1)
    quiet = algorithm("grpo", policy)
    total, _ = quiet.loss(policy, quiet.prepare(rollout), None)
    assert not torch.autograd.grad(total, [policy.logits])[0].any()
    priced = algorithm("grpo", policy, "algo.kl.coefficient=0.1")
    total, _ = priced.loss(policy, priced.prepare(rollout), None)
    assert torch.autograd.grad(total, [policy.logits])[0].any()
