"""What collectors return besides rollouts: transitions, texts, gradients, a population's returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import starmap
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pgcli.types.rollout import Episode
from pgcli.types.tree import ABSENT, Metrics, Observations, State, each_tensor


@dataclass
class Transitions:
    """Single transitions in no particular order, for an off-policy loss. (B,) each."""

    observations: Tensor
    """(B, *shape)"""
    actions: Tensor
    """(B,) int64 or (B, A) float, as the environment was given them."""
    rewards: Tensor
    next_observations: Tensor
    """(B, *shape), the true successors: of a truncated episode its final observation."""
    terminated: Tensor
    """bool. After these nothing is bootstrapped; a truncated episode is bootstrapped like any other step."""
    next_actions: Tensor = ABSENT
    """The actions that will be taken in `next_observations`, if the collector has already chosen them (SARSA)."""
    weights: Tensor = ABSENT
    """The weight of each transition in a loss. ABSENT: 1 / B each."""
    next_values: Tensor = ABSENT
    """(B, n), a target network's values of all actions in `next_observations` (DQN)."""

    def __len__(self) -> int:
        return len(self.actions)

    def split(self, size: int) -> Iterator[Transitions]:
        """Consecutive pieces of `size` transitions."""
        if len(self) <= size:
            return iter((self,))
        columns = [getattr(self, field.name) for field in fields(self)]
        count = -(-len(self) // size)
        pieces = [[ABSENT] * count if column is ABSENT else column.split(size) for column in columns]
        return starmap(Transitions, zip(*pieces, strict=True))

    def mean(self, x: Tensor) -> Tensor:
        """The weighted mean of x (B,) over transitions: a scalar."""
        return x.mean() if self.weights is ABSENT else (x * self.weights).sum()


@dataclass
class Steps:
    """What a collector of fresh transitions returns: one step of each environment."""

    transitions: Transitions
    episodes: list[Episode]
    """Episodes that finished with this step."""

    @property
    def steps(self) -> int:
        return len(self.transitions)


class Replay(Protocol):
    """What a replay collector returns: the newest steps and episodes, and a memory to draw from."""

    steps: int
    """Actions taken since the last call."""
    episodes: list[Episode]
    """Episodes that finished since the last call."""
    size: int
    """Transitions in the memory."""

    def draw(self, batch_size: int) -> Transitions:
        """A minibatch, drawn uniformly with replacement."""
        ...


class Completions(NamedTuple):
    """Completions from any source, to be compared, labelled or judged. N rows, right-padded."""

    observations: Observations
    actions: Tensor
    """(N, T) int64."""
    mask: Tensor
    """(N, T) bool: up to and including the end token."""
    reference_log_probs: Tensor
    """(N, T), of the frozen reference policy; 0 on padding. ABSENT if they are not needed."""

    def pick(self, rows: Tensor | slice) -> Completions:
        return each_tensor(self, lambda x: x[rows])


class OfTexts:
    """The base of batches of given completions, from any source. A slice is a piece, which knows the whole batch.

    `tokens` and the masks of the subclasses say over what a mean may go.
    """

    texts: Completions
    whole: Any

    @property
    def steps(self) -> int:
        """Tokens that are trained on."""
        return int(self.texts.mask.sum())

    @property
    def tokens(self) -> Tensor:
        return self.texts.mask

    def mean(self, x: Tensor, over: str) -> Tensor:
        """The mean of x where the batch's mask `over` is set: a scalar; of a piece, its share of the whole batch's
        mean. An empty mean is 0; any axes that x has before the mask's, of members say, are summed.
        """
        count = getattr(self.whole or self, over).sum().clamp(min=1)
        return torch.where(getattr(self, over), x, 0).sum() / count


@dataclass
class Preferences(OfTexts):
    """Pairs of completions of the same prompt, one preferred to the other."""

    texts: Completions
    """2B rows: the preferred completions of B prompts, then, in the same order, the rejected ones."""
    numbers: Tensor
    """(B,) int64: the pair's number, the same each time that a pair of a dataset is drawn."""
    gold: Tensor
    """(B,), true reward of the preferred completion minus that of the rejected; negative if the label is wrong."""
    metrics: Metrics = field(default_factory=dict)
    episodes: list[Episode] = field(default_factory=list)
    """Episodes that were sampled for this batch, if any."""
    whole: Preferences | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, pairs: slice) -> Preferences:
        both = torch.arange(2 * len(self), device=self.texts.actions.device).view(2, -1)[:, pairs].flatten()
        return Preferences(self.texts.pick(both), self.numbers[pairs], self.gold[pairs], whole=self)

    @property
    def pairs(self) -> Tensor:
        return torch.ones_like(self.texts.mask[: len(self), 0])

    @property
    def chosen_tokens(self) -> Tensor:
        return self.texts.mask[: len(self)]


@dataclass
class Labelled(OfTexts):
    """Single completions, each labelled desirable or not."""

    texts: Completions
    """N rows."""
    desirable: Tensor
    """(N,) bool."""
    mismatched: Completions
    """N rows: the same prompts, each with a completion written for another prompt."""
    metrics: Metrics = field(default_factory=dict)
    episodes: list[Episode] = field(default_factory=list)
    whole: Labelled | None = None
    reference_point: Tensor = ABSENT
    """KTO's z, a scalar, once its algorithm has estimated it from all rows."""

    def __len__(self) -> int:
        return len(self.desirable)

    def __getitem__(self, rows: slice) -> Labelled:
        piece = Labelled(self.texts.pick(rows), self.desirable[rows], self.mismatched.pick(rows), whole=self)
        return replace(piece, reference_point=self.reference_point)

    @property
    def rows(self) -> Tensor:
        return torch.ones_like(self.desirable)

    @property
    def undesirable(self) -> Tensor:
        return ~self.desirable


@dataclass
class Checked(OfTexts):
    """Completions labelled right or wrong: as a whole, or at each of their steps."""

    texts: Completions
    """N rows."""
    right: Tensor
    """(N, T), 0 or 1, at the tokens where `known` is set."""
    known: Tensor
    """(N, T) bool: the last token of a completion, or of each of its steps."""
    metrics: Metrics = field(default_factory=dict)
    episodes: list[Episode] = field(default_factory=list)
    whole: Checked | None = None

    def __len__(self) -> int:
        return len(self.known)

    def __getitem__(self, rows: slice) -> Checked:
        return Checked(self.texts.pick(rows), self.right[rows], self.known[rows], whole=self)

    @property
    def known_right(self) -> Tensor:
        return self.known & (self.right > 0.5)

    @property
    def known_wrong(self) -> Tensor:
        return self.known & (self.right <= 0.5)


@dataclass
class Gradients:
    """What an asynchronous worker returns: the gradient of its loss on one segment, all parameters in one vector."""

    flat: Tensor
    """(P,)"""
    terms: Metrics
    """The loss's terms."""
    statistics: Metrics
    """Further metrics of the segment; may be NaN."""
    steps: int
    episodes: list[Episode]
    staleness: int = 0
    """Updates by other workers between reading the parameters and applying this gradient."""

    @classmethod
    def load(cls, saved: State) -> Gradients:
        """Rebuilds one from its `vars`, read from a checkpoint."""
        return cls(**saved | {"episodes": [Episode(*episode) for episode in saved["episodes"]]})


@dataclass
class Population:
    """What a population collector plays: copies of one policy with different parameters."""

    policy: Any
    """A policy of the role `Acting`."""
    candidates: Tensor
    """(K, P): each row replaces `policy.parameters()`, flattened one after the other."""
    fresh: bool = True
    """Play from new initial states; otherwise from those of the last call."""


@dataclass
class Fitness:
    """What a population collector returns."""

    returns: Tensor
    """(K,) float64, each candidate's mean undiscounted return, of the task's own rewards."""
    steps: int
    """Actions taken, by all candidates together."""
    episodes: list[Episode]
    """The same number of episodes of each candidate, one candidate after the other."""
