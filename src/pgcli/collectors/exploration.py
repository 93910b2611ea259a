"""The behaviour of a deterministic policy in training: its actions plus noise, in units of half the action's range."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from pgcli.types import State


class Process(Protocol):
    """Noise over time. `draw`: (T, N, A) float32, for the next T steps."""

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray: ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


class WhiteNoise:
    """Independent normals of one standard deviation (Fujimoto et al. 2018, section 6.1)."""

    def __init__(self, std: float) -> None:
        self.std = np.float32(std)

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return self.std * generator.standard_normal(shape, dtype=np.float32)

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass


class OrnsteinUhlenbeck:
    """x <- x - theta x + std z: correlated in time, which moves bodies with inertia (Lillicrap et al. 2016, section 3).

    It continues across the ends of episodes: stationary, with standard deviation std / sqrt(1 - (1 - theta)^2).
    """

    def __init__(self, std: float, theta: float) -> None:
        self.std, self.theta = np.float32(std), np.float32(theta)
        self.now: np.ndarray | None = None  # (N, A)

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        path = self.std * generator.standard_normal(shape, dtype=np.float32)
        now = np.zeros(shape[1:], np.float32) if self.now is None else self.now
        for t in range(len(path)):
            now = path[t] = now - self.theta * now + path[t]
        self.now = now.copy()
        return path

    def state_dict(self) -> State:
        return {"now": self.now}

    def load_state_dict(self, state: State) -> None:
        self.now = state["now"]


class Exploring:
    """A policy whose sampler takes its noise from a process."""

    def __init__(self, policy: Any, process: Process, actions: int) -> None:
        self.policy, self.process, self.actions = policy, process, actions
        self.has_critic = policy.has_critic

    def sampler(self) -> Exploring:
        self.act = self.policy.sampler().act
        return self

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return self.process.draw(generator, (*shape, self.actions))
