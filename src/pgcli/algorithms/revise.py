"""Critique and revision: the supervised half of constitutional AI (Bai et al. 2022, section 3).

    y_0 ~ pi_w(. | x)                                an answer to the request x
    c_k = what the constitution criticises in y_k    without criticism y_k stays as it is
    y_{k+1} ~ pi_w(. | x, y_k, c_k)                  the writer itself revises it, up to K times
    L = -E[ log pi(y_K | x) ]                        the revision becomes the answer to the request alone

pi_w is the frozen initial policy, as in the paper, so that answers with nothing wrong in them keep the policy as
helpful as it was. With `writer: policy` it is the present policy: its later answers need fewer revisions, but the
unrevised ones do not keep it in place, because E[grad log pi(y)] = 0 for its own samples.

Differs from SFT: no teacher; the policy learns from text of a policy, written after a rule said what was wrong.
Differs from RLAIF: nothing is compared and no reward is maximised; the constitution says in words what to correct.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pgcli.algorithms import _update
from pgcli.algorithms._update import LargeNetwork, Terms, Updater
from pgcli.collectors.settings import Revisions
from pgcli.functional.masked import weighted_sum
from pgcli.functional.policy_loss import policy_gradient
from pgcli.types import Batch, Metrics, Needs, PolicyFunction, Rollout, State, Stochastic


class Revise:
    class Config(LargeNetwork, Revisions):
        name: Literal["revise"]

    METRICS: ClassVar = _update.METRICS | {
        "loss/policy": "negative log-likelihood of the revisions as answers, in nats per token",
        "policy/entropy": "entropy of the policy at the revisions, mean per token, in nats",
    }
    collects = ("revisions",)
    actions = ("discrete",)

    @staticmethod
    def needs(config: Config) -> Needs:
        return Stochastic()

    @staticmethod
    def refers(config: Config) -> bool:
        """The frozen initial policy writes; with `writer: policy` it still measures how far the policy has moved."""
        return True

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.config = config
        self.updater = Updater(policy, config, total_steps=total_steps, seed=seed)

    def prepare(self, rollout: Rollout) -> Batch:
        return rollout.batch(torch.ones_like(rollout.rewards), "token_mean")

    def loss(self, policy: PolicyFunction, batch: Batch, noise: None) -> tuple[Tensor, Terms]:
        new = policy(batch.observations, batch.actions)
        policy_loss = weighted_sum(policy_gradient(new.log_probs, batch.advantages), batch.weights)
        return policy_loss, {"loss/policy": policy_loss, "policy/entropy": weighted_sum(new.entropy, batch.per_action)}

    def update(self, rollout: Rollout) -> Metrics:
        return self.updater.one_step(self.loss, self.prepare(rollout), steps=rollout.steps)

    def state_dict(self) -> State:
        return self.updater.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)
