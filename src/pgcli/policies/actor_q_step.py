"""An actor and critics that are perceptrons, for a gradient step: faster passes, differentiable once.

Gradients that are not needed are left out: with constant critics (`fixed_values`) those of their weights and of the
observations, with actions from data (`values`) those of the input. At 256 x 256 units that is a quarter of an update's
arithmetic. A test compares every pass with the ordinary one.

Shapes: B transitions, K critics, A components of an action, in units of the environment unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pgcli.functional.distributions import HALF_LOG_TWO_PI
from pgcli.policies.heads import SquashedGaussianHead
from pgcli.policies.perceptron import Perceptron, backed
from pgcli.types import Drawn

if TYPE_CHECKING:
    from pgcli.policies.actor_q import ActorQ


class ActorQStep:
    """The networks of an `ActorQ`: a `types.ActorCritics`."""

    def __init__(self, policy: ActorQ) -> None:
        self.head, self.box = policy.head, policy.head.box
        self.actor: Any = policy.actor
        self.target_actor: Any = policy.target_actor
        self.critics: list[Any] = list(policy.critics)
        self.target_critics: list[Any] = list(policy.target_critics)

    def act(self, observations: Tensor, noise: Tensor) -> Drawn:
        unit, log_probs = self.head.draw(self.actor.for_a_step(observations), noise)
        return self.box.scaled(unit), log_probs

    def act_now_and_next(
        self, observations: Tensor, next_observations: Tensor, noise: Tensor, next_noise: Tensor
    ) -> tuple[Drawn, Drawn]:
        outputs, next_outputs = self.actor.for_a_step_beside(observations, next_observations)
        head = self.head
        if isinstance(head, SquashedGaussianHead) and head.bounds is not None and outputs.is_cpu:
            settings = head.initial_log_std, *head.bounds
            unit, log_probs, next_unit, next_log_probs = SquashedSamples.apply(
                outputs, next_outputs, noise, next_noise, *settings
            )
        else:
            unit, log_probs = head.draw(outputs, noise)
            with torch.no_grad():
                next_unit, next_log_probs = head.draw(next_outputs, next_noise)
        return (self.box.scaled(unit), log_probs), (self.box.scaled(next_unit), next_log_probs)

    @torch.no_grad()
    def target_act(self, observations: Tensor, noise: Tensor) -> Tensor:
        unit = torch.tanh(self.target_actor.for_a_step(observations))
        return self.box.scaled((unit + noise).clamp(-1, 1))

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        with torch.no_grad():
            values, inputs = judged(self.critics, torch.cat([observations, self.box.unit(actions)], 1))

        def learn(gradient: Tensor) -> None:
            for critic, row, own in zip(self.critics, gradient, inputs, strict=True):
                critic.backwards(row[:, None], own, len(row))

        return backed(values, learn)

    def fixed_values(self, observations: Tensor, actions: Tensor, first: int | None = None) -> Tensor:
        return ValuesBeside.apply(self.box.unit(actions), actions[:0], observations, self.critics[:first])[1]

    def values_beside(self, observations: Tensor, actions: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        if not others.requires_grad:  # nothing would lead back to the critics
            return self.values(observations, actions), self.fixed_values(observations, others)
        return ValuesBeside.apply(self.box.unit(others), self.box.unit(actions), observations, self.critics)

    @torch.no_grad()
    def target_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        return judged(self.target_critics, torch.cat([observations, self.box.unit(actions)], 1))[0]


def judged(critics: Iterable[Perceptron], x: Tensor) -> tuple[Tensor, list[Sequence[Tensor]]]:
    """Q_k of observations and actions side by side, (K, B), and for each critic the inputs of its layers. No graph."""
    values, inputs = [], list[Sequence[Tensor]]()
    for critic in critics:
        *hidden, outputs = critic.layer_outputs(x)
        values.append(outputs.squeeze(-1))
        inputs.append([x, *hidden])
    return torch.stack(values), inputs


class ValuesBeside(torch.autograd.Function):
    """Q_k(s, a), (K, B), whose gradient is added to the critics' `grad`, and Q_k(s, a~) in the same states, with the
    gradient of a~ alone. Actions are in the unit box; there may be no a.
    """

    @staticmethod
    def forward(
        ctx: Any, others: Tensor, actions: Tensor, observations: Tensor, critics: Sequence[Perceptron]
    ) -> tuple[Tensor, Tensor]:
        rows = len(actions)
        seen = torch.cat([observations[:rows], observations])
        values, inputs = judged(critics, torch.cat([seen, torch.cat([actions, others])], 1))
        ctx.critics, ctx.inputs, ctx.rows, ctx.components = critics, inputs, rows, others.shape[1]
        return values[:, :rows], values[:, rows:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_values: Tensor, of_fixed: Tensor) -> tuple[Tensor | None, ...]:
        total: Tensor | None = None
        gradients = torch.cat([of_values, of_fixed], 1)
        for critic, row, inputs in zip(ctx.critics, gradients, ctx.inputs, strict=True):
            own = critic.backwards(row[:, None], inputs, ctx.rows, ctx.components)
            total = own if total is None else total.add_(own)
        return total, None, None, None


class SquashedSamples(torch.autograd.Function):
    """A squashed Gaussian head's `draw` in two sets of states, with the network's standard deviation, and the gradient
    of the first alone. One node of the graph instead of about thirty, and in NumPy, whose operations on such small
    arrays take a third of torch's time.

        a = tanh(u), u = m + std z:    da = (1 - a^2) du,    d log pi = 2 a du - d log std,    du = dm + std z d log std
    """

    @staticmethod
    def forward(
        ctx: Any, outputs: Tensor, others: Tensor, noise: Tensor, other_noise: Tensor, initial_log_std: float,
        low: float, high: float,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        rows = len(outputs)
        # A row for each component: they are reduced over, and few.
        mean_and_raw = np.concatenate([outputs.detach().numpy().T, others.numpy().T], 1)
        z = np.concatenate([noise.numpy().T, other_noise.numpy().T], 1)
        mean, raw = mean_and_raw[: len(z)], mean_and_raw[len(z) :]
        shifted = raw + np.float32(initial_log_std)
        log_std = np.minimum(np.maximum(shifted, low), high)
        moved = np.exp(log_std) * z
        u = mean + moved
        unit = np.tanh(u)
        # log(1 - a^2) is 2 (log 2 - this), see functional.distributions.tanh_log_slope; by |u|, so that no exponential
        # overflows.
        size = np.abs(u)
        size += np.log1p(np.exp(-2 * size))
        log_probs = (2 * size - 0.5 * z * z - log_std).sum(0) - len(z) * (HALF_LOG_TWO_PI + 2 * math.log(2))
        ctx.saved = unit[:, :rows], moved[:, :rows], (log_std == shifted)[:, :rows]
        drawn = torch.from_numpy(unit.T), torch.from_numpy(log_probs)
        first, second = (x[:rows] for x in drawn), tuple(x[rows:] for x in drawn)
        ctx.mark_non_differentiable(*second)
        return *first, *second

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_unit: Tensor, of_log_probs: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        unit, moved, inside = ctx.saved
        of_density = of_log_probs.numpy()
        of_u = of_unit.numpy().T * (1 - unit * unit) + 2 * of_density * unit
        of_outputs = np.concatenate([of_u, (of_u * moved - of_density) * inside])
        return torch.from_numpy(of_outputs.T), *[None] * 6
