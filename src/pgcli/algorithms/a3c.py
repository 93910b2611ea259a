"""Asynchronous advantage actor-critic (Mnih et al. 2016, algorithm S3).

    each worker, again and again:
        theta' <- theta                                        the shared parameters, as they are at that moment
        play t_max steps by pi(. | s; theta')
        A_t = GAE(delta_t; lambda)                             lambda = 1: n-step returns, as published
        d   = grad of -E[ log pi A ] + c_v E[ (V - R)^2 ] - c_e E[ H ]   at theta'
    theta <- theta - step along d                              by whichever worker comes next

Differs from A2C: no worker waits for the others, so a gradient is that of parameters `asynchronous/staleness` updates
older than those it changes. With one worker it is A2C.
Differs from the paper: an update is applied as a whole, by the main process, and by Adam instead of shared RMSProp.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from pgcli.algorithms import _update
from pgcli.algorithms._update import OptimiserSettings, Terms, Updater
from pgcli.collectors.settings import Workers
from pgcli.functional.advantages import gae
from pgcli.functional.masked import weighted_sum, whiten
from pgcli.functional.policy_loss import policy_gradient
from pgcli.functional.value_loss import explained_variance, value_mse
from pgcli.types import Batch, Gradients, Metrics, Needs, PolicyFunction, Rollout, State, Stochastic


class A3C:
    class Config(OptimiserSettings, Workers):
        name: Literal["a3c"]
        gamma: float = Field(ge=0, le=1, description="discount per step")
        gae_lambda: float = Field(
            ge=0,
            le=1,
            description="lambda of the advantages: 0 gives the one-step TD error, 1 the n-step return minus V",
        )
        normalise_advantages: bool = Field(description="scale a batch's advantages to mean 0 and standard deviation 1")
        value_coefficient: float = Field(ge=0, description="weight of the value loss")
        entropy_coefficient: float = Field(ge=0, description="weight of the entropy bonus, per action")

    METRICS: ClassVar = _update.METRICS | {
        "loss/policy": "minus the mean of log-prob times advantage",
        "loss/value": "mean squared error of V against the lambda-returns",
        "policy/entropy": "entropy of the policy, mean per action, in nats",
        "value/explained_variance": "share of the returns' variance that V explains, 1 - Var(return - V) / "
        "Var(return), before the update",
        "asynchronous/staleness": "updates by other workers between reading the parameters and applying the gradient",
    }
    collects = ("gradients",)
    actions = ("discrete", "continuous")

    @staticmethod
    def needs(config: Config) -> Needs:
        return Stochastic(critic=True)

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.config = config
        self.updater = Updater(policy, config, total_steps=total_steps, seed=seed)

    def prepare(self, rollout: Rollout) -> Batch:
        advantages = gae(
            rollout.rewards, rollout.values, rollout.next_values, rollout.terminated, rollout.done,
            gamma=self.config.gamma, lam=self.config.gae_lambda,
        )  # fmt: skip
        returns = advantages + rollout.values
        if self.config.normalise_advantages:
            advantages = whiten(advantages, rollout.mask)
        return rollout.batch(advantages, "token_mean", returns)

    def loss(self, policy: PolicyFunction, batch: Batch, noise: None) -> tuple[Tensor, Terms]:
        new = policy(batch.observations, batch.actions)
        policy_loss = weighted_sum(policy_gradient(new.log_probs, batch.advantages), batch.weights)
        value_loss = weighted_sum(value_mse(new.values, batch.returns), batch.per_action)
        entropy = weighted_sum(new.entropy, batch.per_action)
        total = policy_loss + self.config.value_coefficient * value_loss - self.config.entropy_coefficient * entropy
        return total, {"loss/policy": policy_loss, "loss/value": value_loss, "policy/entropy": entropy}

    def gradients(self, rollout: Rollout) -> Gradients:
        """In a worker: the gradient on its segment, at the parameters that it read."""
        batch = self.prepare(rollout)
        flat, terms = self.updater.differentiate(self.loss, batch)
        fit = float(explained_variance(batch.values, batch.returns, batch.mask))
        return Gradients(flat, terms, {"value/explained_variance": fit}, rollout.steps, rollout.episodes)

    def update(self, gradients: Gradients) -> Metrics:
        """In the main process: one step along a worker's gradient."""
        metrics = self.updater.apply(gradients.flat, gradients.terms, steps=gradients.steps)
        return metrics | gradients.statistics | {"asynchronous/staleness": float(gradients.staleness)}

    def state_dict(self) -> State:
        return self.updater.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)
