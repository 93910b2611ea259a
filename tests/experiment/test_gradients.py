"""The variance of a gradient, measured beside training and without disturbing it."""

import pytest
import torch

from pgcli.errors import InputError
from pgcli.experiment import train
from pgcli.experiment.build import build
from pgcli.experiment.config import compose
from pgcli.experiment.gradients import METRICS, measure
from pgcli.runs.checkpoint import load_newest

from .conftest import MLP, TINY

WORDS = ("env=cartpole", "env.max_episode_steps=20", "device=cpu", "tuned=none", MLP)


def measured(*words, rollouts=30):
    parts = build(compose([*WORDS, *words]))
    found = measure(parts, rollouts)
    parts.close()
    return found


def test_a_baseline_makes_the_gradient_of_a_constant_reward_less_noisy():
    # One a step, up to a limit: the return is nearly constant, and without a baseline all of it is noise.
    without = measured("algo=vanilla_pg", "algo.gamma=1", "algo.num_episodes=32")
    grouped = measured("algo=rloo", "algo.num_groups=4", "algo.group_size=8")
    assert set(without) <= set(METRICS)
    assert grouped["gradient/variance"] < without["gradient/variance"] / 4


def test_it_is_the_variance_of_independent_rollouts_and_falls_with_their_size():
    small = measured("algo=rloo", "algo.num_groups=2", "algo.group_size=4", rollouts=60)
    large = measured("algo=rloo", "algo.num_groups=8", "algo.group_size=4", rollouts=60)
    assert small["gradient/variance"] / large["gradient/variance"] == pytest.approx(4, rel=0.5)


@pytest.mark.parametrize("chosen", ["gspo", "ppo", "grpo", "raft algo.selection=random"])
def test_measuring_leaves_the_parameters_and_what_comes_next_as_they_were(chosen):
    words = [*f"algo={chosen}".split(), *WORDS]
    parts, other = build(compose(words)), build(compose(words))
    before = [p.clone() for p in parts.policy.parameters()]
    measure(parts, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, parts.policy.parameters(), strict=True))
    ours, theirs = parts.collector.collect(parts.policy), other.collector.collect(other.policy)
    assert torch.equal(ours.actions, theirs.actions)
    parts.algorithm.update(ours)
    other.algorithm.update(theirs)
    assert all(torch.equal(a, b) for a, b in zip(parts.policy.parameters(), other.policy.parameters(), strict=True))
    parts.close()
    other.close()


def test_a_run_that_measures_ends_as_one_that_does_not(tmp_path):
    words = [*TINY, "algo=rloo", "algo.num_groups=2", "algo.group_size=2", *WORDS, "total_steps=300"]
    plain = train(*words, run_dir=tmp_path / "plain", quiet=True)
    watched = train(*words, "eval.gradients=3", run_dir=tmp_path / "watched", quiet=True)
    assert watched.rows()[-1]["gradient/variance"] > 0
    ends = [torch.cat([p.flatten() for p in weights.values()]) for weights in map(final, (plain, watched))]
    assert torch.equal(*ends)


def final(run):
    return load_newest(run.path / "checkpoints").state["policy"]


@pytest.mark.parametrize("algo", ["dqn", "es", "a3c"])
def test_what_follows_no_gradient_of_its_own_loss_is_refused(tmp_path, algo):
    with pytest.raises(InputError, match=f"algo={algo} has no loss on a rollout"):
        train(*WORDS, f"algo={algo}", "eval.gradients=2", run_dir=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_one_gradient_does_not_vary():
    with pytest.raises(InputError, match="one gradient says nothing of how they vary"):
        compose(["eval.gradients=1"])
