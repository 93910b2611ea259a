"""Closing brackets: a prompt has many right answers.

    prompt      <bos> ( [ ]
    completion  ( ) [ [ ] ] ) ( ) <end>          or   ) ( ( ( ) ) ) [ ] <end>, or ...

Prompt and completion together have to be a balanced text of a certain length (`brackets`), which is the same for all
prompts: a policy must remember what is open, and count. Since there are many right answers, a policy can always be
right with a single answer: `distinct` counts the different answers of a batch, and pass@k the gain from more samples.

One beginning in ten is held out, by a hash of its brackets; there are few enough of them to be listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from pgcli.environments.text._settings import OVERLONG, TextSettings, settle
from pgcli.environments.text._split import is_held_out, whole_text
from pgcli.environments.text.tokenizers import Characters
from pgcli.seeding import keys_of, mix, uniforms
from pgcli.types import Observations, TextSpec, Written

TOKENS = Characters("([)]")
KINDS = 2
"""Kinds of brackets: token k opens the kind k, and k + KINDS closes it."""
BOS, END, PAD = TOKENS.bos, TOKENS.end, TOKENS.pad
HELD_OUT_ONE_IN = 10


class Bracket:
    class Config(TextSettings):
        brackets: int = Field(
            ge=4, le=24, description="brackets of the whole text, opening and closing; an even number"
        )
        min_given: int = Field(ge=1, description="brackets of the shortest prompt")
        max_given: int = Field(le=8, description="brackets of the longest prompt")

        @model_validator(mode="after")
        def _a_prompt_leaves_something_to_write(self) -> Bracket.Config:
            if self.brackets % 2 or not self.min_given <= self.max_given < self.brackets:
                raise ValueError(
                    f"brackets {self.brackets} must be even, and min_given {self.min_given} <= max_given "
                    f"{self.max_given} < brackets"
                )
            return self

    world = "text"
    COMPONENTS: ClassVar = {
        "reward": "1 for a right answer, 0 for anything else that ended, at most cut_reward if cut",
        "exact_match": "share of completions that make the text balanced and of the required length",
        "balanced": "share of completions that make the text balanced, at any length",
        "distinct": "share of completions that are right and do not repeat another answer in the same batch",
        "overlong": OVERLONG,
    }

    def __init__(self, config: Config) -> None:
        self.config = config
        self.spec = TextSpec(
            vocabulary=TOKENS.size,
            prompt_length=1 + config.max_given,
            completion_length=config.brackets - config.min_given + 1,
            end=END,
            pad=PAD,
        )
        texts = [
            text for n in range(config.min_given, config.max_given + 1) for text in _beginnings(n, config.brackets)
        ]
        table = np.array([[PAD] * (config.max_given - len(text)) + [BOS, *text] for text in texts])
        lengths = np.array([len(text) + 1 for text in texts])
        powers = np.uint64(8) ** np.arange(table.shape[1], dtype=np.uint64)
        held_out = is_held_out((table.astype(np.uint64) * powers).sum(axis=1), HELD_OUT_ONE_IN)
        self.beginnings = {side: (table[held_out == side], lengths[held_out == side]) for side in (False, True)}

    def prompts(self, seeds: Sequence[int], *, held_out: bool) -> Observations:
        """All lengths are equally likely, and all beginnings of a length."""
        table, lengths = self.beginnings[held_out]
        share = 1 / np.bincount(lengths)[lengths]
        rows = np.searchsorted(share.cumsum() / share.sum(), uniforms(keys_of(seeds), 1)[:, 0])
        return {"prompt": torch.from_numpy(table[rows]), "lengths": torch.from_numpy(lengths[rows])}

    def rewards(self, observations: Observations, completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        written = completions.where(mask, PAD)
        text = torch.cat([observations["prompt"], written], dim=1)
        nonsense = (mask & (completions != END) & (completions >= 2 * KINDS)).any(dim=1)
        balanced = (written == END).any(dim=1) & ~nonsense & (_open(text) == 0)
        right = balanced & ((text < 2 * KINDS).sum(dim=1) == self.config.brackets)
        # A number for each pair of prompt and answer; a wrong row gets a negative number of its own.
        powers = 7 ** torch.arange(text.shape[1], device=text.device)
        code = torch.where(right, (text * powers).sum(dim=1), -1 - torch.arange(len(text), device=text.device))
        _, which = torch.unique(code, return_inverse=True)
        rows = torch.arange(len(code), device=code.device)
        first = torch.full_like(rows, len(rows)).scatter_reduce(0, which, rows, "amin")[which] == rows
        exact = right.float()
        return settle(self.config, self.spec, completions, mask, exact) | {
            "exact_match": exact,
            "balanced": balanced.float(),
            "distinct": (right & first).float(),
        }

    def demonstrations(self, seeds: Sequence[int]) -> Written:
        """A random right answer: at each place, any bracket that can still be balanced in time, all equally likely."""
        observations = self.prompts(seeds, held_out=False)
        prompt, lengths = observations["prompt"].numpy(), observations["lengths"].numpy()
        N, T = len(prompt), self.spec.completion_length
        noise = uniforms(mix(keys_of(seeds)), T)
        rows = np.arange(N)
        stack, depth = np.zeros((N, self.config.brackets + 1), dtype=np.int64), np.zeros(N, dtype=np.int64)
        for tokens in prompt.T:
            depth += np.where(tokens < KINDS, 1, np.where(tokens < 2 * KINDS, -1, 0))
            stack[rows, depth] = np.where(tokens < KINDS, tokens, stack[rows, depth])
        answers = np.full((N, T), PAD)
        left = self.config.brackets - (lengths - 1)
        for t in range(T):
            may_close, may_open = depth > 0, depth < left
            options = may_close + KINDS * may_open
            chosen = (noise[:, t] * options).astype(np.int64)  # 0 .. options - 1: the last one closes, if allowed
            closes = may_close & (chosen == options - 1)
            tokens = np.where(closes, stack[rows, depth] + KINDS, chosen)
            answers[:, t] = np.where(left > 0, tokens, np.where(left == 0, END, PAD))
            depth += np.where(left > 0, np.where(closes, -1, 1), 0)
            stack[rows, depth] = np.where(closes | (left <= 0), stack[rows, depth], tokens)
            left = left - 1
        return Written(observations, torch.from_numpy(answers))

    def corpus(self, seeds: Sequence[int]) -> Written:
        return whole_text(self.demonstrations(seeds), PAD)

    def encode(self, text: str) -> list[int]:
        return TOKENS.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return TOKENS.decode(tokens, specials=True)


def _beginnings(length: int, whole: int) -> list[tuple[int, ...]]:
    """Every text of `length` brackets that can still be balanced with `whole` brackets in all."""
    found: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), ())]  # text so far, open brackets
    for written in range(length):
        left = whole - written - 1
        found = [
            ((*text, token), now_open)
            for text, was_open in found
            for token in range(2 * KINDS)
            if (now_open := _after(was_open, token)) is not None and len(now_open) <= left
        ]
    return [text for text, _ in found]


def _after(was_open: tuple[int, ...], token: int) -> tuple[int, ...] | None:
    if token < KINDS:
        return (*was_open, token)
    return was_open[:-1] if was_open and was_open[-1] == token - KINDS else None


def _open(text: Tensor) -> Tensor:
    """(N, S) -> (N,): how many brackets are open at the end; -1 where one was closed wrongly. Reads brackets only."""
    N, S = text.shape
    rows = torch.arange(N, device=text.device)
    stack = torch.full((N, S + 1), -1, device=text.device)
    depth = torch.zeros_like(rows)
    wrong = torch.zeros_like(rows, dtype=torch.bool)
    for tokens in text.T:
        opens, closes = tokens < KINDS, (tokens >= KINDS) & (tokens < 2 * KINDS)
        wrong |= closes & (stack[rows, depth] != tokens - KINDS)
        depth = (depth + opens.long() - closes.long()).clamp(min=0)
        stack[rows, depth] = torch.where(opens, tokens, stack[rows, depth])
    return depth.where(~wrong, -1)
