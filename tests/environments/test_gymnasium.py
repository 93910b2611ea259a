"""The adapter, against Gymnasium itself and against small environments with one fault each."""

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from pgcli.environments.gymnasium import Gymnasium
from pgcli.environments.normalise import Normalisation
from pgcli.errors import InputError, RunError
from pgcli.types import Continuous, Discrete

OFF = Normalisation(observations=False, rewards=False, reward_scale=1.0, reward_clip=None, clip=10.0, gamma=0.99)


class Toy(gymnasium.Env):
    """Observes (the seed's draw, steps, last action). Keywords set what it gives instead, and when it fails."""

    failure = ZeroDivisionError("the pole\nis gone")

    def __init__(self, observation_space=None, action_space=None, give=None, fail_at=None, reward=1.0, noise=None):
        self.observation_space = observation_space or spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = action_space or spaces.Discrete(2)
        self.give, self.fail_at, self.reward, self.noise = give, fail_at, reward, noise
        self.played = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.draw, self.steps, self.played = self.np_random.random(), 0, []
        return self.observe(0.0), {}

    def step(self, action):
        self.steps += 1
        self.played.append(action)
        if self.steps == self.fail_at:
            raise self.failure
        return self.observe(np.sum(action)), self.reward, False, False, {}

    def observe(self, action):
        if self.give is not None:
            return self.give[min(self.steps, len(self.give) - 1)]
        extra = self.noise.random() if self.noise else 0.0
        return np.array([self.draw, self.steps, action + extra])


class Ends(Toy):
    """Episodes of the lengths in a list that all instances share, one after another: not a function of the seed."""

    def __init__(self, lengths):
        super().__init__()
        self.lengths = lengths

    def reset(self, *, seed=None, options=None):
        self.length = self.lengths.pop(0)
        return super().reset(seed=seed)

    def step(self, action):
        observation, reward, _, _, info = super().step(action)
        return observation, reward, self.steps >= self.length, False, info


gymnasium.register("PgcliToy-v0", Toy, max_episode_steps=1000)
gymnasium.register("PgcliEndless-v0", Toy)
gymnasium.register("PgcliEnds-v0", Ends, max_episode_steps=5)
gymnasium.register(
    "PgcliWarns-v0",
    lambda: Toy(spaces.Box(np.full(3, -0.1), np.full(3, 0.1), dtype=np.float32)),
    max_episode_steps=1000,
)


def make(name, num_envs=1, max_episode_steps=None, **kwargs):
    config = Gymnasium.Config(
        name="gymnasium", id=name, kwargs=kwargs, max_episode_steps=max_episode_steps, solved_at=None, normalise=OFF
    )
    return Gymnasium(config, num_envs)


def toy(num_envs=1, **kwargs):
    return make("PgcliToy-v0", num_envs, **kwargs)


def rows(*indices):
    return np.array(indices)


# ---------------------------------------------------------------- playing


def test_episodes_are_those_of_gymnasium_with_the_final_observation_the_true_one():
    env, theirs = make("Acrobot-v1", max_episode_steps=20), gymnasium.make("Acrobot-v1", max_episode_steps=20)
    generator = np.random.Generator(np.random.PCG64(0))
    for seed in (5, 6):
        expected, _ = theirs.reset(seed=seed)
        assert np.array_equal(env.reset(rows(0), [seed])[0], expected)
        for t in range(20):
            action = int(generator.integers(3))
            expected, reward, terminated, truncated, _ = theirs.step(action)
            step = env.step(np.array([action]))
            assert np.array_equal(step.observations[0], expected)
            assert step.rewards.tolist() == step.task_rewards.tolist() == [reward]
            assert (step.terminated[0], step.truncated[0]) == (terminated, truncated) == (False, t == 19)


def test_rows_are_reset_and_stepped_by_themselves():
    env, alone = toy(3), toy()
    env.reset(rows(0, 1, 2), [1, 2, 3])
    env.step(np.array([0, 1, 0]))
    assert env.reset(rows(1), [9]).shape == (1, 3)
    step = env.step(np.array([1, 0]), rows(2, 0))
    assert step.observations[:, 1:].tolist() == [[2, 1], [2, 0]]  # their second step, with their own actions
    expected = alone.reset(rows(0), [9])
    step = env.step(np.array([1]), rows(1))
    assert step.observations[0].tolist() == [expected[0, 0], 1, 1]


def test_termination_and_truncation_are_kept_apart():
    env = make("PgcliEnds-v0", 2, lengths=[2, 99])
    env.reset(rows(0, 1), [1, 2])
    env.step(np.array([0, 0]))
    step = env.step(np.array([0, 0]))
    assert step.terminated.tolist() == [True, False]
    assert step.truncated.tolist() == [False, False]
    for _ in range(3):
        step = env.step(np.array([0]), rows(1))
    assert step.terminated.tolist() == [False]
    assert step.truncated.tolist() == [True]


def test_what_a_step_returned_is_not_overwritten_by_the_next():
    env = toy(2)
    env.reset(rows(0, 1), [1, 2])
    first = env.step(np.array([0, 0]))
    env.step(np.array([1, 1]))
    assert first.observations[:, 1:].tolist() == [[1, 0], [1, 0]]


# ---------------------------------------------------------------- spaces


def test_discrete_actions_start_where_the_space_starts():
    env = toy(action_space=spaces.Discrete(3, start=-1))
    assert env.spec.actions == Discrete(3)
    env.reset(rows(0), [1])
    for action in range(3):
        env.step(np.array([action]))
    assert env._environments[0].unwrapped.played == [-1, 0, 1]


def test_box_actions_are_clipped_to_the_bounds_and_shaped_and_the_callers_are_left_alone():
    space = spaces.Box(np.array([[-1, -2]], np.float32), np.array([[1, 2]], np.float32))
    env = toy(action_space=space)
    assert isinstance(env.spec.actions, Continuous)
    assert env.spec.actions.low.tolist() == [-1, -2]
    env.reset(rows(0), [1])
    actions = np.array([[5.0, -1.5]])
    env.step(actions)
    (played,) = env._environments[0].unwrapped.played
    assert played.tolist() == [[1.0, -1.5]]
    assert played.dtype == np.float32
    assert actions.tolist() == [[5.0, -1.5]]


def test_frozen_lake_is_one_hot():
    env = make("FrozenLake-v1", is_slippery=False)
    assert env.spec.observation_shape == (16,)
    assert np.flatnonzero(env.reset(rows(0), [0])).tolist() == [0]
    step = env.step(np.array([2]))  # right: from field 0 to field 1
    assert np.flatnonzero(step.observations).tolist() == [1]
    assert step.observations.sum() == 1


def test_dict_and_tuple_observations_are_flattened_in_order():
    pair = spaces.Tuple((spaces.MultiBinary(2), spaces.Box(-1, 1, (1, 2)), spaces.MultiDiscrete([2, 3])))
    space = spaces.Dict(a=spaces.Discrete(2), b=pair)
    given = {"a": 1, "b": (np.array([1, 0]), np.array([[0.5, 0.25]]), np.array([0, 2]))}
    env = toy(observation_space=space, give=[given])
    assert env.reset(rows(0), [1]).tolist() == [[0, 1, 1, 0, 0.5, 0.25, 1, 0, 0, 0, 1]]


def test_byte_images_are_channels_first_between_zero_and_one():
    image = np.zeros((4, 5, 3), np.uint8)
    image[1, 2, 0] = 255
    env = toy(observation_space=spaces.Box(0, 255, (4, 5, 3), np.uint8), give=[image])
    observation = env.reset(rows(0), [1])[0]
    assert env.spec.observation_shape == observation.shape == (3, 4, 5)
    assert observation[0, 1, 2] == observation.sum() == 1
    assert toy(observation_space=spaces.Box(0, 255, (2, 4, 5), np.uint8)).spec.observation_shape == (2, 4, 5)


def test_bytes_are_scaled_whatever_their_shape_and_wherever_they_are():
    image = np.array([[0, 255], [51, 3]], np.uint8)
    expected = np.float32([0, 255, 51, 3]) / np.float32(255)
    bytes_2d = spaces.Box(0, 255, (2, 2), np.uint8)
    env = toy(observation_space=bytes_2d, give=[image])
    assert env.reset(rows(0), [1]).tolist() == [expected.tolist()]

    inside = spaces.Dict(a=spaces.Discrete(2), b=bytes_2d, c=spaces.Box(0, 9, (1,), np.uint8))
    env = toy(observation_space=inside, give=[{"a": 1, "b": image, "c": np.array([7], np.uint8)}])
    assert env.reset(rows(0), [1]).tolist() == [[0, 1, *expected.tolist(), 7]]  # 0 .. 9: not a shade of grey


@pytest.mark.parametrize("space", [spaces.Box(0, 255, (2, 2, 3), np.uint8), spaces.Box(0, 4, (2, 2, 3), np.uint8)])
def test_only_bytes_up_to_255_are_scaled_and_bytes_of_another_type_are_the_same_bytes(space):
    image = np.full((2, 2, 3), space.high.max())
    env = toy(observation_space=space, give=[image, image.astype(np.int64), image - 0.5])
    assert env.reset(rows(0), [1]).max() == (1 if space.high.max() == 255 else 4)
    assert env.step(np.array([0])).observations.max() == (1 if space.high.max() == 255 else 4)
    if space.high.max() == 255:
        with pytest.raises(RunError, match="not made of bytes, as its space says"):
            env.step(np.array([0]))


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"observation_space": spaces.Text(5)}, "observations of Text"),
        ({"observation_space": spaces.Dict(a=spaces.Sequence(spaces.Discrete(2)))}, "observations of Sequence"),
        ({"action_space": spaces.MultiDiscrete([2, 2])}, r"actions of MultiDiscrete\(\[2 2\]\)"),
        ({"action_space": spaces.Box(0, 3, (1,), np.int64)}, r"actions of Box\("),
    ],
)
def test_unsupported_spaces_are_refused_by_name(kwargs, named):
    with pytest.raises(InputError, match=f"PgcliToy-v0 has {named}"):
        toy(**kwargs)


# ---------------------------------------------------------------- bad input


def test_an_unknown_id_is_refused_with_the_nearest_one():
    with pytest.raises(InputError, match=r"`Acrobat-v1`; did you mean Acrobot-v1\?"):
        make("Acrobat-v1")
    with pytest.raises(InputError, match=r"did you mean CartPole-v1\?"):
        make("cartpole-v1")


def test_a_missing_extra_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)  # as if it were not installed
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match=r"Ant-v5 needs .* run pip install 'gymnasium\[mujoco\]'"):
        make("Ant-v5")
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(InputError, match=r"ALE/Pong-v5 needs .* run pip install 'gymnasium\[atari\]'"):
        make("ALE/Pong-v5")


def test_a_module_in_the_working_directory_can_register_its_environment(tmp_path, monkeypatch):
    place = "'gymnasium.envs.classic_control:CartPoleEnv'"
    source = f"import gymnasium\ngymnasium.register('PgcliOwn-v0', {place}, max_episode_steps=500)\n"
    (tmp_path / "pgcli_own_package.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert make("pgcli_own_package:PgcliOwn-v0").spec.actions == Discrete(2)
    with pytest.raises(InputError, match="can't import `no_such_package`"):
        make("no_such_package:MyEnv-v0")


def test_an_unknown_id_of_a_module_is_refused_with_the_nearest_that_the_module_registers(tmp_path, monkeypatch):
    source = "import gymnasium\ngymnasium.register('PgcliLine-v0', 'a:B', max_episode_steps=5)\n"
    (tmp_path / "pgcli_line_package.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(InputError, match=r"did you mean pgcli_line_package:PgcliLine-v0\?"):  # not Hopper-v5
        make("pgcli_line_package:Nope-v0")


def test_a_keyword_that_the_constructor_does_not_take_is_refused():
    with pytest.raises(
        InputError, match=r"CartPole-v1 does not take env\.kwargs=\{'gravitas': 1\}: .* argument 'gravitas'$"
    ):
        make("CartPole-v1", gravitas=1)


def test_gymnasiums_warnings_stay_off_the_terminal(recwarn):
    make("PgcliWarns-v0")
    make("CartPole-v0")  # out of date
    assert not list(recwarn)


# ---------------------------------------------------------------- failures while running


def test_an_observation_with_nan_names_its_key_row_seed_and_step():
    space = spaces.Dict(angle=spaces.Box(-1, 1, (2,)), camera=spaces.Box(-1, 1, (2, 2)))
    good = {"angle": np.zeros(2), "camera": np.zeros((2, 2))}
    bad = {"angle": np.zeros(2), "camera": np.array([[0, 0], [np.nan, 0]])}
    env = toy(2, observation_space=space, give=[good, good, bad])
    env.reset(rows(0, 1), [7, 8])
    env.step(np.array([0, 0]))
    with pytest.raises(RunError) as caught:
        env.step(np.array([0]), rows(1))
    expected = "PgcliToy-v0 gave an observation with nan at `observation[camera][1, 0]`: environment 1, seed 8, step 2"
    assert str(caught.value) == expected


def test_an_infinite_pixel_is_named_as_the_environment_has_it():
    image = np.zeros((4, 5, 3), np.float32)
    image[1, 2, 0] = np.inf
    env = toy(observation_space=spaces.Box(-np.inf, np.inf, (4, 5, 3)), give=[image])
    with pytest.raises(RunError, match=r"inf at `observation\[1, 2, 0\]`: environment 0, seed 3, step 0"):
        env.reset(rows(0), [3])


def test_a_reward_that_is_not_finite_is_refused():
    env = toy(reward=-np.inf)
    env.reset(rows(0), [3])
    with pytest.raises(RunError, match="gave a reward of -inf: environment 0, seed 3, step 1"):
        env.step(np.array([0]))


def test_an_environment_that_raises_is_named_with_row_seed_step_and_action_on_one_line():
    env = toy(2, fail_at=2)
    env.reset(rows(0, 1), [7, 8])
    env.step(np.array([0, 0]))
    with pytest.raises(RunError) as caught:
        env.step(np.array([1]), rows(1))
    assert str(caught.value) == (
        "PgcliToy-v0 failed in step: environment 1, seed 8, step 2, action 1: ZeroDivisionError: the pole is gone"
    )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_environment_that_exits_has_failed_too_and_one_that_cannot_be_closed_hides_nothing(monkeypatch):
    monkeypatch.setattr(Toy, "failure", SystemExit(0))
    env = toy(2, fail_at=1)
    env.reset(rows(0, 1), [7, 8])
    with pytest.raises(RunError, match="seed 7, step 1, action 0: SystemExit: 0"):
        env.step(np.array([0, 0]))

    closed = []

    def close(self):
        closed.append(self)
        raise RuntimeError("no display")

    monkeypatch.setattr(Toy, "close", close)
    env.close()
    assert len(closed) == 2


def test_an_observation_of_another_shape_than_its_space_says_is_refused_not_broadcast():
    env = toy(give=[np.zeros(3), np.zeros(1)])
    env.reset(rows(0), [7])
    with pytest.raises(RunError, match=r"shape \(1,\) where its space says \(3,\)"):
        env.step(np.array([0]))


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize("name", ["Acrobot-v1", "MountainCarContinuous-v0", "FrozenLake-v1"])
def test_a_restored_environment_goes_on_bit_for_bit(name):
    env, restored = make(name, 3), make(name, 3)
    generator = np.random.Generator(np.random.PCG64(0))

    def actions(count):
        if isinstance(env.spec.actions, Continuous):
            return generator.uniform(-2, 2, (count, 1)).astype(np.float32)
        return generator.integers(0, 2, count)

    env.reset(rows(0, 2), [1, 3])  # row 1 has no open episode
    for _ in range(3):
        env.step(actions(2), rows(0, 2))
    saved = env.state_dict()
    assert saved["episodes"][1] is None
    later = actions(2)
    expected = env.step(later, rows(0, 2))
    restored.load_state_dict(saved)
    assert restored.replay_mismatch is None
    for a, b in zip(restored.step(later, rows(0, 2)), expected, strict=True):
        assert np.array_equal(a, b)


def test_an_episode_that_has_just_begun_is_restored():
    env, restored = toy(), toy()
    expected = env.reset(rows(0), [5])
    restored.load_state_dict(env.state_dict())
    assert restored.replay_mismatch is None
    assert restored.step(np.array([0])).observations[0, 0] == expected[0, 0]


def test_an_environment_that_is_no_function_of_seed_and_actions_is_found_out():
    noise = np.random.Generator(np.random.PCG64(0))
    env, restored = toy(noise=noise), toy(noise=noise)
    env.reset(rows(0), [5])
    env.step(np.array([1]))
    restored.load_state_dict(env.state_dict())
    assert restored.replay_mismatch == (
        "PgcliToy-v0 is not a function of (seed, actions): playing the open episode of environment 0 "
        "again (seed 5, to step 1) gave another observation"
    )
    restored.step(np.array([1]))


class Pays(Toy):
    """Two steps an episode; each pays what `pay` draws."""

    def __init__(self, pay):
        super().__init__()
        self.pay = pay

    def step(self, action):
        observation, _, _, _, info = super().step(action)
        return observation, self.pay.random(), self.steps == 2, False, info


gymnasium.register("PgcliPays-v0", Pays, max_episode_steps=5)


@pytest.mark.parametrize(
    ("steps", "which"), [(1, "the open episode of environment 0"), (2, "the last finished episode")]
)
def test_rewards_that_are_no_function_of_seed_and_actions_are_found_out(steps, which):
    pay = np.random.Generator(np.random.PCG64(0))
    env, restored = make("PgcliPays-v0", pay=pay), make("PgcliPays-v0", pay=pay)
    env.reset(rows(0), [5])
    for _ in range(steps):
        env.step(np.array([1]))
    restored.load_state_dict(env.state_dict())
    assert restored.replay_mismatch == (
        f"PgcliPays-v0 is not a function of (seed, actions): playing {which} again "
        f"(seed 5, to step {steps}) gave other rewards"
    )


def test_a_finished_episode_is_played_again_and_leaves_the_open_ones_as_they_were():
    def fresh(noise=None):
        env = make("PgcliToy-v0", 2, max_episode_steps=3, noise=noise)
        env.reset(rows(0, 1), [5, 6])
        env.step(np.array([0, 1]))
        for _ in range(2):
            env.step(np.array([1]), rows(1))  # row 1 ends
        return env

    saved = fresh().state_dict()
    assert saved["finished"]["actions"].tolist() == [1, 1, 1]
    other = toy(2)
    other.load_state_dict(saved)
    assert other.replay_mismatch is not None  # its limit is another: the replay goes on where it ended
    restored = make("PgcliToy-v0", 2, max_episode_steps=3)
    restored.load_state_dict(saved)
    assert restored.replay_mismatch is None
    again = restored.state_dict()
    assert again["finished"]["observation"].tolist() == saved["finished"]["observation"].tolist()
    assert again["episodes"][1] is None
    step = restored.step(np.array([1]), rows(0))
    assert step.observations[0, 1:].tolist() == [2, 1]

    noisy = fresh(noise=np.random.Generator(np.random.PCG64(0)))
    noisy.reset(rows(1), [7])
    saved = noisy.state_dict() | {"episodes": [None, None]}
    noisy.load_state_dict(saved)
    assert "playing the last finished episode again (seed 6, to step 3)" in noisy.replay_mismatch


def test_a_checkpoint_from_before_finished_episodes_were_kept_is_read():
    env, restored = toy(), toy()
    env.reset(rows(0), [5])
    saved = env.state_dict()
    del saved["finished"], saved["episodes"][0]["total"]
    restored.load_state_dict(saved)
    assert restored.replay_mismatch is None


def test_an_episode_that_ends_before_its_time_when_replayed_begins_again():
    env, restored = make("PgcliEnds-v0", lengths=[4]), make("PgcliEnds-v0", lengths=[2, 4])
    env.reset(rows(0), [5])
    for _ in range(3):
        env.step(np.array([0]))
    restored.load_state_dict(env.state_dict())
    assert restored.replay_mismatch
    assert restored.step(np.array([0])).observations[0, 1] == 1


def test_an_environment_whose_episodes_may_never_end_is_given_a_limit_or_refused():
    with pytest.raises(InputError, match=r"PgcliEndless-v0 has no time limit.*env\.max_episode_steps="):
        make("PgcliEndless-v0")
    make("PgcliEndless-v0", max_episode_steps=10)
