"""Probe environments: each is so small that its values are known exactly, and each detects one kind of mistake.

    kind                        episode                                             V, for the best policy
    constant_reward             one step, o = 0, r = 1                              1
    observation_value           one step, o = +1 or -1 (even odds), r = o           V(o) = o
    delayed_reward              o = 0, r = 0, then o = 1, r = 1                     V(0) = gamma, V(1) = 1
    action_reward               one step, o = 0, r by the action, s = 1             1 if discrete, 0 if continuous
    observation_action_reward   one step, o = +1 or -1, r by the action, s = o      1 if discrete, 0 if continuous
    memory                      o = +1 or -1, then o = 0 for 3 steps; r only for    gamma^(3 - t) if discrete,
                                the last action, by it, s = the first o             0 if continuous

In the first three the action changes nothing, so V holds for every policy. In the others, the sign s determines the
best action:

    discrete     r = s for action 1, -s for action 0.     Best: 1 where s > 0, else 0.  V = 2 pi(best) - 1.
    continuous   r = -(a - s / 2)^2.                      Best: a = s / 2.              V = -(mean - s / 2)^2 - std^2.

The box of the continuous actions is [-1, 1], but actions outside are not clipped, so that V is exact for a Gaussian.
With `image`, o is drawn as 1 x 8 x 8 pixels: the left half is bright for -1, the right half for +1, none for 0.

A method that learns constant_reward and not observation_value does not propagate the observation; one that fails at
delayed_reward discounts or bootstraps wrongly; at action_reward, its policy gradient is wrong; at
observation_action_reward, its pairing of observations, actions and advantages. At memory every policy without memory
fails, with a mean return of 0 if actions are discrete. Source of all except memory: Jones 2021, "Debugging RL, Without
the Agonizing Pain".
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from pgcli.environments.normalise import Normalisation
from pgcli.settings import Settings
from pgcli.types import Continuous, ControlSpec, Discrete, State, Step

SIDE = 8
DELAY = 3
"""Steps between the observation to remember and the action that depends on it."""
Kind = Literal[
    "constant_reward", "observation_value", "delayed_reward", "action_reward", "observation_action_reward", "memory"
]  # fmt: skip


class Probe:
    world: ClassVar[str] = "control"
    replay_mismatch: str | None = None

    class Config(Settings):
        name: str = Field(description="name of this environment")
        kind: Kind = Field(description="kind of probe: what must be learned to solve it")
        action_space: Literal["discrete", "continuous"] = Field(
            description="space of actions: two discrete ones, or one real number"
        )
        image: bool = Field(description="draw the observation as an image of 8 x 8 pixels")
        solved_at: float | None = Field(
            description="greedy return at which the environment counts as solved; null: none"
        )
        normalise: Normalisation = Field(description="transformations of observations and rewards")

    def __init__(self, config: Config, num_envs: int) -> None:
        self.num_envs = num_envs
        one = np.ones(1, dtype=np.float32)
        self.spec = ControlSpec(
            observation_shape=(1, SIDE, SIDE) if config.image else (1,),
            actions=Discrete(2) if config.action_space == "discrete" else Continuous(-one, one),
        )
        self._config = config
        self._observed = np.zeros(num_envs, dtype=np.int64)
        self._first = np.zeros(num_envs, dtype=np.int64)
        self._clock = np.zeros(num_envs, dtype=np.int64)

    def reset(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        random = self._config.kind in ("observation_value", "observation_action_reward", "memory")
        # An episode's seed is already a hash: its lowest bit decides.
        self._observed[rows] = 1 - 2 * (np.asarray(seeds, dtype=np.int64) & 1) if random else 0
        self._first[rows] = self._observed[rows]
        self._clock[rows] = 0
        return self._observe(self._observed[rows])

    def step(self, actions: np.ndarray, rows: np.ndarray | None = None) -> Step:
        rows = np.arange(self.num_envs) if rows is None else rows
        observed, clock = self._observed[rows], self._clock[rows]
        terminated = np.ones(len(rows), dtype=bool)
        match self._config.kind:
            case "constant_reward":
                rewards = np.ones(len(rows))
            case "observation_value":
                rewards = observed.astype(np.float64)
            case "delayed_reward":
                terminated = clock == 1
                rewards = terminated.astype(np.float64)
                self._observed[rows] = 1
            case "action_reward":
                rewards = self._judge(actions, np.ones(len(rows)))
            case "observation_action_reward":
                rewards = self._judge(actions, observed)
            case "memory":
                terminated = clock == DELAY
                rewards = self._judge(actions, self._first[rows]) * terminated
                self._observed[rows] = 0
        self._clock[rows] += 1
        truncated = np.zeros(len(rows), dtype=bool)
        return Step(self._observe(self._observed[rows]), rewards, terminated, truncated, rewards)

    def _judge(self, actions: np.ndarray, sign: np.ndarray) -> np.ndarray:
        if self._config.action_space == "discrete":
            return sign * (2.0 * actions - 1.0)
        return -((actions[:, 0].astype(np.float64) - sign / 2) ** 2)

    def _observe(self, observed: np.ndarray) -> np.ndarray:
        if not self._config.image:
            return observed[:, None].astype(np.float32)
        left, right = observed < 0, observed > 0
        halves = np.stack([left, right], axis=1).repeat(SIDE // 2, axis=1)  # (k, SIDE): the brightness of each column
        return np.broadcast_to(halves[:, None, None, :], (len(observed), 1, SIDE, SIDE)).astype(np.float32)

    def state_dict(self) -> State:
        return {"observed": self._observed.copy(), "first": self._first.copy(), "clock": self._clock.copy()}

    def load_state_dict(self, state: State) -> None:
        self._observed[:] = state["observed"]
        self._first[:] = state["first"]
        self._clock[:] = state["clock"]

    def close(self) -> None:
        pass
