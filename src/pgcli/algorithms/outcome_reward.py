"""Reward models of correctness: of the outcome (Cobbe et al. 2021), or of each step (Lightman et al. 2023).

    P(right) = sigmoid(s_t)       s: the score at the last token of a completion, or of a step
    L = -E[ y log sigmoid(s_t) + (1 - y) log sigmoid(-s_t) ]

    algo=outcome_reward   y of a whole completion: is the answer right?
    algo=process_reward   y of each of its steps, as the task checks them: a right answer for a wrong reason is seen

The completions are the initial policy's, two for each prompt. As a reward, an outcome model pays its probability at the
end; a process model pays each step the change in the probability that all steps are right.

Differs from a reward model of preferences: each label belongs to a single completion, and the sigmoid of a score is a
probability by itself.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pgcli.algorithms import _update
from pgcli.algorithms._update import LargeNetwork, Terms, Updater
from pgcli.collectors.settings import Texts
from pgcli.functional.preference_loss import correctness
from pgcli.types import Checked, Metrics, Needs, Scores, State


class OutcomeReward:
    class Config(LargeNetwork, Texts):
        name: Literal["outcome_reward"]
        labels: Literal["outcome", "process"] = Field(
            description="what is labelled right or wrong: whole completions, or each of their steps"
        )
        ensemble: int = Field(
            ge=1, description="members of the ensemble; they differ in the initialisation of their heads"
        )

    METRICS: ClassVar = _update.METRICS | {
        "loss/correctness": "cross-entropy of the labels, mean over labels and members",
        "correctness/accuracy": "share of labels that the members' mean probability predicts, with 1/2 as the "
        "threshold",
        "correctness/right": "mean probability given to right completions or steps",
        "correctness/wrong": "mean probability given to wrong completions or steps",
        "correctness/disagreement": "standard deviation of the members' probabilities, mean over labels; 0 for a "
        "single member",
    }
    collects = ("checked",)
    actions = ("discrete",)

    @staticmethod
    def needs(config: Config) -> Needs:
        return Scores(members=config.ensemble)

    @staticmethod
    def reads(config: Config) -> str:
        """What its scores mean when they are used as a reward."""
        return config.labels

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.config = config
        self.updater = Updater(policy, config, total_steps=total_steps, seed=seed)

    def loss(self, policy: Any, batch: Checked, noise: None) -> tuple[Tensor, Terms]:
        scores = policy(batch.texts.observations, batch.texts.actions)  # (members, N, T)
        # Each label counts the same, so that a completion of many steps counts more. A sum over members, so that a
        # member's gradient does not depend on how many there are.
        loss = batch.mean(correctness(scores, batch.right), over="known")
        with torch.no_grad():
            probabilities = torch.sigmoid(scores)
            mean = probabilities.mean(0)
            terms = {
                "loss/correctness": loss / len(scores),
                "correctness/accuracy": batch.mean(((mean > 0.5) == (batch.right > 0.5)).float(), over="known"),
                "correctness/right": batch.mean(mean, over="known_right"),
                "correctness/wrong": batch.mean(mean, over="known_wrong"),
                "correctness/disagreement": batch.mean(probabilities.std(0, correction=0), over="known"),
            }
        return loss, terms

    def update(self, batch: Checked) -> Metrics:
        metrics = self.updater.draws(self.loss, [batch], steps=batch.steps)
        seen = {"correctness/right": batch.known_right.any(), "correctness/wrong": batch.known_wrong.any()}
        return {key: value for key, value in metrics.items() if seen.get(key, True)}  # a mean over nothing is no 0

    def state_dict(self) -> State:
        return self.updater.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)
