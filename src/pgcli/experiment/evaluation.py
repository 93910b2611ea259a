"""How good a policy is: whole episodes that training never saw, greedy and stochastic, with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pgcli.collectors.episodes import Player
from pgcli.seeding import episode_seeds, numpy_generator
from pgcli.student import student_quantile
from pgcli.types import Metrics

METRICS = {
    "eval/return_mean": "mean undiscounted return of evaluation episodes, actions sampled from the policy",
    "eval/return_std": "their standard deviation",
    "eval/greedy_return_mean": "mean undiscounted return of evaluation episodes, each action the most probable",
    "eval/greedy_return_std": "their standard deviation",
    "eval/length_mean": "mean length of the sampled evaluation episodes, in actions",
}


@dataclass(frozen=True)
class Evaluation:
    """Returns of some episodes. The interval is Student's for the mean: 95 % over episodes of this one policy."""

    returns: np.ndarray
    lengths: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        return float(self.returns.std(ddof=1)) if len(self.returns) > 1 else 0.0

    @property
    def interval(self) -> tuple[float, float] | None:
        """None for a single episode, which says nothing of the spread."""
        if len(self.returns) < 2:
            return None
        half = student_quantile(0.975, len(self.returns) - 1) * self.std / math.sqrt(len(self.returns))
        return self.mean - half, self.mean + half


def play(player: Player, policy: Any, *, episodes: int, seed: int, stream: str, greedy: bool) -> Evaluation:
    """`episodes` of `stream`: the same initial states for every policy that is evaluated with this seed and stream."""
    seeds = episode_seeds(seed, stream, range(episodes))
    generator = None if greedy else numpy_generator(seed, stream, "actions")
    rollout = player.play(policy, seeds, generator, held_out=True)
    return Evaluation(
        np.array([episode.total for episode in rollout.episodes]),
        np.array([episode.length for episode in rollout.episodes]),
    )


def evaluate_both(player: Player, policy: Any, *, episodes: int, seed: int, stream: str) -> Metrics:
    """Greedy and stochastic, as metrics."""
    sampled = play(player, policy, episodes=episodes, seed=seed, stream=stream, greedy=False)
    greedy = play(player, policy, episodes=episodes, seed=seed, stream=stream, greedy=True)
    return {
        "eval/return_mean": sampled.mean,
        "eval/return_std": sampled.std,
        "eval/greedy_return_mean": greedy.mean,
        "eval/greedy_return_std": greedy.std,
        "eval/length_mean": float(sampled.lengths.mean()),
    }
