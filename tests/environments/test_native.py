"""CartPole and Pendulum against Gymnasium's own, and what every stepped environment owes the collector."""

import gymnasium
import numpy as np
import pytest

from pgcli.environments.cartpole import CartPole
from pgcli.environments.normalise import Normalisation
from pgcli.environments.pendulum import Pendulum
from pgcli.environments.probe import Probe

OFF = Normalisation(observations=False, rewards=False, reward_scale=1.0, reward_clip=None, clip=10.0, gamma=0.99)
OBSERVED = {CartPole: [0, 3, 1, 4], Pendulum: [3, 2]}
"""Rows of the saved state, in the order of Gymnasium's."""


def cartpole(num_envs, limit=500, id="CartPole-v1"):
    config = CartPole.Config(name="cartpole", id=id, max_episode_steps=limit, solved_at=475.0, normalise=OFF)
    return CartPole(config, num_envs)


def pendulum(num_envs, limit=200):
    config = Pendulum.Config(name="pendulum", id="Pendulum-v1", max_episode_steps=limit, solved_at=None, normalise=OFF)
    return Pendulum(config, num_envs)


def probe(num_envs):
    config = Probe.Config(
        name="probe", kind="delayed_reward", action_space="discrete", image=False, solved_at=None, normalise=OFF
    )
    return Probe(config, num_envs)


def coin_flips(generator, observations):
    return generator.integers(0, 2, len(observations))


def balance(generator, observations):
    """Push towards the side to which the pole is falling, and the cart back to the middle: upright for 500 steps."""
    return (observations @ np.array([0.1, 0.5, 1.0, 1.0]) > 0).astype(np.int64)


def torques(dtype):
    # Three in ten are out of bounds, so that the clipping is compared as well.
    return lambda generator, observations: generator.uniform(-3, 3, (len(observations), 1)).astype(dtype)


def follow_gymnasium(env, name, act, steps):
    """Play both, same seeds and actions, and count the episodes that ended by (termination, truncation)."""
    generator = np.random.Generator(np.random.PCG64(0))
    rows = np.arange(env.num_envs)
    theirs = [gymnasium.make(name) for _ in rows]
    seeds = list(range(100, 100 + len(rows)))
    expected = np.array([their.reset(seed=seed)[0] for their, seed in zip(theirs, seeds, strict=True)])
    observations = env.reset(rows, seeds)
    np.testing.assert_allclose(observations, expected, rtol=0, atol=1e-9)
    terminations = truncations = 0
    for _ in range(steps):
        actions = act(generator, observations)
        step = env.step(actions)
        state = env.state_dict()["state"][OBSERVED[type(env)]]
        observations = step.observations
        for row, their in enumerate(theirs):
            observation, reward, terminated, truncated, _ = their.step(actions[row])
            np.testing.assert_allclose(state[:, row], their.unwrapped.state, rtol=0, atol=1e-9)
            np.testing.assert_allclose(step.observations[row], observation, rtol=0, atol=1e-6)  # one unit of float32
            assert step.rewards[row] == pytest.approx(float(reward), rel=0, abs=1e-9)
            assert (step.terminated[row], step.truncated[row]) == (terminated, truncated)
            terminations, truncations = terminations + terminated, truncations + truncated
            if terminated or truncated:
                seed = int(generator.integers(2**31))
                expected, _ = their.reset(seed=seed)
                observations[row] = env.reset(np.array([row]), [seed])[0]
                np.testing.assert_allclose(observations[row], expected, rtol=0, atol=1e-9)
    return terminations, truncations


def test_cartpole_follows_gymnasium_through_falls():
    terminations, truncations = follow_gymnasium(cartpole(4), "CartPole-v1", coin_flips, 200)
    assert terminations > 20
    assert truncations == 0


def test_cartpole_follows_gymnasium_to_the_time_limit():
    terminations, truncations = follow_gymnasium(cartpole(4), "CartPole-v1", balance, 1100)
    assert (terminations, truncations) == (0, 8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pendulum_follows_gymnasium_to_the_time_limit(dtype):
    terminations, truncations = follow_gymnasium(pendulum(4), "Pendulum-v1", torques(dtype), 410)
    assert (terminations, truncations) == (0, 8)


def test_a_cart_that_leaves_the_track_terminates_at_the_position_that_gymnasium_says():
    def lean(generator, observations):
        """Keeps the pole up and lets the cart drift until it leaves the track: the other limit."""
        return (observations @ np.array([0.0, 0.0, 1.0, 1.0]) > -0.02).astype(np.int64)

    terminations, _ = follow_gymnasium(cartpole(2), "CartPole-v1", lean, 500)
    assert terminations > 0


def test_cartpole_without_velocities_is_cartpole_with_two_of_its_columns():
    full, hidden = cartpole(4), cartpole(4, id="CartPole-positions-v1")
    assert hidden.spec.observation_shape == (2,)
    rows = np.arange(4)
    assert np.array_equal(hidden.reset(rows, [1, 2, 3, 4]), full.reset(rows, [1, 2, 3, 4])[:, [0, 2]])
    actions = np.random.Generator(np.random.PCG64(0)).integers(0, 2, (30, 4))
    for t, some in enumerate([None, None, np.array([2, 0])] * 10):
        acted = actions[t] if some is None else actions[t, some]
        one, other = hidden.step(acted, some), full.step(acted, some)
        assert np.array_equal(one.observations, other.observations[:, [0, 2]])
        for a, b in zip(one[1:], other[1:], strict=True):
            assert np.array_equal(a, b)


ENVIRONMENTS = pytest.mark.parametrize("make", [cartpole, pendulum, probe])


def some_actions(env, generator, count):
    if isinstance(env, Pendulum):
        return generator.uniform(-2, 2, (count, 1)).astype(np.float32)
    return generator.integers(0, 2, count)


@ENVIRONMENTS
def test_an_episode_is_that_of_its_seed(make):
    env = make(3)
    observations = env.reset(np.arange(3), [7, 8, 7])
    assert np.array_equal(observations[0], observations[2])
    if make is not probe:
        assert not np.array_equal(observations[0], observations[1])
    assert observations.dtype == np.float32
    assert observations.shape == (3, *env.spec.observation_shape)


@ENVIRONMENTS
def test_resetting_some_rows_leaves_the_others_alone(make):
    generator = np.random.Generator(np.random.PCG64(1))
    disturbed, alone = make(4), make(4)
    for env in (disturbed, alone):
        env.reset(np.arange(4), [1, 2, 3, 4])
    actions = some_actions(alone, generator, 4)
    for env in (disturbed, alone):
        env.step(actions)
    disturbed.reset(np.array([1, 3]), [8, 9])
    actions = some_actions(alone, generator, 4)
    left, right = disturbed.step(actions), alone.step(actions)
    for a, b in zip(left, right, strict=True):
        assert np.array_equal(a[[0, 2]], b[[0, 2]])


@ENVIRONMENTS
def test_stepping_some_rows_gives_what_stepping_all_gives_and_leaves_the_others_alone(make):
    generator = np.random.Generator(np.random.PCG64(2))
    some, all_ = make(4), make(4)
    for env in (some, all_):
        env.reset(np.arange(4), [1, 2, 3, 4])
    rows, rest = np.array([3, 1]), np.array([0, 2])
    actions = some_actions(all_, generator, 4)
    for _ in range(2):
        whole = all_.step(actions)
        first, second = some.step(actions[rows], rows), some.step(actions[rest], rest)
        for part, other, both in zip(first, second, whole, strict=True):
            np.testing.assert_allclose(part, both[rows], rtol=0, atol=1e-12)
            np.testing.assert_allclose(other, both[rest], rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [cartpole, pendulum])
def test_the_time_limit_truncates_and_does_not_terminate(make):
    generator = np.random.Generator(np.random.PCG64(3))
    env = make(2, limit=3)
    env.reset(np.arange(2), [1, 2])
    ends = []
    for _ in range(3):
        step = env.step(some_actions(env, generator, 2))
        ends.append((step.terminated.any(), step.truncated.all()))
    assert ends == [(False, False), (False, False), (False, True)]


@ENVIRONMENTS
def test_a_restored_environment_goes_on_bit_for_bit(make):
    generator = np.random.Generator(np.random.PCG64(4))
    env, restored = make(3), make(3)
    env.reset(np.arange(3), [1, 2, 3])
    env.step(some_actions(env, generator, 3))
    saved = env.state_dict()
    actions = some_actions(env, generator, 3)
    expected = env.step(actions)
    restored.load_state_dict(saved)
    assert restored.replay_mismatch is None
    for a, b in zip(restored.step(actions), expected, strict=True):
        assert np.array_equal(a, b)


@ENVIRONMENTS
def test_what_a_step_returned_is_the_callers(make):
    generator = np.random.Generator(np.random.PCG64(5))
    env = make(3)
    env.reset(np.arange(3), [1, 2, 3])
    first = env.step(some_actions(env, generator, 3))
    before = [part.copy() for part in first]
    second = env.step(some_actions(env, generator, 3))
    for part, copy in zip(first, before, strict=True):
        assert np.array_equal(part, copy)
        assert not any(np.shares_memory(part, other) for other in second)
