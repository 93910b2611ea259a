"""Direct preference optimisation (Rafailov et al. 2023, eq. 7) and its family: a policy learns from pairs directly.

    log_ratio(y) = log pi(y | x) - log ref(y | x)
    L = -E[ log sigmoid(beta (log_ratio(preferred) - log_ratio(rejected))) ]

The policy is its own reward model: r = beta log_ratio, up to a constant per prompt. The minimum over all policies is
the optimum of the expected reward less beta KL(pi || ref), found without a reward model and without sampling.

    algo=dpo         as above                            algo=simpo      averaged log-probs, a margin, no reference
    algo=cdpo        labels taken to be wrong at times   algo=orpo       odds ratio and likelihood, no reference
    algo=ipo         a margin of 1 / (2 beta), no more   algo=apo_zero   preferred up, rejected down
    algo=dpo_norm    log-ratios averaged over tokens     algo=apo_down   both down, rejected more
    algo=online_dpo  on fresh pairs that the policy has just written and a judge has compared (Guo et al. 2024)

Differs from a reward model followed by PPO: nothing is sampled (except by online_dpo), so the loss never sees what the
policy would write now; the log-prob of the *preferred* completions may fall too (`preferences/chosen_log_ratio`).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pgcli.algorithms import _update
from pgcli.algorithms._update import LargeNetwork, Terms, Updater
from pgcli.collectors.settings import FreshPairs
from pgcli.functional import preference_loss
from pgcli.functional.masked import masked_mean, masked_sum
from pgcli.types import Completions, Metrics, Needs, PolicyFunction, Preferences, State, Stochastic


class DPO:
    class Config(LargeNetwork, FreshPairs):
        name: Literal["dpo"]
        loss: Literal["dpo", "ipo", "simpo", "orpo", "apo_zero", "apo_down"] = Field(
            description="loss computed from the two completions' log-ratios (simpo, orpo: from their log-probs)"
        )
        beta: float = Field(
            gt=0, description="price of leaving the reference; with loss=orpo, weight of the odds ratio"
        )
        label_smoothing: float = Field(
            ge=0, lt=0.5, description="with loss=dpo: share of labels that are taken to be wrong"
        )
        gamma: float = Field(
            ge=0, description="with loss=simpo: margin by which the preferred reward must exceed the rejected one"
        )
        length_normalised: bool = Field(
            description="average log-probs over a completion's tokens; otherwise sum them, as in the papers of DPO and "
            "IPO"
        )
        likelihood_coefficient: float = Field(
            ge=0,
            description="weight of the preferred completions' negative log-likelihood per token, added to the loss",
        )

        @model_validator(mode="after")
        def _fits_together(self) -> DPO.Config:
            if self.loss in {"simpo", "orpo"} and not self.length_normalised:
                raise ValueError(f"the loss {self.loss} is one of averaged log-probs: length_normalised=true")
            if self.label_smoothing and self.loss != "dpo":
                raise ValueError(f"the loss {self.loss} has no label_smoothing: leave it at 0, or take loss=dpo")
            if self.gamma and self.loss != "simpo":
                raise ValueError(f"the loss {self.loss} has no gamma: leave it at 0, or take loss=simpo")
            return self

    METRICS: ClassVar = _update.METRICS | {
        "loss/preference": "preference loss, mean over pairs, without the likelihood term",
        "loss/likelihood": "negative log-likelihood of the preferred completions, in nats per token",
        "preferences/accuracy": "share of pairs whose preferred completion has the larger implicit reward",
        "preferences/margin": "implicit reward of the preferred completion minus that of the rejected, mean",
        "preferences/chosen_reward": "beta times the log-ratio (simpo, orpo: log-prob) of preferred completions, mean",
        "preferences/rejected_reward": "beta times the log-ratio (simpo, orpo: log-prob) of rejected completions, mean",
        "preferences/chosen_log_ratio": "log pi - log reference of a preferred completion, summed over tokens, mean",
        "preferences/rejected_log_ratio": "log pi - log reference of a rejected completion, summed over tokens, mean",
        "preferences/log_odds_ratio": "log odds of a preferred completion's average token minus those of the rejected "
        "one's, mean; with loss=orpo",
        "policy/entropy": "entropy of the policy at the tokens of both completions, mean per token, in nats",
    }  # fmt: skip
    collects = ("pairs", "judged")
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

    def loss(self, policy: PolicyFunction, batch: Preferences, noise: None) -> tuple[Tensor, Terms]:
        c, texts = self.config, batch.texts
        new = policy(texts.observations, texts.actions)
        chosen, rejected = self._measured(new.log_probs, texts).chunk(2)  # (B,) each
        match c.loss:
            case "dpo":
                losses = preference_loss.dpo(chosen, rejected, beta=c.beta, label_smoothing=c.label_smoothing)
            case "ipo":
                losses = preference_loss.ipo(chosen, rejected, beta=c.beta)
            case "simpo":
                losses = preference_loss.simpo(chosen, rejected, beta=c.beta, gamma=c.gamma)
            case "orpo":
                losses = c.beta * preference_loss.odds_ratio(chosen, rejected)
            case "apo_zero":
                losses = preference_loss.apo_zero(chosen, rejected, beta=c.beta)
            case "apo_down":
                losses = preference_loss.apo_down(chosen, rejected, beta=c.beta)
        likelihood = -batch.mean(new.log_probs[: len(batch)], over="chosen_tokens")
        loss = batch.mean(losses, over="pairs")

        with torch.no_grad():
            ratios = masked_sum(new.log_probs - texts.reference_log_probs, texts.mask, dim=1)
            chosen_ratio, rejected_ratio = ratios.chunk(2)
            terms = {
                "loss/preference": loss.detach(),
                "loss/likelihood": likelihood.detach(),
                "preferences/accuracy": batch.mean((chosen > rejected).float(), over="pairs"),
                "preferences/margin": c.beta * batch.mean(chosen - rejected, over="pairs"),
                "preferences/chosen_reward": c.beta * batch.mean(chosen, over="pairs"),
                "preferences/rejected_reward": c.beta * batch.mean(rejected, over="pairs"),
                "preferences/chosen_log_ratio": batch.mean(chosen_ratio, over="pairs"),
                "preferences/rejected_log_ratio": batch.mean(rejected_ratio, over="pairs"),
                "policy/entropy": batch.mean(new.entropy, over="tokens"),
            }
            if c.loss == "orpo":
                odds = preference_loss.log_odds(chosen) - preference_loss.log_odds(rejected)
                terms["preferences/log_odds_ratio"] = batch.mean(odds, over="pairs")
        return loss + c.likelihood_coefficient * likelihood, terms

    def _measured(self, log_probs: Tensor, texts: Completions) -> Tensor:
        """(N,): what the loss compares, each completion's log-ratio, or its log-prob without a reference."""
        measured = log_probs if self.config.loss in {"simpo", "orpo"} else log_probs - texts.reference_log_probs
        return (masked_mean if self.config.length_normalised else masked_sum)(measured, texts.mask, dim=1)

    def implicit_reward(self, policy: PolicyFunction, texts: Completions) -> Tensor:
        """(N,): the reward that this policy is the best one for, up to a constant of the prompt; section 4."""
        return self.config.beta * self._measured(policy(texts.observations, texts.actions).log_probs, texts)

    def update(self, batch: Preferences) -> Metrics:
        return self.updater.draws(self.loss, [batch], steps=batch.steps)

    def state_dict(self) -> State:
        return self.updater.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)
