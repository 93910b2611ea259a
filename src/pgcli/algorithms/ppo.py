"""Proximal policy optimisation with a clipped surrogate (Schulman et al. 2017, eq. 7 and 9).

    rho_t = pi(a_t | s_t) / pi_old(a_t | s_t),    A_t = GAE(delta_t; lambda)
    L = -E[ min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t) ] + c_v E[ (V(s_t) - R_t)^2 ] - c_e E[ H(pi(. | s_t)) ]

in several epochs of minibatches over one batch. R_t = A_t + V_old(s_t).
Differs from A2C: a batch is used more than once, and the clip takes away what would be gained by moving too far.
Differs from GRPO: advantages come from a critic and differ from action to action.
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
from pgcli.functional.policy_loss import clipped_surrogate, ratio_statistics
from pgcli.functional.value_loss import explained_variance, value_clipped, value_mse
from pgcli.types import Batch, Metrics, Needs, PolicyFunction, Rollout, State, Stochastic


class PPO:
    class Config(OptimiserSettings, Either):
        name: Literal["ppo"]
        epochs: int = Field(ge=1, description="passes over each batch")
        minibatches: int = Field(
            ge=1, description="pieces of the batch, one gradient step each, per epoch; a memory's are whole rows"
        )
        gamma: float = Field(ge=0, le=1, description="discount per step")
        gae_lambda: float = Field(ge=0, le=1, description="0: one-step TD error; 1: return minus V")
        clip_range: float = Field(gt=0, description="eps: how far the ratio may move and still gain")
        clip_range_value: float | None = Field(gt=0, description="V may move this far from V_old; null: no clipping")
        target_kl: float | None = Field(
            gt=0, description="end the update after a step whose approx_kl exceeds it; null: never"
        )
        normalise_advantages: Literal["none", "batch", "minibatch"] = Field(
            description="mean 0 and deviation 1, over the batch or over each minibatch"
        )
        aggregation: Literal["token_mean", "sequence_mean", "sequence_sum"] = Field(
            description="of the policy loss over actions"
        )
        value_coefficient: float = Field(ge=0, description="weight of the value loss")
        entropy_coefficient: float = Field(ge=0, description="weight of the entropy bonus, per action")

    METRICS: ClassVar = _update.METRICS | {
        "loss/policy": "the clipped surrogate, negated",
        "loss/value": "mean squared error of V against the lambda-returns (the worse of the two, where clipped)",
        "policy/entropy": "entropy of the policy, mean per action, in nats",
        "policy/approx_kl": "KL(pi_old || pi), estimated by k3 on the batch, in nats per action",
        "policy/clip_fraction": "share of actions whose ratio left [1 - eps, 1 + eps]",
        "value/explained_variance": "1 - Var(return - V) / Var(return), before the update",
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
            gamma=self.config.gamma, lam=self.config.gae_lambda,
        )  # fmt: skip
        returns = advantages + rollout.values
        if self.config.normalise_advantages == "batch":
            advantages = whiten(advantages, rollout.mask)
        return rollout.batch(advantages, self.config.aggregation, returns)

    def loss(self, policy: PolicyFunction, batch: Batch, noise: None) -> tuple[Tensor, Terms]:
        c = self.config
        new = policy(batch.observations, batch.actions)
        advantages = whiten(batch.advantages, batch.mask) if c.normalise_advantages == "minibatch" else batch.advantages
        surrogate = clipped_surrogate(new.log_probs, batch.log_probs, advantages, low=c.clip_range, high=c.clip_range)
        policy_loss = -weighted_sum(surrogate, batch.weights)
        if c.clip_range_value is None:
            value_error = value_mse(new.values, batch.returns)
        else:
            value_error = value_clipped(new.values, batch.values, batch.returns, clip_range=c.clip_range_value)
        value_loss = weighted_sum(value_error, batch.per_action)
        entropy = weighted_sum(new.entropy, batch.per_action)
        moved = ratio_statistics(new.log_probs, batch.log_probs, low=c.clip_range, high=c.clip_range)
        total = policy_loss + c.value_coefficient * value_loss - c.entropy_coefficient * entropy
        return total, {
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "policy/entropy": entropy,
            "policy/approx_kl": weighted_sum(moved.approx_kl, batch.per_action),
            "policy/clip_fraction": weighted_sum(moved.clip_fraction, batch.per_action),
        }

    def update(self, rollout: Rollout) -> Metrics:
        batch = self.prepare(rollout)
        metrics = self.updater.epochs(
            self.loss, batch,
            epochs=self.config.epochs, minibatches=self.config.minibatches, target_kl=self.config.target_kl,
        )  # fmt: skip
        return metrics | {
            "value/explained_variance": float(explained_variance(batch.values, batch.returns, batch.mask))
        }

    def state_dict(self) -> State:
        return self.updater.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)
