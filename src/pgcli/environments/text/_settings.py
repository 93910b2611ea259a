"""What every text task has: what a cut completion earns, and how people would label pairs of completions."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from pgcli.functional.completions import soft_overlong
from pgcli.settings import Settings
from pgcli.types import TextSpec

OVERLONG = "punishment for a completion that comes near the length limit, where env.overlong_buffer is set"


class TextSettings(Settings):
    name: str = Field(description="name of this environment")
    cut_reward: float = Field(description="the most that a completion earns which the length limit cut before its end")
    overlong_buffer: int | None = Field(
        gt=0, description="tokens before the length limit over which up to 1 is taken away; null: nothing is"
    )
    solved_at: float | None = Field(description="greedy mean reward that counts as solved; null: never")
    pairs: int = Field(ge=1, description="labelled pairs of completions that there are to learn preferences from")
    label_scale: float = Field(
        gt=0, description="difference of true rewards at which 73 of 100 labels prefer the better one"
    )
    label_flip: float = Field(ge=0, lt=0.5, description="share of labels that are turned round, at any difference")


def settle(config: Any, spec: TextSpec, completions: Tensor, mask: Tensor, earned: Tensor) -> dict[str, Tensor]:
    """The component `reward`, (N,), and `overlong` where it is switched on.

    config: a task's own, of which `cut_reward` and `overlong_buffer` are read, if it has them.
    earned: (N,), had there been no limit.
    """
    reward = earned
    if getattr(config, "cut_reward", None) is not None:
        finished = ((completions == spec.end) & mask).any(dim=1)
        reward = earned.where(finished, earned.clamp(max=config.cut_reward))
    if getattr(config, "overlong_buffer", None) is None:
        return {"reward": reward}
    overlong = soft_overlong(mask.sum(dim=1), limit=spec.completion_length, buffer=config.overlong_buffer)
    return {"reward": reward + overlong, "overlong": overlong}
