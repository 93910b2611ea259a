"""Settings of every text task: the reward of truncated completions, and the labels of pairs of completions."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from pgcli.functional.completions import soft_overlong
from pgcli.settings import Settings
from pgcli.types import TextSpec

OVERLONG = "punishment, from 0 to -1, for a completion near the length limit; with env.overlong_buffer"


class Limits(Settings):
    """How far a completion may go: of each task, also of one in a mixture."""

    name: str = Field(description="name of this environment")
    cut_reward: float = Field(
        description="largest reward of a completion that the length limit cut before its end token"
    )
    overlong_buffer: int | None = Field(
        gt=0,
        description="tokens before the length limit over which a punishment grows from 0 to 1; null: no punishment",
    )


class Outcome(Settings):
    """What is made of rewards: of the whole, also of a mixture."""

    solved_at: float | None = Field(description="greedy mean reward at which the task counts as solved; null: none")
    pairs: int = Field(
        ge=1,
        description="number of labelled pairs of completions in the dataset of preferences, for what learns from one",
    )
    label_scale: float = Field(
        gt=0, description="difference of true rewards at which 73 of 100 labels prefer the better one"
    )
    label_flip: float = Field(
        ge=0, lt=0.5, description="share of labels that are turned round, whatever the difference"
    )


class TextSettings(Outcome, Limits):
    """Of a task by itself: both, the limits first."""


def settle(config: Any, spec: TextSpec, completions: Tensor, mask: Tensor, earned: Tensor) -> dict[str, Tensor]:
    """The component `reward`, (N,), and `overlong` where it is switched on.

    config: a task's own, of which `cut_reward` and `overlong_buffer` are read, if it has them.
    earned: (N,), had there been no limit.
    """
    reward = earned
    if getattr(config, "cut_reward", None) is not None:
        finished = ((completions == spec.end) & mask).any(dim=1)
        reward = earned.where(finished, earned.clamp(max=config.cut_reward))
    return punished(config, spec, mask, reward)


def punished(config: Any, spec: TextSpec, mask: Tensor, reward: Tensor) -> dict[str, Tensor]:
    """The component `reward`, (N,), less the punishment for a length near the limit, and `overlong`, if that is on."""
    if getattr(config, "overlong_buffer", None) is None:
        return {"reward": reward}
    overlong = soft_overlong(mask.sum(dim=1), limit=spec.completion_length, buffer=config.overlong_buffer)
    return {"reward": reward + overlong, "overlong": overlong}
