"""The interfaces of stepped environments and of text tasks, and the optional ones of some text tasks."""

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
    """What a policy must know about a stepped environment."""

    observation_shape: tuple[int, ...]
    actions: Discrete | Continuous
    states: int | None = None
    """Number of states, if they can be counted: an observation is then a one-hot vector. Otherwise None."""
    pixels: bool = False
    """Whether each element of an observation is k/255 for a byte k, so that a memory can keep the byte."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the observations are."""
        kind = {1: "vectors", 3: "images"}.get(len(self.observation_shape), "arrays")
        return (kind,) if self.states is None else (kind, "countable states")


@dataclass(frozen=True)
class TextSpec:
    """What a policy must know about a text task. A completion ends with `end` or at the limit."""

    vocabulary: int
    prompt_length: int
    """Tokens of the longest prompt."""
    completion_length: int
    """Most tokens of a completion, the end token included."""
    end: int
    pad: int
    reply_length: int = 0
    """Tokens of the task's reply after the policy's first end token, before a second turn; 0: one turn."""
    kinds: ClassVar[tuple[str, ...]] = ("texts",)


Spec: TypeAlias = ControlSpec | TextSpec


class Step(NamedTuple):
    """The result of one step of some rows of a vectorised environment.

    observations: (N, *shape) float32, the true successors, before any reset.
    rewards: (N,) float64, as the algorithm sees them (normalised, if that is switched on).
    terminated, truncated: (N,) bool. The task ended; a time limit cut it.
    task_rewards: (N,) float64, before any normalisation: episode returns and evaluations use these.
    """

    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    task_rewards: np.ndarray


class VectorEnvironment(Protocol):
    """`num_envs` copies of an environment. No autoreset: `reset` starts each episode with its own seed.

    It may also have two methods, if a single environment's observations or actions are not the policy's:

        encode(observation)  as the policy reads it, (*shape)
        decode(action)       as the environment's own `step` takes it
    """

    spec: ControlSpec
    num_envs: int

    @property
    def replay_mismatch(self) -> str | None:
        """After `load_state_dict`: why the open episodes are not exactly those that were saved; None if they are."""
        ...

    def reset(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """Start new episodes in `rows` (k,): returns their observations, (k, *shape) float32."""
        ...

    def step(self, actions: np.ndarray, rows: np.ndarray | None = None) -> Step:
        """Advance `rows` (None: all) by `actions`, (k,) int64 or (k, A) float. Each must have an open episode."""
        ...

    def state_dict(self) -> State:
        """Everything that a resumed run needs to continue the open episodes as if it had never stopped."""
        ...

    def load_state_dict(self, state: State) -> None: ...

    def close(self) -> None: ...


class Written(NamedTuple):
    """Texts that no policy sampled: a teacher's answers, or a corpus."""

    observations: Observations
    actions: Tensor
    """(N, T) int64, each row with its end token and padded after it."""


class TextTask(Protocol):
    """Prompts, each made by a seed, and a reward for a finished completion.

    Prompts are {"prompt": (N, P) int64}; if their lengths differ they are padded on the left, and "lengths" (N,) is the
    number of tokens that are not padding. Everything is a function of the seeds alone.
    """

    spec: TextSpec
    COMPONENTS: ClassVar[dict[str, str]]
    """Each key of `rewards`, with its meaning. `exact_match`, if there is one, is 1 for a right completion and 0 for
    any other: pass@k counts it.
    """

    def prompts(self, seeds: Sequence[int], *, held_out: bool) -> Observations:
        """The seeds' prompts. Held-out prompts never occur among the others."""
        ...

    def rewards(self, observations: Observations, completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Reward components, float32; training maximises `reward`, the others, (N,) each, are only reported.

        NaN: this row cannot be scored. A row whose `reward` is NaN is not learned from.

        completions: (N, T) int64, mask: (N, T) bool, 1 up to and including the end token.
        `reward` is (N,), received at the last token, or (N, T), received token by token.
        """
        ...

    def demonstrations(self, seeds: Sequence[int]) -> Written:
        """Right answers to training prompts, for supervised fine-tuning."""
        ...

    def corpus(self, seeds: Sequence[int]) -> Written:
        """Text to learn the language from, prompts included, for pretraining."""
        ...

    def encode(self, text: str) -> list[int]:
        """The text's tokens. Raises InputError for text outside the vocabulary."""
        ...

    def decode(self, tokens: Sequence[int]) -> str: ...


class Listing(Protocol):
    """A text task whose `demonstrations` and `corpus` draw from lists, which can also be gone through."""

    def count(self, source: str) -> int:
        """How many there are of the source of that name."""
        ...

    def listed(self, source: str, numbers: np.ndarray) -> Written:
        """Those with these numbers, from 0."""
        ...


class Replying(Protocol):
    """A text task of two turns (`spec.reply_length` > 0). It replies when the policy's first turn has ended."""

    def replies(self, observations: Observations, completions: Tensor, mask: Tensor) -> Tensor:
        """The replies to first turns: (N, R) int64, a function of the prompt and the first turn.

        completions: (N, T), mask: (N, T), as in `rewards`; nothing follows the end token yet.
        """
        ...


class Completing(Protocol):
    """A text task whose observations need fields beyond a prompt, which a typed prompt does not have."""

    def complete(self, prompts: Observations, seeds: Sequence[int]) -> Observations:
        """The same prompts with all fields that `rewards` reads."""
        ...


class Limiting(Protocol):
    """A text task whose limits are not the same for all prompts."""

    def settle(
        self, observations: Observations, completions: Tensor, mask: Tensor, earned: Tensor
    ) -> dict[str, Tensor]:
        """The component `reward` of a trained reward, (N,), after the limits. earned: (N,), had there been none."""
        ...


class Comparing(Protocol):
    """A text task that may have pairs of its own, already compared, and completions of its own, already labelled."""

    def given_pairs(self, *, held_out: bool) -> tuple[Written, Written] | None:
        """(preferred, rejected) completions of the same prompts; None if the task has no pairs."""
        ...

    def given_labels(self, *, held_out: bool) -> tuple[Written, Tensor] | None:
        """Completions, and whether each is right, (N,) bool; None if the task has no labels."""
        ...


class Revising(Protocol):
    """A text task with a constitution: rules that criticise an answer, so that it can be revised."""

    def criticise(
        self, observations: Observations, completions: Tensor, mask: Tensor, generator: np.random.Generator
    ) -> Tensor:
        """(N,) int64: the number of the rule by which each answer is criticised; -1: no criticism."""
        ...

    def revision_prompts(
        self, observations: Observations, completions: Tensor, mask: Tensor, rules: Tensor
    ) -> Observations:
        """The prompts of revisions, as in `TextTask`: request, answer and criticism. rules: (N,), none of them -1."""
        ...
