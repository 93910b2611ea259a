"""From a loss to new parameters: epochs of minibatches, averages over all gradient steps, errors for NaN and infinity.

An algorithm provides `loss(policy, batch, noise) -> (total, terms)`, which knows nothing of optimisers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pgcli import processes
from pgcli.algorithms._adam import Adam, AdamSettings
from pgcli.algorithms._finite import finite
from pgcli.types import Batch, Distribution, Evaluation, Metrics, PolicyFunction, Rollout, State, each_tensor

Terms: TypeAlias = dict[str, Tensor]
"""What a loss reports besides its total: 0-d tensors by metric key, each a sum over the rows of its batch.

The optional key `LOG_RATIOS` holds log pi - log pi_old of each action, for `Updater.epochs(watch=...)`.
"""
LOG_RATIOS = "log_ratios"
Loss: TypeAlias = Callable[[Any, Any, None], tuple[Tensor, Terms]]
"""(policy function, `Batch` or `Transitions`, noise) -> (total, terms)."""
Watch: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor]], Metrics]

METRICS = {
    "loss/total": "the loss that was minimised, averaged over the update's gradient steps",
    "optimiser/learning_rate": "Adam's step size in this update",
    "optimiser/grad_norm": "norm of the gradient before clipping, averaged over the update's gradient steps",
    "optimiser/gradient_steps": "gradient steps taken in this update",
}


class OptimiserSettings(AdamSettings):
    """Settings of every algorithm that trains its whole policy with one loss."""

    learning_rate: float = Field(gt=0, le=10, description="Adam's step size at the start")

    @property
    def rows_per_pass(self) -> int | None:
        return None

    @property
    def decay(self) -> float:
        return 0.0


class LargeNetwork(OptimiserSettings):
    """What the training of a large network asks for besides. The loss must be a sum over rows, for its microbatches."""

    warmup_updates: int = Field(ge=0, description="updates over which the learning rate rises linearly to its schedule")
    weight_decay: float = Field(
        ge=0, le=1, description="share of every parameter, times the learning rate, that each gradient step takes off"
    )
    microbatch: int | None = Field(
        ge=1,
        description="rows per backward pass (completions, pairs of them, or single actions for a policy without "
        "memory): several passes add up to the same gradient and take less memory; null: all rows in one pass",
    )

    @property
    def rows_per_pass(self) -> int | None:
        return self.microbatch

    @property
    def decay(self) -> float:
        return self.weight_decay

    def factor(self, *, update: int, steps: int, total_steps: int) -> float:
        rising = min(1.0, update / self.warmup_updates) if self.warmup_updates else 1.0
        return rising * super().factor(update=update, steps=steps, total_steps=total_steps)


class Updater:
    """Owns the optimiser of one policy."""

    def __init__(
        self,
        policy: Any,
        settings: OptimiserSettings,
        *,
        total_steps: int,
        seed: int,
        whole_rows: bool = False,
    ) -> None:
        """`whole_rows`: the loss reads (N, T) whole rows, even of a policy without memory."""
        self.policy, self.settings, self.total_steps = policy, settings, total_steps
        self.microbatch, self.whole_rows = settings.rows_per_pass, whole_rows
        self.adam = Adam(policy.parameters(), settings)
        self.flat = self.adam.flat
        self.generator = torch.Generator().manual_seed(seed)
        self.updates = 0
        self.steps = 0  # actions seen before this update

    def one_step(self, loss: Loss, batch: Batch, *, steps: int, watch: Watch | None = None) -> Metrics:
        """A single gradient step on the whole batch; `steps` and `watch` as of `epochs`."""
        return self.epochs(loss, batch, epochs=1, minibatches=1, steps=steps, watch=watch)

    def epochs(
        self,
        loss: Loss,
        batch: Batch,
        *,
        epochs: int,
        minibatches: int,
        steps: int,
        target_kl: float | None = None,
        watch: Watch | None = None,
    ) -> Metrics:
        """`epochs` passes over the batch in `minibatches` random pieces; ends after a step whose KL exceeds the target.

        Args:
            steps: actions that were taken for this batch, also those that are not in it.
            watch: makes metrics of the log-ratios that the loss reports and of the weights of their actions; each list
                has one tensor per gradient step.

        Returns the mean of each term over all gradient steps (not the last one's), and the metrics of `watch`.
        Raises RunError, before the parameters change, if a loss or a gradient is not finite.
        """
        learning_rate = self._learning_rate()
        self.steps += steps
        self.updates += 1
        batch, evaluate = self._as_the_loss_reads(batch)
        pieces = self._pieces(batch, epochs, minibatches)
        return self._descend(loss, pieces, learning_rate, target_kl, evaluate, watch)

    def draws(self, loss: Loss, batches: Iterable[Any], *, steps: int) -> Metrics:
        """One gradient step on each batch, in order; `steps`: actions taken since the last update."""
        learning_rate = self._learning_rate()
        self.steps += steps
        self.updates += 1
        return self._descend(loss, batches, learning_rate, None, self.policy.once_differentiable())

    def _descend(
        self,
        loss: Loss,
        pieces: Iterable[Any],
        learning_rate: float,
        target_kl: float | None,
        evaluate: PolicyFunction,
        watch: Watch | None = None,
    ) -> Metrics:
        evaluate = processes.shared(evaluate)
        steps: list[list[float]] = []
        names: list[str] = []
        moved: tuple[list[Tensor], list[Tensor]] = ([], [])
        for piece in pieces:
            self.adam.gradient.zero_()
            if self.microbatch is None or len(piece) <= self.microbatch:
                total, terms = loss(evaluate, piece, None)
                total.backward()
            else:
                total, terms = _add_up(loss, evaluate, piece, self.microbatch)
            log_ratios = terms.pop(LOG_RATIOS, None)
            if log_ratios is not None:
                moved[0].append(log_ratios)
                moved[1].append(piece.per_action)
            processes.add_up(self.adam.gradient)
            norm = self.adam.norm()
            names = ["loss/total", "optimiser/grad_norm", *terms]
            values: list[float] = torch.stack([total, norm, *terms.values()]).tolist()
            finite(dict(zip(names, values, strict=True)), self.updates)
            self.adam.step(learning_rate, values[1], weight_decay=self.settings.decay)
            steps.append(values)
            if target_kl is not None and terms["policy/approx_kl"] > target_kl:
                break
        means = [sum(values) / len(steps) for values in zip(*steps, strict=True)]
        metrics = dict(zip(names, means, strict=True))
        if watch is not None:
            metrics |= watch(*moved)
        return metrics | {"optimiser/learning_rate": learning_rate, "optimiser/gradient_steps": float(len(steps))}

    def _as_the_loss_reads(self, batch: Batch) -> tuple[Batch, PolicyFunction]:
        evaluate = self.policy.once_differentiable()
        if self.whole_rows:
            return batch, by_rows(self.policy, evaluate)
        return by_unit(self.policy, batch), evaluate

    def policy_gradient(self, loss: Loss, batch: Batch) -> Tensor:
        """The gradient of the loss's policy term alone, (P,). The parameters do not change."""
        batch, evaluate = self._as_the_loss_reads(batch)
        self.adam.gradient.zero_()
        loss(evaluate, batch, None)[1]["loss/policy"].backward()
        return self.adam.gradient.clone()

    def differentiate(self, loss: Loss, batch: Batch) -> tuple[Tensor, Metrics]:
        """The gradient on the whole batch, (P,), and the loss's terms. The parameters do not change."""
        batch = by_unit(self.policy, batch)
        total, terms = loss(processes.shared(self.policy.once_differentiable()), batch, None)
        self.adam.gradient.zero_()
        total.backward()
        processes.add_up(self.adam.gradient)
        names = ["loss/total", *terms]
        values = torch.stack([total, *terms.values()])
        return self.adam.gradient.clone(), dict(zip(names, values.tolist(), strict=True))

    def apply(self, gradient: Tensor, terms: Metrics, *, steps: int, adaptive: bool = True) -> Metrics:
        """One step along a gradient that was computed elsewhere, of a loss on `steps` actions.

        `adaptive`: Adam's step; otherwise learning rate times gradient.
        Raises RunError, before the parameters change, if the gradient or a term is not finite.
        """
        learning_rate = self._learning_rate()
        self.steps += steps
        self.updates += 1
        self.adam.gradient.copy_(gradient)
        norm = self.adam.norm()
        metrics = finite({"optimiser/grad_norm": float(norm), **terms}, self.updates)
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


def _add_up(loss: Loss, evaluate: PolicyFunction, piece: Any, size: int) -> tuple[Tensor, Terms]:
    """One backward pass per `size` rows, with their weights in the whole batch, so that the gradients add up."""
    totals, reports = [], []
    for first in range(0, len(piece), size):
        total, terms = loss(evaluate, piece[first : first + size], None)
        total.backward()
        totals.append(total.detach())
        reports.append({key: value.detach() for key, value in terms.items()})
    joined = {key: [terms[key] for terms in reports] for key in reports[0]}
    return torch.stack(totals).sum(), {
        key: torch.cat(values) if key == LOG_RATIOS else torch.stack(values).sum() for key, values in joined.items()
    }


def by_rows(policy: Any, evaluate: PolicyFunction) -> PolicyFunction:
    """Evaluates whole rows (N, T), padding included, also with a policy that takes single actions only."""
    if policy.unit == "sequence":
        return evaluate

    def of_rows(observations: Any, actions: Tensor) -> Evaluation:
        found = evaluate(each_tensor(observations, lambda x: x.flatten(0, 1)), actions.flatten(0, 1))
        return each_tensor(found, lambda x: x.unflatten(0, actions.shape[:2]))

    return of_rows


def by_unit(policy: Any, batch: Batch) -> Batch:
    """The batch as this policy's loss reads it: whole sequences, or single actions for a policy without memory."""
    return batch.single_actions() if policy.unit == "action" else batch


@torch.no_grad()
def present_distribution(policy: Any, data: Rollout | Batch) -> Distribution:
    """The present policy's distribution of actions in each state: a tree of (N, T, ...)."""
    # Cloned, because a standard deviation that no state changes is a view of the parameter and would move with it.
    return each_tensor(by_rows(policy, policy)(data.observations, data.actions).distribution, torch.clone)


def twice_differentiable() -> AbstractContextManager[None]:
    """A context in which attention is computed by its formula: the fused kernels can be differentiated only once."""
    return sdpa_kernel(SDPBackend.MATH)


@contextmanager
def held_still(parameters: Sequence[Tensor]) -> Iterator[None]:
    """A context in which no gradient reaches these. (Adam leaves what never had a gradient unchanged, bit for bit.)"""
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
