"""Epsilon-greedy exploration, and how epsilon falls."""

from __future__ import annotations

from pydantic import Field

from pgcli.functional.schedules import between
from pgcli.settings import Settings

METRICS = {"exploration/epsilon": "probability that an action is drawn uniformly from all actions"}


class Exploration(Settings):
    epsilon_start: float = Field(ge=0, le=1, description="probability of a random action at the start")
    epsilon_end: float = Field(ge=0, le=1, description="probability of a random action after epsilon_steps")
    epsilon_steps: int = Field(
        ge=1, description="actions over which epsilon goes linearly from epsilon_start to epsilon_end"
    )

    def epsilon(self, steps: int) -> float:
        """Epsilon after `steps` actions. It does not depend on total_steps, so that a run can be extended."""
        return between(self.epsilon_start, self.epsilon_end, progress=steps / self.epsilon_steps)
