"""The open episodes of an environment that is stepped without end: their seeds, returns so far and lengths."""

from __future__ import annotations

import numpy as np

from pgcli.seeding import episode_seeds
from pgcli.types import Episode, State, VectorEnvironment


class OpenEpisodes:
    """One open episode in each row of `env`. The collector that steps it reports rewards and the rows that ended."""

    def __init__(self, env: VectorEnvironment, *, seed: int) -> None:
        self.env, self.seed = env, seed
        self.begun = 0  # episodes so far; the number, and so the seed, of the next one
        self.returns = np.zeros(env.num_envs)
        self.lengths = np.zeros(env.num_envs, dtype=np.int64)
        self.seeds = np.zeros(env.num_envs, dtype=np.int64)

    def begin(self, rows: np.ndarray) -> np.ndarray:
        """Begin new episodes in `rows` (k,); returns their first observations, (k, *shape)."""
        seeds = episode_seeds(self.seed, "train", range(self.begun, self.begun + len(rows)))
        self.begun += len(rows)
        self.returns[rows], self.lengths[rows], self.seeds[rows] = 0.0, 0, seeds
        return self.env.reset(rows, seeds)

    def earn(self, rewards: np.ndarray) -> None:
        """Count one step of every episode; rewards: (N,), the task's own."""
        self.returns += rewards
        self.lengths += 1

    def ended(self, rows: np.ndarray) -> list[Episode]:
        return list(map(Episode, self.returns[rows].tolist(), self.lengths[rows].tolist(), self.seeds[rows].tolist()))

    def state_dict(self) -> State:
        return {
            "begun": self.begun,
            "returns": self.returns,
            "lengths": self.lengths,
            "seeds": self.seeds,
            "env": self.env.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        self.begun = state["begun"]
        self.returns[:], self.lengths[:], self.seeds[:] = state["returns"], state["lengths"], state["seeds"]
        self.env.load_state_dict(state["env"])
