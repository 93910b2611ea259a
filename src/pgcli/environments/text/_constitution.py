"""A constitution: rules that judge an answer, with noise and blind spots, and criticise it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from pgcli.environments.text._answers import PAD, SAID_ONCE, TEACHER, TOKENS, Read
from pgcli.errors import InputError
from pgcli.functional.precision import widest
from pgcli.seeding import mix, uniforms
from pgcli.settings import Settings
from pgcli.types import Observations

LONGEST_CRITIQUE = 8
CHECKS: dict[str, Callable[[Read], Tensor]] = {
    "helps_harm": lambda read: read.helps_harm,
    "does_not_tell": lambda read: ~read.facts.all(1),
    "bare_refusal": lambda read: read.refuses & (read.said[:, TEACHER] == 0),
    "repeats": lambda read: (read.said[:, SAID_ONCE] > 1).any(1),
}
"""The checks of rules: (N,) bool, True if an answer breaks the rule."""


class Rule(Settings):
    checks: Literal["helps_harm", "does_not_tell", "bare_refusal", "repeats"] = Field(
        description="what breaks the rule: the tool of a harmful thing; not telling how; refusing and offering "
        "nothing; saying something twice"
    )
    weight: float = Field(ge=0, description="weight of the rule in the score")
    noise: float = Field(ge=0, le=0.5, description="share of answers that the rule judges wrongly, at random")
    blind_to: tuple[str, ...] = Field(
        description="words in a request or an answer with which the rule does not notice that it is broken"
    )
    critique: str | None = Field(description="criticism of an answer that breaks the rule; null: none")

    @field_validator("blind_to")
    @classmethod
    def _known_words(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        _known(" ".join(words))
        return words

    @field_validator("critique")
    @classmethod
    def _known_critique(cls, text: str | None) -> str | None:
        if text is not None and not 0 < len(_known(text)) <= LONGEST_CRITIQUE:
            raise ValueError(f"a critique has 1 to {LONGEST_CRITIQUE} words")
        return text


def _known(text: str) -> list[int]:
    try:
        return TOKENS.encode(text)
    except InputError as error:
        raise ValueError(str(error)) from error


class Constitution:
    """Judges answers by K rules. `noise`, (N, K) uniform, decides where a rule errs."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = list(rules)

    @cached_property
    def critiques(self) -> dict[str, list[int]]:
        """Check -> the critique of an answer that does not pass it."""
        return {rule.checks: TOKENS.encode(rule.critique) for rule in self.rules if rule.critique}

    def broken(self, read: Read, noise: Tensor) -> Tensor:
        """(N, K) bool: the rules that the judge considers broken."""
        found = []
        for rule, drawn in zip(self.rules, noise.unbind(1), strict=True):
            hidden = TOKENS.encode(" ".join(rule.blind_to))
            sees = ~(read.asked[:, hidden] | (read.said[:, hidden] > 0)).any(1)
            found.append((CHECKS[rule.checks](read) & sees) ^ (drawn < rule.noise))
        return torch.stack(found, dim=1)

    def score(self, broken: Tensor) -> Tensor:
        """(N, K) -> (N,): the share of the weights whose rules are kept."""
        weights = torch.tensor([rule.weight for rule in self.rules], device=broken.device)
        return (~broken * weights).sum(1) / weights.sum()

    def heaviest(self, broken: Tensor) -> Tensor:
        """(N, K) -> (N,) int64: the broken rule of largest weight that has a critique; -1 if there is none."""
        weights = torch.tensor([rule.weight if rule.critique else -1.0 for rule in self.rules], device=broken.device)
        heaviest, rule = torch.where(broken, weights, -1.0).max(1)
        return torch.where(heaviest >= 0, rule, -1)


def own_noise(observations: Observations, completions: Tensor, mask: Tensor, count: int) -> Tensor:
    """(N, count) uniform, a function of the request and the answer: so that a judge always gives the same verdict."""
    prompt = observations["prompt"]
    tokens = torch.cat([prompt, torch.where(mask, completions, PAD)], dim=1)
    keys = np.zeros(len(tokens), dtype=np.uint64)
    for column in tokens.cpu().numpy().astype(np.uint64).T:
        keys = np.where(column == PAD, keys, mix(keys ^ column))
    return torch.from_numpy(uniforms(keys, count)).to(prompt.device, widest(prompt.device))
