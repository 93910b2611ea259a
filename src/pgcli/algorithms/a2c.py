"""Advantage actor-critic, synchronous (Mnih et al. 2016, section 4 and supplement S3).

    A_t = GAE(delta_t; lambda),   delta_t = r_t + gamma V(s_{t+1}) - V(s_t)     lambda = 1: n-step returns, as published
    L   = -E[ log pi(a_t | s_t) A_t ] + c_v E[ (V(s_t) - (A_t + V_old(s_t)))^2 ] - c_e E[ H(pi(. | s_t)) ]

With lambda = 0 and one step per segment A_t is delta_t: the one-step actor-critic (Sutton & Barto 2018, section 13.5),
which is `algo=actor_critic`, except that gamma^t in front of the policy's gradient is left out.
Differs from REINFORCE with a value baseline: it learns from segments, and bootstraps with V at their end.
Differs from PPO: no ratio and nothing to clip, because a batch is meant for one gradient step (`epochs` 1).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from pgcli.algorithms import _update
from pgcli.algorithms._update import OptimiserSettings, Terms, Updater
from pgcli.collectors.settings import Either
from pgcli.functional.advantages import gae
from pgcli.functional.masked import weighted_sum, whiten
from pgcli.functional.policy_loss import policy_gradient
from pgcli.functional.value_loss import explained_variance, value_mse
from pgcli.types import Batch, Metrics, Needs, PolicyFunction, Rollout, State, Stochastic


class A2C:
    class Config(OptimiserSettings, Either):
        name: Literal["a2c"]
        epochs: int = Field(
            ge=1,
            description="passes over each batch; after the first step its data are off-policy, and nothing corrects "
            "for that",
        )
        minibatches: int = Field(ge=1, description="minibatches per epoch, one gradient step each")
        gamma: float = Field(ge=0, le=1, description="discount per step")
        gae_lambda: float = Field(
            ge=0,
            le=1,
            description="lambda of the advantages: 0 gives the one-step TD error, 1 the n-step return minus V",
        )
        normalise_advantages: bool = Field(description="scale a batch's advantages to mean 0 and standard deviation 1")
        aggregation: Literal["token_mean", "sequence_mean", "sequence_sum"] = Field(
            description="how the policy loss is averaged over actions"
        )
        value_coefficient: float = Field(ge=0, description="weight of the value loss")
        entropy_coefficient: float = Field(ge=0, description="weight of the entropy bonus, per action")

    METRICS: ClassVar = _update.METRICS | {
        "loss/policy": "minus the mean of log-prob times advantage",
        "loss/value": "mean squared error of V against the lambda-returns",
        "policy/entropy": "entropy of the policy, mean per action, in nats",
        "value/explained_variance": "share of the returns' variance that V explains, 1 - Var(return - V) / "
        "Var(return), before the update",
    }
    collects = ("segments", "episodes")
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
            gamma=self.config.gamma, lam=self.config.gae_lambda, mask=rollout.mask,
        )  # fmt: skip
        returns = advantages + rollout.values
        if self.config.normalise_advantages:
            advantages = whiten(advantages, rollout.mask)
        return rollout.batch(advantages, self.config.aggregation, returns)

    def loss(self, policy: PolicyFunction, batch: Batch, noise: None) -> tuple[Tensor, Terms]:
        new = policy(batch.observations, batch.actions)
        policy_loss = weighted_sum(policy_gradient(new.log_probs, batch.advantages), batch.weights)
        value_loss = weighted_sum(value_mse(new.values, batch.returns), batch.per_action)
        entropy = weighted_sum(new.entropy, batch.per_action)
        total = policy_loss + self.config.value_coefficient * value_loss - self.config.entropy_coefficient * entropy
        return total, {"loss/policy": policy_loss, "loss/value": value_loss, "policy/entropy": entropy}

    def update(self, rollout: Rollout) -> Metrics:
        batch = self.prepare(rollout)
        metrics = self.updater.epochs(
            self.loss, batch,
            epochs=self.config.epochs, minibatches=self.config.minibatches, steps=rollout.steps,
        )  # fmt: skip
        return metrics | {
            "value/explained_variance": float(explained_variance(batch.values, batch.returns, batch.mask))
        }

    def state_dict(self) -> State:
        return self.updater.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)
