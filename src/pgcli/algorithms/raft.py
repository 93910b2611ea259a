"""Reward-ranked fine-tuning, or rejection sampling (Dong et al. 2023, algorithm 1; Touvron et al. 2023, section 3.2.3).

    keep the best of the K episodes of each group
    L = -E_kept[ log pi(a_t | s_t) ]

The policy imitates its own best attempts: the kept episodes are samples of best-of-K, whose expected return is higher
and whose KL divergence from the policy is at most log K - (K - 1) / K.

    selection=top_per_prompt   the best of each group, even if the best is bad
    selection=top_k_overall    the best of all episodes, as many as there are groups: easy prompts win
    selection=random           one of each group, at random: the effect of self-imitation alone

Differs from RLOO and GRPO: episodes worse than the best teach nothing, and no episode is made less likely.
Differs from SFT: the demonstrations are the policy's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pgcli.algorithms import _update
from pgcli.algorithms._update import LargeNetwork, Terms, Updater, by_unit
from pgcli.collectors.settings import Groups
from pgcli.functional.advantages import best_of_each_group
from pgcli.functional.masked import masked_sum, weighted_sum
from pgcli.functional.policy_loss import policy_gradient
from pgcli.types import Batch, Metrics, Needs, PolicyFunction, Rollout, State, Stochastic


class RAFT:
    class Config(LargeNetwork, Groups):
        name: Literal["raft"]
        selection: Literal["top_per_prompt", "top_k_overall", "random"] = Field(
            description="which episodes are kept: the best of each group; the best of all, as many as groups; one of "
            "each group at random"
        )
        epochs: int = Field(ge=1, description="gradient steps on the kept episodes")

    METRICS: ClassVar = _update.METRICS | {
        "loss/policy": "negative log-likelihood of the kept episodes, per action",
        "policy/entropy": "entropy of the policy at the kept episodes' states, mean per action",
        "selection/return": "mean return of the kept episodes",
        "selection/gain": "mean return of the kept episodes minus that of all; 0 on average for selection=random",
    }
    collects = ("groups",)
    actions = ("discrete", "continuous")

    @staticmethod
    def needs(config: Config) -> Needs:
        return Stochastic()

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.policy, self.config = policy, config
        self.updater = Updater(policy, config, total_steps=total_steps, seed=seed)

    def select(self, returns: Tensor, groups: Tensor) -> Tensor:
        """(N,) bool: the episodes to keep."""
        match self.config.selection:
            case "top_k_overall":
                kept = returns.argsort(descending=True, stable=True)[: len(groups.unique())]
                return torch.zeros_like(groups, dtype=torch.bool).index_fill(0, kept, True)
            case "random":
                returns = torch.rand(len(returns), generator=self.updater.generator).to(returns)
        return best_of_each_group(returns, groups)

    def prepare(self, rollout: Rollout) -> Batch:
        """The kept rows, weighted among themselves; the others are dropped, so that nothing is computed for them."""
        returns = masked_sum(rollout.rewards, rollout.mask, dim=1)
        kept = self.select(returns, rollout.groups)
        chosen = replace(rollout, mask=rollout.mask & kept[:, None])
        ones = torch.ones_like(rollout.rewards)
        return chosen.batch(ones, "token_mean", returns[:, None].expand_as(ones))[kept.nonzero().squeeze(1)]

    def loss(self, policy: PolicyFunction, batch: Batch, noise: None) -> tuple[Tensor, Terms]:
        new = policy(batch.observations, batch.actions)
        policy_loss = weighted_sum(policy_gradient(new.log_probs, batch.advantages), batch.weights)
        return policy_loss, {"loss/policy": policy_loss, "policy/entropy": weighted_sum(new.entropy, batch.per_action)}

    def update(self, rollout: Rollout) -> Metrics:
        batch = self.prepare(rollout)
        pieces = [by_unit(self.policy, batch)] * self.config.epochs
        metrics = self.updater.draws(self.loss, pieces, steps=rollout.steps)
        mean = batch.returns[:, 0].mean()
        gain = mean - masked_sum(rollout.rewards, rollout.mask, dim=1).mean()
        return metrics | {"selection/return": float(mean), "selection/gain": float(gain)}

    def state_dict(self) -> State:
        return self.updater.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)
