"""Counting letters, followed by any number of fillers: an answer's length is free and has no meaning.

    prompt      <bos> b a a c a b a c b ? a =
    completion  4 . . . . <end>            or   3 , , , <end>

A right completion is the count of the asked letter, then any number of fillers, then the end. Some demonstrations have
a wrong count and then use `,` instead of `.` as filler: so a policy learns to know, when it decides how long to go on,
whether its answer is wrong. A loss that divides by a completion's length (GRPO's mean over a sequence) exploits that.
Its effective reward is A / length: right answers become shorter and wrong ones longer, though no reward depends on
length (Liu et al. 2025, section 3.1). `length_right` and `length_wrong` show it.

The prompt is a function of its seed alone, and one in twenty is held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pgcli.environments.text._settings import OVERLONG, TextSettings, settle
from pgcli.environments.text._split import digits, draw, whole_text
from pgcli.environments.text.tokenizers import Characters
from pgcli.seeding import keys_of, mix, uniforms
from pgcli.types import Observations, TextSpec, Written

KINDS = 3
"""Kinds of letters: tokens 10, 11 and 12, after the numbers."""
TOKENS = Characters("0123456789abc?=.,")
LETTER, ASKS, EQUALS, SURE, UNSURE = TOKENS.encode("a?=.,")
BOS, END, PAD = TOKENS.bos, TOKENS.end, TOKENS.pad


class CountOrPad:
    class Config(TextSettings):
        letters: int = Field(ge=1, le=9, description="letters of the text in which one letter is counted")
        limit: int = Field(ge=2, description="most tokens of a completion, the end token included")
        fillers: float = Field(ge=0, description="fillers of a demonstration, on average (geometrically distributed)")
        errors: float = Field(
            ge=0, lt=1, description="share of demonstrations that have a wrong count, marked by the filler `,`"
        )

    world = "text"
    COMPONENTS: ClassVar = {
        "reward": "1 for the right number, fillers and the end, 0 for anything else that ended, at most cut_reward if "
        "cut",
        "exact_match": "share of completions that are the right number, any fillers, and the end",
        "length_right": "mean tokens of the completions that begin with the right number",
        "length_wrong": "mean tokens of the completions that do not begin with the right number",
        "overlong": OVERLONG,
    }

    def __init__(self, config: Config) -> None:
        self.config = config
        self.spec = TextSpec(
            vocabulary=TOKENS.size,
            prompt_length=config.letters + 4,
            completion_length=config.limit,
            end=END,
            pad=PAD,
        )

    def prompts(self, seeds: Sequence[int], *, held_out: bool) -> Observations:
        n = self.config.letters
        codes = draw(seeds, lambda noise: noise % np.uint64(KINDS ** (n + 1)), held_out=held_out)
        drawn = LETTER + torch.from_numpy(digits(codes, KINDS, n + 1))
        bos, asks, equals = (torch.full_like(drawn[:, :1], token) for token in (BOS, ASKS, EQUALS))
        return {"prompt": torch.cat([bos, drawn[:, :n], asks, drawn[:, n:], equals], dim=1)}

    def rewards(self, observations: Observations, completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        counted = completions[:, 0] == _count(observations["prompt"])
        ended = completions == END
        padded = ((completions == SURE) | (completions == UNSURE) | ended | ~mask)[:, 1:].all(dim=1)
        exact = (counted & padded & (ended & mask).any(dim=1)).float()
        lengths = mask.sum(dim=1).float()
        return settle(self.config, self.spec, completions, mask, exact) | {
            "exact_match": exact,
            "length_right": lengths.where(counted, torch.nan),
            "length_wrong": lengths.where(~counted, torch.nan),
        }

    def demonstrations(self, seeds: Sequence[int]) -> Written:
        """The number, right or wrong, and a random number of fillers: P(n) = (1 - q) q^n, cut off at the limit."""
        observations = self.prompts(seeds, held_out=False)
        q, T = self.config.fillers / (1 + self.config.fillers), self.config.limit
        noise = uniforms(mix(keys_of(seeds)), 3)
        with np.errstate(divide="ignore"):
            drawn = np.floor(np.log(noise[:, 0]) / np.log(q)) if q else np.zeros(len(noise))
        end = torch.from_numpy(np.minimum(drawn, T - 2).astype(np.int64))[:, None] + 1
        wrong = torch.from_numpy(noise[:, 1] < self.config.errors)
        off = 1 + torch.from_numpy(noise[:, 2] * self.config.letters).long()  # 1 .. letters, modulo letters + 1
        t = torch.arange(T)
        answers = torch.where(t < end, torch.where(wrong, UNSURE, SURE)[:, None], torch.where(t == end, END, PAD))
        counts = _count(observations["prompt"])
        answers[:, 0] = torch.where(wrong, (counts + off) % (self.config.letters + 1), counts)
        return Written(observations, answers)

    def corpus(self, seeds: Sequence[int]) -> Written:
        return whole_text(self.demonstrations(seeds), PAD)

    def encode(self, text: str) -> list[int]:
        return TOKENS.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return TOKENS.decode(tokens, specials=True)


def _count(prompts: Tensor) -> Tensor:
    """(N,): number of times that the letter after the `?` occurs before it."""
    return (prompts[:, 1:-3] == prompts[:, -2:-1]).sum(dim=1)
