"""A population: every candidate plays the same episodes, all of them side by side.

All candidates get the same initial states (common random numbers): their fitnesses are compared, and the luck that they
share cancels. Candidates act without noise, so that in an environment whose episodes are a function of seed and actions
two candidates with the same parameters have the same fitness, to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pgcli.seeding import episode_seeds
from pgcli.types import Episode, Fitness, Population, State, VectorEnvironment


class PopulationCollector:
    """`num_episodes` whole episodes of each candidate, as many at a time as the environment has rows."""

    def __init__(self, env: VectorEnvironment, *, num_episodes: int, seed: int) -> None:
        self.env, self.num_episodes, self.seed = env, num_episodes, seed
        self.begun = 0  # episodes per candidate so far; the number, and so the seed, of the next one

    def collect(self, population: Population) -> Fitness:
        E, K = self.num_episodes, len(population.candidates)
        if population.fresh or not self.begun:
            self.begun += E
        seeds = episode_seeds(self.seed, "train", range(self.begun - E, self.begun)) * K
        crowd = population.policy.crowd(population.candidates.cpu().numpy())
        players = np.repeat(np.arange(K), E)
        totals, lengths = np.zeros(K * E), np.zeros(K * E, dtype=np.int64)
        for at in range(0, K * E, self.env.num_envs):
            some = slice(at, at + self.env.num_envs)
            self._play(crowd, players[some], seeds[some], totals[some], lengths[some])
        return Fitness(
            returns=torch.from_numpy(totals.reshape(K, E).mean(1)),
            steps=int(lengths.sum()),
            episodes=list(map(Episode, totals.tolist(), lengths.tolist(), seeds)),
        )

    def _play(self, crowd: Any, players: np.ndarray, seeds: list[int], totals: np.ndarray, lengths: np.ndarray) -> None:
        """One episode for each of (R,) players; writes their returns and lengths into `totals` and `lengths`."""
        env, rows = self.env, np.arange(len(players))
        observations = env.reset(rows, seeds)
        running, length, seated = np.zeros(len(rows)), 0, -1
        while len(rows):
            if len(rows) != seated:
                crowd.seat(players[rows])
                seated = len(rows)
            step = env.step(crowd.act(observations), None if len(rows) == env.num_envs else rows)
            observations = step.observations
            running += step.task_rewards
            length += 1
            done = step.terminated | step.truncated
            if np.count_nonzero(done):  # a tenth of the time of `any`
                ended, kept = rows[done], closed_up(done)
                totals[ended], lengths[ended] = running[done], length
                rows, observations, running = rows[kept], observations[kept], running[kept]

    def state_dict(self) -> State:
        """No episode is open between two generations, and an episode is a function of its seed and the actions."""
        return {"begun": self.begun, "env": self.env.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.begun = state["begun"]
        self.env.load_state_dict(state["env"])


def closed_up(done: np.ndarray) -> np.ndarray:
    """Indices of the rows that go on, the last of them in the places of those that ended: most rows do not move."""
    going = np.flatnonzero(~done)
    kept = np.arange(len(going))
    kept[done[: len(going)]] = going[going >= len(going)]
    return kept
