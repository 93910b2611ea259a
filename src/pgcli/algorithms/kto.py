"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, eq. 8): from completions labelled desirable or not.

    gain = log pi(y | x) - log ref(y | x) - z      z = max(0, mean of the log-ratio of completions y' of other prompts)
    L    = E[ w_d sigmoid(-beta gain) ] over desirable ones + E[ w_u sigmoid(beta gain) ] over the others

Gains and losses are relative to a reference point z, and both saturate: a completion far on its right side, or far on
its wrong one, teaches little. z is estimated from mismatched pairs, and no gradient flows into it.

Differs from DPO: there are no pairs. Each completion has a label of its own, and no second completion of its prompt is
needed.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pgcli.algorithms import _update
from pgcli.algorithms._update import OptimiserSettings, Terms, Updater
from pgcli.collectors.settings import Texts
from pgcli.functional import preference_loss
from pgcli.functional.masked import masked_mean, masked_sum
from pgcli.types import Completions, Labelled, Metrics, Needs, PolicyFunction, State, Stochastic


class KTO:
    class Config(OptimiserSettings, Texts):
        name: Literal["kto"]
        beta: float = Field(gt=0, description="price of leaving the reference: how soon gains and losses saturate")
        desirable_weight: float = Field(gt=0, description="w_d: weight of desirable completions")
        undesirable_weight: float = Field(
            gt=0,
            description="w_u: weight of undesirable completions; balanced if w_d x (desirable ones) is about w_u x "
            "(the others)",
        )

    METRICS: ClassVar = _update.METRICS | {
        "loss/preference": "KTO loss, mean over completions",
        "kto/reference_point": "z: mean log-ratio of mismatched completions, at least 0, in nats",
        "preferences/accuracy": "share of completions that are on their label's side of the reference point",
        "preferences/chosen_reward": "beta times the log-ratio of desirable completions, mean",
        "preferences/rejected_reward": "beta times the log-ratio of undesirable completions, mean",
        "preferences/margin": "preferences/chosen_reward minus preferences/rejected_reward",
        "preferences/chosen_log_ratio": "log pi - log reference of a desirable completion, summed over tokens, mean",
        "preferences/rejected_log_ratio": "log pi - log reference of an undesirable completion, summed over tokens, "
        "mean",
        "policy/entropy": "entropy of the policy at the completions' tokens, mean per token, in nats",
    }  # fmt: skip
    collects = ("labelled",)
    actions = ("discrete",)

    @staticmethod
    def needs(config: Config) -> Needs:
        return Stochastic()

    @staticmethod
    def refers(config: Config) -> bool:
        return True

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.config = config
        self.updater = Updater(policy, config, total_steps=total_steps, seed=seed)

    def loss(self, policy: PolicyFunction, batch: Labelled, noise: None) -> tuple[Tensor, Terms]:
        c, texts, desirable = self.config, batch.texts, batch.desirable
        new = policy(texts.observations, texts.actions)
        log_ratios = masked_sum(new.log_probs - texts.reference_log_probs, texts.mask, dim=1)  # (N,)
        with torch.no_grad():
            z = preference_loss.kto_reference_point(self._mismatched(policy, batch.mismatched))
        losses = preference_loss.kto(
            log_ratios, desirable, z,
            beta=c.beta, desirable_weight=c.desirable_weight, undesirable_weight=c.undesirable_weight,
        )  # fmt: skip
        loss = losses.mean()
        with torch.no_grad():
            chosen, rejected = masked_mean(log_ratios, desirable), masked_mean(log_ratios, ~desirable)
            terms = {
                "loss/preference": loss.detach(),
                "kto/reference_point": z,
                "preferences/accuracy": ((log_ratios > z) == desirable).float().mean(),
                "preferences/chosen_reward": c.beta * chosen,
                "preferences/rejected_reward": c.beta * rejected,
                "preferences/margin": c.beta * (chosen - rejected),
                "preferences/chosen_log_ratio": chosen,
                "preferences/rejected_log_ratio": rejected,
                "policy/entropy": masked_mean(new.entropy, texts.mask),
            }
        return loss, terms

    @staticmethod
    def _mismatched(policy: PolicyFunction, texts: Completions) -> Tensor:
        """(N,), log-ratios of completions that were written for other prompts."""
        new = policy(texts.observations, texts.actions)
        return masked_sum(new.log_probs - texts.reference_log_probs, texts.mask, dim=1)

    def update(self, batch: Labelled) -> Metrics:
        return self.updater.draws(self.loss, [batch], steps=batch.steps)

    def state_dict(self) -> State:
        return self.updater.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)
