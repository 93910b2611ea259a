"""A trained reward in place of the task's own. What is true is still reported beside it.

        preference   the score at the last token, shifted and scaled to mean 0 and deviation 1 on completions of the
                     initial policy: a Bradley-Terry score has neither a zero nor a unit of its own
        outcome      sigmoid of the score at the last token: the chance that the completion is right
        process      the product of the sigmoids where steps end: the chance that all of them are right
                     (Lightman et al. 2023), received step by step, each the change that it makes; with the last token
                     1 is taken back where no step was written

Whoever judges, a completion that the limit cut earns `env.cut_reward` at most, and `env.overlong_buffer` takes what it
takes: both in the task's own unit, which stands to a preference model's as their deviations on those completions do.

An ensemble's members are calibrated each by itself, and then combined (Coste et al. 2024):

        mean | min | mean - pessimism * variance
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from pgcli.environments.text._settings import settle
from pgcli.functional.masked import last_of, masked_sum
from pgcli.types import ABSENT, Completions, Observations, TextSpec, Written

Reading: TypeAlias = Literal["preference", "outcome", "process"]
"""What the scores of a model mean."""
Combination: TypeAlias = Literal["mean", "min", "mean_minus_variance"]
COMPONENTS = {
    "reward": "what is trained: proxy, at most cut_reward if the limit cut it",
    "proxy": "the trained reward",
    "gold": "the task's own reward",
    "gap": "proxy minus gold (of a preference model, gold in deviations from the reference's mean)",
    "disagreement": "deviation of the ensemble's members, which stands for what they do not know",
}
"""Of a task whose reward a model gives."""
SMALLEST = 1e-6
"""Deviation of a judge that says the same of everything."""


def step_ends(task: Any, texts: Completions) -> Tensor:
    """(N, T) bool: the last token of each step, as the task tells."""
    return ~torch.isnan(task.step_labels(texts.observations, texts.actions, texts.mask))


def last_score(scores: Tensor, mask: Tensor) -> Tensor:
    """(members, N, T), (N, T) -> (members, N): the score that has read all of a completion and none of its padding."""
    last = last_of(mask)[None, :, None].expand(len(scores), -1, 1)
    return scores.gather(2, last).squeeze(2)


def worth(policy: Any, task: Any, texts: Completions, reading: Reading) -> Tensor:
    """What a model of the role `Scores` makes of completions: (members, N, 1), or (members, N, T) of a process model:
    after each token, of which it has read nothing that comes later. The last column is what the completion is worth.

    A process model's worth is 1 until a step ends, and 0 from the last token on if none ever did.
    """
    scores = policy(texts.observations, texts.actions)
    if reading == "process":
        ends = step_ends(task, texts)
        over = torch.arange(ends.shape[1], device=ends.device) >= last_of(texts.mask)[:, None]
        return torch.where(ends, torch.sigmoid(scores), 1).cumprod(dim=2).masked_fill(over & ~ends.any(1)[:, None], 0)
    last = last_score(scores, texts.mask)[..., None]
    return torch.sigmoid(last) if reading == "outcome" else last


class Judge(nn.Module):
    """A trained model, frozen, and how it is read. Its calibration belongs to it."""

    mean: Tensor
    std: Tensor
    gold_mean: Tensor
    gold_std: Tensor

    def __init__(self, scorer: nn.Module, reading: Reading, *, members: int) -> None:
        super().__init__()
        self.scorer, self.reading, self.members = scorer.requires_grad_(False), reading, members
        self.register_buffer("mean", torch.zeros(members, 1, 1))
        self.register_buffer("std", torch.ones(members, 1, 1))
        self.register_buffer("gold_mean", torch.zeros(()))
        self.register_buffer("gold_std", torch.ones(()))

    @torch.no_grad()
    def worth(self, task: Any, texts: Completions) -> Tensor:
        """As above, calibrated."""
        return (worth(self.scorer, task, texts, self.reading) - self.mean) / self.std

    def calibrate(self, task: Any, texts: Completions, gold: Tensor) -> None:
        """On completions, the reference's, and their true rewards (N,). A probability has a zero and a unit."""
        if self.reading == "preference":
            values = self.worth(task, texts)
            self.mean.copy_(values.mean(1, keepdim=True))
            self.std.copy_(values.std(1, keepdim=True).clamp(min=SMALLEST))
            self.gold_mean.copy_(gold.mean())
            self.gold_std.copy_(gold.std().clamp(min=SMALLEST))


def true_reward(parts: dict[str, Tensor], mask: Tensor) -> Tensor:
    """(N,), of a task's components: where a trained reward stands in its place, it is reported beside it."""
    found = parts.get("gold", parts["reward"])
    return found if found.dim() == 1 else masked_sum(found, mask, dim=1)


class LearnedReward:
    """A text task whose reward a judge gives."""

    def __init__(self, task: Any, judge: Judge, *, combination: Combination, pessimism: float) -> None:
        self.task, self.judge, self.combination, self.pessimism = task, judge, combination, pessimism
        self.spec: TextSpec = task.spec
        self.COMPONENTS = task.COMPONENTS | COMPONENTS

    def rewards(self, observations: Observations, completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        own = self.task.rewards(observations, completions, mask)
        members = self.judge.worth(self.task, Completions(observations, completions, mask, ABSENT))
        combined = self._combine(members)  # (N, 1) or (N, T)
        proxy, gold = combined[:, -1], true_reward(own, mask)
        mean, std = self.judge.gold_mean, self.judge.gold_std
        in_its_unit = proxy * std + mean  # the task's, which its limits are in
        settled = settle(getattr(self.task, "config", None), self.spec, completions, mask, in_its_unit)
        taken = (settled["reward"] - in_its_unit) / std
        if self.judge.reading == "process":  # each step is paid what it changes; together they are the last column
            steps = torch.cat([combined[:, :1], combined.diff(dim=1)], dim=1)
            last = torch.arange(mask.shape[1], device=mask.device) == last_of(mask)[:, None]
            reward = steps + last * taken[:, None]
        else:
            reward = proxy + taken
        parts = own | settled | {"reward": reward, "proxy": proxy, "gold": gold}
        parts["gap"] = proxy - (gold - mean) / std
        if self.judge.members > 1:
            parts["disagreement"] = members[..., -1].std(0, correction=0)
        return parts

    def _combine(self, worth: Tensor) -> Tensor:
        """Over members, the first axis."""
        match self.combination:
            case "min":
                return worth.amin(0)
            case "mean_minus_variance":
                return worth.mean(0) - self.pessimism * worth.var(0, correction=0)
        return worth.mean(0)

    def prompts(self, seeds: Sequence[int], *, held_out: bool) -> Observations:
        return self.task.prompts(seeds, held_out=held_out)

    def demonstrations(self, seeds: Sequence[int]) -> Written:
        return self.task.demonstrations(seeds)

    def corpus(self, seeds: Sequence[int]) -> Written:
        return self.task.corpus(seeds)

    def encode(self, text: str) -> list[int]:
        return self.task.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.task.decode(tokens)

    def __getattr__(self, name: str) -> Any:
        """What only some tasks have: `step_labels`, a second turn."""
        return getattr(self.task, name)
