"""Addition of numbers, with room to write the carries down.

    prompt      <bos> 4 7 5 + 8 8 6 =
    completion  5 6 1 1 7 8 6 1 4 8 3 1 : 1 3 6 1 <end>

Before the `:` a teacher writes for each place, from the ones on, its two digits, the digit of their sum, and the carry:
5 + 6 = 11, 7 + 8 + 1 = 16, 4 + 8 + 1 = 13. (Without the copies of the two digits the default transformer had learnt
nothing after half a million tokens; with them it adds.) After it comes the answer, one digit longer than the numbers.
Only the answer is verified: a policy may write anything before the `:`, or nothing.

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
from pgcli.types import Observations, TextSpec, Written

TOKENS = Characters("0123456789+=:")
PLUS, EQUALS, COLON = TOKENS.encode("+=:")
BOS, END, PAD = TOKENS.bos, TOKENS.end, TOKENS.pad


class Add:
    class Config(TextSettings):
        digits: int = Field(ge=1, le=9, description="digits of each number; leading zeros are written")
        partial: float = Field(
            ge=0, le=1, description="weight in the reward of the share of right digits; the exact match has the rest"
        )

    world = "text"
    COMPONENTS: ClassVar = {
        "reward": "exact_match, or with env.partial a mean of it and digits_right; at most cut_reward if cut",
        "exact_match": "share of completions whose answer after the last : is right",
        "digits_right": "share of the answer's digits that are right; 0 if their number is wrong",
        "carries_right": "share of a teacher's digits and carries before the : that are right and in their places",
        "overlong": OVERLONG,
    }

    def __init__(self, config: Config) -> None:
        self.config = config
        n = config.digits
        self.spec = TextSpec(
            vocabulary=TOKENS.size, prompt_length=2 * n + 3, completion_length=5 * n + 3, end=END, pad=PAD
        )

    def prompts(self, seeds: Sequence[int], *, held_out: bool) -> Observations:
        n = self.config.digits
        codes = draw(seeds, lambda noise: noise % np.uint64(10 ** (2 * n)), held_out=held_out)
        both = torch.from_numpy(digits(codes, 10, 2 * n))
        bos, plus, equals = (torch.full_like(both[:, :1], token) for token in (BOS, PLUS, EQUALS))
        return {"prompt": torch.cat([bos, both[:, :n], plus, both[:, n:], equals], dim=1)}

    def rewards(self, observations: Observations, completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        n, weight = self.config.digits, self.config.partial
        scratch, answer = self._worked_out(observations["prompt"])
        end = mask.sum(dim=1) - 1  # a finished completion's last token
        finished = completions.gather(1, end[:, None])[:, 0] == END
        at = end[:, None] - torch.arange(n + 2, 0, -1, device=end.device)  # of the `:` and the n + 1 digits after it
        found = completions.gather(1, at.clamp(min=0))
        form = finished & (at[:, 0] >= 0) & (found[:, 0] == COLON)
        right = (found[:, 1:] == answer) & form[:, None]
        exact, partial = right.all(dim=1).float(), right.float().mean(dim=1)
        parts = settle(self.config, self.spec, completions, mask, (1 - weight) * exact + weight * partial)
        carries = ((completions == scratch) & mask)[:, : 4 * n].float().mean(dim=1)
        return parts | {"exact_match": exact, "digits_right": partial, "carries_right": carries}

    def demonstrations(self, seeds: Sequence[int]) -> Written:
        observations = self.prompts(seeds, held_out=False)
        return Written(observations, self._worked_out(observations["prompt"])[0])

    def corpus(self, seeds: Sequence[int]) -> Written:
        return whole_text(self.demonstrations(seeds), PAD)

    def encode(self, text: str) -> list[int]:
        return TOKENS.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return TOKENS.decode(tokens, specials=True)

    def _worked_out(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """A teacher's whole completion, (N, 5 n + 3), and the answer alone, (N, n + 1)."""
        n = self.config.digits
        powers = 10 ** torch.arange(n + 1, device=prompts.device)
        first, second = prompts[:, 1 : n + 1].flip(1), prompts[:, n + 2 : -1].flip(1)  # from the ones on
        a, b = ((number * powers[:n]).sum(dim=1, keepdim=True) for number in (first, second))
        sums = (a + b) // powers % 10
        carried = (a % powers[1:] + b % powers[1:]) // powers[1:]  # out of each place: 0 or 1
        scratch = torch.stack([first, second, sums[:, :n], carried], dim=2).flatten(1)
        answer = sums.flip(1)
        colon, end = (torch.full_like(answer[:, :1], token) for token in (COLON, END))
        return torch.cat([scratch, colon, answer, end], dim=1), answer
