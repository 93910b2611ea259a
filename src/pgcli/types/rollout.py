"""The rollout: observations, actions and rewards, the same type in both worlds; and the batch that a loss reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from pgcli.functional.masked import Aggregation, aggregation_weights
from pgcli.types.policy import Distribution
from pgcli.types.tree import ABSENT, Metrics, Observations, each_tensor

Sample: TypeAlias = dict[str, Any]
"""A completion as readable text, with its rewards and log-probs: plain data, a row of samples.jsonl."""


class Episode(NamedTuple):
    """A finished episode: undiscounted return of the task's own rewards, length in actions, and its seed."""

    total: float
    length: int
    seed: int


@dataclass
class Rollout:
    """Observations, actions and rewards, the same type in control and language. (N, T), right-padded."""

    observations: Observations
    """(N, T, *shape) in control; {"prompt": (N, P)} in language, without a T axis (see `TextTask`)."""
    actions: Tensor
    """(N, T) int64 or (N, T, A) float."""
    rewards: Tensor
    """(N, T), as the environment gave them: never modified in place."""
    terminated: Tensor
    """(N, T) bool: the task ended with this action."""
    truncated: Tensor
    """(N, T) bool: a time or length limit cut the episode after this action."""
    mask: Tensor
    """(N, T) bool: the policy chose this action (the end token included)."""
    log_probs: Tensor = ABSENT
    """(N, T), of the behaviour policy, under the exact sampling distribution. None for demonstrations."""
    values: Tensor = ABSENT
    """(N, T), V(s_t), if there is a critic."""
    next_values: Tensor = ABSENT
    """(N, T), V of the true successor; meaningless (and unused) where terminated."""
    reference_log_probs: Tensor = ABSENT
    """(N, T), of the frozen reference policy, if there is one."""
    groups: Tensor = ABSENT
    """(N,) int64: rows with the same initial state share a number."""
    weights: Tensor | None = None
    """(N,): None when sampled; the probability of each row when the rows enumerate a distribution."""
    distribution: Distribution = ABSENT
    """The behaviour policy's action distribution in each state, if the collector was asked to keep it."""
    aux: dict[str, Tensor] = field(default_factory=dict)
    """(N,) each: reward components and other values per episode."""
    metrics: Metrics = field(default_factory=dict)
    """The collector's metrics."""
    episodes: list[Episode] = field(default_factory=list)
    """Episodes that finished in this rollout."""
    discarded: int = 0
    """Actions that were taken for this rollout but are not in it."""

    @property
    def done(self) -> Tensor:
        """(N, T) bool: the episode ended with this action, terminated or truncated."""
        return self.terminated | self.truncated

    @property
    def steps(self) -> int:
        """Actions that the policy chose, discarded ones included."""
        return int(self.mask.sum()) + self.discarded

    def rows(self, keep: Tensor) -> Rollout:
        """Selects rows, by (N,) bool or by index; `metrics` still describe all rows, and dropped actions still count as
        steps.
        """
        whole = ("metrics", "episodes", "discarded")
        kept = {
            f.name: each_tensor(getattr(self, f.name), lambda x: x[keep]) for f in fields(self) if f.name not in whole
        }
        numbers = torch.arange(len(self.episodes))[keep.cpu()].tolist()
        discarded = self.steps - int(kept["mask"].sum())
        return replace(self, **kept, episodes=[self.episodes[number] for number in numbers], discarded=discarded)

    def batch(
        self,
        advantages: Tensor,
        aggregation: Aggregation,
        returns: Tensor = ABSENT,
        *,
        constant: float | None = None,
    ) -> Batch:
        """What the loss reads. `advantages`, `returns`: (N, T); `aggregation`: how the policy loss adds up."""
        given: Any = {"row_weights": self.weights, "dtype": advantages.dtype}
        per_action = aggregation_weights(self.mask, "token_mean", **given)
        weights = per_action
        if aggregation != "token_mean":
            weights = aggregation_weights(self.mask, aggregation, constant=constant, **given)
        return Batch(
            observations=self.observations, actions=self.actions, mask=self.mask, weights=weights,
            per_action=per_action, advantages=advantages, returns=returns, log_probs=self.log_probs, values=self.values,
            reference_log_probs=self.reference_log_probs,
        )  # fmt: skip


@dataclass
class Batch:
    """A rollout with its advantages and returns, for a loss: (N, T) whole rows, or (B,) single actions.

    Its weights are those of the whole batch, so that cutting it into minibatches changes no normaliser: the policy loss
    is `weighted_sum(..., weights)`, a mean over actions `weighted_sum(..., per_action)`.
    """

    observations: Observations
    actions: Tensor
    mask: Tensor
    """ABSENT for single actions, which have no padding."""
    weights: Tensor
    """Weights of the policy loss, by the algorithm's aggregation."""
    per_action: Tensor
    """Equal weights of all actions, which sum to one."""
    advantages: Tensor
    returns: Tensor = ABSENT
    log_probs: Tensor = ABSENT
    values: Tensor = ABSENT
    reference_log_probs: Tensor = ABSENT
    distribution: Distribution = ABSENT
    """The old policy's action distribution in each state, if an exact KL to it is needed."""

    def __len__(self) -> int:
        return len(self.actions)

    def single_actions(self) -> Batch:
        """Cut into (B,) single actions without the padding: the unit of a policy without memory."""
        keep = self.mask.flatten()
        everything = bool(keep.all())
        cut = self._each(lambda x: x.flatten(0, 1) if everything else x.flatten(0, 1)[keep])
        return replace(cut, mask=ABSENT)

    def __getitem__(self, rows: Tensor | slice) -> Batch:
        if isinstance(rows, slice):
            return self._each(lambda x: x[rows])
        return self._each(lambda x: x.index_select(0, rows))  # a third of the time of x[rows]

    def _each(self, cut: Callable[[Tensor], Tensor]) -> Batch:
        """`cut` applied to each tensor, once even if two fields share it."""
        done: dict[int, Any] = {id(None): None}
        for f in fields(self):
            value = getattr(self, f.name)
            if id(value) not in done:
                done[id(value)] = each_tensor(value, cut)
        return Batch(**{f.name: done[id(getattr(self, f.name))] for f in fields(self)})

    def minibatches(self, count: int, order: Tensor) -> Iterator[Batch]:
        """`count` pieces in the given order. The mean of their losses is exactly the whole batch's loss, even if a
        piece is smaller than the others: each one's weights are the batch's, times `count`.
        """
        shuffled = self[order]
        whole = {id(weights): weights * count for weights in (shuffled.weights, shuffled.per_action)}
        weights, per_action = whole[id(shuffled.weights)], whole[id(shuffled.per_action)]
        shuffled = replace(shuffled, weights=weights, per_action=per_action)
        for part in range(count):
            yield shuffled[len(self) * part // count : len(self) * (part + 1) // count]
