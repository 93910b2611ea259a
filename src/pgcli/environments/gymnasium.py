"""Any Gymnasium environment, one instance per row, reset only by the collector.

There is no autoreset and no dummy transition: a step returns the true successor, and each episode begins with its own
seed. So in any well-behaved environment an episode is a function of (seed, actions), and this makes resuming possible:
a checkpoint stores both for each open episode, and `load_state_dict` plays them again. It also plays the last finished
episode again, since often none is open, and compares last observations and sums of rewards.
"""

import importlib
import math
import os
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from pydantic import Field

from pgcli.environments.normalise import Normalisation
from pgcli.errors import USER_ERRORS, InputError, RunError
from pgcli.settings import Settings
from pgcli.types import Continuous, ControlSpec, Discrete, State, Step

FLATTENED = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
"""Supported spaces of observations, besides Tuple and Dict of them."""


@dataclass
class Played:
    """An episode so far."""

    seed: int
    actions: list[Any] = field(default_factory=list)
    total: float = 0.0
    """Sum of its rewards."""


class Gymnasium:
    world: ClassVar[str] = "control"

    class Config(Settings):
        name: str = Field(description="name of this environment")
        id: str = Field(description="Gymnasium id, or `module:id` if importing the module registers it")
        kwargs: dict[str, Any] = Field(description="arguments of the environment's constructor")
        max_episode_steps: int | None = Field(
            gt=0, description="steps after which an episode is truncated; null: the environment's own limit"
        )
        solved_at: float | None = Field(
            description="greedy return at which the environment counts as solved; null: none"
        )
        normalise: Normalisation = Field(description="transformations of observations and rewards")

    def __init__(self, config: Config, num_envs: int) -> None:
        self.num_envs = num_envs
        self.replay_mismatch: str | None = None
        self._id = config.id
        self._environments = [make(config)]
        refuse_endless(self._environments[0], config)
        self._observation_space = self._environments[0].observation_space
        self._action_space = self._environments[0].action_space
        self._encoder = Encoder(config.id, self._observation_space)
        space = self._observation_space
        states = int(space.n) if isinstance(space, spaces.Discrete) else None
        actions = action_spec(config.id, self._action_space)
        self.spec = ControlSpec(self._encoder.shape, actions, states, self._encoder.pixels)
        self._environments += [make(config) for _ in range(num_envs - 1)]
        self._episodes: list[Played | None] = [None] * num_envs
        self._finished: tuple[Played, np.ndarray] | None = None  # the last finished episode, its final observation
        self._observations = np.zeros((num_envs, *self.spec.observation_shape), dtype=np.float32)

    def reset(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        for row, seed in zip(rows.tolist(), seeds, strict=True):
            self._episodes[row] = Played(int(seed))
            try:
                observation, _ = self._environments[row].reset(seed=int(seed))
                self._observations[row] = self._encoder(observation)
            except USER_ERRORS as error:
                raise RunError(f"{self._id} failed in reset: {self._place(row)}: {_describe(error)}") from error
            self._check(row, 0.0)
        return self._observations[rows]

    def step(self, actions: np.ndarray, rows: np.ndarray | None = None) -> Step:
        indices = range(self.num_envs) if rows is None else rows.tolist()
        count = len(indices)
        rewards = np.zeros(count)
        terminated, truncated = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
        for i, row in enumerate(indices):
            rewards[i], terminated[i], truncated[i] = self._step(row, self.decode(actions[i]))
        observations = self._observations.copy() if rows is None else self._observations[rows]
        return Step(observations, rewards, terminated, truncated, rewards)

    def _step(self, row: int, action: Any) -> tuple[float, bool, bool]:
        episode = self._episodes[row]
        assert episode is not None, f"row {row} has no open episode"
        episode.actions.append(action)
        try:
            # A copy: an environment that changes the action in place must not change the action that a resume replays.
            played = action if isinstance(action, int) else action.copy()
            observation, reward, terminated, truncated, _ = self._environments[row].step(played)
            self._observations[row] = self._encoder(observation)
            reward = float(reward)
        except USER_ERRORS as error:
            place = f"{self._place(row)}, action {_short(action)}"
            raise RunError(f"{self._id} failed in step: {place}: {_describe(error)}") from error
        self._check(row, reward)
        episode.total += reward
        if terminated or truncated:
            self._episodes[row] = None
            self._finished = episode, self._observations[row].copy()
        return reward, bool(terminated), bool(truncated)

    def encode(self, observation: Any) -> np.ndarray:
        """The environment's own observation as a policy reads it, (*shape)."""
        return self._encoder(observation)

    def decode(self, action: Any) -> Any:
        """A policy's action as the environment takes it: clipped to its bounds. The rollout keeps the policy's own."""
        space = self._action_space
        if isinstance(space, spaces.Discrete):
            return int(action) + int(space.start)
        assert isinstance(space, spaces.Box)
        return np.clip(action.reshape(space.shape), space.low, space.high).astype(space.dtype)

    def _check(self, row: int, reward: float) -> None:
        """Raises RunError if a reward or an observation is not finite, before it is learned from."""
        if not math.isfinite(reward):
            raise RunError(f"{self._id} gave a reward of {reward}: {self._place(row)}")
        if not np.isfinite(self._observations[row]).all():
            bad = np.argwhere(~np.isfinite(self._observations[row]))[0]
            value = self._observations[row][tuple(bad)]
            key = self._encoder.locate(tuple(bad.tolist()))
            raise RunError(f"{self._id} gave an observation with {value} at `{key}`: {self._place(row)}")

    def _place(self, row: int) -> str:
        episode = self._episodes[row]
        assert episode is not None
        return f"environment {row}, seed {episode.seed}, step {len(episode.actions)}"

    def state_dict(self) -> State:
        return {
            "episodes": [
                None if episode is None else self._saved(episode, self._observations[row])
                for row, episode in enumerate(self._episodes)
            ],
            "finished": None if self._finished is None else self._saved(*self._finished),
        }

    def _saved(self, episode: Played, observation: np.ndarray) -> State:
        space = self._action_space
        empty: np.ndarray = np.zeros((0, *(space.shape or ())), dtype=space.dtype)
        return {
            "seed": episode.seed,
            "actions": np.array(episode.actions, dtype=space.dtype) if episode.actions else empty,
            "observation": observation.copy(),
            "total": episode.total,
        }

    def load_state_dict(self, state: State) -> None:
        """Play the saved episodes again. If one is not as it was, `replay_mismatch` says so in a sentence."""
        self.replay_mismatch = None
        finished = state.get("finished")  # a checkpoint of an earlier version has none
        if finished is not None:  # in a row whose own episode is not open yet
            self._replay(0, finished, "the last finished episode", over=True)
        for row, saved in enumerate(state["episodes"]):
            if saved is None:
                self._episodes[row] = None
                continue
            self._replay(row, saved, f"the open episode of environment {row}", over=False)
            if self._episodes[row] is None:  # the replay ended early: begin again, so that it can be stepped
                self.reset(np.array([row]), [saved["seed"]])
        self._finished = None
        if finished is not None:
            episode = Played(finished["seed"], list(finished["actions"]), finished["total"])
            self._finished = episode, np.asarray(finished["observation"])

    def _replay(self, row: int, saved: State, which: str, *, over: bool) -> None:
        """Play a saved episode again in `row`. over: whether its last action ended it."""
        seed, actions = saved["seed"], np.asarray(saved["actions"])
        discrete = isinstance(self._action_space, spaces.Discrete)
        steps, total = 0, 0.0
        try:
            self.reset(np.array([row]), [seed])
            while steps < len(actions) and self._episodes[row] is not None:
                total += self._step(row, int(actions[steps]) if discrete else actions[steps])[0]
                steps += 1
        except RunError:
            self._episodes[row] = None
        if steps < len(actions) or (self._episodes[row] is None) != over:
            other = "another end"
        elif not np.array_equal(self._observations[row], np.asarray(saved["observation"])):
            other = "another observation"
        elif total != saved.get("total", total):
            other = "other rewards"
        else:
            return
        self.replay_mismatch = self.replay_mismatch or (
            f"{self._id} is not a function of (seed, actions): playing {which} again (seed {seed}, to step "
            f"{len(actions)}) gave {other}"
        )

    def close(self) -> None:
        """One that cannot be closed takes nothing from the run, and must not hide why it failed."""
        for environment in self._environments:
            with suppress(*USER_ERRORS):
                environment.close()


# ---------------------------------------------------------------- spaces


class Encoder:
    """Observations of one space as arrays of one shape.

    A Box of three axes is an image: kept in shape, channels first. Anything else is flattened, discrete parts as
    one-hot vectors. A Box of bytes up to 255 is scaled to 0..1, whatever its shape and wherever it is.
    """

    def __init__(self, name: str, space: spaces.Space) -> None:
        parts = _leaves(space)
        for part in parts:
            if not isinstance(part, FLATTENED):
                raise InputError(
                    f"{name} has observations of {type(part).__name__}, which have no fixed size to give to a network; "
                    "supported: Box, Discrete, MultiDiscrete, MultiBinary, and Tuple and Dict of them"
                )
        self._space = space
        self._image = isinstance(space, spaces.Box) and len(space.shape) == 3
        self._to_channels_first = self._image and space.shape[-1] <= space.shape[0]  # type: ignore[index]
        self.pixels = all(map(_is_bytes, parts))
        """Whether every element is k/255 for a byte k."""
        if not self._image:
            self.shape: tuple[int, ...] = (spaces.flatdim(space),)
        else:
            height, width, channels = space.shape  # type: ignore[misc]
            self.shape = (channels, height, width) if self._to_channels_first else (height, width, channels)
        self._divisors: np.ndarray | None = None
        if any(map(_is_bytes, parts)):
            each = [np.full(spaces.flatdim(part), 255 if _is_bytes(part) else 1, np.float32) for part in parts]
            self._divisors = np.concatenate(each).reshape(self.shape)

    def __call__(self, observation: Any) -> np.ndarray:
        if self._image:
            encoded = self._as_image(np.asarray(observation))
        else:
            encoded = np.asarray(spaces.flatten(self._space, observation))
        if encoded.shape != self.shape:  # an assignment would silently broadcast it
            raise ValueError(f"an observation of shape {encoded.shape} where its space says {self.shape}")
        return encoded if self._divisors is None else encoded.astype(np.float32) / self._divisors

    def _as_image(self, image: np.ndarray) -> np.ndarray:
        if self._to_channels_first:
            image = np.moveaxis(image, -1, 0)
        if self.pixels and image.dtype != np.uint8 and not np.array_equal(image, np.clip(np.rint(image), 0, 255)):
            raise ValueError("an observation that is not made of bytes, as its space says")
        return image

    def locate(self, index: tuple[int, ...]) -> str:
        """Element `index` of an encoded observation in the environment's own terms: `observation[camera][2, 0]`."""
        if not self._image:
            return "observation" + _locate(self._space, index[0])
        if self._to_channels_first:
            index = (*index[1:], index[0])
        return f"observation[{', '.join(map(str, index))}]"


def _leaves(space: spaces.Space) -> list[spaces.Space]:
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return [space]
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
    return [leaf for part in parts for leaf in _leaves(part)]


def _is_bytes(space: spaces.Space) -> bool:
    """Bytes up to 255: those of a mask or of a board's few kinds of field are numbers of their own scale."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and bool((space.high == 255).any())


def _locate(space: spaces.Space, index: int) -> str:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in named:
            size = spaces.flatdim(part)
            if index < size:
                return f"[{key}]{_locate(part, index)}"
            index -= size
    if isinstance(space, spaces.Box):
        return f"[{', '.join(str(i) for i in np.unravel_index(index, space.shape))}]"
    return f"[{index}]"


def action_spec(name: str, space: spaces.Space) -> Discrete | Continuous:
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return Continuous(space.low.ravel(), space.high.ravel())
    raise InputError(
        f"{name} has actions of {space}, which no policy here can choose; supported: Discrete, and Box of reals"
    )


# ---------------------------------------------------------------- construction


def refuse_endless(environment: gymnasium.Env, config: Gymnasium.Config) -> None:
    """Refuses an environment without a time limit: an evaluation could wait for ever for an episode to end."""
    spec = environment.spec
    # Atari has a limit of frames in the environment itself.
    if spec and spec.max_episode_steps is None and "max_num_frames_per_episode" not in spec.kwargs:
        raise InputError(
            f"{config.id} has no time limit, so an episode may never end: give it one with env.max_episode_steps=500"
        )


def make(config: Gymnasium.Config) -> gymnasium.Env:
    """`gymnasium.make`, with every reason to fail in one line. Raises InputError."""
    spec = find_spec(config.id)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"gymnasium\.")  # on the precision of spaces and similar
            return gymnasium.make(
                spec, max_episode_steps=config.max_episode_steps, disable_env_checker=True, **config.kwargs
            )
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise InputError(f"{config.id} needs a package that is not installed: {_install(error)}") from error
    except TypeError as error:
        reason = str(error).partition(" was raised from")[0]
        raise InputError(f"{config.id} does not take env.kwargs={config.kwargs}: {reason}") from error
    except USER_ERRORS as error:
        raise InputError(f"{config.id} can't be made: {_describe(error)}") from error


def find_spec(name: str) -> Any:
    """The registered environment called `name`. Raises InputError, with the nearest name, if there is none."""
    module, _, bare = name.rpartition(":")
    before = set(gymnasium.registry)
    if module:
        import_user_module(module)
    if bare.startswith("ALE/"):  # Gymnasium no longer loads plug-ins by itself
        import_ale(bare)
    try:
        return gymnasium.spec(bare)
    except gymnasium.error.Error as error:
        own = set(gymnasium.registry) - before if module else set()  # what the import registered
        known = {key.lower(): f"{module}:{key}" if own else key for key in sorted(own) or gymnasium.registry}
        near = get_close_matches(bare.lower(), known, n=1, cutoff=0.0 if own else 0.6)
        hint = f"did you mean {known[near[0]]}?" if near else "an environment of another package is named `module:id`"
        raise InputError(f"Gymnasium has no environment `{name}`; {hint}") from error


def import_user_module(module: str) -> None:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that a file in the working directory shadows no installed module
    try:
        importlib.import_module(module)
    except USER_ERRORS as error:
        raise InputError(f"can't import `{module}`: {_describe(error)}") from error


def import_ale(name: str) -> None:
    try:
        importlib.import_module("ale_py")
    except ImportError as error:
        raise InputError(f"{name} needs a package that is not installed: run pip install 'gymnasium[atari]'") from error


def _install(error: ImportError | gymnasium.error.DependencyNotInstalled) -> str:
    extra = re.search(r"gymnasium\[([\w-]+)\]", str(error))
    return f"run pip install 'gymnasium[{extra[1]}]'" if extra else str(error)


def _describe(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _short(action: Any) -> str:
    return np.array2string(np.asarray(action), precision=4, threshold=8).replace("\n", "")
