"""REINFORCE: reward-to-go with a baseline (Williams 1992; the form of Sutton & Barto 2018, section 13.4).

    G_t = sum_{k >= t} gamma^(k-t) r_k
    L   = -E[ sum_t log pi(a_t | s_t) * (G_t - b) ]   (+ c_v E[ (V(s_t) - G_t)^2 ] where b is a learned V)

    baseline none    b = 0
             mean    b = mean of G over the batch: a little biased, since it contains the action's own return
             value   b = V(s_t), learned on the same returns

Episodes are whole and returns are Monte Carlo: a time limit is a finite horizon, and nothing is bootstrapped.
With gamma < 1 the usual omission of gamma^t in front of the sum is made here too: the direction is then not grad J.
Differs from vanilla policy gradient: an action is not credited with earlier rewards.
Differs from A2C: V is a baseline only, never a target.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pgcli.algorithms import _update
from pgcli.algorithms._update import OptimiserSettings, Terms, Updater
from pgcli.collectors.settings import Episodes
from pgcli.functional.masked import masked_mean, weighted_sum, whiten
from pgcli.functional.policy_loss import policy_gradient
from pgcli.functional.returns import discounted_returns
from pgcli.functional.value_loss import explained_variance, value_mse
from pgcli.types import Batch, Metrics, Needs, PolicyFunction, Rollout, State, Stochastic


class Reinforce:
    class Config(OptimiserSettings, Episodes):
        name: Literal["reinforce"]
        gamma: float = Field(ge=0, le=1, description="discount per step")
        baseline: Literal["none", "mean", "value"] = Field(description="what is subtracted from the return")
        normalise_advantages: bool = Field(description="scale a batch's advantages to mean 0 and deviation 1")
        aggregation: Literal["sequence_sum", "sequence_mean", "token_mean"] = Field(
            description="sequence_sum is the gradient of the expected return; the means divide by lengths"
        )
        value_coefficient: float = Field(ge=0, description="weight of the value loss; with baseline=value")
        entropy_coefficient: float = Field(ge=0, description="weight of the entropy bonus, per action")

    METRICS: ClassVar = _update.METRICS | {
        "loss/policy": "-sum of log-prob times advantage; its value means little, its gradient all",
        "loss/value": "mean squared error of V against the returns; with baseline=value",
        "policy/entropy": "entropy of the policy, mean per action, in nats",
        "value/explained_variance": "1 - Var(return - V) / Var(return), before the update; with baseline=value",
    }
    collects = ("episodes",)
    actions = ("discrete", "continuous")

    @staticmethod
    def needs(config: Config) -> Needs:
        return Stochastic(critic=config.baseline == "value")

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.config = config
        self.updater = Updater(policy, config, total_steps=total_steps, seed=seed)

    def prepare(self, rollout: Rollout) -> Batch:
        returns = discounted_returns(rollout.rewards, rollout.done, gamma=self.config.gamma)
        match self.config.baseline:
            case "none":
                advantages = returns
            case "mean":
                advantages = returns - masked_mean(returns, rollout.mask)
            case "value":
                advantages = returns - rollout.values
        if self.config.normalise_advantages:
            advantages = whiten(advantages, rollout.mask)
        return rollout.batch(advantages, self.config.aggregation, returns)

    def loss(self, policy: PolicyFunction, batch: Batch, noise: None) -> tuple[Tensor, Terms]:
        new = policy(batch.observations, batch.actions)
        policy_loss = weighted_sum(policy_gradient(new.log_probs, batch.advantages), batch.weights)
        entropy = weighted_sum(new.entropy, batch.per_action)
        total = policy_loss - self.config.entropy_coefficient * entropy
        terms = {"loss/policy": policy_loss, "policy/entropy": entropy}
        if self.config.baseline == "value":
            terms["loss/value"] = weighted_sum(value_mse(new.values, batch.returns), batch.per_action)
            total = total + self.config.value_coefficient * terms["loss/value"]
        return total, terms

    def update(self, rollout: Rollout) -> Metrics:
        batch = self.prepare(rollout)
        metrics = self.updater.one_step(self.loss, batch)
        if self.config.baseline == "value":
            with torch.no_grad():
                fit = explained_variance(batch.values, batch.returns, batch.mask)
            metrics["value/explained_variance"] = float(fit)
        return metrics

    def state_dict(self) -> State:
        return self.updater.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)
