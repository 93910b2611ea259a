"""Group-relative policy optimisation and its family (Shao et al. 2024, eq. 3).

    A_i = (R_i - mean(R of its group)) / (std(R of its group) + eps)         one advantage for all actions of an episode
    L   = -E[ min(rho_t A_i, clip(rho_t, 1 - eps_low, 1 + eps_high) A_i) ] + beta E[ KL(pi || reference) ]

in several epochs over one batch. A group is a set of episodes from the same initial state, or of completions of the
same prompt. Without a critic nothing is bootstrapped: a time limit is a finite horizon.

    algo=grpo      as above
    algo=dr_grpo   A_i = R_i - mean; L adds up actions and divides by a constant, not by a deviation or a length (Liu et
                   al. 2025)
    algo=dapo      eps_high > eps_low; every action counts alike; groups whose episodes all got the same reward are
                   replaced by others (Yu et al. 2025)
    algo=gspo      rho is a whole episode's ratio, (pi(y) / pi_old(y))^(1 / length), and is clipped as a whole (Zheng et
                   al. 2025, eq. 5 to 7)
    algo=cispo     sg[clip(rho_t)] A_i log pi: the clip bounds an action's weight and never takes its gradient away
                   (MiniMax 2025, eq. 4 and 5)
    algo=sapo      a smooth gate in place of the clip (Gao et al. 2025, eq. 5 and 6)
    algo=maxrl     A_i = (R_i - mean) / mean: hard problems count more (Tajwar et al. 2026)

Differs from PPO: no critic; the episodes of a group are one another's baseline.
Differs from RLOO: divides by the group's standard deviation, so it is not the gradient of the expected return, and
reuses a batch under a clipped ratio.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from pgcli.algorithms import _kl, _ratio, _update
from pgcli.algorithms._kl import KL, KLSettings
from pgcli.algorithms._update import LOG_RATIOS, LargeNetwork, Terms, Updater
from pgcli.collectors.settings import InformativeGroups
from pgcli.errors import RunError
from pgcli.functional.advantages import (
    batch_standardise,
    group_centre,
    group_relative,
    group_standardise,
    leave_one_out,
    silent_groups,
)
from pgcli.functional.masked import masked_sum, row_mean, weighted_sum
from pgcli.functional.policy_loss import clipped_surrogate, clipped_weight, gated_surrogate
from pgcli.settings import Settings
from pgcli.types import Batch, Metrics, Needs, PolicyFunction, Rollout, State, Stochastic

EPSILON = 1e-6
"""Far below the standard deviation of any group whose returns differ."""


class Clip(Settings):
    low: float = Field(gt=0, le=1, description="how far below 1 the ratio may fall and still gain; 1: any distance")
    high: float = Field(gt=0, description="how far above 1 the ratio may rise and still gain")


class Gate(Settings):
    positive: float = Field(gt=0, description="how fast the gate closes on actions of a positive advantage")
    negative: float = Field(gt=0, description="how fast the gate closes on actions of a negative advantage")


class GRPO:
    class Config(LargeNetwork, InformativeGroups):
        name: Literal["grpo"]
        epochs: int = Field(ge=1, description="passes over each batch")
        minibatches: int = Field(
            ge=1, description="minibatches per epoch, one gradient step each; of whole rows for a policy with memory"
        )
        surrogate: Literal["clipped", "gspo", "cispo", "sapo"] = Field(
            description="what is done with the ratio: clipped for each action; clipped as a whole episode's (gspo); "
            "used as a clipped weight of log-probs (cispo); passed through a smooth gate (sapo)"
        )
        clip: Clip = Field(description="range of the ratio, each side by itself; surrogate=sapo has a gate instead")
        dual_clip: float | None = Field(
            gt=1, description="c: with a negative advantage the objective is at least c A; null: no such bound"
        )
        gate: Gate = Field(description="temperatures of the gate of surrogate=sapo")
        advantage: Literal["standardised", "centred", "leave_one_out", "maxrl", "batch"] = Field(
            description="what is done with return minus group mean: divided by the group's standard deviation; kept; "
            "multiplied by K/(K-1); divided by the group's mean (maxrl); divided by the batch's standard deviation"
        )
        aggregation: Literal["sequence_mean", "token_mean", "sequence_sum", "constant"] = Field(
            description="how the policy loss is averaged over actions; constant divides by aggregation_length"
        )
        aggregation_length: float | None = Field(
            gt=0,
            description="number of actions that aggregation=constant divides by; null: the width of a batch, which "
            "for completions is their limit",
        )
        mask_truncated: bool = Field(
            description="keep truncated episodes out of the loss, but in their group's baseline"
        )
        reward_clip: float | None = Field(
            gt=0,
            description="bound to which an episode's return is clipped on both sides, before the KL price; null: no "
            "bound",
        )
        entropy_coefficient: float = Field(ge=0, description="weight of the entropy bonus, per action")
        kl: KLSettings = Field(description="a price on leaving a frozen reference policy")

        @model_validator(mode="after")
        def _fits_together(self) -> GRPO.Config:
            if self.aggregation != "constant" and self.aggregation_length is not None:
                raise ValueError(f"aggregation={self.aggregation} has no aggregation_length: leave it null")
            if self.surrogate == "gspo" and self.aggregation != "sequence_mean":
                raise ValueError(
                    f"gspo has one ratio and one term an episode; with aggregation={self.aggregation} a long one would "
                    "count more often: take aggregation=sequence_mean"
                )
            if self.advantage == "maxrl" and self.kl.coefficient > 0 and self.kl.placement == "reward":
                raise ValueError(
                    "maxrl divides by a group's mean return, which a price in the reward makes small or negative: "
                    "take kl.placement=loss with kl.estimator=k3_corrected"
                )
            if self.dual_clip is not None and self.surrogate not in ("clipped", "gspo"):
                raise ValueError(f"dual_clip bounds a clipped objective, and {self.surrogate} has none")
            return self

    METRICS: ClassVar = {
        **_update.METRICS,
        **_kl.METRICS,
        **_ratio.METRICS,
        "loss/policy": "the surrogate, negated; with cispo only its gradient is meaningful, not its value",
        "policy/entropy": "entropy of the policy, mean per action, in nats",
        "rollout/zero_variance_groups": "share of groups whose episodes all had the same return: only the KL price and "
        "the entropy bonus teach anything on them",
        "rollout/masked": "share of episodes that a limit cut and that the loss leaves out; with mask_truncated",
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
        return config.kl.warnings(steps=config.epochs * config.minibatches)

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.config = config
        whole_rows = config.surrogate == "gspo"
        self.updater = Updater(policy, config, total_steps=total_steps, seed=seed, whole_rows=whole_rows)
        self.kl = KL(config.kl)

    def prepare(self, rollout: Rollout) -> Batch:
        returns = self.kl.returns(rollout, clip=self.config.reward_clip)  # (N,)
        match self.config.advantage:
            case "standardised":
                advantages = group_standardise(returns, rollout.groups, EPSILON)
            case "centred":
                advantages = group_centre(returns, rollout.groups)
            case "leave_one_out":
                advantages = leave_one_out(returns, rollout.groups)
            case "maxrl":
                if (returns < 0).any():
                    raise RunError(
                        f"advantage=maxrl is for rewards of 0 or 1, and a return was {float(returns.min()):.3g}: its "
                        "group's mean says nothing of success; take another algo.advantage"
                    )
                advantages = group_relative(returns, rollout.groups)
            case "batch":
                advantages = batch_standardise(returns, rollout.groups, EPSILON)
        if self.config.mask_truncated:
            finished = ~rollout.truncated.any(dim=1, keepdim=True)
            rollout = replace(rollout, mask=rollout.mask & finished)
        advantages = advantages[:, None].expand_as(rollout.rewards)
        length = self.config.aggregation_length or rollout.rewards.shape[1]
        return rollout.batch(advantages, self.config.aggregation, constant=length)

    def objective(self, log_probs: Tensor, batch: Batch) -> Tensor:
        """Each action's term of the surrogate, in the shape of the log-probs."""
        c = self.config
        old, advantages = batch.log_probs, batch.advantages
        match c.surrogate:
            case "clipped":
                return clipped_surrogate(log_probs, old, advantages, low=c.clip.low, high=c.clip.high, dual=c.dual_clip)
            case "gspo":
                return clipped_surrogate(
                    row_mean(log_probs, batch.mask), row_mean(old, batch.mask), advantages,
                    low=c.clip.low, high=c.clip.high, dual=c.dual_clip,
                )  # fmt: skip
            case "cispo":
                return clipped_weight(log_probs, old, advantages, low=c.clip.low, high=c.clip.high)
            case "sapo":
                return gated_surrogate(log_probs, old, advantages, positive=c.gate.positive, negative=c.gate.negative)

    def loss(self, policy: PolicyFunction, batch: Batch, noise: None) -> tuple[Tensor, Terms]:
        new = policy(batch.observations, batch.actions)
        policy_loss = -weighted_sum(self.objective(new.log_probs, batch), batch.weights)
        entropy = weighted_sum(new.entropy, batch.per_action)
        total = policy_loss
        if self.config.entropy_coefficient:  # without it, no gradient of the entropy is computed
            total = total - self.config.entropy_coefficient * entropy
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
        c = self.config
        batch = self.prepare(rollout)
        if not batch.mask.any():  # every episode was cut
            self.updater.steps += rollout.steps
            return {"rollout/masked": 1.0}
        metrics = self.updater.epochs(
            self.loss, batch,
            epochs=c.epochs, minibatches=c.minibatches, steps=rollout.steps,
            watch=partial(_ratio.movement, low=c.clip.low, high=c.clip.high, by_row=c.surrogate == "gspo"),
        )  # fmt: skip
        returns = masked_sum(rollout.rewards, rollout.mask, dim=1)
        metrics["rollout/zero_variance_groups"] = float(silent_groups(returns, rollout.groups).float().mean())
        if c.mask_truncated:
            metrics["rollout/masked"] = float((~batch.mask.any(dim=1)).float().mean())
        return metrics | _ratio.spread(batch) | self.kl.finish(rollout)

    def state_dict(self) -> State:
        return self.updater.state_dict() | {"kl": self.kl.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)
        self.kl.load_state_dict(state["kl"])
