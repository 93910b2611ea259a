"""Guessing in two turns: the first turn's question determines what can be known in the second.

    prompt      <bos> t c h ?       one of these letters is the secret; the prompt does not say which
    first turn  h <end>
    reply       <                   the secret is before h in the alphabet (`>`: after h, `=`: h, `!`: no letter)
    second turn c <end>             the answer, which alone is rewarded

With k letters an answer can be right min(3, k) / k of the time at best, which requires a question about a middle
letter: the reward of the second turn has to teach the first. Demonstrations ask about any of the letters, and then
answer with any that is still possible, which with three letters is right 7 times in 9.

The reply is the task's: the policy reads it, but did not choose it and does not learn from it as an action. The prompt
and the secret are functions of the seed alone. One set of letters in twenty is held out, by a hash of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from pgcli.environments.text._settings import TextSettings
from pgcli.environments.text._split import is_held_out, whole_text
from pgcli.environments.text.tokenizers import Characters
from pgcli.seeding import keys_of, mix, uniforms
from pgcli.types import Observations, TextSpec, Written

LETTERS = len(ascii_lowercase)
TOKENS = Characters(f"{ascii_lowercase}<>=!?")
BEFORE, AFTER, EQUAL, NO_LETTER, ASKED = TOKENS.encode("<>=!?")
BOS, END, PAD = TOKENS.bos, TOKENS.end, TOKENS.pad


class Guess:
    class Config(TextSettings):
        choices: int = Field(ge=2, le=20, description="letters of a prompt, one of which is the secret")
        letters: int = Field(ge=3, le=LETTERS, description="letters of the alphabet from which prompts are drawn")

        @model_validator(mode="after")
        def _there_are_sets_to_hold_out(self) -> Guess.Config:
            if self.choices >= self.letters:
                raise ValueError(f"choices {self.choices} must be fewer than the letters, {self.letters}")
            return self

    world = "text"
    COMPONENTS: ClassVar = {
        "reward": "1 for the secret letter as the second turn, at most cut_reward if the limit cut it",
        "exact_match": "share of second turns that are the secret letter",
        "first_right": "share of first turns that are the secret letter",
        "decided": "share of first turns whose reply leaves only one possible letter",
        "possible": "share of second turns that are a letter still possible after the reply",
    }

    def __init__(self, config: Config) -> None:
        self.config = config
        self.spec = TextSpec(
            vocabulary=TOKENS.size,
            prompt_length=config.choices + 2,
            completion_length=5,
            end=END,
            pad=PAD,
            reply_length=1,
        )

    def prompts(self, seeds: Sequence[int], *, held_out: bool) -> Observations:
        """{"prompt": (N, k + 2), "meant": (N,)}: a policy reads the prompt only."""
        c = self.config
        state = keys_of(seeds)
        chosen = np.zeros((len(state), c.choices), dtype=np.int64)
        open_rows = np.arange(len(state))
        while len(open_rows):
            state[open_rows] = mix(state[open_rows])
            order = uniforms(state[open_rows], c.letters).argsort(axis=1)
            chosen[open_rows] = order[:, : c.choices]
            open_rows = open_rows[_is_held_out(chosen[open_rows]) != held_out]
        n = len(state)
        prompt = np.concatenate([np.full((n, 1), BOS), chosen, np.full((n, 1), ASKED)], axis=1)
        return self.complete({"prompt": torch.from_numpy(prompt)}, seeds)

    def complete(self, prompts: Observations, seeds: Sequence[int]) -> Observations:
        """Each seed draws its prompt's secret letter."""
        letters = prompts["prompt"][:, 1:-1]
        keys = mix(~np.asarray(seeds, dtype=np.int64).astype(np.uint64))
        which = torch.from_numpy((uniforms(keys, 1) * letters.shape[1]).astype(np.int64))
        return prompts | {"meant": letters.gather(1, which).squeeze(1)}

    def replies(self, observations: Observations, completions: Tensor, mask: Tensor) -> Tensor:
        """(N, 1): where the secret letter is relative to the letter of the first turn."""
        del mask  # a first turn ends with the first end token
        asked, meant = _first_turn(completions), observations["meant"]
        reply = torch.where(meant < asked, BEFORE, torch.where(meant > asked, AFTER, EQUAL))
        return torch.where(asked < 0, NO_LETTER, reply)[:, None]

    def rewards(self, observations: Observations, completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        meant = observations["meant"]
        ends = (completions == END) & mask
        finished = ends.sum(1) == 2
        # The second turn begins after the first end and the reply, and is right if it is the letter and the end.
        begins = ends.long().argmax(1, keepdim=True) + 2
        answer = completions.gather(1, begins.clamp(max=completions.shape[1] - 2)).squeeze(1)
        one = finished & ends.gather(1, (begins + 1).clamp(max=completions.shape[1] - 1)).squeeze(1)
        right = (one & (answer == meant)).float()
        asked = _first_turn(completions)
        left = self._left(observations, asked)
        letters = observations["prompt"][:, 1:-1]
        return {
            "reward": torch.where(finished, right, right.clamp(max=self.config.cut_reward)),
            "exact_match": right,
            "first_right": (asked == meant).float(),
            "decided": (left.sum(1) == 1).float(),
            "possible": (one & (left & (letters == answer[:, None])).any(1)).float(),
        }

    def _left(self, observations: Observations, asked: Tensor) -> Tensor:
        """(N, k) bool: the prompt's letters that are still possible after the reply to a first turn."""
        letters, meant = observations["prompt"][:, 1:-1], observations["meant"]
        alike = torch.sign(letters - asked[:, None]) == torch.sign(meant - asked)[:, None]
        return alike | (asked < 0)[:, None]

    def demonstrations(self, seeds: Sequence[int]) -> Written:
        """Any of the letters, the reply, and then any letter still possible; the reply is not learned."""
        observations = self.prompts(seeds, held_out=False)
        letters = observations["prompt"][:, 1:-1]
        noise = torch.from_numpy(uniforms(mix(keys_of(seeds)), 2))
        asked = letters.gather(1, (noise[:, :1] * letters.shape[1]).long()).squeeze(1)
        left = self._left(observations, asked)
        # The letter in whose share of [0, 1] the noise falls; all possible letters have equal shares.
        drawn = (left.cumsum(1) > noise[:, 1:] * left.sum(1, keepdim=True)).long().argmax(1, keepdim=True)
        answer = letters.gather(1, drawn)
        end = torch.full_like(answer, END)
        first = torch.cat([asked[:, None], end], dim=1)
        reply = self.replies(observations, first, first >= 0)
        return Written(observations, torch.cat([first, reply, answer, end], dim=1))

    def corpus(self, seeds: Sequence[int]) -> Written:
        """Both turns, all of it learned except the first token and the reply."""
        return whole_text(self.demonstrations(seeds), PAD)

    def encode(self, text: str) -> list[int]:
        return TOKENS.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return TOKENS.decode(tokens, specials=True)


def _is_held_out(letters: np.ndarray) -> np.ndarray:
    """(N, k) -> (N,) bool, independent of the letters' order."""
    sets = (np.uint64(1) << letters.astype(np.uint64)).sum(axis=1, dtype=np.uint64)
    return is_held_out(sets)


def _first_turn(completions: Tensor) -> Tensor:
    """(N,): the letter of a first turn that is one letter and the end; -1 for any other."""
    asked = completions[:, 0]
    return torch.where((asked < LETTERS) & (completions[:, 1] == END), asked, -1)
