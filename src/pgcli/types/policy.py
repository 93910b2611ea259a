"""The roles that a policy can fill, and its interfaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pgcli.types.tree import ABSENT, Observations


@dataclass(frozen=True)
class Stochastic:
    """A distribution over actions whose log-probs have a gradient, and with `critic` V(s)."""

    critic: bool = False
    meaning: ClassVar[str] = "a distribution over actions"


@dataclass(frozen=True)
class ActionValues:
    """Q(s, a) of all discrete actions at once."""

    meaning: ClassVar[str] = "values of all actions"


@dataclass(frozen=True)
class ActionTable:
    """Q(s, a) as the entries of a table, (S, n): the policy's only parameter."""

    meaning: ClassVar[str] = "a table of action values"
    otherwise: ClassVar[str] = "algo=dqn"
    """The same with a network, where states cannot be counted."""


@dataclass(frozen=True)
class ActorWithQ:
    """An actor of bounded real actions, deterministic or reparameterised, and `critics` of Q(s, a) beside it."""

    critics: int
    stochastic: bool
    meaning: ClassVar[str] = "an actor with critics of Q(s, a)"


@dataclass(frozen=True)
class Acting:
    """Any policy that acts and has parameters: no gradient is needed."""

    meaning: ClassVar[str] = "parameters to search over"


@dataclass(frozen=True)
class Scores:
    """A score of a text after each of its tokens, by each of the `members` of an ensemble.

    Such a policy is called with (observations, actions (N, T)) and returns (members, N, T): the score at [.., t] has
    read the prompt and the actions up to and including t.
    """

    members: int = 1
    meaning: ClassVar[str] = "scores of texts"


Needs: TypeAlias = Stochastic | ActionValues | ActionTable | ActorWithQ | Acting | Scores
"""The roles that algorithms need. A policy class lists in `offers` the roles that it can fill, and in `reads` the kinds
of observations (`Spec.kinds`) for which it can.
"""


class Memoryless:
    """A sampler without memory. The collector calls these methods when episodes begin and end."""

    memory: dict[str, np.ndarray] | None = None
    """The memory of each row, (N, ...) each; None for a sampler without memory."""

    def start(self, rows: int, memory: dict[str, np.ndarray] | None = None) -> None:
        """`rows` episodes begin, or continue with their `memory`."""

    def forget(self, rows: np.ndarray) -> None:
        """The episodes of `rows` (k,) have ended; new ones begin in these rows."""

    def keep(self, rows: np.ndarray) -> None:
        """Drop all rows except `rows`: (N,) bool, or indices."""


class Distribution(Protocol):
    """A policy's action distribution: a NamedTuple of tensors that share the actions' leading shape."""

    def kl(self, other: Any) -> Tensor:
        """KL(self || other), exact, one for each state; `other` is of the same kind."""
        ...


class Evaluation(NamedTuple):
    """A policy's evaluation of given actions; each field has the actions' leading shape, and a gradient."""

    log_probs: Tensor
    entropy: Tensor
    values: Tensor
    """ABSENT without a critic."""
    distribution: Distribution = ABSENT


PolicyFunction: TypeAlias = Callable[[Observations, Tensor], Evaluation]
"""The policy as a loss sees it: a module, or `torch.func.functional_call` bound to other parameters."""


class Policy(Protocol):
    """A module that any algorithm can train. `unit`: into what a batch is cut for minibatches. One whose actions have
    no noise may say `deterministic = True`: then its sampled episodes are its greedy ones.
    """

    unit: ClassVar[str]
    """`action` (no memory) or `sequence`."""
    has_critic: bool

    def __call__(self, observations: Observations, actions: Tensor) -> Evaluation: ...

    def once_differentiable(self) -> PolicyFunction:
        """The same evaluation for a gradient step: the policy itself, or a faster function of the same parameters."""
        ...


Drawn: TypeAlias = tuple[Tensor, Tensor]
"""Actions (B, A) and their log-probs (B,)."""


class ActorCritics(Protocol):
    """What an off-policy loss needs of an actor with K critics; each method says which gradient it has.

    A subclass inherits two of them, which a faster one would do in one pass.

    observations (B, *shape), actions and noise (B, A).
    """

    def act(self, observations: Tensor, noise: Tensor) -> Drawn:
        """Actions from standard normal noise, (B, A), and their log-probs (B,), densities in the unit box: the actor's
        gradient. A deterministic actor has no log-probs (ABSENT) and does not look at the noise.
        """
        ...

    def act_now_and_next(
        self, observations: Tensor, next_observations: Tensor, noise: Tensor, next_noise: Tensor
    ) -> tuple[Drawn, Drawn]:
        """`act` in the states and in those that followed them, the latter without a gradient."""
        with torch.no_grad():
            following = self.act(next_observations, next_noise)
        return self.act(observations, noise), following

    def target_act(self, observations: Tensor, noise: Tensor) -> Tensor:
        """The target copy of a deterministic actor, (B, A), moved by noise in units of the unit box, and kept in it."""
        ...

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_k(s, a), (K, B): the critics' gradient."""
        ...

    def fixed_values(self, observations: Tensor, actions: Tensor, first: int | None = None) -> Tensor:
        """Q_k(s, a), (K, B), of all or the `first` critics: the actions' gradient, the critics are constants."""
        ...

    def values_beside(self, observations: Tensor, actions: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """`values` of the actions and `fixed_values` of others in the same states."""
        return self.values(observations, actions), self.fixed_values(observations, others)

    def target_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_k(s, a) of the critics' target copies, (K, B): no gradient."""
        ...
