"""The best of n completions by a trained reward: the gain of selection without any training of the policy."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pgcli.collectors.learned_reward import true_reward
from pgcli.experiment.build import build
from pgcli.experiment.config import ExperimentConfig
from pgcli.experiment.sources import sources
from pgcli.functional.best_of_n import best_of_n, best_of_n_kl
from pgcli.seeding import episode_seeds, numpy_generator


class Point(NamedTuple):
    n: int
    kl: float
    """KL of the best of n from the policy that was sampled, in nats; an upper bound."""
    reward: float
    """The trained reward, by which the best was chosen, mean over prompts."""
    gold: float
    """The task's own reward of the same completions."""


def best_of(settings: ExperimentConfig, *, largest: int, prompts: int) -> list[Point]:
    """Points for n = 1, 2, 4 up to `largest`, on held-out prompts: `largest` completions of each by the policy.

    Raises InputError if the parts do not fit.
    """
    parts = build(settings, sources(settings))
    try:
        seeds = episode_seeds(settings.seed, "best-of", range(prompts))
        generator = numpy_generator(settings.seed, "best-of", "actions")
        rewards, gold = [], []
        for seed in seeds:
            played = parts.evaluator.play(parts.policy, [seed] * largest, generator, held_out=True)
            rewards.append(played.aux["reward"])
            gold.append(true_reward(played.aux, played.mask))
    finally:
        parts.close()
    scores, values = torch.stack(rewards).cpu().double(), torch.stack(gold).cpu().double()
    sizes = [2**i for i in range(largest.bit_length())]
    return [
        Point(
            n,
            best_of_n_kl(n),
            float(best_of_n(scores, scores, n).nanmean()),
            float(best_of_n(scores, values, n).nanmean()),
        )
        for n in sizes
    ]
