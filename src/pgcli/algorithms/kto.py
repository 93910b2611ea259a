"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, eq. 8): from completions labelled desirable or not.

    gain = log pi(y | x) - log ref(y | x) - z      z = max(0, mean of the log-ratio of completions y' of other prompts)
    L    = E[ w_d sigmoid(-beta gain) ] over desirable ones + E[ w_u sigmoid(beta gain) ] over the others

Gains and losses are relative to a reference point z, and both saturate: a completion far on its right side, or far on
its wrong one, teaches little. z is estimated from mismatched pairs, and no gradient flows into it.

Differs from DPO: there are no pairs. Each completion has a label of its own, and no second completion of its prompt is
needed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pgcli import processes
from pgcli.algorithms import _update
from pgcli.algorithms._update import LargeNetwork, Terms, Updater
from pgcli.collectors.settings import Texts
from pgcli.functional import preference_loss
from pgcli.functional.masked import masked_sum
from pgcli.types import Completions, Labelled, Metrics, Needs, PolicyFunction, State, Stochastic


class KTO:
    class Config(LargeNetwork, Texts):
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
        self.policy, self.config = policy, config
        self.updater = Updater(policy, config, total_steps=total_steps, seed=seed)

    def prepare(self, batch: Labelled) -> Labelled:
        """With z at the present policy: of all mismatched rows, read in microbatches."""
        policy = processes.shared(self.policy.once_differentiable())
        size = self.config.microbatch or len(batch)
        pieces = [batch.mismatched.pick(slice(first, first + size)) for first in range(0, len(batch), size)]
        with torch.no_grad():
            ratios = torch.cat([self._log_ratios(policy, piece) for piece in pieces])
        return replace(batch, reference_point=preference_loss.kto_reference_point(ratios))

    def loss(self, policy: PolicyFunction, batch: Labelled, noise: None) -> tuple[Tensor, Terms]:
        c, texts, desirable, z = self.config, batch.texts, batch.desirable, batch.reference_point
        new = policy(texts.observations, texts.actions)
        log_ratios = masked_sum(new.log_probs - texts.reference_log_probs, texts.mask, dim=1)  # (N,)
        losses = preference_loss.kto(
            log_ratios, desirable, z,
            beta=c.beta, desirable_weight=c.desirable_weight, undesirable_weight=c.undesirable_weight,
        )  # fmt: skip
        loss = batch.mean(losses, over="rows")
        with torch.no_grad():
            terms = {
                "loss/preference": loss.detach(),
                "kto/reference_point": batch.mean(z.expand_as(losses), over="rows"),
                "preferences/accuracy": batch.mean(((log_ratios > z) == desirable).float(), over="rows"),
                "policy/entropy": batch.mean(new.entropy, over="tokens"),
            }
            chosen, rejected = batch.mean(log_ratios, over="desirable"), batch.mean(log_ratios, over="undesirable")
            for name, mean in (("chosen", chosen), ("rejected", rejected)):
                terms |= {f"preferences/{name}_log_ratio": mean, f"preferences/{name}_reward": c.beta * mean}
            terms["preferences/margin"] = c.beta * (chosen - rejected)
        return loss, terms

    @staticmethod
    def _log_ratios(policy: PolicyFunction, texts: Completions) -> Tensor:
        """(N,), log-ratios of whole completions."""
        new = policy(texts.observations, texts.actions)
        return masked_sum(new.log_probs - texts.reference_log_probs, texts.mask, dim=1)

    def implicit_reward(self, policy: PolicyFunction, texts: Completions) -> Tensor:
        """(N,): as of DPO."""
        return self.config.beta * self._log_ratios(policy, texts)

    def update(self, batch: Labelled) -> Metrics:
        metrics = self.updater.draws(self.loss, [self.prepare(batch)], steps=batch.steps)
        # A mean over no completion is no 0.
        sides = {"preferences/chosen_": batch.desirable.any(), "preferences/rejected_": batch.undesirable.any()}
        empty = tuple(name for name, seen in sides.items() if not seen)
        unsaid = (*empty, "preferences/margin") if empty else ()
        return {key: value for key, value in metrics.items() if not key.startswith(unsaid)}

    def state_dict(self) -> State:
        return self.updater.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)
