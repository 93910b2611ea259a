"""What tabular temporal-difference methods share: a step towards each transition's target, without an optimiser.

An algorithm provides `loss(policy, transitions, noise) -> (total, terms)`, whose gradient with respect to an entry of
the table is minus the weighted sum of its temporal-difference errors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field

from pgcli.algorithms import _exploration
from pgcli.algorithms._exploration import Exploration
from pgcli.algorithms._update import Loss
from pgcli.collectors.settings import Fresh
from pgcli.errors import RunError
from pgcli.functional.temporal_difference import visit_step_sizes
from pgcli.types import Metrics, State, Steps

METRICS = _exploration.METRICS | {
    "value/td_error": "mean absolute temporal-difference error",
    "value/mean": "mean of Q(s, a) over the transitions, before the update",
    "optimiser/step_size": "mean step size alpha of the transitions",
    "table/visited": "share of the pairs of state and action that were tried at least once",
}


class TableSettings(Exploration, Fresh):
    """Settings of every tabular method."""

    gamma: float = Field(ge=0, le=1, description="discount per step")
    learning_rate: float = Field(gt=0, le=1, description="step size alpha at the first visit of a state and action")
    schedule: Literal["constant", "robbins_monro"] = Field(
        description="how alpha changes: constant, or robbins_monro: learning_rate * c / (k + offset) at the k-th visit "
        "of a state and action"
    )
    schedule_c: float = Field(gt=0, description="c of schedule=robbins_monro; c = 1 with offset 0 gives 1/k")
    schedule_offset: float = Field(ge=0, description="offset of schedule=robbins_monro")


class TableUpdater:
    """Q(s, a) <- Q(s, a) + alpha (target - Q(s, a)), and the count of visits that alpha may depend on.

    Where several environments try the same state and action at once, the sum of their alphas is limited to 1: Q moves
    at most to the mean of their targets, never beyond.
    """

    def __init__(self, policy: Any, settings: TableSettings) -> None:
        self.policy, self.settings = policy, settings
        [self.table] = policy.parameters()
        self.visits = torch.zeros_like(self.table, requires_grad=False)
        self.steps = 0  # actions seen

    @property
    def epsilon(self) -> float:
        return self.settings.epsilon(self.steps)

    def step(self, loss: Loss, fresh: Steps) -> Metrics:
        """Learn from one transition of each environment."""
        transitions, epsilon = fresh.transitions, self.epsilon
        where = (transitions.observations.argmax(-1), transitions.actions)
        now = torch.zeros_like(self.visits).index_put_(where, torch.ones_like(transitions.rewards), accumulate=True)
        self.visits += now
        step_sizes = torch.minimum(self._step_sizes(self.visits[where]), 1 / now[where])
        total, terms = loss(self.policy, replace(transitions, weights=step_sizes), None)
        if not bool(torch.isfinite(total)):
            raise RunError(f"step {self.steps}: a temporal-difference error is not finite; stopped before the update")
        [gradient] = torch.autograd.grad(total, self.table)
        with torch.no_grad():
            self.table -= gradient
        self.steps += len(transitions)
        return {name: float(term) for name, term in terms.items()} | {
            "optimiser/step_size": float(step_sizes.mean()),
            "table/visited": float((self.visits > 0).float().mean()),
            "exploration/epsilon": epsilon,
        }

    def _step_sizes(self, visits: torch.Tensor) -> torch.Tensor:
        s = self.settings
        match s.schedule:
            case "constant":
                return torch.full_like(visits, s.learning_rate)
            case "robbins_monro":
                return s.learning_rate * visit_step_sizes(visits, c=s.schedule_c, offset=s.schedule_offset)

    def state_dict(self) -> State:
        return {"visits": self.visits, "steps": self.steps}

    def load_state_dict(self, state: State) -> None:
        self.visits.copy_(state["visits"])
        self.steps = state["steps"]
