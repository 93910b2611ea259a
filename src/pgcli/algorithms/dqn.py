"""Deep Q-networks (Mnih et al. 2015, algorithm 1).

    y = r + gamma max_a Q_target(s', a)                         y = r if s' is terminal
    y = r + gamma Q_target(s', argmax_a Q(s', a))               `double` (van Hasselt et al. 2016, eq. 4)
    L = E[ huber(y - Q(s, a)) ]                                 over minibatches from a replay memory

The target network is the online one of some gradient steps ago, or its moving average (target_tau < 1). The policy acts
epsilon-greedily, with the epsilon of an update's first step.
Differs from Q-learning: a network instead of a table, hence a replay memory, which breaks the correlation of one step
with the next, and a target network, which stays the same for a while.
Differs from DDPG: the best action is found by comparing all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pgcli.algorithms import _exploration, _update
from pgcli.algorithms._exploration import Exploration
from pgcli.algorithms._target import Target
from pgcli.algorithms._update import OptimiserSettings, Terms, Updater
from pgcli.collectors.settings import Replay as ReplaySettings
from pgcli.functional.temporal_difference import bellman_target, huber, select, squared
from pgcli.types import ActionValues, Metrics, Needs, Replay, State, Transitions

AT_ONCE = 1024
"""Most transitions that are drawn at once: more would only take more memory."""


class DQN:
    class Config(OptimiserSettings, Exploration, ReplaySettings):
        name: Literal["dqn"]
        gamma: float = Field(ge=0, le=1, description="discount per step")
        double: bool = Field(
            description="double Q-learning: the online network chooses the next action, the target network values it"
        )
        loss: Literal["huber", "squared"] = Field(
            description="loss of the temporal-difference error; huber clips its gradient at 1"
        )
        target_period: int = Field(ge=1, description="gradient steps between two updates of the target network")
        target_tau: float = Field(
            gt=0, le=1, description="how far an update moves the target network towards the online one; 1: all the way"
        )

    METRICS: ClassVar = _update.METRICS | _exploration.METRICS | {
        "value/td_error": "mean absolute temporal-difference error of the minibatches",
        "value/mean": "mean of Q(s, a) over the minibatches",
        "replay/size": "transitions in the replay memory",
    }  # fmt: skip
    collects = ("replay",)
    actions = ("discrete",)

    @staticmethod
    def needs(config: Config) -> Needs:
        return ActionValues()

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.policy, self.config = policy, config
        self.updater = Updater(policy, config, total_steps=total_steps, seed=seed)
        self.target = Target(policy, self.updater.flat)
        self.gradient_steps = 0

    @property
    def epsilon(self) -> float:
        return self.config.epsilon(self.updater.steps)

    def behaviour(self) -> Any:
        return self.policy.exploring(self.epsilon)

    def prepare(self, batch: Transitions) -> Transitions:
        """The transitions with the target network's values of their next states."""
        return replace(batch, next_values=self.target(batch.next_observations))

    def loss(self, policy: Any, batch: Transitions, noise: None) -> tuple[Tensor, Terms]:
        values = select(policy(batch.observations), batch.actions)
        with torch.no_grad():
            following = self._following(policy, batch)
            targets = bellman_target(batch.rewards, following, batch.terminated, gamma=self.config.gamma)
        errors = values - targets
        total = batch.mean(huber(errors) if self.config.loss == "huber" else squared(errors))
        return total, {"value/td_error": errors.detach().abs().mean(), "value/mean": values.detach().mean()}

    def _following(self, policy: Any, batch: Transitions) -> Tensor:
        """Value of the next state, (B,)."""
        values = batch.next_values
        return select(values, policy(batch.next_observations).argmax(-1)) if self.config.double else values.amax(-1)

    def update(self, replay: Replay) -> Metrics:
        epsilon = self.epsilon
        metrics = self.updater.draws(self.loss, self._draws(replay), steps=replay.steps)
        return metrics | {"exploration/epsilon": epsilon, "replay/size": float(replay.size)}

    def _draws(self, replay: Replay) -> Iterator[Transitions]:
        """Minibatches. Those between two updates of the target network are drawn together: one evaluation of all their
        next states takes half the time.
        """
        c, left = self.config, self.config.gradient_steps
        while left:
            until_it_moves = c.target_period - self.gradient_steps % c.target_period
            count = min(left, until_it_moves, max(1, AT_ONCE // c.batch_size))
            for minibatch in self.prepare(replay.draw(count * c.batch_size)).split(c.batch_size):
                yield minibatch  # what follows runs after the gradient step on it
                self.gradient_steps += 1
            if count == until_it_moves:
                self.target.follow(self.updater.flat, tau=c.target_tau)
            left -= count

    def state_dict(self) -> State:
        return {
            "updater": self.updater.state_dict(),
            "target": self.target.flat,
            "gradient_steps": self.gradient_steps,
        }

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state["updater"])
        self.target.flat.copy_(state["target"])
        self.gradient_steps = state["gradient_steps"]
