"""An actor of bounded continuous actions and K critics of Q(s, a), each with a target copy, for off-policy methods.

Passes leave out gradients that are not needed: with constant critics (`fixed_values`) those of their weights, with
actions from data (`values`) those of the input. At 256 x 256 units that is a quarter of an update's arithmetic.

Shapes: B transitions, K critics, A components of an action, in units of the environment unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from pgcli.errors import InputError
from pgcli.functional.distributions import HALF_LOG_TWO_PI
from pgcli.policies.actor_critic import ArrayNetwork, Sampler
from pgcli.policies.heads import DeterministicHead, HeadSettings, SquashedGaussianHead
from pgcli.types import ActorWithQ, Continuous, ControlSpec

Run = Callable[[Sequence[nn.Module], Tensor, bool], Sequence[Tensor]]
"""(networks, their common input, whether their weights are constants) -> the output of each."""


ActorHead = SquashedGaussianHead | DeterministicHead


class ActorQ(nn.Module):
    """Networks without shared parts. The target copies start equal, and only the algorithm moves them."""

    unit = "action"
    has_critic = False  # no V(s), which an on-policy collector would need

    def __init__(
        self, head: ActorHead, actor: nn.Module, critics: Sequence[nn.Module], *, arrays: Callable[[], ArrayNetwork],
        fused: Run,
    ) -> None:  # fmt: skip
        """
        Args:
            actor: observations (B, n) -> the head's outputs. critics: observations and actions (B, n + A) -> (B, 1).
            arrays: returns the actor in NumPy on the present weights.
            fused: runs networks faster than one by one, differentiable once.
        """
        super().__init__()
        self.head, self.actor, self.critics = head, actor, nn.ModuleList(critics)
        self.actions = len(head.box.low)
        self.target_critics = deepcopy(self.critics).requires_grad_(False)
        self.target_actor = None
        if isinstance(head, DeterministicHead):
            self.target_actor = deepcopy(actor).requires_grad_(False)
        self._arrays, self._fused = arrays, fused
        self._run: Run = one_by_one
        self._draw: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = head.draw

    @property
    def deterministic(self) -> bool:
        return isinstance(self.head, DeterministicHead)

    def actor_parameters(self) -> list[nn.Parameter]:
        """The actor's network, and its state-independent standard deviation if it has one."""
        return [*self.actor.parameters(), *self.head.parameters()]

    def forward(self, part: str, *inputs: Tensor) -> Any:
        """One of the methods below by name, so that `functional_call` can bind other parameters to it."""
        return getattr(self, part)(*inputs)

    def once_differentiable(self) -> ActorQ:
        """The same networks by faster functions for a gradient step. A test compares the two."""
        fast = copy(self)
        fast._run = self._fused
        head = self.head
        if isinstance(head, SquashedGaussianHead) and head.bounds is not None and head.box.reach.is_cpu:
            settings = head.initial_log_std, *head.bounds
            fast._draw = lambda outputs, noise: SquashedSample.apply(outputs, noise, *settings)
        return fast

    def act(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (B, A) from standard normal noise (B, A), and their log-probs (B,), with the actor's gradient.

        The log-probs are densities in the unit box [-1, 1]^A, whatever the units of the actions. A deterministic actor
        has none, and ignores the noise.
        """
        outputs = self._run([self.actor], observations, False)[0]
        unit, log_probs = self._draw(outputs, noise)
        return self.head.box.scaled(unit), log_probs

    @torch.no_grad()
    def target_act(self, observations: Tensor, noise: Tensor) -> Tensor:
        """The deterministic target actor's actions (B, A), plus noise in units of the unit box, clipped to it."""
        assert self.target_actor is not None
        unit = torch.tanh(self._run([self.target_actor], observations, False)[0])
        return self.head.box.scaled((unit + noise).clamp(-1, 1))

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_k(s, a), (K, B), with the critics' gradient."""
        return self._judge(self.critics, observations, actions)

    def fixed_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_k(s, a), (K, B), with the actions' gradient only: the critics are constants."""
        return self._judge(self.critics, observations, actions, constant=True)

    @torch.no_grad()
    def target_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The target copies' Q_k(s, a), (K, B), without a gradient."""
        return self._judge(self.target_critics, observations, actions)

    def sampler(self) -> Sampler:
        """The actor with its present weights, for stepping an environment."""
        return Sampler(self._arrays(), self.head)

    def _judge(
        self, critics: nn.ModuleList, observations: Tensor, actions: Tensor, *, constant: bool = False
    ) -> Tensor:
        both = torch.cat([observations, self.head.box.unit(actions)], 1)
        return torch.stack([values.squeeze(-1) for values in self._run(list(critics), both, constant)])


def one_by_one(networks: Sequence[nn.Module], x: Tensor, constant: bool) -> list[Tensor]:
    """Ordinary passes, differentiable any number of times."""
    if not constant:
        return [network(x) for network in networks]
    fixed = [{name: p.detach() for name, p in network.named_parameters()} for network in networks]
    return [functional_call(network, own, (x,)) for network, own in zip(networks, fixed, strict=True)]


class SquashedSample(torch.autograd.Function):
    """A squashed Gaussian head's `draw`, with the network's standard deviation, as one node of the graph instead of
    about thirty, and in NumPy, whose operations on such small arrays take a third of torch's time. Differentiable once.

        a = tanh(u), u = m + std z:    da = (1 - a^2) du,    d log pi = 2 a du - d log std,    du = dm + std z d log std
    """

    @staticmethod
    def forward(
        ctx: Any, outputs: Tensor, noise: Tensor, initial_log_std: float, low: float, high: float
    ) -> tuple[Tensor, Tensor]:
        z, array = noise.numpy(), outputs.detach().numpy()
        mean, raw = array[:, : z.shape[1]], array[:, z.shape[1] :]
        shifted = raw + np.float32(initial_log_std)
        log_std = np.minimum(np.maximum(shifted, low), high)
        moved = np.exp(log_std) * z
        u = mean + moved
        unit = np.tanh(u)
        # log(1 - a^2), see functional.distributions.tanh_log_slope, here by |u|, so that no exponential overflows
        size = np.abs(u)
        log_slope = 2 * (math.log(2) - size - np.log(1 + np.exp(-2 * size)))
        log_probs = -(0.5 * z * z + log_std + log_slope).sum(-1) - z.shape[-1] * HALF_LOG_TWO_PI
        ctx.saved = unit, moved, log_std == shifted
        return torch.from_numpy(unit), torch.from_numpy(log_probs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_unit: Tensor, of_log_probs: Tensor) -> tuple[Tensor | None, ...]:
        unit, moved, inside = ctx.saved
        of_density = of_log_probs.numpy()[:, None]
        of_u = of_unit.numpy() * (1 - unit * unit) + 2 * of_density * unit
        of_outputs = np.concatenate([of_u, (of_u * moved - of_density) * inside], -1)
        return torch.from_numpy(of_outputs), None, None, None, None


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
