"""What off-policy actor-critics share: their settings, and averages over the gradient steps of an update.

The algorithm decides which loss is minimised and whether actor or critics move; nothing here knows either.
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
    "loss/actor": "loss of the actor: minus the value of its own actions (with SAC, less their entropy bonus)",
    "value/q": "Q(s, a) of the transitions drawn from the replay memory, mean over critics and transitions",
    "value/target": "mean of the critics' targets",
    "optimiser/actor_grad_norm": "norm of the actor's gradient before clipping, averaged over its gradient steps",
    "optimiser/critic_grad_norm": "norm of the critics' gradient before clipping, averaged over the gradient steps",
    "optimiser/rate": "the schedule's factor on every learning rate in this update",
    "optimiser/gradient_steps": "gradient steps of the critics in this update",
    "replay/size": "transitions in the replay memory",
}


class OffPolicySettings(AdamSettings):
    """Settings of every off-policy actor-critic."""

    gamma: float = Field(ge=0, le=1, description="discount per step")
    tau: float = Field(
        gt=0,
        le=1,
        description="how far the target networks move towards the online ones at each of their steps; 1: all the way",
    )
    reward_scale: float = Field(gt=0, description="factor on the rewards before anything is learned from them")
    actor_learning_rate: float = Field(gt=0, le=10, description="Adam's step size for the actor at the start")
    critic_learning_rate: float = Field(gt=0, le=10, description="Adam's step size for the critics at the start")


class Averages:
    """Mean of each term over those gradient steps of an update that reported it."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}

    @torch.no_grad()
    def add(self, terms: Terms, update: int) -> None:
        """Add one gradient step's terms. Raises RunError, before a parameter has changed, if one is not finite."""
        found = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))
        for name, value in finite(found, update).items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = total + value, count + 1

    def metrics(self) -> Metrics:
        return {name: total / count for name, (total, count) in self.sums.items()}
