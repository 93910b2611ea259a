"""DDPG, TD3 and SAC: their formulas by hand, whose turn it is, and the noise that explores."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pgcli.collectors.exploration import OrnsteinUhlenbeck, WhiteNoise
from pgcli.errors import InputError, RunError
from pgcli.experiment.build import build
from pgcli.experiment.config import compose, dump
from pgcli.experiment.loop import Pending

SMALL = ["policy.hidden=[16,16]", "algo.learning_starts=64", "algo.batch_size=32", "device=cpu", "tuned=none"]


def parts(algo, *words, env="pendulum"):
    return build(compose([f"algo={algo}", f"env={env}", *SMALL, *words]))


def snapshot(parts):
    return {name: p.clone() for name, p in parts.policy.named_parameters()}


def moved(parts, before):
    return {name.partition(".")[0] for name, p in parts.policy.named_parameters() if not torch.equal(p, before[name])}


def test_ddpg_moves_everything_at_every_step_and_td3_the_actor_and_the_targets_at_every_other():
    everything = {"actor", "critics", "target_actor", "target_critics"}
    for algo, turns in (("ddpg", [everything] * 2), ("td3", [{"critics"}, everything] * 2)):
        p = parts(algo)
        for turn in turns:
            before = snapshot(p)
            metrics = p.algorithm.update(p.collector.collect(p.behaviour()))
            assert moved(p, before) == turn
            assert ("loss/actor" in metrics) == ("actor" in turn)


def test_a_row_averages_what_only_some_updates_report_over_those():
    pending = Pending()
    for metrics in ({"loss/critic": 1.0}, {"loss/critic": 3.0, "loss/actor": 5.0}):
        pending.add(metrics, [])
    assert pending.take() == {"loss/critic": 2, "loss/actor": 5, "rollout/episodes": 0}


def test_td3_is_ddpg_with_three_choices():
    ddpg, td3 = (dump(compose([f"algo={algo}", "env=pendulum", "tuned=none"]))["algo"] for algo in ("ddpg", "td3"))
    assert {key for key in ddpg if ddpg[key] != td3[key]} == {"critics", "target_noise", "actor_every"}


def test_the_targets_follow_the_networks_after_their_step():
    p = parts("sac", "algo.tau=0.25")
    before = snapshot(p)
    p.algorithm.update(p.collector.collect(p.behaviour()))
    after = snapshot(p)
    for name in before:
        if name.startswith("critics"):
            followed = 0.75 * before[f"target_{name}"] + 0.25 * after[name]
            assert_close(after[f"target_{name}"], followed)


@pytest.mark.parametrize(("algo", "noise"), [("td3", (64, 1)), ("sac", (2, 64, 1))])
def test_a_reward_s_scale_is_the_value_s(algo, noise):
    p = parts(algo, "algo.gamma=0", "algo.reward_scale=0.01")
    replay = p.collector.collect(p.behaviour())
    batch = replay.draw(64)
    found = p.algorithm.loss(p.policy, batch, torch.zeros(noise))[1]
    assert float(found["value/target"]) == pytest.approx(0.01 * batch.rewards.mean().item(), rel=1e-5)


def test_the_actor_of_td3_follows_its_first_critic_alone():
    p = parts("td3")
    batch = p.collector.collect(p.behaviour()).draw(64)
    with torch.no_grad():
        for parameter in p.policy.critics[1].parameters():
            parameter.add_(1)
    actions = p.policy.act(batch.observations, torch.zeros(64, 1))[0]
    first, second = p.policy.fixed_values(batch.observations, actions).mean(1).tolist()
    assert abs(first - second) > 0.1
    assert p.algorithm.actor_loss(p.policy, batch, torch.zeros(64, 1))[0].item() == pytest.approx(-first, rel=1e-5)


def test_a_fixed_temperature_stays():
    p = parts("sac", "algo.learn_temperature=false", "algo.initial_temperature=0.2")
    for _ in range(2):
        metrics = p.algorithm.update(p.collector.collect(p.behaviour()))
    assert metrics["policy/temperature"] == pytest.approx(0.2)
    assert p.algorithm.log_temperature.item() == pytest.approx(math.log(0.2))


def test_the_actor_waits_for_critic_steps_not_for_updates():
    p = parts("td3", "algo.gradient_steps=2")
    before = snapshot(p)
    assert "loss/actor" in p.algorithm.update(p.collector.collect(p.behaviour()))
    assert "actor" in moved(p, before)


def test_the_temperature_has_a_target_and_a_learning_rate_of_its_own():
    p = parts("sac", "algo.temperature_learning_rate=0.1", "algo.actor_learning_rate=1e-4")
    assert p.algorithm.target_entropy == -1  # Pendulum has one action component
    before = p.algorithm.log_temperature.item()
    p.algorithm.update(p.collector.collect(p.behaviour()))
    # Adam's first step is its learning rate, whatever the gradient's size.
    assert abs(p.algorithm.log_temperature.item() - before) == pytest.approx(0.1, rel=1e-3)


def test_several_gradient_steps_are_averaged():
    p = parts("td3", "algo.gradient_steps=5")
    metrics = p.algorithm.update(p.collector.collect(p.behaviour()))
    assert metrics["optimiser/gradient_steps"] == 5
    assert metrics["replay/size"] == 65
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("algo", ["ddpg", "td3", "sac"])
def test_what_is_not_finite_stops_before_a_parameter_moves(algo):
    p = parts(algo)
    replay = p.collector.collect(p.behaviour())
    with torch.no_grad():
        p.policy.critics[0].layers[0].bias[0] = math.nan
    before = snapshot(p)
    with pytest.raises(RunError, match="loss/critic = nan"):
        p.algorithm.update(replay)
    assert {n for n in moved(p, before) if n != "critics"} == set()  # NaN differs from itself


@pytest.mark.parametrize("algo", ["ddpg", "td3", "sac"])
def test_the_algorithm_s_whole_state_is_in_its_state_dict(algo):
    words = ("algo.exploration=ornstein_uhlenbeck",) if algo != "sac" else ()
    first, second = parts(algo, *words), parts(algo, *words)
    for _ in range(3):
        first.algorithm.update(first.collector.collect(first.behaviour()))
    second.load_state_dict(first.state_dict())
    for p in (first, second):
        for _ in range(3):
            p.algorithm.update(p.collector.collect(p.behaviour()))
    for (name, a), (_, b) in zip(first.policy.named_parameters(), second.policy.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_white_noise_has_its_deviation():
    drawn = WhiteNoise(0.1).draw(np.random.default_rng(0), (20_000, 1, 2))
    assert drawn.std() == pytest.approx(0.1, rel=0.02)
    assert abs(np.corrcoef(drawn[1:, 0, 0], drawn[:-1, 0, 0])[0, 1]) < 0.03


def test_ornstein_uhlenbeck_noise_remembers():
    drawn = OrnsteinUhlenbeck(0.2, 0.15).draw(np.random.default_rng(0), (100_000, 1, 1))[:, 0, 0]
    assert drawn.std() == pytest.approx(0.2 / math.sqrt(1 - 0.85**2), rel=0.05)
    assert np.corrcoef(drawn[1:], drawn[:-1])[0, 1] == pytest.approx(0.85, abs=0.01)


def test_ornstein_uhlenbeck_noise_is_one_path_however_it_is_cut():
    whole = OrnsteinUhlenbeck(0.2, 0.15).draw(np.random.default_rng(0), (6, 2, 1))
    process, generator = OrnsteinUhlenbeck(0.2, 0.15), np.random.default_rng(0)
    pieces = [process.draw(generator, (2, 2, 1)) for _ in range(3)]
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=1e-6)


def test_exploring_moves_the_action_by_the_noise_in_units_of_the_box():
    p = parts("ddpg", "algo.exploration_std=0.1")
    sampler = p.behaviour().sampler()
    x = np.zeros((1, 3), np.float32)
    greedy = p.policy.sampler().act(x, None)[0]
    noise = sampler.noise(np.random.default_rng(0), (5_000, 1))
    assert noise.shape == (5_000, 1, 1)
    explored = np.concatenate([sampler.act(x, z)[0] for z in noise])
    assert explored.std() == pytest.approx(0.2, rel=0.05)  # half of Pendulum's range is 2
    assert explored.mean() == pytest.approx(greedy.item(), abs=0.02)
    assert sampler.act(x, np.full((1, 1), 9, np.float32))[0] == 2


@pytest.mark.parametrize("algo", ["ddpg", "td3", "sac"])
def test_discrete_actions_are_refused_with_the_methods_that_fit(algo):
    with pytest.raises(InputError, match=rf"algo={algo} is for continuous actions.*discrete: try algo=a2c, .*ppo"):
        build(compose([f"algo={algo}", "env=cartpole"]))


def test_a_missing_extra_names_its_command(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "mujoco", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match=r"pip install 'gymnasium\[mujoco\]'"):
        build(compose(["algo=sac", "env=HalfCheetah-v5"]))


def test_the_policy_s_defaults_are_the_algorithm_s_and_an_explicit_choice_wins():
    assert compose(["algo=sac", "env=pendulum", "tuned=none"]).policy.hidden == (256, 256)
    assert compose(["algo=sac", "env=pendulum", "policy.hidden=[32]"]).policy.hidden == (32,)
    assert compose(["algo=ppo", "env=pendulum"]).policy.hidden == (64, 64)
    assert compose(["algo=td3", "env=pendulum", "policy=mlp", "tuned=none"]).policy.hidden == (64, 64)


# ---------------------------------------------------------------- the probes

PROBE = [
    "algo.learning_starts=200", "algo.batch_size=64", "algo.num_envs=4", "algo.gamma=0.9", "algo.tau=0.05",
    "algo.actor_learning_rate=3e-3", "algo.critic_learning_rate=3e-3", "policy.hidden=[32,32]",
]  # fmt: skip
LEARNERS = {
    "ddpg": ["algo.exploration_std=0.3"],
    "td3": ["algo.exploration_std=0.3"],
    "sac": ["algo.learn_temperature=false", "algo.initial_temperature=0.01"],
}


def learned(algo, env, steps):
    p = build(compose([f"algo={algo}", f"env=probe_{env}_continuous", "device=cpu", *PROBE, *LEARNERS[algo]]))
    for _ in range(steps):
        p.algorithm.update(p.collector.collect(p.behaviour()))
    return p


def judged(p, *observations):
    """Q(s, mu(s)) by the lowest critic."""
    x = torch.tensor(observations, dtype=torch.float32)[:, None]
    with torch.no_grad():
        actions, _ = p.policy.act(x, torch.zeros(len(x), 1))
        return actions[:, 0].tolist(), p.policy.values(x, actions).amin(0).tolist()


@pytest.mark.parametrize("algo", LEARNERS)
def test_a_value_that_depends_on_the_observation_is_learned(algo):
    assert judged(learned(algo, "observation_value", 600), -1, 1)[1] == pytest.approx([-1, 1], abs=0.07)
    assert judged(learned(algo, "constant_reward", 400), 0)[1] == pytest.approx([1], abs=0.05)


@pytest.mark.parametrize("algo", LEARNERS)
def test_a_delayed_reward_is_discounted_once(algo):
    # SAC's temperature of 0.01 adds at most 0.01 * log 2 for the entropy to come.
    assert judged(learned(algo, "delayed_reward", 800), 0, 1)[1] == pytest.approx([0.9, 1], abs=0.07)


@pytest.mark.parametrize("algo", LEARNERS)
def test_the_best_real_action_of_each_observation_is_found(algo):
    actions, values = judged(learned(algo, "observation_action_reward", 1200), -1, 1)
    assert actions == pytest.approx([-0.5, 0.5], abs=0.12)
    assert values == pytest.approx([0, 0], abs=0.07)
