"""An actor of bounded continuous actions and K critics of Q(s, a), each with a target copy, for off-policy methods.

Shapes: B transitions, K critics, A components of an action, in units of the environment unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pgcli.errors import InputError
from pgcli.policies.actor_critic import ArrayNetwork, Sampler
from pgcli.policies.heads import DeterministicHead, HeadSettings, SquashedGaussianHead
from pgcli.types import ActorCritics, ActorWithQ, Continuous, ControlSpec, Drawn

ActorHead = SquashedGaussianHead | DeterministicHead


class ActorQ(nn.Module, ActorCritics):
    """Networks without shared parts. The target copies start equal, and only the algorithm moves them.

    Its passes are differentiable any number of times.
    """

    unit = "action"
    has_critic = False  # no V(s), which an on-policy collector would need

    def __init__(
        self, head: ActorHead, actor: nn.Module, critics: Sequence[nn.Module], *, arrays: Callable[[], ArrayNetwork],
        for_a_step: Callable[[ActorQ], ActorCritics],
    ) -> None:  # fmt: skip
        """
        Args:
            actor: observations (B, n) -> the head's outputs. critics: observations and actions (B, n + A) -> (B, 1).
            arrays: returns the actor in NumPy on the present weights.
            for_a_step: the same networks by faster functions, differentiable once.
        """
        super().__init__()
        self.head, self.actor, self.critics = head, actor, nn.ModuleList(critics)
        self.actions = len(head.box.low)
        self.target_critics = deepcopy(self.critics).requires_grad_(False)
        self.target_actor = None
        if isinstance(head, DeterministicHead):
            self.target_actor = deepcopy(actor).requires_grad_(False)
        self._arrays, self._for_a_step = arrays, for_a_step(self)

    @property
    def deterministic(self) -> bool:
        return isinstance(self.head, DeterministicHead)

    def actor_parameters(self) -> list[nn.Parameter]:
        """The actor's network, and its state-independent standard deviation if it has one."""
        return [*self.actor.parameters(), *self.head.parameters()]

    def forward(self, part: str, *inputs: Tensor) -> Any:
        """One of the passes below by name, so that `functional_call` can bind other parameters to it."""
        return getattr(self, part)(*inputs)

    def once_differentiable(self) -> ActorCritics:
        return self._for_a_step

    def act(self, observations: Tensor, noise: Tensor) -> Drawn:
        unit, log_probs = self.head.draw(self.actor(observations), noise)
        return self.head.box.scaled(unit), log_probs

    @torch.no_grad()
    def target_act(self, observations: Tensor, noise: Tensor) -> Tensor:
        assert self.target_actor is not None
        unit = torch.tanh(self.target_actor(observations))
        return self.head.box.scaled((unit + noise).clamp(-1, 1))

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        x = self._joined(observations, actions)
        return torch.stack([critic(x).squeeze(-1) for critic in self.critics])

    def fixed_values(self, observations: Tensor, actions: Tensor, first: int | None = None) -> Tensor:
        x, found = self._joined(observations, actions), []
        for critic in self.critics[:first]:
            constants = {name: p.detach() for name, p in critic.named_parameters()}
            found.append(functional_call(critic, constants, (x,)).squeeze(-1))
        return torch.stack(found)

    @torch.no_grad()
    def target_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        x = self._joined(observations, actions)
        return torch.stack([critic(x).squeeze(-1) for critic in self.target_critics])

    def sampler(self) -> Sampler:
        """The actor with its present weights, for stepping an environment."""
        return Sampler(self._arrays(), self.head)

    def _joined(self, observations: Tensor, actions: Tensor) -> Tensor:
        return torch.cat([observations, self.head.box.unit(actions)], 1)


def make_actor_head(spec: ControlSpec, settings: HeadSettings, needs: ActorWithQ) -> ActorHead:
    """The actor's head. Raises InputError for a distribution that does not keep to the bounds."""
    assert isinstance(spec.actions, Continuous)  # an algorithm that needs an actor with critics has refused others
    if not needs.stochastic:
        return DeterministicHead(spec.actions)
    if settings.distribution == "gaussian":
        raise InputError(
            "an actor with critics keeps to the action's bounds: try policy.distribution=squashed_gaussian"
        )
    bounds = settings.log_std_bounds if settings.std == "network" else None
    return SquashedGaussianHead(spec.actions, settings.initial_log_std, bounds)
