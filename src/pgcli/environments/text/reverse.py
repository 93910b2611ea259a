"""Spelling a word backwards: prompts of different lengths, and answers as long as they are.

    prompt      <bos> t o a d =
    completion  d a o t <end>

A word is a string of uniformly drawn letters, of any length between two bounds. The prompt is a function of its seed
alone, and one in twenty is held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from pgcli.environments.text._settings import OVERLONG, TextSettings, settle
from pgcli.environments.text._split import digits, draw, whole_text
from pgcli.environments.text.tokenizers import Characters
from pgcli.types import Observations, TextSpec, Written

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = Characters(f"{LETTERS}=")
EQUALS = TOKENS.numbers["="]
BOS, END, PAD = TOKENS.bos, TOKENS.end, TOKENS.pad
LONGEST = np.uint64(16)


class Reverse:
    class Config(TextSettings):
        min_letters: int = Field(ge=1, description="letters of the shortest word")
        max_letters: int = Field(le=12, description="letters of the longest word")
        letters: int = Field(ge=2, le=26, description="letters of the alphabet: a, b, c, ...")

        @model_validator(mode="after")
        def _some_length_is_possible(self) -> Reverse.Config:
            if self.min_letters > self.max_letters:
                raise ValueError(f"min_letters {self.min_letters} is above max_letters {self.max_letters}")
            return self

    world = "text"
    COMPONENTS: ClassVar = {
        "reward": "1 for the word backwards and the end, 0 for anything else that ended, at most cut_reward if cut",
        "exact_match": "share of completions that are the word backwards and the end",
        "letters_right": "share of a word's letters that are in their right places",
        "overlong": OVERLONG,
    }

    def __init__(self, config: Config) -> None:
        self.config = config
        self.spec = TextSpec(
            vocabulary=TOKENS.size,
            prompt_length=config.max_letters + 2,
            completion_length=config.max_letters + 1,
            end=END,
            pad=PAD,
        )

    def prompts(self, seeds: Sequence[int], *, held_out: bool) -> Observations:
        c = self.config
        lengths = np.uint64(c.max_letters - c.min_letters + 1)

        def code(noise: np.ndarray) -> np.ndarray:
            """Length and letters in one number: words of two lengths are never the same prompt."""
            n = noise % lengths + np.uint64(c.min_letters)
            return noise // lengths % np.uint64(c.letters) ** n * LONGEST + n

        codes = draw(seeds, code, held_out=held_out)
        n = (codes % LONGEST).astype(np.int64)
        text = np.full((len(n), c.max_letters + 2), PAD)
        text[:, 1:-1] = digits(codes // LONGEST, c.letters, c.max_letters)
        place = np.arange(text.shape[1]) - (text.shape[1] - n[:, None] - 2)  # 0 where the text begins
        text = np.where(place < 0, PAD, np.where(place == 0, BOS, text))
        text[:, -1] = EQUALS
        return {"prompt": torch.from_numpy(text), "lengths": torch.from_numpy(n + 2)}

    def rewards(self, observations: Observations, completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        answers = _answers(observations)
        same = completions.where(mask, PAD) == answers
        exact = same.all(dim=1).float()
        letters = (answers != PAD) & (answers != END)
        right = (same & letters).sum(dim=1) / letters.sum(dim=1)
        return settle(self.config, self.spec, completions, mask, exact) | {"exact_match": exact, "letters_right": right}

    def demonstrations(self, seeds: Sequence[int]) -> Written:
        observations = self.prompts(seeds, held_out=False)
        return Written(observations, _answers(observations))

    def corpus(self, seeds: Sequence[int]) -> Written:
        return whole_text(self.demonstrations(seeds), PAD)

    def encode(self, text: str) -> list[int]:
        return TOKENS.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return TOKENS.decode(tokens, specials=True)


def _answers(observations: Observations) -> Tensor:
    """(N, T): the letters from the last to the first, the end, and padding."""
    backwards = observations["prompt"].flip(1)[:, 1:]  # without the `=`; its last letter is followed by <bos>
    return backwards.where(backwards != BOS, END)
