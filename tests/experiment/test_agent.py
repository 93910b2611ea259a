"""`load`: a policy in a loop of one's own takes the actions that it takes in an evaluation."""

import gymnasium
import numpy as np
import pytest

from pgcli import evaluate, load, train
from pgcli.errors import InputError
from pgcli.seeding import episode_seeds

SMALL = ("tuned=none", "device=cpu", "eval.episodes=1", "log_every=1000")
MLP = (*SMALL, "policy.hidden=[8]")
NORMALISED = ("env.normalise.observations=true", "env.normalise.rewards=true")
LATE = "algo.learning_starts=100"
RUNS = {
    "CartPole-v1": ("algo=ppo", "env=cartpole", "total_steps=512", *MLP),
    "Pendulum-v1": ("algo=ppo", "env=Pendulum-v1", "total_steps=512", "algo.num_steps=64", *NORMALISED, *MLP),
    "Acrobot-v1": ("algo=dqn", "env=Acrobot-v1", "total_steps=300", LATE, *MLP),
    "FrozenLake-v1": ("algo=q_learning", "env=frozen_lake", "total_steps=3000", *SMALL),
    "MountainCarContinuous-v0": ("algo=sac", "env=MountainCarContinuous-v0", "total_steps=300", LATE, *MLP),
}


def play(agent, environment, seed, seen=lambda x: x):
    observation, _ = environment.reset(seed=seed)
    agent.reset()
    total = 0.0
    while True:
        observation, reward, terminated, truncated, _ = environment.step(agent.act(seen(observation)))
        total += float(reward)
        if terminated or truncated:
            return total


def returns(run, name, seen=lambda x: x):
    agent, environment = load(run.path), gymnasium.make(name)
    return [play(agent, environment, seed, seen) for seed in episode_seeds(0, "fresh", range(4))]


@pytest.mark.parametrize("name", RUNS)
def test_in_gymnasium_s_environment_it_plays_as_it_was_evaluated(name, tmp_path):
    run = train(*RUNS[name], run_dir=tmp_path / "run", quiet=True)
    expected = evaluate(run.path, episodes=4)["greedy"]
    found = returns(run, name)
    assert np.mean(found) == pytest.approx(expected["mean"], rel=1e-4)
    assert np.std(found, ddof=1) == pytest.approx(expected["std"], rel=1e-4, abs=1e-9)


def test_a_memory_lasts_for_an_episode(tmp_path):
    words = ("algo=ppo", "env=cartpole_positions", "total_steps=512", "policy.hidden=8", *SMALL)
    run = train(*words, run_dir=tmp_path / "run", quiet=True)
    found = returns(run, "CartPole-v1", seen=lambda x: x[::2])
    assert np.mean(found) == pytest.approx(evaluate(run.path, episodes=4)["greedy"]["mean"])
    agent, x = load(run.path, greedy=False), np.zeros(2)
    outputs = []
    agent._sampler.act, act = lambda *given: outputs.append(act(*given)) or outputs[-1], agent._sampler.act
    agent.act(x), agent.act(x), agent.reset(), agent.act(x)
    first, second, again = (output for _, output in outputs)
    assert (first != second).any()
    assert (first == again).all()


def test_states_of_a_table_are_numbers(tmp_path):
    run = train("algo=q_learning", "env=corridor", "total_steps=2000", *SMALL, run_dir=tmp_path / "run", quiet=True)
    agent = load(run.path)
    assert {agent.act(state) for state in range(3)} <= {0, 1}
    with pytest.raises(InputError, match="not an observation"):
        agent.act(1000)


def test_sampled_actions_are_a_function_of_the_seed(tmp_path):
    run = train(*RUNS["CartPole-v1"], run_dir=tmp_path / "run", quiet=True)

    def actions(**given):
        agent = load(run.path, greedy=False, **given)
        return [agent.act(np.zeros(4)) for _ in range(40)]

    assert actions() == actions(seed=0) != actions(seed=1)
    assert set(actions()) == {0, 1}


def test_what_is_no_observation_is_named(tmp_path):
    run = train(*RUNS["CartPole-v1"], run_dir=tmp_path / "run", quiet=True)
    agent = load(run.path)
    with pytest.raises(InputError, match=r"of shape \(3,\), where the run's environment has \(4,\)"):
        agent.act([0.0, 0.0, 0.0])
    with pytest.raises(InputError, match="not an observation of the run's environment"):
        agent.act("left")


def test_a_language_model_writes_instead(tmp_path):
    words = ("policy.width=8", "policy.heads=2", "policy.layers=1", "policy.hidden=8")
    run = train("algo=sft", "env=sort", "total_steps=500", *words, *SMALL, run_dir=tmp_path / "run", quiet=True)
    with pytest.raises(InputError, match="env=sort is a language task"):
        load(run.path)
