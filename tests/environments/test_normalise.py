"""Running statistics against NumPy's of everything seen at once; rewards against a sum written out by hand."""

import numpy as np
import pytest

from pgcli.environments.cartpole import CartPole
from pgcli.environments.normalise import EPSILON, Normalisation, Normalised, statistics, use_statistics, wrap
from pgcli.types import ControlSpec, Discrete, Step


class Script:
    """Plays observations and rewards from a list; an episode ends where the script says so."""

    replay_mismatch = None

    def __init__(self, observations, rewards, done=None):
        self.spec = ControlSpec(observation_shape=(len(observations[0][0]),), actions=Discrete(2))
        self.num_envs = len(observations[0])
        self.observations, self.rewards, self.done = observations, rewards, done
        self.time = 0

    def reset(self, rows, seeds):
        return np.array(self.observations[self.time], dtype=np.float32)[rows]

    def step(self, actions, rows=None):
        self.time += 1
        rows = np.arange(self.num_envs) if rows is None else rows
        rewards = np.array(self.rewards[self.time - 1], dtype=np.float64)[rows]
        ended = np.zeros(len(rows), dtype=bool)
        return Step(np.array(self.observations[self.time], dtype=np.float32)[rows], rewards, ended, ended, rewards)

    def state_dict(self):
        return {"time": self.time}

    def load_state_dict(self, state):
        self.time = state["time"]

    def close(self):
        pass


def settings(observations=False, rewards=False, clip=10.0, gamma=0.5, reward_scale=1.0, reward_clip=None):
    return Normalisation(
        observations=observations, rewards=rewards, clip=clip, gamma=gamma,
        reward_scale=reward_scale, reward_clip=reward_clip,
    )  # fmt: skip


def drawn(steps=7, num_envs=3, size=2):
    generator = np.random.Generator(np.random.PCG64(0))
    scale = np.array([1.0, 100.0])[:size]
    return generator.normal(5, 2, (steps + 1, num_envs, size)) * scale, generator.normal(-3, 4, (steps, num_envs))


NOTHING = np.zeros(3, dtype=np.int64)
ALL = np.arange(3)


def test_observations_are_normalised_by_the_mean_and_variance_of_all_that_were_seen():
    observations, rewards = drawn()
    env = wrap(Script(observations, rewards), settings(observations=True))
    env.reset(ALL, [0, 0, 0])
    for _ in range(7):
        step = env.step(NOTHING)
    seen = observations.astype(np.float32).astype(np.float64).reshape(-1, 2)
    state = statistics(env)["observations"]
    np.testing.assert_allclose(state["mean"], seen.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(state["squares"] / state["count"], seen.var(axis=0), rtol=1e-12)
    last = (seen[-3:] - seen.mean(axis=0)) / np.sqrt(seen.var(axis=0) + EPSILON)
    np.testing.assert_allclose(step.observations, last, rtol=0, atol=1e-6)
    assert step.observations.dtype == np.float32


def test_one_environment_gives_the_statistics_that_several_give():
    observations, rewards = drawn(num_envs=1)
    env = wrap(Script(observations, rewards), settings(observations=True))
    env.reset(np.array([0]), [0])
    for _ in range(7):
        env.step(np.array([0]))
    seen = observations.astype(np.float32).astype(np.float64).reshape(-1, 2)
    state = statistics(env)["observations"]
    np.testing.assert_allclose(state["mean"], seen.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(state["squares"] / 8, seen.var(axis=0), rtol=1e-12)


def test_a_shift_is_added_to_what_is_learned_from_and_to_nothing_else():
    script = Script([[[0.0]]] * 3, [[4.0], [-1.0]])
    env = wrap(script, settings().model_copy(update={"reward_shift": 3.0}))
    env.reset(np.array([0]), [0])
    first, second = (env.step(np.array([0])) for _ in range(2))
    assert (first.rewards, second.rewards) == (7.0, 2.0)
    assert (first.task_rewards, second.task_rewards) == (4.0, -1.0)


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return_and_not_shifted():
    # gamma 1/2, rewards 4, 0, 3: G = 4, 0 + 4/2 = 2, 3 + 2/2 = 4. The variance of (4, 2, 4) is 8/9.
    env = wrap(Script([[[0.0]]] * 4, [[4.0], [0.0], [3.0]]), settings(rewards=True))
    env.reset(np.array([0]), [0])
    first, second, third = (env.step(np.array([0])) for _ in range(3))
    assert first.rewards.tolist() == [10.0]  # nothing varied yet: only the bound holds
    assert second.rewards.tolist() == [0.0]
    np.testing.assert_allclose(third.rewards, [3.0 / np.sqrt(8 / 9)], rtol=1e-7)
    assert [step.task_rewards.item() for step in (first, second, third)] == [4.0, 0.0, 3.0]


def test_the_discounted_return_of_a_row_starts_again_with_its_episode():
    # Two rows, gamma 1/2. After one step G = (4, 4); row 0 begins anew: G = (2, 2 + 2) = (2, 4).
    env = wrap(Script([[[0.0], [0.0]]] * 3, [[4.0, 4.0], [2.0, 2.0]]), settings(rewards=True))
    env.reset(np.arange(2), [0, 0])
    env.step(np.zeros(2, dtype=np.int64))
    env.reset(np.array([0]), [1])
    env.step(np.zeros(2, dtype=np.int64))
    assert env.state_dict()["discounted"].tolist() == [2.0, 4.0]


def test_stepping_some_rows_moves_only_their_discounted_returns():
    env = wrap(Script([[[0.0], [0.0]]] * 3, [[4.0, 4.0], [2.0, 2.0]]), settings(rewards=True))
    env.reset(np.arange(2), [0, 0])
    env.step(np.zeros(2, dtype=np.int64))
    env.step(np.zeros(1, dtype=np.int64), np.array([1]))
    assert env.state_dict()["discounted"].tolist() == [4.0, 4.0]
    assert statistics(env)["returns"]["count"] == 3


def test_what_is_normalised_is_clipped():
    env = wrap(Script([[[0.0]], [[0.0]], [[1000.0]]], [[0.0], [0.0]]), settings(observations=True, clip=1.2))
    env.reset(np.array([0]), [0])
    env.step(np.array([0]))
    # 0, 0, 1000: mean 1000/3, deviation 471.4, so 1000 is 1.414 deviations away.
    assert env.step(np.array([0])).observations.item() == pytest.approx(1.2)


def test_an_evaluation_uses_the_statistics_of_training_and_changes_nothing():
    observations, rewards = drawn()
    training = wrap(Script(observations, rewards), settings(observations=True, rewards=True))
    training.reset(ALL, [0, 0, 0])
    for _ in range(4):
        training.step(NOTHING)
    frozen = statistics(training)
    evaluation = wrap(Script(observations[::-1], rewards), settings(observations=True, rewards=True))
    use_statistics(evaluation, frozen)
    evaluation.reset(ALL, [0, 0, 0])
    step = evaluation.step(NOTHING)
    mean, variance = frozen["observations"]["mean"], frozen["observations"]["squares"] / frozen["observations"]["count"]
    expected = (observations[-2].astype(np.float32) - mean) / np.sqrt(variance + EPSILON)
    np.testing.assert_allclose(step.observations, expected, rtol=0, atol=1e-6)
    for name, moments in statistics(evaluation).items():
        for key, value in moments.items():
            assert np.array_equal(value, frozen[name][key])


def test_nothing_is_wrapped_where_nothing_is_normalised():
    env = Script(*drawn())
    assert wrap(env, settings()) is env
    assert statistics(env) == {}
    use_statistics(env, {})


def test_a_restored_environment_goes_on_bit_for_bit():
    def cartpole():
        off = settings(observations=True, rewards=True)
        config = CartPole.Config(
            name="cartpole", id="CartPole-v1", max_episode_steps=500, solved_at=None, normalise=off
        )
        return Normalised(CartPole(config, 3), off)

    env, restored = cartpole(), cartpole()
    env.reset(ALL, [1, 2, 3])
    env.step(NOTHING)
    saved = env.state_dict()
    expected = [env.step(NOTHING), env.step(NOTHING)]
    restored.load_state_dict(saved)
    for step in expected:
        for a, b in zip(restored.step(NOTHING), step, strict=True):
            assert np.array_equal(a, b)


def test_rewards_are_scaled_then_clipped_and_the_task_s_own_go_on():
    rewards = [[3.0, -3.0, 0.5]]
    env = wrap(Script(drawn(1)[0], rewards), settings(reward_scale=0.5, reward_clip=1.2))
    env.reset(ALL, [0, 0, 0])
    step = env.step(NOTHING)
    assert step.rewards.tolist() == [1.2, -1.2, 0.25]
    assert step.task_rewards.tolist() == rewards[0]
    assert step.observations.tolist() == np.array(drawn(1)[0][1], dtype=np.float32).tolist()


def test_what_is_scaled_and_clipped_is_what_is_normalised():
    # Scaling alone cancels: everything is divided by its own deviation (but for the epsilon).
    rewards = drawn()[1]
    plain, scaled, clipped, by_hand = (
        wrap(Script(drawn()[0], given), settings(rewards=True, **more))
        for given, more in (
            (rewards, {}), (rewards, {"reward_scale": 100.0}), (rewards, {"reward_clip": 1.0}),
            (np.clip(rewards, -1, 1), {}),
        )
    )  # fmt: skip
    for env in (plain, scaled, clipped, by_hand):
        env.reset(ALL, [0, 0, 0])
    for _ in range(7):
        seen = [env.step(NOTHING).rewards for env in (plain, scaled, clipped, by_hand)]
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-6)
    np.testing.assert_array_equal(seen[2], seen[3])


@pytest.mark.parametrize("more", [{"reward_scale": 2.0}, {"reward_clip": 1.0}])
def test_a_scale_or_a_clip_alone_is_enough_to_wrap(more):
    env = CartPole(CartPole.Config(name="cartpole", id="CartPole-v1", max_episode_steps=5, solved_at=None,
                                   normalise=settings(**more)), 1)  # fmt: skip
    assert wrap(env, settings()) is env
    assert isinstance(wrap(env, settings(**more)), Normalised)
