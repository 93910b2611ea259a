"""A task whose completions can all be enumerated: quantities that are estimated in other tasks are exact here.

    vocabulary  a b c <end>        prompts  `a`, `b`, `c` (the first env.prompts), all equally likely
    completions of at most three tokens: 1 + 3 + 9 that end, 27 that the limit cuts, 40 in all

The reward is a table with an entry for each prompt and completion, drawn uniformly from (0, 1) by `table_seed`. So the
expected reward, its gradient, the KL divergence between two policies and the policy that is best under a KL penalty
(`functional.completions.tilt`) are sums over `everything()`. The padding is the end token, as in many tokenizers: a
loss that masks it by its number would not teach the end.

There are so few prompts that none is held out: evaluations use the training prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pgcli.environments.text._settings import OVERLONG, TextSettings, settle
from pgcli.errors import InputError
from pgcli.seeding import keys_of, mix, uniforms
from pgcli.types import Observations, TextSpec, Written

SYMBOLS = ("a", "b", "c", "<end>")
VOCABULARY, LENGTH, END = 4, 3, 3


class Completions(NamedTuple):
    """(Y, T) each. actions: padded with the end token; mask: 1 up to and including the first one."""

    actions: Tensor
    mask: Tensor


class Everything(NamedTuple):
    """One row per prompt and completion, B prompts x Y completions; rows of one prompt are contiguous."""

    observations: Observations
    actions: Tensor
    mask: Tensor
    rewards: Tensor
    """(B * Y,)"""
    prompt_probabilities: Tensor
    """(B * Y,), 1 / B each: a row's probability is this times the policy's."""


def enumerate_completions(vocabulary: int = VOCABULARY, length: int = LENGTH, end: int = END) -> Completions:
    """All completions that end or are cut at `length`, each once, so that a policy's probabilities sum to one."""
    every = torch.cartesian_prod(*[torch.arange(vocabulary)] * length).view(-1, length)
    is_end = every == end
    mask = (is_end.cumsum(dim=1) - is_end.long()) == 0
    canonical = (mask | is_end).all(dim=1)  # after the end there is only padding
    return Completions(every[canonical], mask[canonical])


class Oracle:
    class Config(TextSettings):
        prompts: int = Field(ge=1, le=3, description="number of prompts")
        table_seed: int = Field(ge=0, description="seed of the table of rewards")

    world = "text"
    COMPONENTS: ClassVar = {
        "reward": "the entry in the table, at most cut_reward if cut",
        "gold": "the entry in the table, at most cut_reward if cut, without the overlong punishment",
        "best": "share of completions that have the highest reward for their prompt",
        "overlong": OVERLONG,
    }

    def __init__(self, config: Config) -> None:
        self.config = config
        self.spec = TextSpec(vocabulary=VOCABULARY, prompt_length=1, completion_length=LENGTH, end=END, pad=END)
        keys = mix(mix(np.array([config.table_seed], dtype=np.uint64)) + np.arange(config.prompts, dtype=np.uint64))
        self.table = torch.from_numpy(uniforms(keys, VOCABULARY**LENGTH)).float()
        """(prompts, 64), by the completion's number in base 4."""
        self.completions = enumerate_completions()
        rewards = self.everything().rewards.view(config.prompts, -1)
        self.best = self.completions.actions[rewards.argmax(dim=1)]
        """(prompts, T)"""

    def everything(self) -> Everything:
        B, (actions, mask) = self.config.prompts, self.completions
        observations = {"prompt": torch.arange(B).repeat_interleave(len(actions))[:, None]}
        actions, mask = actions.repeat(B, 1), mask.repeat(B, 1)
        rewards = self._paid(observations, actions, mask)["reward"]
        return Everything(observations, actions, mask, rewards, torch.full_like(rewards, 1 / B))

    def prompts(self, seeds: Sequence[int], *, held_out: bool) -> Observations:
        del held_out
        numbers = keys_of(seeds) % np.uint64(self.config.prompts)
        return {"prompt": torch.from_numpy(numbers.astype(np.int64))[:, None]}

    def rewards(self, observations: Observations, completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        parts = self._paid(observations, completions, mask)
        best = self.best.to(completions.device)[observations["prompt"][:, 0]]
        found = (completions.where(mask, END) == best).all(dim=1)
        return parts | {"gold": parts["reward"] - parts.get("overlong", 0), "best": found.float()}

    def demonstrations(self, seeds: Sequence[int]) -> Written:
        """The best completion of each prompt."""
        observations = self.prompts(seeds, held_out=False)
        return Written(observations, self.best[observations["prompt"][:, 0]])

    def corpus(self, seeds: Sequence[int]) -> Written:
        """Completions of uniformly drawn tokens; the prompt is given."""
        keys = mix(keys_of(seeds))
        tokens = torch.from_numpy((uniforms(keys, LENGTH) * VOCABULARY).astype(np.int64))
        is_end = tokens == END
        return Written(self.prompts(seeds, held_out=False), tokens.where(is_end.cumsum(dim=1) == 0, END))

    def encode(self, text: str) -> list[int]:
        unknown = set(text) - set("abc")
        if unknown:
            raise InputError(f"oracle reads a, b and c, not {', '.join(map(repr, sorted(unknown)))}")
        return [SYMBOLS.index(character) for character in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(SYMBOLS[token] for token in tokens)

    def _paid(self, observations: Observations, completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        powers = torch.tensor([VOCABULARY**t for t in reversed(range(LENGTH))], device=completions.device)
        numbers = (completions.where(mask, END) * powers).sum(dim=1)
        entries = self.table.to(completions.device)[observations["prompt"][:, 0], numbers]
        return settle(self.config, self.spec, completions, mask, entries)
