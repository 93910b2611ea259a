"""Adam on one flat buffer, and the schedule of its step size, for every method that takes gradient steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pgcli.functional.schedules import constant, linear, robbins_monro
from pgcli.settings import Settings
from pgcli.types import State


class AdamSettings(Settings):
    """Everything but the learning rate, because some methods have several."""

    schedule: Literal["constant", "linear", "robbins_monro"] = Field(
        description="factor on every learning rate: constant 1; linear falls to 0 at total_steps; robbins_monro is c / "
        "(k + offset) in update k"
    )
    schedule_c: float = Field(gt=0, description="c of schedule=robbins_monro; c = 1 with offset 0 gives 1/k")
    schedule_offset: float = Field(ge=0, description="offset of schedule=robbins_monro")
    adam_epsilon: float = Field(gt=0, lt=1, description="constant added to Adam's denominator")
    max_grad_norm: float | None = Field(gt=0, description="norm to which larger gradients are scaled down; null: never")

    @property
    def depends_on_total(self) -> bool:
        """Whether more total_steps would have changed the updates already made."""
        return self.schedule == "linear"

    def factor(self, *, update: int, steps: int, total_steps: int) -> float:
        """The factor on every learning rate, in update number `update` (from 1), after `steps` actions."""
        match self.schedule:
            case "constant":
                return constant(1.0)
            case "linear":
                return linear(1.0, progress=steps / total_steps)
            case "robbins_monro":
                return robbins_monro(update, c=self.schedule_c, offset=self.schedule_offset)


def flatten(parameters: Iterable[Tensor]) -> Tensor:
    """Make the parameters views of one flat buffer and return it, so that one operation moves all of them."""
    parameters = list(parameters)
    flat = torch.cat([p.detach().flatten() for p in parameters])
    for p, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.data = piece.view_as(p)
    return flat


class Adam:
    """Adam over some parameters. Kingma & Ba 2015, algorithm 1.

    The parameters become views of one flat buffer, and their gradients views of another: clipping, the check for NaN
    and the step are then one operation each instead of one per parameter.
    """

    def __init__(self, parameters: Iterable[Tensor], settings: AdamSettings) -> None:
        parameters = list(parameters)
        self.settings = settings
        self.flat = flatten(parameters)
        self.gradient = torch.zeros_like(self.flat)
        for p, piece in zip(parameters, self.gradient.split([p.numel() for p in parameters]), strict=True):
            p.grad = piece.view_as(p)
        self.first, self.second = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.count = torch.zeros((), device=self.flat.device)

    def norm(self) -> Tensor:
        """Norm of the gradient, before it is clipped."""
        return torch.linalg.vector_norm(self.gradient)

    def clip(self, norm: Tensor | float) -> None:
        """Scale the gradient down to `max_grad_norm`; `norm` is its present norm."""
        limit = self.settings.max_grad_norm
        if limit is not None and norm > limit:
            self.gradient.mul_(limit / (float(norm) + 1e-6))

    def step(self, learning_rate: float, norm: Tensor | float, *, weight_decay: float = 0.0) -> None:
        """One step along the clipped gradient; `norm` is its norm before clipping.

        weight_decay: decoupled from the gradient (Loshchilov & Hutter 2019, algorithm 2).
        """
        self.clip(norm)
        if weight_decay:
            self.flat.mul_(1 - learning_rate * weight_decay)
        # What torch.optim.Adam(fused=True) calls, without the wrapping, which takes longer than the step itself.
        self.count += 1
        torch._fused_adam_(
            [self.flat], [self.gradient], [self.first], [self.second], [], [self.count], amsgrad=False, maximize=False,
            beta1=0.9, beta2=0.999, lr=learning_rate, weight_decay=0.0, eps=self.settings.adam_epsilon,
        )  # fmt: skip

    def state_dict(self) -> State:
        """Without the parameters, because the policy saves them."""
        return {"first": self.first, "second": self.second, "count": self.count}

    def load_state_dict(self, state: State) -> None:
        self.first.copy_(state["first"])
        self.second.copy_(state["second"])
        self.count.copy_(state["count"])
