"""What collectors hand on that is no rollout: transitions, texts, gradients, a population's returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import starmap
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from pgcli.types.rollout import Episode
from pgcli.types.tree import ABSENT, Metrics, Observations, State


@dataclass
class Transitions:
    """Single transitions in no particular order: what an off-policy loss reads. (B,) each."""

    observations: Tensor
    """(B, *shape)"""
    actions: Tensor
    """(B,) int64 or (B, A) float, as the environment was given them."""
    rewards: Tensor
    next_observations: Tensor
    """(B, *shape), the true successors: of a truncated episode its final observation."""
    terminated: Tensor
    """bool. There is nothing to bootstrap behind these; a truncated episode is bootstrapped like any other."""
    next_actions: Tensor = ABSENT
    """The actions that will be taken in `next_observations`, where the collector has chosen them (SARSA)."""
    weights: Tensor = ABSENT
    """How much each counts in a loss. ABSENT: all alike, and together one."""
    next_values: Tensor = ABSENT
    """(B, n), what a target network says of all actions in `next_observations` (DQN)."""

    def __len__(self) -> int:
        return len(self.actions)

    def split(self, size: int) -> Iterator[Transitions]:
        """Pieces of so many in turn, in their order."""
        if len(self) <= size:
            return iter((self,))
        columns = [getattr(self, field.name) for field in fields(self)]
        count = -(-len(self) // size)
        pieces = [[ABSENT] * count if column is ABSENT else column.split(size) for column in columns]
        return starmap(Transitions, zip(*pieces, strict=True))

    def mean(self, x: Tensor) -> Tensor:
        """Of a quantity of each transition, (B,), by their weights: a scalar."""
        return x.mean() if self.weights is ABSENT else (x * self.weights).sum()


@dataclass
class Steps:
    """What a collector of fresh transitions hands on: one step of each environment."""

    transitions: Transitions
    episodes: list[Episode]
    """Those that finished with it."""

    @property
    def steps(self) -> int:
        return len(self.transitions)


class Replay(Protocol):
    """What a replay collector hands on: what just happened, and a memory to draw from."""

    steps: int
    """Actions taken since the last time."""
    episodes: list[Episode]
    """Those that finished meanwhile."""
    size: int
    """Transitions in the memory."""

    def draw(self, batch_size: int) -> Transitions:
        """Uniformly, with replacement."""
        ...


class Completions(NamedTuple):
    """Texts that somebody wrote, whoever it was: what is compared, labelled or judged. N rows, right-padded."""

    observations: Observations
    actions: Tensor
    """(N, T) int64."""
    mask: Tensor
    """(N, T) bool: up to and including the end token."""
    reference_log_probs: Tensor
    """(N, T), of the frozen reference policy; 0 on padding. ABSENT where nobody asks for them."""


class OfTexts:
    """What is learned from completions that stand in a table, whoever wrote them."""

    texts: Completions

    @property
    def steps(self) -> int:
        """Tokens that are trained on."""
        return int(self.texts.mask.sum())


@dataclass
class Preferences(OfTexts):
    """Pairs of completions of one prompt, one of which was preferred."""

    texts: Completions
    """2B rows: the preferred completions of B prompts, then, in the same order, those rejected."""
    numbers: Tensor
    """(B,) int64: which pair it is, the same whenever a dataset's comes again."""
    gold: Tensor
    """(B,), the task's true reward of the preferred one minus that of the rejected: a label may be wrong."""
    metrics: Metrics = field(default_factory=dict)
    episodes: list[Episode] = field(default_factory=list)
    """Completions that were written for it, where they were."""


@dataclass
class Labelled(OfTexts):
    """Completions that are desirable or not, each by itself."""

    texts: Completions
    """N rows."""
    desirable: Tensor
    """(N,) bool."""
    mismatched: Completions
    """N rows: the same prompts, each with a completion that was written for another one."""
    metrics: Metrics = field(default_factory=dict)
    episodes: list[Episode] = field(default_factory=list)


@dataclass
class Checked(OfTexts):
    """Completions of which it is known what is right: each as a whole, or each of its steps."""

    texts: Completions
    """N rows."""
    right: Tensor
    """(N, T), 0 or 1, at the tokens that `known` names."""
    known: Tensor
    """(N, T) bool: the last token of a completion, or of each of its steps."""
    metrics: Metrics = field(default_factory=dict)
    episodes: list[Episode] = field(default_factory=list)


@dataclass
class Gradients:
    """What an asynchronous worker hands on: the gradient of its loss on one segment, all parameters in one vector."""

    flat: Tensor
    """(P,)"""
    terms: Metrics
    """What the loss reports of itself."""
    statistics: Metrics
    """What else is worth knowing of the segment; may be NaN."""
    steps: int
    episodes: list[Episode]
    staleness: int = 0
    """Updates made by others between reading the parameters and applying this."""

    @classmethod
    def load(cls, saved: State) -> Gradients:
        """From `vars` of one that went through a checkpoint."""
        return cls(**saved | {"episodes": [Episode(*episode) for episode in saved["episodes"]]})


@dataclass
class Population:
    """What a population collector plays: copies of one policy, each with parameters of its own."""

    policy: Any
    """Of the role `Acting`."""
    candidates: Tensor
    """(K, P): each row replaces `policy.parameters()`, flattened one after the other."""
    fresh: bool = True
    """From new initial states; otherwise from those of the last time."""


@dataclass
class Fitness:
    """What a population collector hands on."""

    returns: Tensor
    """(K,) float64, each candidate's mean undiscounted return, of the task's own rewards."""
    steps: int
    """Actions taken, by all candidates together."""
    episodes: list[Episode]
    """The same number of each candidate, one candidate after the other."""
