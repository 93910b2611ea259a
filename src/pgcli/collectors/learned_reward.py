"""A trained reward in place of the task's own. The true reward is still reported beside it, if the task has one.

        preference   the score at the last token, shifted and scaled to mean 0 and standard deviation 1 on completions
                     of the reference (else the initial) policy: a Bradley-Terry score has no zero and no unit
        outcome      sigmoid of the score at the last token: the probability that the completion is right
        process      the product of the sigmoids where steps end: the probability that all of them are right
                     (Lightman et al. 2023); each step is paid its change of this product, which begins at 1, and a
                     completion without any step pays that 1 back with its last token

The limits of a task hold for a trained reward too: a completion that was cut earns `env.cut_reward` at most, and
`env.overlong_buffer` takes its share. Both are in the unit of the task's own reward; the calibration converts it.

Each member of an ensemble is calibrated by itself, and then they are combined (Coste et al. 2024):

        mean | min | mean - pessimism * variance
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from pgcli.environments.text._settings import settle
from pgcli.functional.masked import last_of, masked_sum
from pgcli.types import ABSENT, Completions, Limiting, Observations, TextSpec, Written

Reading: TypeAlias = Literal["preference", "outcome", "process"]
"""What the scores of a model mean."""
Combination: TypeAlias = Literal["mean", "min", "mean_minus_variance"]
COMPONENTS = {
    "reward": "the reward that training maximises: the proxy, at most cut_reward if the limit cut the completion",
    "proxy": "reward of the trained reward model",
    "gold": "the task's own reward, which training does not see",
    "gap": "proxy minus gold (for a preference model, gold in standard deviations from its mean on the calibration's "
    "completions)",
    "disagreement": "standard deviation of the ensemble members' rewards of a completion, a measure of their "
    "uncertainty",
}
"""Of a task whose reward comes from a trained model."""
SMALLEST = 1e-6
"""Least standard deviation of a calibration: a judge may give every completion the same score."""


def step_ends(task: Any, texts: Completions) -> Tensor:
    """(N, T) bool: the last token of each step, according to the task."""
    return ~torch.isnan(task.step_labels(texts.observations, texts.actions, texts.mask))


def last_score(scores: Tensor, mask: Tensor) -> Tensor:
    """(members, N, T), (N, T) -> (members, N): the score at a completion's last token, before any padding."""
    last = last_of(mask)[None, :, None].expand(len(scores), -1, 1)
    return scores.gather(2, last).squeeze(2)


def worth(policy: Any, task: Any, texts: Completions, reading: Reading) -> Tensor:
    """Rewards of completions by a model of the role `Scores`: (members, N, 1), or for a process model (members, N, T):
    after each token, and a function of the tokens up to it. The last column is the completion's reward.

    A process model's is 1 until a step ends, and 0 from the last token on if none ever did.
    """
    scores = policy(texts.observations, texts.actions)
    if reading == "process":
        ends = step_ends(task, texts)
        over = torch.arange(ends.shape[1], device=ends.device) >= last_of(texts.mask)[:, None]
        return torch.where(ends, torch.sigmoid(scores), 1).cumprod(dim=2).masked_fill(over & ~ends.any(1)[:, None], 0)
    last = last_score(scores, texts.mask)[..., None]
    return torch.sigmoid(last) if reading == "outcome" else last


class Judge(nn.Module):
    """A trained model, frozen, with the reading of its scores and their calibration."""

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
        """The function `worth`, calibrated."""
        return (worth(self.scorer, task, texts, self.reading) - self.mean) / self.std

    def calibrate(self, task: Any, texts: Completions, gold: Tensor | None) -> None:
        """On completions and their true rewards (N,), if the task has one. Probabilities stay as they are: they have a
        zero and a unit.
        """
        if self.reading == "preference":
            values = self.worth(task, texts)
            self.mean.copy_(values.mean(1, keepdim=True))
            self.std.copy_(values.std(1, keepdim=True).clamp(min=SMALLEST))
            if gold is not None and (~gold.isnan()).sum() > 1:
                scored = gold[~gold.isnan()]
                self.gold_mean.copy_(scored.mean())
                self.gold_std.copy_(scored.std().clamp(min=SMALLEST))


def true_reward(parts: dict[str, Tensor], mask: Tensor) -> Tensor:
    """(N,), from a task's components: `gold` where a trained reward replaces the task's, else `reward`."""
    found = parts.get("gold", parts["reward"])
    return found if found.dim() == 1 else masked_sum(found, mask, dim=1)


def has_reward(task: Any) -> bool:
    """Whether a text task has a reward of its own; a user's file may have none."""
    return getattr(task, "has_reward", True)


class LearnedReward:
    """A text task whose reward comes from a judge. If the task has none of its own, nothing is said of gold."""

    def __init__(self, task: Any, judge: Judge, *, combination: Combination, pessimism: float) -> None:
        self.task, self.judge, self.combination, self.pessimism = task, judge, combination, pessimism
        self.spec: TextSpec = task.spec
        self.known = has_reward(task)
        of_gold = () if self.known else ("gold", "gap")
        self.COMPONENTS = task.COMPONENTS | {key: text for key, text in COMPONENTS.items() if key not in of_gold}

    def rewards(self, observations: Observations, completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        own = self.task.rewards(observations, completions, mask)
        members = self.judge.worth(self.task, Completions(observations, completions, mask, ABSENT))
        combined = self._combine(members)  # (N, 1) or (N, T)
        proxy = combined[:, -1]
        mean, std = self.judge.gold_mean, self.judge.gold_std
        in_its_unit = proxy * std + mean  # the task's, which its limits are in
        if hasattr(self.task, "settle"):
            settled = cast("Limiting", self.task).settle(observations, completions, mask, in_its_unit)
        else:
            settled = settle(getattr(self.task, "config", None), self.spec, completions, mask, in_its_unit)
        taken = (settled["reward"] - in_its_unit) / std
        if self.judge.reading == "process":  # each step is paid what it changes; together they are the last column
            steps = torch.cat([combined[:, :1], combined.diff(dim=1)], dim=1)
            last = torch.arange(mask.shape[1], device=mask.device) == last_of(mask)[:, None]
            reward = steps + last * taken[:, None]
        else:
            reward = proxy + taken
        parts = own | settled | {"reward": reward, "proxy": proxy}
        if self.known:
            parts["gold"] = true_reward(own, mask)
            parts["gap"] = proxy - (parts["gold"] - mean) / std
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
