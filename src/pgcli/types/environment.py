"""What an environment looks like: one that is stepped, or a text task; and what some tasks can do besides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, TypeAlias

import numpy as np
from torch import Tensor

from pgcli.types.tree import Observations, State


@dataclass(frozen=True)
class Discrete:
    """Actions 0 .. n-1."""

    n: int


@dataclass(frozen=True, eq=False)
class Continuous:
    """A box of real actions. `low`, `high`: (A,), possibly infinite."""

    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class ControlSpec:
    """What a policy must know of a stepped environment."""

    observation_shape: tuple[int, ...]
    actions: Discrete | Continuous
    states: int | None = None
    """Where the states can be counted: how many; an observation is then the one-hot vector of one."""


@dataclass(frozen=True)
class TextSpec:
    """What a policy must know of a text task. A completion ends with `end` or at the limit."""

    vocabulary: int
    prompt_length: int
    """Of the longest prompt."""
    completion_length: int
    """At most, the end token included."""
    end: int
    pad: int
    reply_length: int = 0
    """Tokens with which the task goes on after the policy's first end token, before a second turn; 0: one turn."""


Spec: TypeAlias = ControlSpec | TextSpec


class Step(NamedTuple):
    """One step of some rows of a vectorised environment.

    observations: (N, *shape) float32, the true successors: nothing has been reset.
    rewards: (N,) float64, as the algorithm sees them (normalised, where that is switched on).
    terminated, truncated: (N,) bool. The task ended | a time limit cut it.
    task_rewards: (N,) float64, before any normalisation: what episode returns and evaluations count.
    """

    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    task_rewards: np.ndarray


class VectorEnvironment(Protocol):
    """`num_envs` copies of an environment that reset when told to, each episode with its own seed. No autoreset."""

    spec: ControlSpec
    num_envs: int

    @property
    def replay_mismatch(self) -> str | None:
        """After `load_state_dict`: why the open episodes are not exactly those that were saved. None: they are."""
        ...

    def reset(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """Start new episodes in `rows` (k,): returns their observations, (k, *shape) float32."""
        ...

    def step(self, actions: np.ndarray, rows: np.ndarray | None = None) -> Step:
        """Advance `rows` (all, if None) by `actions`, (k,) int64 or (k, A) float. Only rows with an open episode."""
        ...

    def state_dict(self) -> State:
        """All that a resumed run needs to go on with the open episodes as if it had never stopped."""
        ...

    def load_state_dict(self, state: State) -> None: ...

    def close(self) -> None: ...


class Written(NamedTuple):
    """Completions that no policy sampled: a teacher's answers, or a corpus."""

    observations: Observations
    actions: Tensor
    """(N, T) int64, each row with its end token and padded after it."""


class TextTask(Protocol):
    """Prompts, each made by a seed, and a reward for a finished completion.

    Prompts are {"prompt": (N, P) int64}; where their lengths differ they are padded on the left, and "lengths" (N,)
    says how many of the last tokens are theirs. Everything is a function of the seeds alone.
    """

    spec: TextSpec
    COMPONENTS: ClassVar[dict[str, str]]
    """Each key of `rewards`, with its meaning. `exact_match`, where there is one, is 1 for a right completion and 0 for
    any other: it is what pass@k counts.
    """

    def prompts(self, seeds: Sequence[int], *, held_out: bool) -> Observations:
        """A held-out prompt never occurs among the others."""
        ...

    def rewards(self, observations: Observations, completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Reward components, float32; `reward` is the one that is trained, the others are reported, (N,) each.

        NaN: nothing can be said of this row. Without a reward it is not learned from.

        completions: (N, T) int64, mask: (N, T) bool, 1 up to and including the end token.
        `reward` is (N,), received with the last token, or (N, T), received token by token.
        """
        ...

    def demonstrations(self, seeds: Sequence[int]) -> Written:
        """Right answers to training prompts: what supervised fine-tuning learns from."""
        ...

    def corpus(self, seeds: Sequence[int]) -> Written:
        """Text to learn the language from, prompts included: what pretraining learns from."""
        ...

    def encode(self, text: str) -> list[int]:
        """Raises InputError for what the vocabulary has not."""
        ...

    def decode(self, tokens: Sequence[int]) -> str: ...


class Replying(Protocol):
    """A text task of two turns (`spec.reply_length` > 0). It goes on where the policy's first turn has ended."""

    def replies(self, observations: Observations, completions: Tensor, mask: Tensor) -> Tensor:
        """What it says to first turns: (N, R) int64, a function of the prompt and of what was written.

        completions: (N, T), mask: (N, T), as in `rewards`; nothing follows the end token yet.
        """
        ...


class Completing(Protocol):
    """A text task whose observations hold more than a prompt, which a prompt that somebody types has not."""

    def complete(self, prompts: Observations, seeds: Sequence[int]) -> Observations:
        """The same prompts with all that `rewards` reads."""
        ...


class Comparing(Protocol):
    """A text task that may bring pairs of its own, which somebody has compared."""

    def given_pairs(self, *, held_out: bool) -> tuple[Written, Written] | None:
        """What was preferred and what was rejected, of the same prompts; None where it has none after all."""
        ...


class Revising(Protocol):
    """A text task with a constitution, which says what is wrong with an answer, so that it can be revised."""

    def criticise(
        self, observations: Observations, completions: Tensor, mask: Tensor, generator: np.random.Generator
    ) -> Tensor:
        """(N,) int64: the number of the rule by which each answer is criticised; -1: nothing is said of it."""
        ...

    def revision_prompts(
        self, observations: Observations, completions: Tensor, mask: Tensor, rules: Tensor
    ) -> Observations:
        """What a revision is written after: prompts as in `TextTask`. rules: (N,), none of them -1."""
        ...
