"""Group-relative policy optimisation (Shao et al. 2024, eq. 3, without the KL term).

    A_i = (R_i - mean(R of its group)) / (std(R of its group) + eps)         one advantage for all actions of an episode
    L   = -E[ min(rho_t A_i, clip(rho_t, 1 - eps_low, 1 + eps_high) A_i) ]         in several epochs over one batch

A group is a set of episodes from the same initial state, or of completions of the same prompt. No critic: a time limit
is a finite horizon.
Differs from PPO: no critic; the episodes of a group are one another's baseline.
Differs from RLOO: divides by the group's standard deviation, so it is not the gradient of the expected return, and
reuses a batch under a clipped ratio. `advantage: centred` leaves the division out (Liu et al. 2025).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from pgcli.algorithms import _kl, _update
from pgcli.algorithms._kl import KL, KLSettings
from pgcli.algorithms._update import OptimiserSettings, Terms, Updater
from pgcli.collectors.settings import Groups
from pgcli.functional.advantages import group_centre, group_standardise
from pgcli.functional.masked import masked_sum, weighted_sum
from pgcli.functional.policy_loss import clipped_surrogate, ratio_statistics
from pgcli.settings import Settings
from pgcli.types import Batch, Metrics, Needs, PolicyFunction, Rollout, State, Stochastic

EPSILON = 1e-6
"""Far below the deviation of any group that has something to teach."""


class Clip(Settings):
    low: float = Field(gt=0, le=1, description="the ratio may fall this far below 1 and still gain")
    high: float = Field(gt=0, description="the ratio may rise this far above 1 and still gain")


class GRPO:
    class Config(OptimiserSettings, Groups):
        name: Literal["grpo"]
        epochs: int = Field(ge=1, description="passes over each batch")
        minibatches: int = Field(
            ge=1, description="pieces of the batch, one gradient step each, per epoch; a memory's are whole rows"
        )
        clip: Clip = Field(description="range of the ratio, each side by itself")
        advantage: Literal["standardised", "centred"] = Field(description="divide by the group's deviation, or don't")
        aggregation: Literal["sequence_mean", "token_mean", "sequence_sum", "constant"] = Field(
            description="of the policy loss over actions; constant divides by aggregation_length"
        )
        aggregation_length: float | None = Field(gt=0, description="actions, for aggregation=constant; else null")
        entropy_coefficient: float = Field(ge=0, description="weight of the entropy bonus, per action")
        kl: KLSettings = Field(description="a price on leaving a frozen reference policy")

    METRICS: ClassVar = {
        **_update.METRICS,
        **_kl.METRICS,
        "loss/policy": "the clipped surrogate, negated",
        "policy/entropy": "entropy of the policy, mean per action, in nats",
        "policy/approx_kl": "KL(pi_old || pi), estimated by k3 on the batch, in nats per action",
        "policy/clip_fraction": "share of actions whose ratio left the clip range",
        "rollout/zero_variance_groups": "share of groups whose episodes all had the same return: they teach nothing",
    }
    collects = ("groups",)
    actions = ("discrete", "continuous")

    @staticmethod
    def needs(config: Config) -> Needs:
        return Stochastic()

    @staticmethod
    def refers(config: Config) -> bool:
        return config.kl.refers

    @staticmethod
    def warnings(config: Config) -> list[str]:
        return config.kl.warnings()

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.config = config
        self.updater = Updater(policy, config, total_steps=total_steps, seed=seed)
        self.kl = KL(config.kl)

    def prepare(self, rollout: Rollout) -> Batch:
        returns = masked_sum(self.kl.rewards(rollout), rollout.mask, dim=1)  # (N,)
        if self.config.advantage == "standardised":
            advantages = group_standardise(returns, rollout.groups, EPSILON)
        else:
            advantages = group_centre(returns, rollout.groups)
        advantages = advantages[:, None].expand_as(rollout.rewards)
        return rollout.batch(advantages, self.config.aggregation, constant=self.config.aggregation_length)

    def loss(self, policy: PolicyFunction, batch: Batch, noise: None) -> tuple[Tensor, Terms]:
        low, high = self.config.clip.low, self.config.clip.high
        new = policy(batch.observations, batch.actions)
        surrogate = clipped_surrogate(new.log_probs, batch.log_probs, batch.advantages, low=low, high=high)
        policy_loss = -weighted_sum(surrogate, batch.weights)
        entropy = weighted_sum(new.entropy, batch.per_action)
        moved = ratio_statistics(new.log_probs, batch.log_probs, low=low, high=high)
        total = policy_loss - self.config.entropy_coefficient * entropy
        terms = {
            "loss/policy": policy_loss,
            "policy/entropy": entropy,
            "policy/approx_kl": weighted_sum(moved.approx_kl, batch.per_action),
            "policy/clip_fraction": weighted_sum(moved.clip_fraction, batch.per_action),
        }
        if self.kl.in_loss:
            terms["loss/kl"] = self.kl.loss(new.log_probs, batch)
            total = total + terms["loss/kl"]
        return total, terms

    def update(self, rollout: Rollout) -> Metrics:
        batch = self.prepare(rollout)
        metrics = self.updater.epochs(self.loss, batch, epochs=self.config.epochs, minibatches=self.config.minibatches)
        silent = (batch.advantages[:, 0] == 0).float().mean()
        return metrics | {"rollout/zero_variance_groups": float(silent)} | self.kl.finish(rollout)

    def state_dict(self) -> State:
        return self.updater.state_dict() | {"kl": self.kl.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)
        self.kl.load_state_dict(state["kl"])
