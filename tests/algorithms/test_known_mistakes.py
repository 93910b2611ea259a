"""Mistakes that others made in code that people learn from, each held off by name.

DEFECT n: of the code that accompanies the RLHF Book (natolambert/rlhf-book at a66b0bf, code/policy_gradients).
PITFALL: from the N+ implementation details of RLHF with PPO (Huang et al. 2024) and the issue threads named.
KTO's reference point (DEFECT 9) and IPO's length (DEFECT 11) are with the preference losses.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pgcli.algorithms._adam import Adam
from pgcli.collectors.completions import decode
from pgcli.errors import InputError
from pgcli.experiment.build import build
from pgcli.experiment.config import compose
from pgcli.functional.advantages import leave_one_out
from pgcli.functional.masked import whiten
from pgcli.policies.hf import _without_dropout

from .test_identities import Table, algorithm, tree

PRICED = ["algo.kl.placement=reward", "algo.kl.estimator=k1", "algo.kl.coefficient=0.5"]
SMALL = [
    "env=sort",
    "device=cpu",
    "tuned=none",
    "policy.width=8",
    "policy.heads=2",
    "policy.layers=1",
    "policy.hidden=8",
]
GROUPS = ["algo.num_groups=2", "algo.group_size=3"]


def priced(policy, *, seed=1):
    """The enumerated tree, and what a reference says of it."""
    rollout, reference = tree(policy), Table(seed=seed)
    with torch.no_grad():
        rollout.reference_log_probs = reference(rollout.observations, rollout.actions).log_probs
    return rollout


def lengths_of(rollout, lengths):
    """Its first rows, cut to these lengths."""
    first = {k: v[: len(lengths)] for k, v in vars(rollout).items() if isinstance(v, torch.Tensor) and k != "weights"}
    mask = torch.arange(rollout.mask.shape[1]) < torch.tensor(lengths)[:, None]
    last = torch.zeros_like(mask).scatter_(1, torch.tensor(lengths)[:, None] - 1, True)
    return type(rollout)(**first | {"mask": mask, "terminated": last, "truncated": torch.zeros_like(mask)})


# ---------------------------------------------------------------- the KL


def test_the_kl_in_the_reward_is_paid_by_who_diverges_and_not_to_him():
    # DEFECT 1: log ref - log pi is minus the KL in expectation, so that divergence earned a reward.
    policy = Table()
    rollout = priced(policy)
    one = algorithm("rloo", policy, *PRICED)
    taken = ((rollout.rewards - one.kl.rewards(rollout)).sum(1) * rollout.weights).sum()
    log_ratio = rollout.log_probs.sum(1) - rollout.reference_log_probs.sum(1)
    divergence = (rollout.log_probs.sum(1).exp() * log_ratio).sum()
    assert divergence > 0.1
    torch.testing.assert_close(taken, 0.5 * divergence)


def test_k3_is_the_kl_under_the_policy_s_own_samples_and_not_chi_squared():
    # DEFECT 2: expm1(r) - r with r = log pi - log ref is chi^2(pi || ref) - KL under samples of pi, and unbounded.
    policy = Table()
    rollout = priced(policy)
    one = algorithm("grpo", policy, "algo.kl.coefficient=1", "algo.kl.estimator=k3", "algo.aggregation=sequence_sum")
    found = one.kl.loss(rollout.log_probs, one.prepare(rollout))
    log_ratio = rollout.log_probs - rollout.reference_log_probs
    torch.testing.assert_close(found, (rollout.weights[:, None] * log_ratio).sum())
    wrong = (rollout.weights[:, None] * (torch.expm1(log_ratio) - log_ratio)).sum()
    assert abs(wrong - found) > 0.05


def test_the_kl_of_a_completion_is_a_sum_that_its_length_does_not_divide():
    # DEFECT 3: a mean over tokens makes the price beta KL / length: long completions diverge for less.
    policy = Table()
    rollout = lengths_of(tree(policy), [1, 2])
    rollout.reference_log_probs = rollout.log_probs - 0.25
    one = algorithm("rloo", policy, *PRICED)
    prices = (rollout.rewards - one.kl.rewards(rollout)).sum(1)
    assert prices.tolist() == pytest.approx([0.5 * 0.25, 0.5 * 0.5])


def test_the_kl_cannot_stand_in_both_places_and_k1_not_in_the_loss():
    # PITFALL: verl #265, #750, #3276 (twice); TRL #4967 (k1 has no expected gradient in a loss).
    fields = type(compose(["algo=ppo"]).algo.kl).model_fields
    assert fields["placement"].annotation.__args__ == ("reward", "loss"), "one of the two"
    with pytest.raises(InputError, match="has an expected gradient of zero"):
        compose(["algo=ppo", "algo.kl.coefficient=0.1", "algo.kl.placement=loss"])


@pytest.mark.parametrize("estimator", ["k2", "k3", "k3_corrected"])
def test_a_log_ratio_beyond_what_exp_can_hold_overflows_nowhere(estimator):
    # PITFALL: OpenRLHF #1335, TRL #3015.
    policy = Table()
    rollout = replace(tree(policy), weights=None)
    rollout.reference_log_probs = torch.full_like(rollout.log_probs, 0.0)
    far = Table()
    far.logits.data = far.logits.data.float() * 1000
    words = ["algo.kl.coefficient=0.1", f"algo.kl.estimator={estimator}"]
    one = algorithm("grpo", policy, *words)
    total, _ = one.loss(far, one.prepare(rollout), None)
    (gradient,) = torch.autograd.grad(total, [far.logits])
    assert total.isfinite()
    assert gradient.isfinite().all()


# ---------------------------------------------------------------- lengths and normalisers


def test_dr_grpo_weights_no_action_by_the_length_of_its_completion():
    # DEFECT 4: "Dr. GRPO" kept the mean over a completion's tokens: of two wrong answers the longer was punished less.
    batch = algorithm("dr_grpo", Table()).prepare(lengths_of(tree(Table()), [1, 2]))
    assert batch.weights[0, 0] == batch.weights[1, 0] == batch.weights[1, 1] > 0
    grpo = algorithm("grpo", Table()).prepare(lengths_of(tree(Table()), [1, 2]))
    assert grpo.weights[0, 0] == 2 * grpo.weights[1, 0], "as published, which is the bias"


def test_dr_grpo_divides_by_no_deviation():
    policy = Table()
    rollout = lengths_of(tree(policy), [2, 2])
    rollout = replace(
        rollout, rewards=torch.tensor([[0.0, 10.0], [0.0, 0.0]]), groups=torch.zeros(2, dtype=torch.int64)
    )
    assert algorithm("dr_grpo", policy).prepare(rollout).advantages[:, 0].tolist() == [5, -5]


@pytest.mark.parametrize("name", ["reinforce", "rloo", "vanilla_pg"])
def test_a_policy_gradient_is_that_of_the_whole_completion_s_log_prob(name):
    # DEFECT 5: a mean over tokens follows grad log pi(y) / |y|.
    policy = Table()
    rollout = lengths_of(tree(policy), [1, 2, 2])
    batch = algorithm(name, policy).prepare(rollout)
    assert batch.weights[rollout.mask].tolist() == pytest.approx([1 / 3] * 5)


@pytest.mark.parametrize("name", ["dapo", "grpo", "rloo"])
def test_token_means_are_of_the_whole_batch_however_it_is_cut(name):
    # DEFECT 8, and TRL #3021, #3231, #6369, open-instruct #1161: a mean of the means of micro-batches is another loss.
    policy = Table()
    rollout = lengths_of(tree(policy), [1, 2, 2, 2, 1, 2])
    one = algorithm(name, policy, "algo.aggregation=token_mean", "algo.entropy_coefficient=0.1")
    batch = one.prepare(rollout)

    def gradient(*pieces):
        total = sum(one.loss(policy, piece, None)[0] for piece in pieces)
        return torch.autograd.grad(total, [policy.logits])[0]

    whole = gradient(batch)
    torch.testing.assert_close(gradient(*batch.minibatches(3, torch.randperm(6))) / 3, whole, atol=1e-7, rtol=0)
    torch.testing.assert_close(gradient(batch[:1], batch[1:4], batch[4:]), whole, atol=1e-7, rtol=0)


# ---------------------------------------------------------------- sampling and scoring


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_what_was_sampled_is_what_is_scored_at_any_temperature(temperature):
    # DEFECT 6, TRL #3029, #4159, ms-swift #8427: sampled at one temperature, scored at another.
    # PITFALL 14: the mismatch of sampler and trainer is reported, and rounding is all there is of it.
    parts = build(compose(["algo=grpo", *SMALL, *GROUPS, f"policy.temperature={temperature}", "algo.epochs=1"]))
    metrics = parts.algorithm.update(parts.collector.collect(parts.policy))
    assert metrics["policy/mismatch_max"] < 1e-5
    assert metrics["policy/ratio_max"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("word", ["policy.top_p=0.95", "algo.top_k=20"])
def test_training_cannot_sample_from_a_truncated_distribution(word):
    # PITFALL 1: an importance ratio of a token that the truncation has since cut off is no ratio.
    with pytest.raises(InputError, match="each update would change which tokens the truncation leaves"):
        compose(["algo=grpo", "env=sort", word])


def test_log_probs_and_values_belong_to_the_state_before_the_action():
    # PITFALL 2: logits at t score token t + 1; V(s_t) is read before token t.
    parts = build(compose(["algo=ppo", *SMALL, "algo.num_episodes=3", "algo.minibatches=1"]))
    parts.policy.critic.data.fill_(0.3)
    rollout = parts.collector.collect(parts.policy)
    with torch.no_grad():
        before = parts.policy(rollout.observations, rollout.actions)
        changed = rollout.actions.clone()
        changed[:, 3] = (changed[:, 3] + 1) % 10
        after = parts.policy(rollout.observations, changed)
    torch.testing.assert_close(after.log_probs[:, :3], before.log_probs[:, :3])
    torch.testing.assert_close(after.values[:, :4], before.values[:, :4])
    assert (after.log_probs[:, 3] != before.log_probs[:, 3]).all()
    assert (after.values[:, 4] != before.values[:, 4]).all()


class DropsOut(nn.Module):
    """Drops out as models do: by a module of its own, and by a rate that a function is given."""

    def __init__(self):
        super().__init__()
        self.attention_dropout, self.layer = 0.5, nn.Dropout(0.5)

    def forward(self, x):
        return self.layer(x), F.dropout(x, self.attention_dropout, self.training)


def test_a_model_that_drops_out_is_a_policy_that_says_the_same_twice():
    # PITFALL 6: dropout makes a ratio of 1 a lottery. No built-in model has it; one that policy=hf loads may, and
    # gradient checkpointing trains it in training mode.
    model, x = nn.Sequential(DropsOut()), torch.ones(64)
    assert all((part == 0).any() for part in model(x))
    _without_dropout(model)
    assert not any(module.training for module in model.modules())
    model.train()
    assert all(torch.equal(part, x) for part in model(x))


# ---------------------------------------------------------------- the end of a completion


class Ending:
    """Writes 1, then the end token 2, to everyone; whatever comes later would be 0."""

    def prefill(self, observations):
        self.t = 0
        return self._logits(len(observations["prompt"])), None

    def step(self, tokens, cache):
        self.t += 1
        return self._logits(len(tokens))

    def _logits(self, n):
        logits = torch.full((n, 3), -9.0)
        logits[:, (1, 2, 0)[self.t]] = 9.0
        return logits


@pytest.mark.parametrize("pad", [2, 0])
def test_the_end_token_is_an_action_and_is_trained_even_where_it_also_pads(pad):
    # DEFECT 10, nanochat #810: `tokens == pad` masked the end token too, and stopping was never reinforced.
    prompt = {"prompt": torch.zeros(2, 1, dtype=torch.int64)}
    written = decode(Ending(), prompt, length=4, end=2, pad=pad, noise=None)
    assert written.actions.tolist() == [[1, 2, pad, pad]] * 2
    assert written.mask.tolist() == [[True, True, False, False]] * 2
    assert (written.log_probs[:, 2:] == 0).all(), "finite on padding, where NaN would survive a multiplication by 0"


@pytest.mark.parametrize("algo", ["rloo", "ppo"])
def test_the_reward_lands_on_the_end_token_and_never_behind_it(algo):
    # PITFALL 3: TRL #3750, #1893, #5338: the score stood on the first padding.
    few = GROUPS if algo == "rloo" else ["algo.num_episodes=6"]
    parts = build(compose([f"algo={algo}", *SMALL, *few, "env.cut_reward=-1"]))
    rollout = parts.collector.collect(parts.policy)
    last = rollout.mask.sum(1) - 1
    places = rollout.rewards != 0
    assert places.any()
    assert (places.nonzero()[:, 1] == last[places.any(1)]).all()
    assert not (places & ~rollout.mask).any()


def test_a_limit_is_not_an_end_and_nothing_is_bootstrapped_behind_either():
    # PITFALL 13: a completion that was cut gets its reward for that, and no V of what it might have become.
    parts = build(compose(["algo=ppo", *SMALL, "algo.num_episodes=16"]))
    parts.policy.critic.data.fill_(0.3)
    rollout = parts.collector.collect(parts.policy)
    assert rollout.truncated.any()
    assert not (rollout.truncated & rollout.terminated).any()
    assert ((rollout.done.sum(1)) == 1).all()
    assert (rollout.next_values[rollout.done] == 0).all()


# ---------------------------------------------------------------- numbers


def test_small_steps_arrive():
    # DEFECT 7: bfloat16 parameters under Adam at 5e-6 lost nine in ten of their updates.
    parts = build(compose(["algo=grpo", *SMALL, *GROUPS]))
    assert {p.dtype for p in parts.policy.parameters()} == {torch.float32}
    weights = torch.nn.Parameter(torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 0.02)
    start = weights.detach().clone()
    adam = Adam([weights], parts.config.algo)
    for _ in range(10):
        adam.gradient.fill_(1.0)
        adam.step(5e-6, adam.norm())
    moved = start - weights.detach()
    torch.testing.assert_close(moved, torch.full_like(moved, 5e-5), rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", ["grpo", "ppo", "rloo", "reinforce", "dapo", "gspo", "cispo", "sapo"])
def test_padding_reaches_no_parameter_whatever_a_policy_says_of_it(name):
    # PITFALL 5: NaN * 0 is NaN (OpenRLHF #1240, verl #6361). A policy that says NaN of padding is as good as any.
    policy = Table()
    rollout = lengths_of(tree(policy), [1, 2, 1, 2])
    rollout.values, rollout.next_values = rollout.values.clone(), rollout.next_values.clone()
    rollout.reference_log_probs = torch.where(rollout.mask, rollout.log_probs - 0.1, 0)

    def clean(observations, actions):
        return policy(observations, actions)

    def spoiled(observations, actions):
        found = policy(observations, actions)
        return found._replace(
            log_probs=torch.where(rollout.mask, found.log_probs, torch.nan),
            entropy=torch.where(rollout.mask, found.entropy, torch.nan),
            values=torch.where(rollout.mask, found.values, torch.nan),
        )

    placement = "loss" if name not in ("rloo", "reinforce") else "reward"
    estimator = {"loss": "k3_corrected", "reward": "k1"}[placement]
    words = ["algo.kl.coefficient=0.1", f"algo.kl.placement={placement}", f"algo.kl.estimator={estimator}"]
    words += ["algo.normalise_advantages=batch"] if name == "ppo" else []
    one = algorithm(name, policy, *words)
    batch = one.prepare(rollout)
    totals = [one.loss(f, batch, None)[0] for f in (clean, spoiled)]
    torch.testing.assert_close(totals[1], totals[0])
    gradients = [torch.autograd.grad(total, [policy.logits])[0] for total in totals]
    torch.testing.assert_close(gradients[1], gradients[0])


def test_whitened_advantages_have_seen_no_padding():
    # PITFALL 12.
    x, mask = torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[True, True, False]])
    torch.testing.assert_close(whiten(x, mask), torch.tensor([[-1.0, 1.0, 0.0]]))
    policy = Table()
    batch = algorithm("ppo", policy, "algo.normalise_advantages=batch").prepare(lengths_of(tree(policy), [1, 2, 2]))
    kept = batch.advantages[batch.mask]
    assert kept.mean().item() == pytest.approx(0, abs=1e-6)
    assert kept.std(correction=0).item() == pytest.approx(1, abs=1e-5)


# ---------------------------------------------------------------- groups


def test_a_baseline_of_the_others_does_not_hold_its_own_return():
    # PITFALL 16.
    returns, groups = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0]), torch.tensor([0, 0, 0, 1, 1])
    more = returns + torch.tensor([7.0, 0, 0, 0, 0])
    difference = leave_one_out(more, groups) - leave_one_out(returns, groups)
    torch.testing.assert_close(difference, torch.tensor([7.0, -3.5, -3.5, 0, 0]))


def test_shuffling_and_cutting_come_after_a_group_has_been_compared():
    # PITFALL 16: a group that minibatches split would be compared with a part of itself.
    parts = build(compose(["algo=grpo", *SMALL, *GROUPS, "algo.minibatches=3", "env.cut_reward=-1"]))
    rollout = parts.collector.collect(parts.policy)
    rollout.rewards = rollout.rewards + torch.arange(6.0)[:, None] * rollout.done
    batch = parts.algorithm.prepare(rollout)
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    cut = torch.cat([piece.advantages[:, 0] for piece in batch.minibatches(3, order)])
    assert torch.equal(cut, batch.advantages[order, 0])


def test_groups_of_one_return_are_counted_and_only_the_kl_moves_them():
    # PITFALL 10: TRL #5588.
    parts = build(compose(["algo=grpo", *SMALL, *GROUPS]))
    rollout = parts.collector.collect(parts.policy)
    rollout.rewards = torch.zeros_like(rollout.rewards)
    before = parts.algorithm.updater.flat.clone()
    assert parts.algorithm.update(rollout)["rollout/zero_variance_groups"] == 1
    assert torch.equal(parts.algorithm.updater.flat, before)
