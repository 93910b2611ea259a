"""Pendulum, vectorised in NumPy: the equations, seeds and limits of Gymnasium's Pendulum-v1, without its cost.

    cost  = angle^2 + 0.1 w^2 + 0.001 u^2                     angle in [-pi, pi), 0 is upright; w before the step
    w'    = clip(w + (3 g / (2 l) sin(angle) + 3 u / (m l^2)) 0.05 s, -8, 8)
    angle = angle + w' 0.05 s

The torque u is clipped to [-2, 2]. Never terminates. A test holds states and rewards to Gymnasium's within 1e-9.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from pgcli.environments.normalise import Normalisation
from pgcli.settings import Settings
from pgcli.types import Continuous, ControlSpec, State, Step

SECONDS, MAX_SPEED, MAX_TORQUE = 0.05, 8.0, 2.0
GRAVITY_GAIN = 3 * 10.0 / 2  # 3 g / (2 l), with g = 10 and m = l = 1
TORQUE_GAIN = 3.0
START = np.array([np.pi, 1.0])


class Pendulum:
    """Swing a pendulum up and keep it there: reward minus the cost, observation (cos angle, sin angle, velocity)."""

    world: ClassVar[str] = "control"
    replay_mismatch: str | None = None

    class Config(Settings):
        name: str = Field(description="name of this environment")
        id: Literal["Pendulum-v1"] = Field(description="Gymnasium environment that this one equals")
        max_episode_steps: int = Field(gt=0, description="steps after which an episode is truncated")
        solved_at: float | None = Field(
            description="greedy return at which the environment counts as solved; null: none"
        )
        normalise: Normalisation = Field(description="transformations of observations and rewards")

    def __init__(self, config: Config, num_envs: int) -> None:
        self.num_envs = num_envs
        high = np.array([MAX_TORQUE], dtype=np.float32)
        self.spec = ControlSpec(observation_shape=(3,), actions=Continuous(-high, high))
        self._limit = config.max_episode_steps
        self._state = np.zeros((5, num_envs))
        """Rows: cos and sin of the angle, angular velocity (the observation); the angle; steps since the reset."""

    def reset(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        starts = [np.random.Generator(np.random.PCG64(seed)).uniform(-START, START) for seed in seeds]
        angle, velocity = np.array(starts).reshape(-1, 2).T
        started = np.stack([np.cos(angle), np.sin(angle), velocity, angle, np.zeros_like(angle)])
        self._state[:, rows] = started
        return started[:3].T.astype(np.float32, "C")

    def step(self, actions: np.ndarray, rows: np.ndarray | None = None) -> Step:
        state = self._state if rows is None else self._state[:, rows]
        cos, sin, velocity, angle, clock = state
        # In the precision of the action, as in Gymnasium: widening a float32 torque first would differ by 1e-8.
        torque = np.minimum(np.maximum(actions[:, 0], -MAX_TORQUE), MAX_TORQUE)  # a third of the cost of `clip`
        upright = (angle + np.pi) % (2 * np.pi) - np.pi
        rewards = -(upright * upright + 0.1 * (velocity * velocity) + 0.001 * (torque * torque))

        velocity += SECONDS * (GRAVITY_GAIN * sin + TORQUE_GAIN * torque)
        np.maximum(velocity, -MAX_SPEED, out=velocity)
        np.minimum(velocity, MAX_SPEED, out=velocity)
        angle += SECONDS * velocity
        np.cos(angle, out=cos)
        np.sin(angle, out=sin)
        clock += 1
        if rows is not None:
            self._state[:, rows] = state
        observations = state[:3].T.astype(np.float32, "C")
        return Step(observations, rewards, np.zeros(len(rewards), dtype=bool), clock >= self._limit, rewards)

    def state_dict(self) -> State:
        return {"state": self._state.copy()}

    def load_state_dict(self, state: State) -> None:
        self._state[:] = state["state"]

    def close(self) -> None:
        pass
