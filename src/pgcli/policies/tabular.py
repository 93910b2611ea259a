"""A table: one number for each state, or for each state and action, without generalisation between them."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pgcli.policies.action_values import ActionValueNetwork, count_actions
from pgcli.policies.actor_critic import ActorCritic, ArrayNetwork
from pgcli.policies.heads import CategoricalHead
from pgcli.settings import Settings
from pgcli.types import ActionTable, ActionValues, ControlSpec, Needs, Stochastic


class Tabular:
    """A softmax over one logit for each state and action, with V(s) beside it; or a table of Q(s, a)."""

    offers: ClassVar = (ActionTable, ActionValues, Stochastic)
    reads: ClassVar = ("countable states",)

    class Config(Settings):
        name: Literal["tabular"]
        initial_value: float = Field(
            description="initial value of each V(s) or Q(s, a) that is learned; a high one makes Q-learning explore"
        )

    @classmethod
    def make(
        cls, spec: ControlSpec, config: Config, needs: Needs, generator: torch.Generator
    ) -> ActorCritic | ActionValueNetwork:
        del generator  # nothing is random
        states, actions = spec.observation_shape[0], count_actions(spec, config.name)
        match needs:
            case ActionTable() | ActionValues():
                table = Table(states, actions, config.initial_value)
                return ActionValueNetwork(table, actions, table.arrays)
            case Stochastic(critic):
                logits = Table(states, actions, 0.0)  # all actions equally likely
                values = Table(states, 1, config.initial_value) if critic else None
                return ActorCritic(logits, CategoricalHead(actions), values, logits.arrays)
        raise AssertionError(needs)


class Table(nn.Module):
    """One-hot observations (B, states) -> their rows of the table, (B, columns)."""

    def __init__(self, states: int, columns: int, initial: float) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.full((states, columns), initial))

    def forward(self, observations: Tensor) -> Tensor:
        return observations @ self.table

    def arrays(self) -> ArrayNetwork:
        table = self.table.detach().cpu().numpy()
        return lambda observations: table[np.asarray(observations).argmax(-1)]
