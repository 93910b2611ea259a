"""Replay: every step goes into a memory, from which an off-policy method draws its minibatches (Lin 1992).

The memory holds raw values. Observations and rewards are normalised when they are drawn, and when the policy acts on
them, by the statistics of that moment: a state has one encoding however long ago it was seen. Pixels are kept as bytes.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgcli.collectors.open_episodes import OpenEpisodes
from pgcli.environments.normalise import Normalised, as_normalised
from pgcli.errors import InputError
from pgcli.seeding import numpy_generator
from pgcli.types import Appended, Continuous, ControlSpec, Episode, State, Transitions, VectorEnvironment


class ReplayCollector:
    """Steps `env` for `num_steps` per call; the first call begins with `learning_starts` random actions.

    A truncated episode is stored with its true final observation and `terminated` false.
    """

    def __init__(
        self, env: VectorEnvironment, *, num_steps: int, learning_starts: int, capacity: int, seed: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        if capacity < max(env.num_envs, learning_starts):
            raise InputError(
                f"algo.capacity={capacity} is too small: the memory must hold algo.learning_starts={learning_starts} "
                f"transitions, and a step of all {env.num_envs} environments"
            )
        self.env, self.num_steps, self.learning_starts = env, num_steps, learning_starts
        self.normalised = as_normalised(env)
        self.memory = Memory(env.spec, capacity, self.normalised, seed=seed, device=device)
        self.random = _Random(env.spec)
        self.generator = numpy_generator(seed, "actions")
        self.open = OpenEpisodes(env, seed=seed)
        self.observations: np.ndarray | None = None  # raw

    def collect(self, policy: Any) -> Experience:
        """`num_steps` of every environment, stored in the memory."""
        N, steps, episodes = self.env.num_envs, self.num_steps, list[Episode]()
        if self.observations is None:
            self.observations = self._begin(np.arange(N))
            warmup = -(-self.learning_starts // N)
            self._play(self.random, warmup, episodes)
            steps += warmup
        self._play(policy.sampler(), self.num_steps, episodes)
        return Experience(steps * N, episodes, self.memory)

    def _play(self, sampler: Any, steps: int, episodes: list[Episode]) -> None:
        env, memory, normalised, current = self.env, self.memory, self.normalised, self.observations
        assert current is not None
        noise = sampler.noise(self.generator, (steps, env.num_envs))
        for t in range(steps):
            actions, _ = sampler.act(current if normalised is None else normalised.normalise(current), noise[t])
            step = env.step(actions)
            following = step.observations if normalised is None else normalised.raw
            memory.append(current, actions, step.task_rewards, following, step.terminated)
            self.open.earn(step.task_rewards)
            current = following
            done = step.terminated | step.truncated
            if done.any():
                rows = np.flatnonzero(done)
                episodes += self.open.ended(rows)
                current = following.copy()
                current[rows] = self._begin(rows)
        self.observations = current

    def _begin(self, rows: np.ndarray) -> np.ndarray:
        """Raw observations of new episodes, (k, *shape)."""
        observations = self.open.begin(rows)
        return observations if self.normalised is None else self.normalised.raw

    def state_dict(self) -> State:
        return {
            **self.open.state_dict(),
            "generator": self.generator.bit_generator.state,
            "observations": self.observations,
            "memory": self.memory.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        self.open.load_state_dict(state)
        self.generator.bit_generator.state = state["generator"]
        self.observations = state["observations"]
        self.memory.load_state_dict(state["memory"])


@dataclass
class Experience:
    """The newest steps and episodes, and the memory of all: a `types.Replay`."""

    steps: int
    episodes: list[Episode]
    memory: Memory

    @property
    def size(self) -> int:
        return self.memory.size

    def draw(self, batch_size: int) -> Transitions:
        return self.memory.draw(batch_size)


class Memory:
    """The last `capacity` transitions, in a ring: transition number i is row i % capacity of each column."""

    def __init__(
        self, spec: ControlSpec, capacity: int, normalised: Normalised | None, *, seed: int, device: torch.device
    ) -> None:
        self.capacity, self.normalised, self.device = capacity, normalised, device
        self.generator = numpy_generator(seed, "replay")
        self.pixels = spec.pixels
        self.count = 0  # transitions ever appended
        seen = (spec.observation_shape, np.uint8 if spec.pixels else np.float32)
        real = isinstance(spec.actions, Continuous)
        chosen = ((len(spec.actions.low),), np.float32) if real else ((), np.int64)  # type: ignore[union-attr]
        columns = {
            "observations": seen,
            "actions": chosen,
            "rewards": ((), np.float32),
            "next_observations": seen,
            "terminated": ((), np.bool_),
        }
        try:  # the system allocates a column when it is first written to
            self.columns = {name: np.zeros((capacity, *shape), dtype) for name, (shape, dtype) in columns.items()}
        except (MemoryError, ValueError) as error:
            size = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in columns.values())
            raise InputError(_no_room(capacity, size)) from error

    @property
    def size(self) -> int:
        return min(self.count, self.capacity)

    def append(
        self, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, next_observations: np.ndarray,
        terminated: np.ndarray,
    ) -> None:  # fmt: skip
        """One transition of each environment, (N, ...)."""
        first, count = self.count % self.capacity, len(rewards)
        where: Any = slice(first, first + count)
        if first + count > self.capacity:
            where = np.arange(first, first + count) % self.capacity
        if self.pixels:
            observations, next_observations = (_converted(x, np.uint8) for x in (observations, next_observations))
        values = (observations, actions, rewards, next_observations, terminated)
        for column, new in zip(self.columns.values(), values, strict=True):
            column[where] = new
        self.count += count

    def draw(self, batch_size: int) -> Transitions:
        """A minibatch, drawn uniformly with replacement."""
        rows = self.generator.integers(self.size, size=batch_size)
        drawn = [column.take(rows, 0) for column in self.columns.values()]
        observations, actions, rewards, next_observations, terminated = drawn
        if self.pixels:
            observations, next_observations = (_converted(x, np.float32) for x in (observations, next_observations))
        if self.normalised is not None:
            observations, next_observations = map(self.normalised.normalise, (observations, next_observations))
            rewards = self.normalised.scale(rewards)
        columns = (observations, actions, rewards, next_observations, terminated)
        if self.device.type == "cpu":
            return Transitions(*map(torch.from_numpy, columns))
        return Transitions(*(torch.from_numpy(column).to(self.device) for column in columns))

    def state_dict(self) -> State:
        """The ring as two pieces in order of age: the rows after the newest transition, then those up to it."""
        oldest = self.count - self.size
        turn = max(oldest, self.count - self.count % self.capacity)  # the number of the transition in row 0
        pieces = [
            (first, {name: column[first % self.capacity :][: last - first] for name, column in self.columns.items()})
            for first, last in ((oldest, turn), (turn, self.count))
            if first < last
        ]
        return {
            "generator": self.generator.bit_generator.state,
            "transitions": Appended(oldest, self.count, pieces),
        }

    def load_state_dict(self, state: State) -> None:
        """If there are more transitions than room (after a fork, say), the newest are kept."""
        self.generator.bit_generator.state = state["generator"]
        transitions: Appended = state["transitions"]
        self.count = transitions.end if transitions.pieces else 0  # an evaluation does not read them
        for first, piece in transitions.pieces:
            skipped = max(0, self.count - self.capacity - first)
            for name, column in self.columns.items():
                values = _converted(piece[name][skipped:], column.dtype)  # earlier versions kept pixels as reals
                rows = np.arange(first + skipped, first + skipped + len(values)) % self.capacity
                column[rows] = values


def _converted(values: np.ndarray, dtype: Any) -> np.ndarray:
    """Values for a column of `dtype`, or from one: pixels k/255 as bytes k and back, exactly. Others as they are."""
    if values.dtype == dtype:
        return values
    if dtype == np.uint8:
        return np.rint(values * 255).astype(np.uint8)
    return np.divide(values, 255, dtype=np.float32) if values.dtype == np.uint8 else values


def _no_room(capacity: int, size: int) -> str:
    """size: bytes of one transition."""
    said = f"algo.capacity={capacity}: there is no room for a memory of {capacity * size / 2**30:,.1f} GiB"
    fits = _free_memory() * 8 // 10 // size
    fits -= fits % 10 ** max(0, len(str(fits)) - 2)
    return f"{said}; algo.capacity={fits} would fit" if fits else said


def _free_memory() -> int:
    """Bytes; 0 where the system does not say."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


class _Random:
    """Draws actions uniformly, whatever the observation: a sampler like a policy's."""

    def __init__(self, spec: ControlSpec) -> None:
        self.actions = spec.actions

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """The actions themselves, (*shape) int64 or (*shape, A) float32."""
        if not isinstance(self.actions, Continuous):
            return generator.integers(self.actions.n, size=shape)
        low, high = self.actions.low, self.actions.high
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise InputError(
                "random actions need bounds, and those of this environment have none: algo.learning_starts=0"
            )
        return generator.uniform(low, high, size=(*shape, len(low))).astype(np.float32)

    def act(self, observations: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return noise, noise
