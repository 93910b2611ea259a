"""What off-policy actor-critics share: their settings, honest averages.

An algorithm says which loss is minimised and whose turn it is; nothing here knows either.
"""

from __future__ import annotations

import torch
from pydantic import Field

from pgcli.algorithms._adam import AdamSettings
from pgcli.algorithms._finite import finite
from pgcli.algorithms._update import Terms
from pgcli.types import Metrics

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


class OffPolicySettings(AdamSettings):
    """What every off-policy actor-critic can set."""

    gamma: float = Field(ge=0, le=1, description="discount per step")
    tau: float = Field(gt=0, le=1, description="how far the target copies follow at each of their steps; 1: at once")
    reward_scale: float = Field(gt=0, description="rewards are multiplied by it before anything is learned from them")
    actor_learning_rate: float = Field(gt=0, le=10, description="Adam's step size for the actor at the start")
    critic_learning_rate: float = Field(gt=0, le=10, description="Adam's step size for the critics at the start")


class Averages:
    """Means of what the gradient steps of one update report, each over the steps that reported it."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}

    @torch.no_grad()
    def add(self, terms: Terms, update: int) -> None:
        """Raises RunError, before a parameter has changed, where one is not finite."""
        found = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))
        for name, value in finite(found, update).items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = total + value, count + 1

    def metrics(self) -> Metrics:
        return {name: total / count for name, (total, count) in self.sums.items()}
