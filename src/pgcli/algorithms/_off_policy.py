"""What off-policy actor-critics share: Adam on one flat buffer for each network, its settings, honest averages.

An algorithm says which loss is minimised and whose turn it is; nothing here knows either.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.adam import adam

from pgcli.algorithms._update import Terms
from pgcli.errors import RunError
from pgcli.functional.schedules import linear, robbins_monro
from pgcli.settings import Settings
from pgcli.types import Metrics, State

METRICS = {
    "loss/critic": "mean squared error of the critics against their targets, summed over the critics",
    "loss/actor": "what the actor minimised: minus the value of its own actions (with SAC, less their entropy bonus)",
    "value/q": "mean value of the drawn actions, over critics and transitions",
    "value/target": "mean of what the critics should have said",
    "optimiser/actor_grad_norm": "norm of the actor's gradient before clipping, averaged over its gradient steps",
    "optimiser/critic_grad_norm": "norm of the critics' gradient before clipping, averaged over the gradient steps",
    "optimiser/rate": "the schedule's factor on every learning rate in this update",
    "optimiser/gradient_steps": "gradient steps of the critics in this update",
    "replay/size": "transitions in the memory",
}


class OffPolicySettings(Settings):
    """What every off-policy actor-critic can set."""

    gamma: float = Field(ge=0, le=1, description="discount per step")
    tau: float = Field(gt=0, le=1, description="how far the target copies follow at each of their steps; 1: at once")
    reward_scale: float = Field(gt=0, description="rewards are multiplied by it before anything is learned from them")
    actor_learning_rate: float = Field(gt=0, le=10, description="Adam's step size for the actor at the start")
    critic_learning_rate: float = Field(gt=0, le=10, description="Adam's step size for the critics at the start")
    schedule: Literal["constant", "linear", "robbins_monro"] = Field(
        description="of all learning rates; linear falls to 0 at total_steps, robbins_monro is c / (k + offset)"
    )
    schedule_c: float = Field(gt=0, description="c of the robbins_monro schedule; 1 with offset 0 is 1/k")
    schedule_offset: float = Field(ge=0, description="offset of the robbins_monro schedule")
    adam_epsilon: float = Field(gt=0, lt=1, description="added to Adam's denominator")
    max_grad_norm: float | None = Field(gt=0, description="each network's gradient is scaled down to it; null: never")

    @property
    def depends_on_total(self) -> bool:
        """Whether more total_steps would have changed the updates already made."""
        return self.schedule == "linear"

    def rate(self, update: int, steps: int, total_steps: int) -> float:
        """The factor on every learning rate in update number `update` (from 1), after `steps` actions."""
        match self.schedule:
            case "constant":
                return 1.0
            case "linear":
                return linear(1.0, progress=steps / total_steps)
            case "robbins_monro":
                return robbins_monro(update, c=self.schedule_c, offset=self.schedule_offset)


def flatten(parameters: Iterable[Tensor]) -> Tensor:
    """Make them views of one flat buffer, and return it: what moves them is then one operation."""
    parameters = list(parameters)
    flat = torch.cat([p.detach().flatten() for p in parameters])
    for p, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.data = piece.view_as(p)
    return flat


class Trained:
    """Parameters that one Adam moves. Kingma & Ba 2015, algorithm 1."""

    def __init__(self, parameters: Iterable[Tensor], settings: OffPolicySettings) -> None:
        parameters = list(parameters)
        self.settings = settings
        self.flat = flatten(parameters)
        self.gradient = torch.zeros_like(self.flat)
        for p, piece in zip(parameters, self.gradient.split([p.numel() for p in parameters]), strict=True):
            p.grad = piece.view_as(p)
        self.first, self.second = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.count = torch.zeros((), device=self.flat.device)

    def norm(self) -> Tensor:
        return torch.linalg.vector_norm(self.gradient)

    def step(self, learning_rate: float) -> None:
        """One step of Adam along the gradient, clipped if that is asked for."""
        limit = self.settings.max_grad_norm
        if limit is not None:
            self.gradient.mul_(torch.clamp(limit / (self.norm() + 1e-6), max=1.0))
        adam(
            [self.flat], [self.gradient], [self.first], [self.second], [], [self.count], fused=True, amsgrad=False,
            beta1=0.9, beta2=0.999, lr=learning_rate, weight_decay=0.0, eps=self.settings.adam_epsilon, maximize=False,
        )  # fmt: skip

    def state_dict(self) -> State:
        return {"first": self.first, "second": self.second, "count": self.count}

    def load_state_dict(self, state: State) -> None:
        self.first.copy_(state["first"])
        self.second.copy_(state["second"])
        self.count.copy_(state["count"])


class Averages:
    """Means of what the gradient steps of one update report, each over the steps that reported it."""

    def __init__(self) -> None:
        self.totals: dict[tuple[str, ...], tuple[Tensor, int]] = {}

    def add(self, terms: Terms, update: int) -> None:
        """Raises RunError, before a parameter has changed, where one is not finite."""
        names, values = tuple(terms), torch.stack([term.detach() for term in terms.values()])
        if not bool(torch.isfinite(values).all()):
            bad = [f"{k} = {v}" for k, v in zip(names, values.tolist(), strict=True) if v - v != 0]
            raise RunError(
                f"update {update}: {', '.join(bad)}; stopped before the optimiser step. "
                "Smaller learning rates or a max_grad_norm often help"
            )
        total, count = self.totals.get(names, (torch.zeros_like(values), 0))
        self.totals[names] = total + values, count + 1

    def metrics(self) -> Metrics:
        sums: dict[str, list[float]] = {}
        for names, (total, count) in self.totals.items():
            for name, value in zip(names, total.tolist(), strict=True):
                before = sums.setdefault(name, [0.0, 0.0])
                sums[name] = [before[0] + value, before[1] + count]
        return {name: total / count for name, (total, count) in sums.items()}
