"""Proximal policy optimisation (Schulman et al. 2017, eq. 6 to 9): a clipped surrogate, a KL penalty, or both.

    rho_t = pi(a_t | s_t) / pi_old(a_t | s_t),    A_t = GAE(delta_t; lambda)
    L = -E[ min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t) ] + c_v E[ (V(s_t) - R_t)^2 ] - c_e E[ H(pi(. | s_t)) ]
        + beta E[ KL(pi_old(. | s_t) || pi(. | s_t)) ]                                       exact, of the distributions

in several epochs of minibatches over one batch. R_t = A_t + V_old(s_t).

    algo=ppo      clipped, beta = 0
    algo=ppo_kl   not clipped: L has rho_t A_t; beta is doubled after an update whose KL exceeds 1.5 times its target,
                  and halved after one below target / 1.5 (section 4). Without a target beta is fixed
    algo=cpi      neither: conservative policy iteration's surrogate (Kakade & Langford 2002), to see why it is clipped

Differs from A2C: a batch is used more than once, and the clip removes the gain from moving too far.
Differs from GRPO: advantages come from a critic and differ from action to action.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from pgcli.algorithms import _kl, _ratio, _update
from pgcli.algorithms._kl import KL, KLSettings
from pgcli.algorithms._update import LOG_RATIOS, LargeNetwork, Terms, Updater, present_distribution
from pgcli.collectors.settings import Either
from pgcli.functional.advantages import gae
from pgcli.functional.kl import adapted_coefficient, k3
from pgcli.functional.masked import weighted_sum, whiten
from pgcli.functional.policy_loss import clipped_surrogate, surrogate
from pgcli.functional.value_loss import explained_variance, value_clipped, value_mse
from pgcli.settings import Settings
from pgcli.types import Batch, Metrics, Needs, PolicyFunction, Rollout, State, Stochastic


class KLPenalty(Settings):
    coefficient: float = Field(ge=0, description="beta: price of a nat of KL(pi_old || pi), at the start; 0: none")
    target: float | None = Field(
        gt=0, description="KL of an update, in nats, towards which beta is adapted; null: beta is fixed"
    )

    @model_validator(mode="after")
    def _something_to_adapt(self) -> KLPenalty:
        if self.target is not None and self.coefficient == 0:
            raise ValueError("a target adapts the coefficient by doubling and halving it: start above 0")
        return self


class PPO:
    class Config(LargeNetwork, Either):
        name: Literal["ppo"]
        epochs: int = Field(ge=1, description="passes over each batch")
        minibatches: int = Field(
            ge=1, description="minibatches per epoch, one gradient step each; of whole rows for a policy with memory"
        )
        gamma: float = Field(ge=0, le=1, description="discount per step")
        gae_lambda: float = Field(
            ge=0, le=1, description="lambda of the advantages: 0 gives the one-step TD error, 1 the return minus V"
        )
        clip_range: float | None = Field(
            gt=0, description="eps: how far from 1 the ratio may move and still gain; null: any distance"
        )
        dual_clip: float | None = Field(
            gt=1, description="c: with a negative advantage the objective is at least c A; null: no such bound"
        )
        kl_penalty: KLPenalty = Field(description="a price on leaving the policy that collected the batch")
        clip_range_value: float | None = Field(gt=0, description="how far V may move from V_old; null: no clipping")
        target_kl: float | None = Field(
            gt=0,
            description="policy/approx_kl above which the update ends after the present gradient step; null: never",
        )
        normalise_advantages: Literal["none", "batch", "minibatch"] = Field(
            description="over what advantages are scaled to mean 0 and standard deviation 1: nothing, the batch, or "
            "each minibatch"
        )
        aggregation: Literal["token_mean", "sequence_mean", "sequence_sum"] = Field(
            description="how the policy loss is averaged over actions"
        )
        value_coefficient: float = Field(ge=0, description="weight of the value loss")
        entropy_coefficient: float = Field(ge=0, description="weight of the entropy bonus, per action")
        kl: KLSettings = Field(description="a price on leaving a frozen reference policy")

        @model_validator(mode="after")
        def _fits_together(self) -> PPO.Config:
            if self.dual_clip is not None and self.clip_range is None:
                raise ValueError("dual_clip bounds a clipped objective: it needs a clip_range")
            smallest = self.num_envs * self.num_steps // self.minibatches
            if self.collect != "episodes" and self.normalise_advantages == "minibatch" and smallest < 2:
                raise ValueError(
                    f"minibatches={self.minibatches} of {self.num_envs * self.num_steps} actions have one each, "
                    "whose advantage, normalised by itself, is 0: take fewer, or normalise_advantages=batch"
                )
            if self.microbatch is not None and self.normalise_advantages == "minibatch":
                raise ValueError(
                    "a microbatch does not see the minibatch whose advantages are normalised; "
                    "take normalise_advantages=batch"
                )
            return self

    METRICS: ClassVar = {
        **_update.METRICS,
        **_kl.METRICS,
        **_ratio.METRICS,
        "loss/policy": "the surrogate, negated; clipped if clip_range is set",
        "loss/value": "mean squared error of V against the lambda-returns; with clip_range_value, the larger of the "
        "clipped and the unclipped one",
        "policy/entropy": "entropy of the policy, mean per action, in nats",
        "loss/kl_penalty": "beta times the exact KL(pi_old || pi); with kl_penalty",
        "policy/kl": "exact KL(pi_old || pi) of the whole update, mean over states, in nats; with kl_penalty",
        "policy/kl_coefficient": "beta of kl_penalty in this update; with kl_penalty",
        "value/explained_variance": "share of the returns' variance that V explains, 1 - Var(return - V) / "
        "Var(return), before the update",
    }
    collects = ("segments", "episodes")
    actions = ("discrete", "continuous")

    @staticmethod
    def needs(config: Config) -> Needs:
        return Stochastic(critic=True)

    @staticmethod
    def refers(config: Config) -> bool:
        return config.kl.refers

    @staticmethod
    def warnings(config: Config) -> list[str]:
        return config.kl.warnings(
            gamma=config.gamma, gae_lambda=config.gae_lambda, steps=config.epochs * config.minibatches
        )

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.policy, self.config = policy, config
        self.kl_coefficient = config.kl_penalty.coefficient
        self.updater = Updater(policy, config, total_steps=total_steps, seed=seed)
        self.kl = KL(config.kl)

    def prepare(self, rollout: Rollout) -> Batch:
        advantages = gae(
            self.kl.rewards(rollout), rollout.values, rollout.next_values, rollout.terminated, rollout.done,
            gamma=self.config.gamma, lam=self.config.gae_lambda, mask=rollout.mask,
        )  # fmt: skip
        returns = advantages + rollout.values
        if self.config.normalise_advantages == "batch":
            advantages = whiten(advantages, rollout.mask)
        batch = rollout.batch(advantages, self.config.aggregation, returns)
        if self.config.kl_penalty.coefficient:
            batch.distribution = present_distribution(self.policy, rollout)
        return batch

    def loss(self, policy: PolicyFunction, batch: Batch, noise: None) -> tuple[Tensor, Terms]:
        c = self.config
        new = policy(batch.observations, batch.actions)
        advantages = whiten(batch.advantages, batch.mask) if c.normalise_advantages == "minibatch" else batch.advantages
        if c.clip_range is None:
            objective = surrogate(new.log_probs, batch.log_probs, advantages)
        else:
            objective = clipped_surrogate(
                new.log_probs, batch.log_probs, advantages, low=c.clip_range, high=c.clip_range, dual=c.dual_clip
            )
        policy_loss = -weighted_sum(objective, batch.weights)
        if c.clip_range_value is None:
            value_error = value_mse(new.values, batch.returns)
        else:
            value_error = value_clipped(new.values, batch.values, batch.returns, clip_range=c.clip_range_value)
        value_loss = weighted_sum(value_error, batch.per_action)
        entropy = weighted_sum(new.entropy, batch.per_action)
        total = policy_loss + c.value_coefficient * value_loss - c.entropy_coefficient * entropy
        terms = {
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "policy/entropy": entropy,
            LOG_RATIOS: (new.log_probs - batch.log_probs).detach(),
        }
        if c.target_kl is not None:
            approx_kl = k3(batch.log_probs, new.log_probs.detach())
            terms["policy/approx_kl"] = weighted_sum(approx_kl, batch.per_action)
        if c.kl_penalty.coefficient:
            kl = weighted_sum(batch.distribution.kl(new.distribution), batch.per_action)
            terms["loss/kl_penalty"] = self.kl_coefficient * kl
            total = total + terms["loss/kl_penalty"]
        if self.kl.in_loss:
            terms["loss/kl"] = self.kl.loss(new.log_probs, batch)
            total = total + terms["loss/kl"]
        return total, terms

    def update(self, rollout: Rollout) -> Metrics:
        batch = self.prepare(rollout)
        reach = self.config.clip_range or math.inf
        metrics = self.updater.epochs(
            self.loss, batch,
            epochs=self.config.epochs, minibatches=self.config.minibatches, target_kl=self.config.target_kl,
            steps=rollout.steps, watch=partial(_ratio.movement, low=reach, high=reach),
        )  # fmt: skip
        metrics |= _ratio.spread(batch)
        if self.config.kl_penalty.coefficient:
            metrics |= self._adapt(batch)
        metrics["value/explained_variance"] = float(explained_variance(batch.values, batch.returns, batch.mask))
        return metrics | self.kl.finish(rollout)

    def _adapt(self, batch: Batch) -> Metrics:
        """Measure how far the update moved the policy, and set beta for the next one."""
        new = present_distribution(self.policy, batch)
        kl = float(weighted_sum(batch.distribution.kl(new), batch.per_action))
        used, target = self.kl_coefficient, self.config.kl_penalty.target
        if target is not None:
            self.kl_coefficient = adapted_coefficient(used, kl, target=target)
        return {"policy/kl": kl, "policy/kl_coefficient": used}

    def state_dict(self) -> State:
        return self.updater.state_dict() | {"kl_coefficient": self.kl_coefficient, "kl": self.kl.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)
        self.kl_coefficient = state["kl_coefficient"]
        self.kl.load_state_dict(state["kl"])
