"""Supervised fine-tuning on demonstrations: maximum likelihood, which is policy gradient with advantage 1.

    L = -E_demonstrations[ log pi(a_t | s_t) ]

    algo=sft        a teacher's answers, given prompts
    algo=pretrain   a corpus, prompts included

Differs from REINFORCE: the actions are a teacher's, not the policy's own, and every one of them is taken to be right.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pgcli.algorithms import _update
from pgcli.algorithms._update import LargeNetwork, Terms, Updater
from pgcli.collectors.settings import Demonstrations
from pgcli.functional.masked import weighted_sum
from pgcli.functional.policy_loss import policy_gradient
from pgcli.types import Batch, Metrics, Needs, PolicyFunction, Rollout, State, Stochastic


class SFT:
    class Config(LargeNetwork, Demonstrations):
        name: Literal["sft"]

    METRICS: ClassVar = _update.METRICS | {
        "loss/policy": "negative log-likelihood of the demonstrations, in nats per token",
        "policy/entropy": "entropy of the policy at the demonstrations, mean per token, in nats",
    }
    collects = ("demonstrations",)
    actions = ("discrete",)

    @staticmethod
    def needs(config: Config) -> Needs:
        return Stochastic()

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
