"""Sorting digits: a language task small enough for one core, with a verifier as its reward.

    prompt      <bos> 5 2 0 2 9 1 =
    completion  0 1 2 2 5 9 <end>

The prompt is a function of its seed alone. One prompt in twenty is held out, chosen by a hash of its digits and not of
its seed, so that training never sees it whatever the seeds.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pgcli.environments.text._settings import OVERLONG, TextSettings, settle
from pgcli.environments.text._split import digits, draw, whole_text
from pgcli.errors import InputError
from pgcli.types import Observations, TextSpec, Written

EQUALS, BOS, END, PAD = 10, 11, 12, 13
SYMBOLS = (*"0123456789=", "<bos>", "<end>", "<pad>")


class Sort:
    class Config(TextSettings):
        digits: int = Field(
            gt=0, le=18, description="number of digits to sort; a completion has one token more, the end"
        )

    world = "text"
    COMPONENTS: ClassVar = {
        "reward": "1 for the digits in order and the end, 0 for anything else that ended, at most cut_reward if cut",
        "exact_match": "share of completions that are the digits in order and the end",
        "overlong": OVERLONG,
    }

    def __init__(self, config: Config) -> None:
        self.config = config
        self.spec = TextSpec(
            vocabulary=len(SYMBOLS),
            prompt_length=config.digits + 2,
            completion_length=config.digits + 1,
            end=END,
            pad=PAD,
        )

    def prompts(self, seeds: Sequence[int], *, held_out: bool) -> Observations:
        codes = draw(seeds, lambda noise: noise % np.uint64(10**self.config.digits), held_out=held_out)
        drawn = torch.from_numpy(digits(codes, 10, self.config.digits))
        first, last = torch.full_like(drawn[:, :1], BOS), torch.full_like(drawn[:, :1], EQUALS)
        return {"prompt": torch.cat([first, drawn, last], dim=1)}

    def rewards(self, observations: Observations, completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        exact = (completions == _answers(observations["prompt"])).all(dim=1).float()
        return settle(self.config, self.spec, completions, mask, exact) | {"exact_match": exact}

    def demonstrations(self, seeds: Sequence[int]) -> Written:
        observations = self.prompts(seeds, held_out=False)
        return Written(observations, _answers(observations["prompt"]))

    def corpus(self, seeds: Sequence[int]) -> Written:
        return whole_text(self.demonstrations(seeds), PAD)

    def encode(self, text: str) -> list[int]:
        unknown = set(text) - set("0123456789=")
        if unknown:
            raise InputError(f"sort reads digits and `=`, not {', '.join(map(repr, sorted(unknown)))}")
        return [SYMBOLS.index(character) for character in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(SYMBOLS[token] for token in tokens)


def _answers(prompts: Tensor) -> Tensor:
    """(N, T) int64; a right answer fills the whole completion, so there is no padding."""
    ordered = prompts[:, 1:-1].sort(dim=1).values
    return torch.cat([ordered, torch.full_like(ordered[:, :1], END)], dim=1)
