"""From a loss to new parameters: epochs of minibatches, honest averages, refusals of what is not finite.

An algorithm hands over its `loss(policy, batch, noise) -> (total, terms)`, which knows nothing of what is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pgcli.algorithms._adam import Adam, AdamSettings
from pgcli.errors import RunError
from pgcli.types import Batch, Distribution, Metrics, Rollout, State, each_tensor

Terms: TypeAlias = dict[str, Tensor]
"""What a loss reports of itself: 0-d tensors, by metric key."""
Loss: TypeAlias = Callable[[Any, Any, None], tuple[Tensor, Terms]]
"""Of a policy function, a `Batch` or `Transitions`, and noise."""

METRICS = {
    "loss/total": "what was minimised, averaged over the update's gradient steps",
    "optimiser/learning_rate": "Adam's step size in this update",
    "optimiser/grad_norm": "norm of the gradient before clipping, averaged over the update's gradient steps",
    "optimiser/gradient_steps": "gradient steps taken in this update",
}


class OptimiserSettings(AdamSettings):
    """What every algorithm that trains all of its policy by one loss can set."""

    learning_rate: float = Field(gt=0, le=10, description="Adam's step size at the start")


class Updater:
    """Owns the optimiser of one policy."""

    def __init__(self, policy: Any, settings: OptimiserSettings, *, total_steps: int, seed: int) -> None:
        self.policy, self.settings, self.total_steps = policy, settings, total_steps
        self.adam = Adam(policy.parameters(), settings)
        self.flat = self.adam.flat
        self.generator = torch.Generator().manual_seed(seed)
        self.updates = 0
        self.steps = 0  # actions seen before this update

    def one_step(self, loss: Loss, batch: Batch) -> Metrics:
        """A single gradient step on the whole batch."""
        return self.epochs(loss, batch, epochs=1, minibatches=1)

    def epochs(
        self, loss: Loss, batch: Batch, *, epochs: int, minibatches: int, target_kl: float | None = None
    ) -> Metrics:
        """`epochs` passes over the batch in `minibatches` random pieces; ends after a step whose KL exceeds the target.

        Returns the mean of each term over all gradient steps, not that of the last one.
        Raises RunError, before the parameters change, where a loss or a gradient is not finite.
        """
        learning_rate = self._learning_rate()
        self.steps += int(batch.mask.sum())
        self.updates += 1
        batch = by_unit(self.policy, batch)
        return self._descend(loss, self._pieces(batch, epochs, minibatches), learning_rate, target_kl)

    def draws(self, loss: Loss, batches: Iterable[Any], *, steps: int) -> Metrics:
        """A gradient step on each of the batches, as they come; `steps`: actions taken since the last update."""
        learning_rate = self._learning_rate()
        self.steps += steps
        self.updates += 1
        return self._descend(loss, batches, learning_rate, None)

    def _descend(self, loss: Loss, pieces: Iterable[Any], learning_rate: float, target_kl: float | None) -> Metrics:
        evaluate = self.policy.once_differentiable()
        steps: list[list[float]] = []
        names: list[str] = []
        for piece in pieces:
            total, terms = loss(evaluate, piece, None)
            self.adam.gradient.zero_()
            total.backward()
            norm = self.adam.norm()
            names = ["loss/total", "optimiser/grad_norm", *terms]
            values = torch.stack([total, norm, *terms.values()]).tolist()
            if not all(map(math.isfinite, values)):
                self._refuse(names, values)
            self.adam.step(learning_rate, norm)
            steps.append(values)
            if target_kl is not None and terms["policy/approx_kl"] > target_kl:
                break
        means = [sum(values) / len(steps) for values in zip(*steps, strict=True)]
        metrics = dict(zip(names, means, strict=True))
        return metrics | {"optimiser/learning_rate": learning_rate, "optimiser/gradient_steps": float(len(steps))}

    def differentiate(self, loss: Loss, batch: Batch) -> tuple[Tensor, Metrics]:
        """The gradient on the whole batch, (P,), and what the loss reports of itself. The parameters stay."""
        batch = by_unit(self.policy, batch)
        total, terms = loss(self.policy.once_differentiable(), batch, None)
        self.adam.gradient.zero_()
        total.backward()
        names = ["loss/total", *terms]
        values = torch.stack([total, *terms.values()])
        return self.adam.gradient.clone(), dict(zip(names, values.tolist(), strict=True))

    def apply(self, gradient: Tensor, terms: Metrics, *, steps: int, adaptive: bool = True) -> Metrics:
        """One step along a gradient that was computed elsewhere, of a loss on `steps` actions.

        `adaptive`: Adam's; otherwise learning rate times gradient.
        Raises RunError, before the parameters change, where it or a term is not finite.
        """
        learning_rate = self._learning_rate()
        self.steps += steps
        self.updates += 1
        self.adam.gradient.copy_(gradient)
        norm = self.adam.norm()
        metrics = {"optimiser/grad_norm": float(norm), **terms}
        if not all(map(math.isfinite, metrics.values())):
            self._refuse(list(metrics), list(metrics.values()))
        if adaptive:
            self.adam.step(learning_rate, norm)
        else:
            self.adam.clip(norm)
            self.flat.sub_(learning_rate * self.adam.gradient)
        return metrics | {"optimiser/learning_rate": learning_rate, "optimiser/gradient_steps": 1.0}

    def _pieces(self, batch: Batch, epochs: int, minibatches: int) -> Any:
        for _ in range(epochs):
            if minibatches == 1:
                yield batch
            else:
                order = torch.randperm(len(batch), generator=self.generator).to(self.flat.device)
                yield from batch.minibatches(min(minibatches, len(batch)), order)

    def _learning_rate(self) -> float:
        return self.settings.learning_rate * self.schedule()

    def schedule(self) -> float:
        """The factor of the next update's step size."""
        return self.settings.factor(update=self.updates + 1, steps=self.steps, total_steps=self.total_steps)

    def _refuse(self, names: list[str], values: list[float]) -> None:
        bad = [f"{name} = {value}" for name, value in zip(names, values, strict=True) if not math.isfinite(value)]
        # The total and the gradient follow from the terms: name the cause if there is one.
        causes = [text for text in bad if not text.startswith(("loss/total", "optimiser/"))] or bad
        raise RunError(
            f"update {self.updates}: {', '.join(causes)}; stopped before the optimiser step. "
            "A smaller algo.learning_rate or a max_grad_norm often helps"
        )

    def state_dict(self) -> State:
        return {
            **self.adam.state_dict(),
            "generator": self.generator.get_state(),
            "updates": self.updates,
            "steps": self.steps,
        }

    def load_state_dict(self, state: State) -> None:
        self.adam.load_state_dict(state)
        self.generator.set_state(state["generator"])
        self.updates, self.steps = state["updates"], state["steps"]


def by_unit(policy: Any, batch: Batch) -> Batch:
    """The batch as this policy's loss reads it: whole sequences, or single actions for a policy without memory."""
    return batch.single_actions() if policy.unit == "action" else batch


@torch.no_grad()
def present_distribution(policy: Any, data: Rollout | Batch) -> Distribution:
    """What the policy, as it is now, would draw from in each state: a tree of (N, T, ...)."""
    # Cloned, because a deviation that no state changes is a view of the parameter, and would move with it.
    if policy.unit == "sequence":
        return each_tensor(policy(data.observations, data.actions).distribution, torch.clone)
    flat = each_tensor(data.observations, lambda x: x.flatten(0, 1))
    found = policy(flat, data.actions.flatten(0, 1)).distribution
    return each_tensor(found, lambda x: x.unflatten(0, data.mask.shape).clone())


def twice_differentiable() -> AbstractContextManager[None]:
    """Attention by its formula meanwhile: the fused kernels can be differentiated once only."""
    return sdpa_kernel(SDPBackend.MATH)


@contextmanager
def held_still(parameters: Sequence[Tensor]) -> Iterator[None]:
    """No gradient reaches these meanwhile. (Adam leaves what never had a gradient as it is, bit for bit.)"""
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def finite(metrics: Metrics, update: int) -> Metrics:
    """The metrics, if they are numbers. Raises RunError, which names those that are not, before a step is taken."""
    bad = [f"{name} = {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise RunError(f"update {update}: {', '.join(bad)}; stopped before the step")
    return metrics
