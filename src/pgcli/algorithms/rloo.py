"""REINFORCE leave-one-out (Kool et al. 2019; Ahmadian et al. 2024, eq. 7).

    A_i = R_i - mean of R over the *other* K - 1 episodes of its group     one advantage for all actions of an episode
    L   = -E[ sum_t log pi(a_t | s_t) A_i ]

A group is a set of episodes from the same initial state, or of completions of the same prompt. An episode's baseline
does not contain its own return, so the gradient is unbiased. Without a critic nothing is bootstrapped: a time limit is
a finite horizon.
Differs from REINFORCE: the baseline comes from the group, and needs no learning.
Differs from GRPO: no division by the standard deviation, and one gradient step per batch.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from pgcli.algorithms import _kl, _ratio, _update
from pgcli.algorithms._kl import KL, KLSettings
from pgcli.algorithms._update import LOG_RATIOS, LargeNetwork, Terms, Updater
from pgcli.collectors.settings import Groups
from pgcli.functional.advantages import leave_one_out, silent_groups
from pgcli.functional.masked import masked_sum, weighted_sum, whiten
from pgcli.functional.policy_loss import policy_gradient
from pgcli.types import Batch, Metrics, Needs, PolicyFunction, Rollout, State, Stochastic


class RLOO:
    class Config(LargeNetwork, Groups):
        name: Literal["rloo"]
        aggregation: Literal["sequence_sum", "sequence_mean", "token_mean"] = Field(
            description="how the policy loss is averaged: sequence_sum gives the gradient of the expected return; the "
            "means divide by lengths"
        )
        reward_clip: float | None = Field(
            gt=0,
            description="bound to which an episode's return is clipped on both sides, before the KL price; null: no "
            "bound",
        )
        normalise_advantages: bool = Field(description="scale a batch's advantages to mean 0 and standard deviation 1")
        entropy_coefficient: float = Field(ge=0, description="weight of the entropy bonus, per action")
        kl: KLSettings = Field(description="a price on leaving a frozen reference policy")

    METRICS: ClassVar = {
        **_update.METRICS,
        **_kl.METRICS,
        **_ratio.MISMATCH,
        **_ratio.ADVANTAGES,
        "loss/policy": "minus the sum of log-prob times advantage; only its gradient is meaningful, not its value",
        "policy/entropy": "entropy of the policy, mean per action, in nats",
        "rollout/zero_variance_groups": "share of groups whose episodes all had the same return: only the KL price and "
        "the entropy bonus teach anything on them",
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
        returns = self.kl.returns(rollout, clip=self.config.reward_clip)  # (N,)
        advantages = leave_one_out(returns, rollout.groups)[:, None].expand_as(rollout.rewards)
        if self.config.normalise_advantages:
            advantages = whiten(advantages, rollout.mask)
        return rollout.batch(advantages, self.config.aggregation)

    def loss(self, policy: PolicyFunction, batch: Batch, noise: None) -> tuple[Tensor, Terms]:
        new = policy(batch.observations, batch.actions)
        policy_loss = weighted_sum(policy_gradient(new.log_probs, batch.advantages), batch.weights)
        entropy = weighted_sum(new.entropy, batch.per_action)
        total = policy_loss - self.config.entropy_coefficient * entropy
        terms = {
            "loss/policy": policy_loss,
            "policy/entropy": entropy,
            LOG_RATIOS: (new.log_probs - batch.log_probs).detach(),
        }
        if self.kl.in_loss:
            terms["loss/kl"] = self.kl.loss(new.log_probs, batch)
            total = total + terms["loss/kl"]
        return total, terms

    def update(self, rollout: Rollout) -> Metrics:
        batch = self.prepare(rollout)
        metrics = self.updater.one_step(self.loss, batch, steps=rollout.steps, watch=_ratio.mismatch)
        returns = masked_sum(rollout.rewards, rollout.mask, dim=1)
        metrics["rollout/zero_variance_groups"] = float(silent_groups(returns, rollout.groups).float().mean())
        return metrics | _ratio.spread(batch) | self.kl.finish(rollout)

    def state_dict(self) -> State:
        return self.updater.state_dict() | {"kl": self.kl.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)
        self.kl.load_state_dict(state["kl"])
