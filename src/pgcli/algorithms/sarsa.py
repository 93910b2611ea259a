"""SARSA, tabular (Rummery & Niranjan 1994; Sutton & Barto 2018, section 6.4).

    delta   = r + gamma Q(s', a') - Q(s, a)          a': the action that is taken next
    Q(s, a) <- Q(s, a) + alpha delta

`expected`: sum_a pi(a | s') Q(s', a) in place of Q(s', a'), the same on average without the noise of a' (van Seijen et
al. 2009). It acts epsilon-greedily and learns the values of acting so: on-policy. Unless epsilon falls to 0, its fixed
point is therefore the best among the policies that explore.
Differs from Q-learning: what is learned includes the cost of exploring. Beside a cliff it keeps away from the edge.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pgcli.algorithms import _table
from pgcli.algorithms._table import TableSettings, TableUpdater
from pgcli.algorithms._update import Terms
from pgcli.functional.temporal_difference import bellman_target, epsilon_greedy, select, squared
from pgcli.types import ActionTable, Metrics, Needs, State, Steps, Transitions


class Sarsa:
    class Config(TableSettings):
        name: Literal["sarsa"]
        expected: bool = Field(
            description="expected SARSA: the target takes the mean over next actions instead of the one that is taken"
        )
        looks_ahead: ClassVar[bool] = True

    METRICS: ClassVar = _table.METRICS
    collects = ("transitions",)
    actions = ("discrete",)

    @staticmethod
    def needs(config: Config) -> Needs:
        return ActionTable()

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.policy, self.config = policy, config
        self.updater = TableUpdater(policy, config)

    @staticmethod
    def expected_values(config: Config, values: Tensor) -> Tensor:
        """(S,): the value of each state under the exploring policy, once epsilon has fallen; for `pgcli verify`."""
        return (epsilon_greedy(values, config.epsilon_end) * values).sum(-1)

    def behaviour(self) -> Any:
        return self.policy.exploring(self.updater.epsilon)

    def loss(self, policy: Any, batch: Transitions, noise: None) -> tuple[Tensor, Terms]:
        """Half the squared error, weighted by alpha; no gradient flows into the target."""
        values = select(policy(batch.observations), batch.actions)
        with torch.no_grad():
            following = self._following(policy(batch.next_observations), batch.next_actions)
            targets = bellman_target(batch.rewards, following, batch.terminated, gamma=self.config.gamma)
        errors = values - targets
        return batch.mean(squared(errors)), {
            "value/td_error": errors.detach().abs().mean(),
            "value/mean": values.detach().mean(),
        }

    def _following(self, next_values: Tensor, next_actions: Tensor) -> Tensor:
        """Value of the next state under the exploring policy, (B,)."""
        if self.config.expected:
            return (epsilon_greedy(next_values, self.updater.epsilon) * next_values).sum(-1)
        return select(next_values, next_actions)

    def update(self, fresh: Steps) -> Metrics:
        return self.updater.step(self.loss, fresh)

    def state_dict(self) -> State:
        return self.updater.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)
