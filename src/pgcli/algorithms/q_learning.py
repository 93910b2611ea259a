"""Q-learning, tabular (Watkins 1989; Sutton & Barto 2018, section 6.5).

    delta   = r + gamma max_a Q(s', a) - Q(s, a)
    Q(s, a) <- Q(s, a) + alpha delta

It acts epsilon-greedily and learns the values of the greedy policy: off-policy. With schedule=robbins_monro, whose
alpha falls with the visits of each state and action, Q converges to Q* under any behaviour that keeps trying every
action in every state (Watkins & Dayan 1992).
Differs from SARSA: the target is the best next action, not the one that will be taken.
Differs from DQN: a table, no replay memory, no target network.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pgcli.algorithms import _table
from pgcli.algorithms._table import TableSettings, TableUpdater
from pgcli.algorithms._update import Terms
from pgcli.functional.temporal_difference import bellman_target, select, squared
from pgcli.types import ActionTable, Metrics, Needs, State, Steps, Transitions


class QLearning:
    class Config(TableSettings):
        name: Literal["q_learning"]
        looks_ahead: ClassVar[bool] = False

    METRICS: ClassVar = _table.METRICS
    collects = ("transitions",)
    actions = ("discrete",)

    @staticmethod
    def needs(config: Config) -> Needs:
        return ActionTable()

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.policy, self.config = policy, config
        self.updater = TableUpdater(policy, config)

    def behaviour(self) -> Any:
        return self.policy.exploring(self.updater.epsilon)

    def loss(self, policy: Any, batch: Transitions, noise: None) -> tuple[Tensor, Terms]:
        """Half the squared error, weighted by alpha; no gradient flows into the target."""
        values = select(policy(batch.observations), batch.actions)
        with torch.no_grad():
            best = policy(batch.next_observations).amax(-1)
            targets = bellman_target(batch.rewards, best, batch.terminated, gamma=self.config.gamma)
        errors = values - targets
        return batch.mean(squared(errors)), {
            "value/td_error": errors.detach().abs().mean(),
            "value/mean": values.detach().mean(),
        }

    def update(self, fresh: Steps) -> Metrics:
        return self.updater.step(self.loss, fresh)

    def state_dict(self) -> State:
        return self.updater.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)
