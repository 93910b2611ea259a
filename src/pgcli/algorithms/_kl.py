"""A price on moving away from a frozen reference policy: in the reward, or in the loss. Never in both.

                 what it adds up to                                     estimators with the right gradient
    in reward    r_t - beta * log(pi(a_t | s_t) / ref(a_t | s_t))       k1, with gamma = lambda = 1: KL of episodes
    in loss      L + beta * E[ KL(pi || ref) at the states that were    k2 on-policy; k3_corrected also on actions of
                 visited ], weighted as the policy loss is              the behaviour policy

The other combinations measure the KL but have the gradient of something else (`pgcli verify` prints of what): they are
refused, or run with a warning. The log-probs of actions that are rare under the reference have no floor: they stay
exact.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pgcli.functional.kl import k1, k2, k3, k3_corrected, proportional_coefficient
from pgcli.functional.masked import masked_sum, weighted_sum
from pgcli.settings import Settings
from pgcli.types import Batch, Metrics, Rollout, State

METRICS = {
    "loss/kl": "beta times the estimated KL to the reference, weighted as the policy loss; with kl.placement=loss",
    "kl/coefficient": "beta in this update: the price of a nat of KL to the reference",
    "kl/price": "KL penalty subtracted from the rewards of a row (an episode; with segments, algo.num_steps actions), "
    "mean over rows; with kl.placement=reward",
}
BIAS = {
    ("loss", "k1"): "has an expected gradient of zero, so that it holds nothing",
    ("loss", "k3"): "has the gradient of KL(reference || policy), and not of the KL(policy || reference) it measures",
    ("reward", "k2"): "has the gradient of E[log-ratio^2] / 2 - KL(policy || reference)",
    ("reward", "k3"): "has the gradient of KL(policy || reference) - KL(reference || policy)",
    ("reward", "k3_corrected"): "is k3 there, with the gradient of KL(policy || reference) - KL(reference || policy)",
}
"""Placement and estimator -> what is wrong with the gradient."""
PUBLISHED = ("loss", "k3")
"""GRPO's own combination (Shao et al. 2024, eq. 4): biased, but it needs no allow_biased and only warns."""


class KLSettings(Settings):
    coefficient: float = Field(ge=0, description="beta: price of a nat of KL(policy || reference); 0: none")
    placement: Literal["reward", "loss"] = Field(
        description="where the price is paid: subtracted from each action's reward, or added to the loss"
    )
    estimator: Literal["k1", "k2", "k3", "k3_corrected"] = Field(
        description="how the KL is estimated from the actions: k1 fits placement=reward; k2 or k3_corrected "
        "placement=loss"
    )
    target: float | None = Field(
        gt=0, description="KL of an episode, in nats, towards which beta is adapted; null: beta is fixed"
    )
    gain: float = Field(
        gt=0,
        le=1,
        description="with a target: how fast beta follows it; it changes by at most a fifth of this per update",
    )
    measure: bool = Field(description="log the KL to the reference even if coefficient is 0")
    allow_biased: bool = Field(description="allow an estimator whose gradient is wrong in its placement, for studies")

    @property
    def refers(self) -> bool:
        """Whether a reference is needed."""
        return self.coefficient > 0 or self.measure

    @property
    def bias(self) -> str | None:
        return BIAS.get((self.placement, self.estimator)) if self.coefficient else None

    @model_validator(mode="after")
    def _right_or_knowingly_wrong(self) -> KLSettings:
        if self.target is not None and self.coefficient == 0:
            raise ValueError("a target adapts the coefficient by factors: start above 0")
        if self.bias and not self.allow_biased and (self.placement, self.estimator) != PUBLISHED:
            right = "estimator=k1" if self.placement == "reward" else "estimator=k3_corrected"
            raise ValueError(
                f"{self.estimator} in the {self.placement} {self.bias}; take {right} there, "
                "or allow_biased=true to study it"
            )
        return self

    def warnings(self, *, gamma: float = 1.0, gae_lambda: float = 1.0, steps: int = 1) -> list[str]:
        """What is biased and runs all the same. `steps`: gradient steps on each batch."""
        found = []
        if self.bias:
            better = "; k3_corrected has the right one" if self.placement == "loss" else "; k1 has the right one"
            found.append(f"algo.kl: {self.estimator} in the {self.placement} {self.bias}{better}")
        if self.coefficient and (self.placement, self.estimator) == ("loss", "k2") and steps > 1:
            found.append(
                f"algo.kl: k2 in the loss has the gradient of the KL on actions of the present policy only, and of the "
                f"{steps} gradient steps on a batch all but the first move away from it; k3_corrected has it in all"
            )
        if self.coefficient and self.placement == "reward" and (gamma, gae_lambda) != (1.0, 1.0):
            found.append(
                f"algo.kl: with gamma {gamma:g} and lambda {gae_lambda:g} a price in the reward is not the KL of whole "
                "episodes: what an action leads to later is discounted; that takes gamma = lambda = 1"
            )
        return found


class KL:
    """The KL price of one algorithm. Holds beta, which a target adapts from update to update."""

    def __init__(self, settings: KLSettings) -> None:
        self.settings = settings
        self.coefficient = settings.coefficient
        self.in_reward = settings.coefficient > 0 and settings.placement == "reward"
        self.in_loss = settings.coefficient > 0 and settings.placement == "loss"

    def rewards(self, rollout: Rollout) -> Tensor:
        """(N, T): the rewards, less the price if it is placed there. The rollout's own rewards never change."""
        return rollout.rewards - self._prices(rollout) if self.in_reward else rollout.rewards

    def returns(self, rollout: Rollout, *, clip: float | None) -> Tensor:
        """(N,): each row's return, clipped to plus and minus `clip`, and then less the price."""
        returns = masked_sum(rollout.rewards, rollout.mask, dim=1)
        if clip is not None:
            returns = returns.clamp(-clip, clip)
        return returns - masked_sum(self._prices(rollout), rollout.mask, dim=1) if self.in_reward else returns

    def _prices(self, rollout: Rollout) -> Tensor:
        own, reference = rollout.log_probs, rollout.reference_log_probs
        return torch.where(rollout.mask, self.coefficient * self._estimate(own, reference, own), 0)

    def loss(self, log_probs: Tensor, batch: Batch) -> Tensor:
        """beta times the KL at the states of a batch: a scalar, with a gradient."""
        each = self._estimate(log_probs, batch.reference_log_probs, batch.log_probs)
        return self.coefficient * weighted_sum(each, batch.weights)

    def _estimate(self, log_probs: Tensor, reference: Tensor, old: Tensor) -> Tensor:
        match self.settings.estimator:
            case "k1":
                return k1(log_probs, reference)
            case "k2":
                return k2(log_probs, reference)
            case "k3":
                return k3(log_probs, reference)
            case "k3_corrected":
                return k3_corrected(log_probs, reference, old)

    def finish(self, rollout: Rollout) -> Metrics:
        """Metrics of this update's beta and its price; afterwards beta is set for the next update."""
        if not self.settings.refers:
            return {}
        metrics = {"kl/coefficient": self.coefficient}
        if self.in_reward:
            metrics["kl/price"] = float(masked_sum(self._prices(rollout), rollout.mask, dim=1).mean())
        if self.settings.target is not None:
            each = k1(rollout.log_probs, rollout.reference_log_probs)
            kl = float(masked_sum(each, rollout.mask, dim=1).mean())
            self.coefficient = proportional_coefficient(
                self.coefficient, kl, target=self.settings.target, gain=self.settings.gain
            )
        return metrics

    def state_dict(self) -> State:
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: State) -> None:
        self.coefficient = state["coefficient"]
