"""Vanilla policy gradient: the trajectory's return on every action (Williams 1992; Sutton et al. 2000, theorem 1).

    grad J = E[ sum_t grad log pi(a_t | s_t) * R(tau) ],     R(tau) = sum_t gamma^t r_t
    L      = -E[ sum_t log pi(a_t | s_t) * R(tau) ]

Unbiased, and noisy: an action is credited even with rewards received before it. Without a critic nothing is
bootstrapped: a time limit is a finite horizon.
Differs from REINFORCE, as the name is used here: no reward-to-go, no baseline.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from pgcli.algorithms import _kl, _update
from pgcli.algorithms._kl import KL, KLSettings
from pgcli.algorithms._update import LargeNetwork, Terms, Updater
from pgcli.collectors.settings import Episodes
from pgcli.functional.masked import weighted_sum, whiten
from pgcli.functional.policy_loss import policy_gradient
from pgcli.functional.returns import trajectory_returns
from pgcli.types import Batch, Metrics, Needs, PolicyFunction, Rollout, State, Stochastic


class VanillaPG:
    class Config(LargeNetwork, Episodes):
        name: Literal["vanilla_pg"]
        gamma: float = Field(ge=0, le=1, description="discount per step")
        aggregation: Literal["sequence_sum", "sequence_mean", "token_mean"] = Field(
            description="how the policy loss is averaged: sequence_sum gives the gradient of the expected return; the "
            "means divide by lengths"
        )
        normalise_advantages: bool = Field(description="scale a batch's returns to mean 0 and standard deviation 1")
        entropy_coefficient: float = Field(ge=0, description="weight of the entropy bonus, per action")
        kl: KLSettings = Field(description="a price on leaving a frozen reference policy")

    METRICS: ClassVar = {
        **_update.METRICS,
        **_kl.METRICS,
        "loss/policy": "minus the sum of log-prob times the trajectory's return; only its gradient is meaningful, not "
        "its value",
        "policy/entropy": "entropy of the policy, mean per action, in nats",
    }
    collects = ("episodes",)
    actions = ("discrete", "continuous")

    @staticmethod
    def needs(config: Config) -> Needs:
        return Stochastic()

    @staticmethod
    def refers(config: Config) -> bool:
        return config.kl.refers

    @staticmethod
    def warnings(config: Config) -> list[str]:
        return config.kl.warnings(gamma=config.gamma)

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.config = config
        self.updater = Updater(policy, config, total_steps=total_steps, seed=seed)
        self.kl = KL(config.kl)

    def prepare(self, rollout: Rollout) -> Batch:
        returns = trajectory_returns(self.kl.rewards(rollout), rollout.mask, gamma=self.config.gamma)
        if self.config.normalise_advantages:
            returns = whiten(returns, rollout.mask)
        return rollout.batch(returns, self.config.aggregation)

    def loss(self, policy: PolicyFunction, batch: Batch, noise: None) -> tuple[Tensor, Terms]:
        new = policy(batch.observations, batch.actions)
        policy_loss = weighted_sum(policy_gradient(new.log_probs, batch.advantages), batch.weights)
        entropy = weighted_sum(new.entropy, batch.per_action)
        total = policy_loss - self.config.entropy_coefficient * entropy
        terms = {"loss/policy": policy_loss, "policy/entropy": entropy}
        if self.kl.in_loss:
            terms["loss/kl"] = self.kl.loss(new.log_probs, batch)
            total = total + terms["loss/kl"]
        return total, terms

    def update(self, rollout: Rollout) -> Metrics:
        metrics = self.updater.one_step(self.loss, self.prepare(rollout), steps=rollout.steps)
        return metrics | self.kl.finish(rollout)

    def state_dict(self) -> State:
        return self.updater.state_dict() | {"kl": self.kl.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)
        self.kl.load_state_dict(state["kl"])
