"""Arithmetic in several steps, each of which is written down and can be checked.

    prompt      <bos> 7 + 5 - 3 * 2 =
    completion  2 ; 9 ; 8 <end>                 7 + 5 = 2, 2 - 3 = 9, 9 * 2 = 8: from left to right, modulo 10

The last number before the end is the answer; the numbers before it are the reasoning. `*` loses information (anything *
5 is 0 or 5), so an answer can be right by wrong steps, which an outcome reward cannot see and a process reward can.

The prompt is a function of its seed alone. One prompt in twenty is held out, chosen by a hash of the expression.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from pgcli.environments.text._settings import OVERLONG, TextSettings, settle
from pgcli.environments.text._split import whole_text
from pgcli.environments.text.tokenizers import Characters
from pgcli.seeding import keys_of, mix
from pgcli.types import Observations, TextSpec, Written

OPERATIONS = "+-*"
TOKENS = Characters(f"0123456789{OPERATIONS}=;")
PLUS, SEPARATOR = TOKENS.encode("+;")
EQUALS = TOKENS.encode("=")[0]
BOS, END, PAD = TOKENS.bos, TOKENS.end, TOKENS.pad
HELD_OUT_ONE_IN = 20


class Chain:
    class Config(TextSettings):
        min_steps: int = Field(ge=1, description="operations of the shortest expression")
        max_steps: int = Field(ge=1, le=10, description="operations of the longest expression")
        reward_kind: Literal["outcome", "process"] = Field(
            description="kind of reward: 1 for the right answer, whatever its steps; or 1/n at the end of each right "
            "step of n"
        )

        @model_validator(mode="after")
        def _some_length_is_possible(self) -> "Chain.Config":
            if self.min_steps > self.max_steps:
                raise ValueError(f"min_steps {self.min_steps} is above max_steps {self.max_steps}")
            return self

    world = "text"
    COMPONENTS: ClassVar = {
        "reward": "1 for the right answer (or 1/n for each of its n steps that is right), at most cut_reward if cut",
        "exact_match": "share of completions that are all steps, right, and the end, and nothing else",
        "answer": "share of completions whose last number before the end is right",
        "steps_right": "share of an expression's steps that are right and in their places",
        "right_answer_wrong_reason": "share of completions with the right answer and at least one wrong step",
        "overlong": OVERLONG,
    }

    def __init__(self, config: Config) -> None:
        self.config = config
        self.spec = TextSpec(
            vocabulary=TOKENS.size,
            prompt_length=2 * config.max_steps + 3,
            completion_length=2 * config.max_steps,
            end=END,
            pad=PAD,
        )

    def prompts(self, seeds: Sequence[int], *, held_out: bool) -> Observations:
        """Each seed draws expressions until one is on the requested side of the split."""
        c = self.config
        state = keys_of(seeds)
        codes, steps = np.zeros_like(state), np.zeros(len(state), dtype=np.int64)
        open_rows = np.arange(len(state))
        while len(open_rows):
            state[open_rows] = mix(state[open_rows])
            n = c.min_steps + (state[open_rows] % np.uint64(c.max_steps - c.min_steps + 1)).astype(np.int64)
            # A first digit and n pairs of operation and digit, none of them 0: 9 * 27^n expressions.
            code = mix(state[open_rows]) % (np.uint64(9) * np.uint64(27) ** n.astype(np.uint64))
            steps[open_rows], codes[open_rows] = n, code
            open_rows = open_rows[is_held_out(code, n) != held_out]
        return {"prompt": _written(codes, steps, c.max_steps), "lengths": torch.from_numpy(2 * steps + 3)}

    def rewards(self, observations: Observations, completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        values, steps = results(observations)
        labels = self.step_labels(observations, completions, mask)
        right = labels == 1  # False for NaN
        steps_right = right.sum(1) / steps
        exact = steps_right == 1
        finished = ((completions == END) & mask).any(1)
        before = (mask.sum(1) - 2).clamp(min=0)[:, None]  # the token before the end
        answer = finished & (completions.gather(1, before) == values.gather(1, steps[:, None] - 1)).squeeze(1)
        outcome = self.config.reward_kind == "outcome"
        earned = answer.float() if outcome else steps_right
        settled = settle(self.config, self.spec, completions, mask, earned)
        if not outcome:  # each step's share where it ends; the deduction for the limit at the last token
            last = torch.arange(mask.shape[1], device=mask.device) == mask.sum(1, keepdim=True) - 1
            settled["reward"] = right / steps[:, None] + last * (settled["reward"] - earned)[:, None]
        return settled | {
            "exact_match": exact.float(),
            "answer": answer.float(),
            "steps_right": steps_right,
            "right_answer_wrong_reason": (answer & ~exact).float(),
        }

    def step_labels(self, observations: Observations, completions: Tensor, mask: Tensor) -> Tensor:
        """(N, T) float32: where a step ends (on `;` or the end) 1 if it is right and 0 if not; NaN elsewhere.

        Step k is right if it is the one digit that is the result of the first k operations, followed by `;` if there
        are further steps and by the end if there are none. It is compared with the true result, not computed from the
        step written before it: a step that follows correctly from a wrong one is wrong, too.
        """
        values, steps = results(observations)
        ends = ((completions == SEPARATOR) | (completions == END)) & mask
        number = (ends.cumsum(1) - ends.long()).clamp(max=values.shape[1] - 1)  # of the step that a token belongs to
        surplus = ends.cumsum(1) > steps[:, None]
        digit = torch.nn.functional.pad(completions[:, :-1], (1, 0), value=PAD)
        one_digit = torch.nn.functional.pad(ends[:, :-2], (2, 0), value=False)
        one_digit[:, 1] = True  # the first step begins with the completion
        is_last = number == steps[:, None] - 1
        right = one_digit & ~surplus & (digit == values.gather(1, number)) & (is_last == (completions == END))
        return torch.where(ends, right.float(), torch.nan)

    def demonstrations(self, seeds: Sequence[int]) -> Written:
        observations = self.prompts(seeds, held_out=False)
        return Written(observations, self._answers(observations))

    def corpus(self, seeds: Sequence[int]) -> Written:
        return whole_text(self.demonstrations(seeds), PAD)

    def _answers(self, observations: Observations) -> Tensor:
        values, steps = results(observations)
        n, k = len(values), values.shape[1]
        after = torch.where(torch.arange(1, k + 1) == steps[:, None], END, SEPARATOR)
        text = torch.stack([values, after], dim=2).view(n, 2 * k)
        return torch.where(torch.arange(2 * k) < 2 * steps[:, None], text, PAD)

    def encode(self, text: str) -> list[int]:
        return TOKENS.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return TOKENS.decode(tokens, specials=True)


def is_held_out(codes: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(N,) uint64 and (N,) int64 -> (N,) bool. Mixed twice: the codes were drawn by mixing once."""
    return mix(mix(codes) ^ steps.astype(np.uint64)) % np.uint64(HELD_OUT_ONE_IN) == 0


def _written(codes: np.ndarray, steps: np.ndarray, longest: int) -> Tensor:
    """The expressions with the numbers `codes` (N,) as prompts: (N, 2 * longest + 3), padded on the left."""
    text = np.full((len(codes), 2 * longest + 3), PAD, dtype=np.int64)
    rows, first = np.arange(len(codes)), 2 * (longest - steps)
    text[rows, first] = BOS
    text[rows, first + 1] = codes % np.uint64(9) + np.uint64(1)
    rest = codes // np.uint64(9)
    for k in range(longest):
        here = rows[steps > k]
        text[here, first[here] + 2 + 2 * k] = PLUS + rest[here] % np.uint64(3)
        text[here, first[here] + 3 + 2 * k] = rest[here] // np.uint64(3) % np.uint64(9) + np.uint64(1)
        rest = rest // np.uint64(27)
    text[:, -1] = EQUALS
    return torch.from_numpy(text)


def results(observations: Observations) -> tuple[Tensor, Tensor]:
    """The result of each step of an expression, (N, K), 0 after its last one; and its number of steps, (N,)."""
    prompt = observations["prompt"]
    steps = (observations["lengths"] - 3) // 2
    width = (prompt.shape[1] - 3) // 2
    place = prompt.shape[1] - 1 - 2 * steps  # position of the first operation
    value = prompt.gather(1, place[:, None] - 1).squeeze(1)
    found = []
    for k in range(width):
        at = (place + 2 * k).clamp(max=prompt.shape[1] - 2)[:, None]
        operation, operand = prompt.gather(1, at).squeeze(1) - PLUS, prompt.gather(1, at + 1).squeeze(1)
        outcomes = torch.stack([value + operand, value - operand, value * operand], dim=1) % 10
        going_on = k < steps
        value = torch.where(going_on, outcomes.gather(1, operation.clamp(0, 2)[:, None]).squeeze(1), value)
        found.append(torch.where(going_on, value, 0))
    return torch.stack(found, dim=1), steps
