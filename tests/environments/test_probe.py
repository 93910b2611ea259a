"""The probes' rewards and ends, as their table says them."""

import numpy as np
import pytest

from pgcli.environments.normalise import Normalisation
from pgcli.environments.probe import Probe

OFF = Normalisation(observations=False, rewards=False, reward_scale=1.0, reward_clip=None, clip=10.0, gamma=0.99)
EVEN_ODD = [2, 3]
"""Two seeds, whose coins show +1 and -1."""


def probe(kind, action_space="discrete", image=False):
    config = Probe.Config(
        name="probe", kind=kind, action_space=action_space, image=image, solved_at=None, normalise=OFF
    )
    return Probe(config, 2)


def start(env):
    return env.reset(np.arange(2), EVEN_ODD)


@pytest.mark.parametrize("action", [0, 1])
def test_constant_reward_is_one_whatever_is_done(action):
    env = probe("constant_reward")
    assert start(env).tolist() == [[0], [0]]
    step = env.step(np.array([action, action]))
    assert step.rewards.tolist() == [1, 1]
    assert step.terminated.all()
    assert not step.truncated.any()


@pytest.mark.parametrize("action", [0, 1])
def test_observation_value_rewards_with_the_observation(action):
    env = probe("observation_value")
    assert start(env).tolist() == [[1], [-1]]
    step = env.step(np.array([action, action]))
    assert step.rewards.tolist() == [1, -1]
    assert step.terminated.all()


def test_delayed_reward_comes_with_the_second_step():
    env = probe("delayed_reward")
    assert start(env).tolist() == [[0], [0]]
    first = env.step(np.array([0, 1]))
    assert first.observations.tolist() == [[1], [1]]
    assert first.rewards.tolist() == [0, 0]
    assert not first.terminated.any()
    second = env.step(np.array([0, 1]))
    assert second.rewards.tolist() == [1, 1]
    assert second.terminated.all()


def test_action_reward_is_for_action_one_or_near_a_half():
    env = probe("action_reward")
    assert start(env).tolist() == [[0], [0]]
    assert env.step(np.array([0, 1])).rewards.tolist() == [-1, 1]

    env = probe("action_reward", "continuous")
    start(env)
    # -(0.5 - 0.5)^2 = 0 and -(2 - 0.5)^2 = -2.25: not clipped to the box.
    assert env.step(np.array([[0.5], [2.0]])).rewards.tolist() == [0, -2.25]


def test_observation_action_reward_is_for_the_action_that_the_observation_names():
    env = probe("observation_action_reward")
    assert start(env).tolist() == [[1], [-1]]
    assert env.step(np.array([1, 1])).rewards.tolist() == [1, -1]
    start(env)
    assert env.step(np.array([0, 0])).rewards.tolist() == [-1, 1]

    env = probe("observation_action_reward", "continuous")
    start(env)
    # Targets +0.5 and -0.5: -(0.5 - 0.5)^2 = 0, -(0.5 + 0.5)^2 = -1.
    assert env.step(np.array([[0.5], [0.5]])).rewards.tolist() == [0, -1]


def test_memory_rewards_the_last_action_for_the_first_observation():
    env = probe("memory")
    assert start(env).tolist() == [[1], [-1]]
    for _ in range(3):
        step = env.step(np.array([0, 1]))  # what is done meanwhile changes nothing
        assert step.observations.tolist() == [[0], [0]]
        assert step.rewards.tolist() == [0, 0]
        assert not step.terminated.any()
    last = env.step(np.array([1, 1]))
    assert last.rewards.tolist() == [1, -1]
    assert last.terminated.all()

    start(env)
    env.step(np.array([0, 0]))
    restored = probe("memory")
    restored.load_state_dict(env.state_dict())
    for _ in range(2):
        restored.step(np.array([0, 0]))
    assert restored.step(np.array([0, 0])).rewards.tolist() == [-1, 1]


def test_the_image_is_bright_on_the_side_of_the_right_action():
    images = start(probe("observation_action_reward", image=True))
    assert images.shape == (2, 1, 8, 8)
    right, left = images
    assert right[0, :, 4:].min() == 1
    assert right[0, :, :4].max() == 0
    assert left[0, :, :4].min() == 1
    assert left[0, :, 4:].max() == 0


def test_the_coin_is_fair_over_the_seeds_of_a_run():
    from pgcli.seeding import episode_seeds

    env = probe("observation_value")
    seeds = episode_seeds(0, "train", range(1000))
    coins = [env.reset(np.array([0]), [seed]).item() for seed in seeds]
    assert abs(sum(coins)) < 130  # four standard deviations of a sum of 1000 fair coins
