"""What a step does to a real policy: how far it goes, what it leaves alone, and what is undone when it is no good."""

import math

import pytest
import torch

from pgcli.algorithms import npg, trpo
from pgcli.algorithms._update import by_unit, held_still, present_distribution
from pgcli.errors import InputError, RunError
from pgcli.experiment.build import build
from pgcli.experiment.config import compose

POLICIES = {
    "categorical": ["env=cartpole", "algo.num_envs=4", "algo.num_steps=64", "policy.hidden=[8]"],
    "gaussian": ["env=pendulum", "algo.num_envs=4", "algo.num_steps=64", "policy.hidden=[8]"],
    "image": ["env=probe_image", "algo.num_envs=8", "algo.num_steps=4", "policy.channels=[4,4]"],
    "transformer": ["env=sort", "algo.num_episodes=64", "policy.width=16", "policy.heads=2", "policy.hidden=16"],
}
ONE = POLICIES["categorical"]


def made(algo, *words):
    return build(compose([f"algo={algo}", "tuned=none", "device=cpu", *words]))


def rewarded(parts):
    """A rollout with something to learn, whatever the task pays at the start."""
    rollout = parts.collector.collect(parts.policy)
    generator = torch.Generator().manual_seed(0)
    rollout.rewards = torch.where(rollout.mask, torch.randn(rollout.rewards.shape, generator=generator), 0)
    return rollout


def snapshot(policy):
    return {name: p.detach().clone() for name, p in policy.named_parameters()}


def changed(policy, before):
    return {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}


def kl_between(parts, old, rollout):
    new = present_distribution(parts.policy, rollout)
    return float(old.kl(new)[rollout.mask].mean())


@pytest.mark.parametrize("words", POLICIES.values(), ids=POLICIES)
def test_a_trust_region_step_improves_within_its_bound_on_every_kind_of_policy(words):
    parts = made("trpo", *words, "algo.max_kl=0.005")
    for _ in range(3):
        rollout = rewarded(parts)
        old = present_distribution(parts.policy, rollout)
        metrics = parts.algorithm.update(rollout)
        assert metrics["policy/accepted"] == 1.0
        assert metrics["policy/kl"] == pytest.approx(kl_between(parts, old, rollout), rel=1e-3)
        assert 0.001 < metrics["policy/kl"] <= 0.005
        assert metrics["policy/improvement"] > 0
        assert metrics["policy/improvement"] == pytest.approx(metrics["policy/predicted_improvement"], rel=0.6)


@pytest.mark.parametrize("words", POLICIES.values(), ids=POLICIES)
def test_a_natural_step_has_about_the_length_that_it_was_given(words):
    # A little shorter, since the damping is no KL; with much less of it the step goes where the model is wrong.
    parts = made("npg", *words, "algo.max_kl=1e-4", "algo.damping=1e-3", "algo.cg_iterations=30")
    metrics = parts.algorithm.update(rewarded(parts))
    assert 0.75e-4 < metrics["policy/kl"] < 1.05e-4
    assert metrics["policy/improvement"] == pytest.approx(metrics["policy/predicted_improvement"], rel=0.1)


@pytest.mark.parametrize("algo", ["npg", "trpo"])
@pytest.mark.parametrize("words", POLICIES.values(), ids=POLICIES)
def test_fitting_the_value_function_leaves_the_policy_where_the_step_put_it(algo, words):
    parts = made(algo, *words)
    rollout = rewarded(parts)
    batch = parts.algorithm.prepare(rollout)
    moved, _ = parts.algorithm._step(by_unit(parts.policy, batch))
    stepped = snapshot(parts.policy)
    with held_still(moved):
        parts.algorithm.updater.epochs(parts.algorithm.value_loss, batch, epochs=3, minibatches=4, steps=1)
    critic = {name for name in stepped if name.startswith("critic")}
    assert changed(parts.policy, stepped) == critic
    assert all(p.requires_grad for p in parts.policy.parameters())
    assert {id(p) for p in moved} == {id(p) for name, p in parts.policy.named_parameters() if name not in critic}


@pytest.mark.parametrize("worse", ["surrogate", "kl", "nan"])
def test_a_rejected_step_leaves_the_policy_as_it_was_bit_for_bit(worse, monkeypatch):
    parts = made("trpo", *ONE)
    rollout = rewarded(parts)
    before = snapshot(parts.policy)
    honest, calls = parts.algorithm.loss, []

    def loss(policy, batch, noise):
        total, terms = honest(policy, batch, noise)
        calls.append(snapshot(parts.policy))
        if len(calls) > 1:  # the line search, not the gradient
            total = total + 1 if worse == "surrogate" else total * math.nan if worse == "nan" else total
            terms["policy/kl"] = terms["policy/kl"] + (1 if worse == "kl" else 0)
        return total, terms

    monkeypatch.setattr(parts.algorithm, "loss", loss)
    metrics = parts.algorithm.update(rollout)
    tried = parts.config.algo.line_search_steps
    assert len(calls) == 1 + tried
    assert all(not torch.equal(a["actor.layers.0.weight"], before["actor.layers.0.weight"]) for a in calls[1:])
    assert metrics["policy/accepted"] == metrics["policy/kl"] == metrics["policy/improvement"] == 0
    assert metrics["policy/line_search_steps"] == tried
    assert {name.partition(".")[0] for name in changed(parts.policy, before)} == {"critic"}


def test_the_line_search_shortens_a_step_that_goes_too_far():
    parts = made("trpo", *ONE, "algo.max_kl=0.5", "algo.damping=1e-6", "algo.cg_iterations=30")
    tries = []
    for _ in range(5):
        metrics = parts.algorithm.update(rewarded(parts))
        tries.append(metrics["policy/line_search_steps"])
        assert metrics["policy/kl"] <= 0.5
    assert max(tries) > 1


@pytest.mark.parametrize("algo", ["npg", "trpo"])
def test_a_gradient_that_is_not_finite_stops_before_the_step(algo):
    parts = made(algo, *ONE)
    rollout = rewarded(parts)
    rollout.rewards[0, 0] = math.nan
    before = snapshot(parts.policy)
    with pytest.raises(RunError, match=r"update 1: .*policy/grad_norm = nan.*stopped before the optimiser step"):
        parts.algorithm.update(rollout)
    assert changed(parts.policy, before) == set()


def test_the_schedule_scales_the_natural_step_too():
    sizes = []
    for factor in ("algo.schedule=constant", "algo.schedule=robbins_monro"):
        parts = made("npg", *ONE, factor, "algo.schedule_c=1", "algo.schedule_offset=3")  # 1 / (1 + 3)
        before = snapshot(parts.policy)
        parts.algorithm.update(rewarded(parts))
        sizes.append(parts.policy.actor.layers[0].weight.detach() - before["actor.layers.0.weight"])
    torch.testing.assert_close(sizes[1], sizes[0] / 4, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("module", [npg, trpo])
def test_padding_and_row_weights_do_not_reach_the_kl(module):
    # On episodes of different lengths: the KL of a step is a mean over actions that were taken.
    name = module.__name__.rpartition(".")[2]
    parts = made(name, "env=cartpole", "algo.collect=episodes", "algo.num_episodes=8", "policy.hidden=[8]")
    rollout = rewarded(parts)
    assert not rollout.mask.all()
    old = present_distribution(parts.policy, rollout)
    metrics = parts.algorithm.update(rollout)
    assert metrics["policy/kl"] == pytest.approx(kl_between(parts, old, rollout), rel=1e-3)


def test_the_old_distribution_does_not_move_with_the_parameters():
    parts = made("ppo_kl", *POLICIES["gaussian"])
    rollout = rewarded(parts)
    old = present_distribution(parts.policy, rollout)
    with torch.no_grad():
        parts.policy.head.log_std += 1
    assert old.log_std.unique().tolist() == [0.0]
    assert old.mean.shape == old.log_std.shape == rollout.actions.shape


# ---------------------------------------------------------------- a price on the KL


def test_beta_follows_the_kl_and_is_part_of_the_checkpoint():
    parts = made("ppo_kl", *ONE, "algo.learning_rate=1e-6")  # hardly moves: beta halves
    used = [parts.algorithm.update(rewarded(parts))["policy/kl_coefficient"] for _ in range(3)]
    assert used == [1.0, 0.5, 0.25]
    other = made("ppo_kl", *ONE)
    other.load_state_dict(parts.state_dict())
    assert other.algorithm.kl_coefficient == 0.125

    parts = made("ppo_kl", *ONE, "algo.kl_penalty.target=1e-7")  # too far: it doubles
    used = [parts.algorithm.update(rewarded(parts))["policy/kl_coefficient"] for _ in range(3)]
    assert used == [1.0, 2.0, 4.0]


def test_without_a_target_beta_stays_and_a_higher_price_buys_a_shorter_update():
    kls = []
    for beta in (0.01, 100):
        parts = made("ppo_kl", *ONE, "algo.kl_penalty.target=null", f"algo.kl_penalty.coefficient={beta}")
        rollout = rewarded(parts)
        old = present_distribution(parts.policy, rollout)
        metrics = parts.algorithm.update(rollout)
        assert metrics["policy/kl"] == pytest.approx(kl_between(parts, old, rollout), rel=1e-3)
        assert parts.algorithm.kl_coefficient == beta
        kls.append(metrics["policy/kl"])
    assert kls[1] < kls[0] / 3


def test_a_target_with_nothing_to_adapt_is_refused():
    with pytest.raises(InputError, match=r"algo.kl_penalty.*start above 0"):
        compose(["algo=ppo", "algo.kl_penalty.target=0.01"])


@pytest.mark.parametrize("algo", ["npg", "trpo"])
def test_a_pole_is_balanced_five_times_as_long_after_ten_updates(algo):
    parts = made(algo, "env=cartpole", "policy.hidden=[32]", "algo.value_minibatches=4", "algo.max_kl=0.02")
    for _ in range(10):
        rollout = parts.collector.collect(parts.policy)
        parts.algorithm.update(rollout)
    totals = [episode.total for episode in rollout.episodes]
    assert sum(totals) / len(totals) > 110  # 22 at random
