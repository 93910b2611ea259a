"""Evaluations on labels of held-out texts: of judges, and of policies that are their own reward models."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgcli.collectors.completions import Decoding
from pgcli.collectors.learned_reward import Reading, worth
from pgcli.collectors.pairs import CHUNK, Law, Pairs, agreement, pick, write_pairs
from pgcli.collectors.preferences import CheckedData
from pgcli.functional.masked import last_of
from pgcli.seeding import derive, numpy_generator
from pgcli.types import Checked, Completions, Episode, Metrics, Rollout, Sample, State

METRICS = {
    "eval/ceiling": "share of held-out labels that the best possible judge would predict; in runs of a reward model",
    "eval/margin": "score of the preferred held-out completion minus that of the rejected one, mean; in runs of a "
    "reward model",
    "eval/brier": "squared difference of a held-out label and the probability that a judge of correctness gives to it, "
    "mean; one that always gives eval/right has eval/right (1 - eval/right)",
    "eval/right": "share of held-out completions (or steps) whose label is right; in runs of a judge of correctness",
}
LEAST = 200
"""Held-out texts on which preferences and judges are evaluated at least, if there are so many: reading them is cheap
beside the writing for which `eval.episodes` is meant."""
ROUNDING = 1e-6


class HeldOutPreferences:
    """Evaluates a policy that is its own reward model on texts of held-out prompts, read at first use.

    Pairs are compared row by row; labelled completions, each desirable one with each of the others.
    """

    def __init__(self, read: Callable[[], list[Completions]], *, paired: bool) -> None:
        self.read, self.paired = read, paired
        self.texts: list[Completions] | None = None

    @torch.no_grad()
    def measure(self, implicit_reward: Callable[[Completions], Tensor]) -> Metrics:
        if self.texts is None:
            self.texts = self.read()
        chosen, rejected = (
            torch.cat([
                implicit_reward(pick(texts, slice(start, start + CHUNK))) for start in range(0, len(texts.mask), CHUNK)
            ])
            for texts in self.texts
        )  # fmt: skip
        margins = chosen - rejected if self.paired else chosen[:, None] - rejected
        return {
            "eval/preference_accuracy": agreement(margins.flatten()),
            "eval/preference_margin": float(margins.mean()),
        }


def more(seeds: list[int]) -> list[int]:
    """At least `LEAST` of them."""
    return [*seeds, *(derive(seeds[0], "more", number) for number in range(LEAST - len(seeds)))]


def judgements(texts: Completions, right: Tensor, parts: dict[str, Tensor], task: Any, seed: int) -> Rollout:
    """A Rollout of texts whose reward is 1 where a judge is right about them, (N,)."""
    last = torch.zeros_like(texts.mask).scatter_(1, last_of(texts.mask)[:, None], True)
    ended = last & (texts.actions == task.spec.end)
    return Rollout(
        observations=texts.observations, actions=texts.actions, mask=texts.mask,
        log_probs=texts.reference_log_probs, rewards=torch.where(last, right[:, None], 0.0),
        terminated=ended, truncated=last & ~ended, aux={"reward": right} | parts,
        episodes=list(map(Episode, right.tolist(), texts.mask.sum(1).tolist(), repeat(seed))),
    )  # fmt: skip


class HeldOutLabels:
    """Evaluates a judge of correctness on labelled completions of held-out prompts.

    An episode is a label, of a completion or of a step; its total is 1 where the members' mean probability is on the
    label's side of 1/2. There is no noise: the stochastic evaluation is the greedy one.
    """

    def __init__(self, decoding: Decoding, make: Callable[[list[int]], CheckedData]) -> None:
        self.decoding, self.make = decoding, make
        self.made: tuple[list[int], Checked] | None = None

    @torch.no_grad()
    def play(
        self, policy: Any, seeds: list[int], generator: np.random.Generator | None, *, held_out: bool = False
    ) -> Rollout:
        del generator, held_out
        if self.made is None or self.made[0] != seeds:  # the same ones for every evaluation of a run
            made, wanted = self.make(more(seeds)), len(more(seeds))
            order = numpy_generator(seeds[0], "held out").permutation(len(made))  # a file may be sorted
            self.made = seeds, made[torch.from_numpy(order[:wanted])]
        data = self.made[1]
        pieces = [pick(data.texts, slice(start, start + CHUNK)) for start in range(0, len(data), CHUNK)]
        scores = torch.cat([policy(texts.observations, texts.actions) for texts in pieces], dim=1)
        rows, at = data.known.nonzero(as_tuple=True)
        chances, label = torch.sigmoid(scores[:, rows, at]), data.right[rows, at]
        mean = chances.mean(0)
        parts = {"brier": (mean - label) ** 2, "right": label}
        if len(chances) > 1:
            parts["disagreement"] = chances.std(0, correction=0)
        right = ((mean > 0.5) == (label > 0.5)).float()
        return judgements(pick(data.texts, rows), right, parts, self.decoding.task, seeds[0])

    def describe(self, rollout: Rollout, rows: int) -> list[Sample]:
        return self.decoding.describe(rollout, rows)

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None: ...


class HeldOutPairs:
    """Evaluates a judge on pairs of completions of held-out prompts: which one does it score higher?

    With noise (stochastic), an episode's total is 1 where the judge agrees with the label; without (greedy), where it
    agrees with the task's true reward, from which the labels are drawn with noise. Identical pairs are left out, and
    those of which nothing can be known: whose label is a fair coin, or whose true rewards are equal.
    """

    def __init__(self, decoding: Decoding, writer: Any, law: Law, reading: Reading) -> None:
        self.decoding, self.writer, self.law, self.reading = decoding, writer, law, reading
        self.made: tuple[list[int], Pairs] | None = None

    def play(
        self, policy: Any, seeds: list[int], generator: np.random.Generator | None, *, held_out: bool = False
    ) -> Rollout:
        """A Rollout of the preferred completions, whose reward is 1 where the judge is right."""
        if self.made is None or self.made[0] != seeds:  # the same ones for every evaluation of a run
            seed, wanted = derive(seeds[0], "held out"), more(seeds)
            made = write_pairs(self.decoding, self.writer, self.law, wanted, seed=seed, held_out=held_out)
            self.made = seeds, pick(made, slice(len(wanted)))
        pairs = self.made[1]
        margins = self._margins(policy, pairs)
        differ = pairs.gold != 0 if generator is None else pairs.predictable > 0.5 + ROUNDING
        if differ.any():
            pairs, margins = pick(pairs, differ), margins[:, differ]
        if generator is None:
            margins = margins * torch.sign(pairs.gold)
        right = (torch.sign(margins.mean(0)) + 1) / 2
        parts = {"ceiling": pairs.predictable, "margin": margins.mean(0)}
        if len(margins) > 1:
            parts["disagreement"] = margins.std(0, correction=0)
        return judgements(pairs.preferred, right, parts, self.decoding.task, seeds[0])

    @torch.no_grad()
    def _margins(self, policy: Any, pairs: Pairs) -> Tensor:
        """(members, B): each member's score of the preferred completion minus that of the rejected one."""
        found = []
        task = self.decoding.task
        for start in range(0, len(pairs.gold), CHUNK):
            part = pick(pairs, slice(start, start + CHUNK))
            both = (worth(policy, task, texts, self.reading)[..., -1] for texts in (part.preferred, part.rejected))
            found.append(next(both) - next(both))
        return torch.cat(found, dim=1)

    def describe(self, rollout: Rollout, rows: int) -> list[Sample]:
        return self.decoding.describe(rollout, rows)

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None: ...
