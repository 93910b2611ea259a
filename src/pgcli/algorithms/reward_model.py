"""A reward model of preferences: Bradley and Terry's, as in Stiennon et al. 2020 and Ouyang et al. 2022, eq. 1.

    P(y preferred to y') = sigmoid(s(x, y) - s(x, y'))        s: the score at the last token of a completion
    L = -E[ log sigmoid(s(preferred) - s(rejected)) ]

The policy of this method is a judge: a language model that gives a score instead of the next token. An ensemble's
members learn side by side, each from its own bootstrap of the pairs; their disagreement measures what the pairs leave
undetermined.

Differs from DPO: the reward becomes a model of its own, to be used by any method (`reward=runs/<this one>`), as long as
the optimised policy stays near the pairs. It has no unit and no zero: both are set where it is used.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pgcli.algorithms import _update
from pgcli.algorithms._update import LargeNetwork, Terms, Updater
from pgcli.collectors.learned_reward import last_score
from pgcli.collectors.settings import Pairs
from pgcli.functional.preference_loss import bradley_terry
from pgcli.seeding import derive, mix, uniforms
from pgcli.types import Metrics, Needs, Preferences, Scores, State

POISSON = np.cumsum([np.exp(-1) / x for x in (1, 1, 2, 6, 24, 120)])
"""P(k <= 0), ... P(k <= 5) of Poisson's law with mean 1."""


class RewardModel:
    class Config(LargeNetwork, Pairs):
        name: Literal["reward_model"]
        ensemble: int = Field(
            ge=1, description="members of the ensemble; if there are several, each has its own bootstrap of the pairs"
        )
        margin: float = Field(ge=0, description="margin by which the preferred score must exceed the rejected one")
        centring: float = Field(
            ge=0, description="weight of the squared sum of a pair's scores, which holds them near 0"
        )

    METRICS: ClassVar = _update.METRICS | {
        "loss/preference": "negative log-likelihood of the labels, mean over pairs and members",
        "preferences/accuracy": "share of pairs whose preferred completion has the higher score, by the members' mean",
        "preferences/margin": "score of the preferred completion minus that of the rejected, mean",
        "preferences/chosen_score": "score of the preferred completions, mean over pairs and members",
        "preferences/rejected_score": "score of the rejected completions, mean over pairs and members",
        "preferences/disagreement": "standard deviation of the members' margins of a pair, mean over pairs; 0 for a "
        "single member",
    }  # fmt: skip
    collects = ("pairs",)
    actions = ("discrete",)

    @staticmethod
    def needs(config: Config) -> Needs:
        return Scores(members=config.ensemble)

    @staticmethod
    def reads(config: Config) -> str:
        """What its scores mean when they are used as a reward."""
        return "preference"

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.config, self.seed = config, seed
        self.updater = Updater(policy, config, total_steps=total_steps, seed=seed)

    def loss(self, policy: Any, batch: Preferences, noise: None) -> tuple[Tensor, Terms]:
        texts, c = batch.texts, self.config
        scores = policy(texts.observations, texts.actions)  # (members, 2B, T)
        chosen, rejected = last_score(scores, texts.mask).chunk(2, dim=1)  # (members, B)
        losses = bradley_terry(chosen, rejected, margin=c.margin, centring=c.centring)
        weights = bootstrap(batch.numbers, c.ensemble, self.seed).to(losses)
        # A sum over members, so that a member's gradient does not depend on how many there are.
        loss = batch.mean(weights * losses, over="pairs")
        with torch.no_grad():
            margins = chosen - rejected
            terms = {
                "loss/preference": batch.mean(losses.mean(0), over="pairs"),
                "preferences/accuracy": batch.mean((margins.mean(0) > 0).float(), over="pairs"),
                "preferences/margin": batch.mean(margins.mean(0), over="pairs"),
                "preferences/chosen_score": batch.mean(chosen.mean(0), over="pairs"),
                "preferences/rejected_score": batch.mean(rejected.mean(0), over="pairs"),
                "preferences/disagreement": batch.mean(margins.std(0, correction=0), over="pairs"),
            }
        return loss, terms

    def update(self, batch: Preferences) -> Metrics:
        return self.updater.draws(self.loss, [batch], steps=batch.steps)

    def state_dict(self) -> State:
        return self.updater.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)


def bootstrap(numbers: Tensor, members: int, seed: int) -> Tensor:
    """(B,) -> (members, B): how often each member's sample, drawn with replacement, holds each pair: 0, 1, 2, ...

    Poisson with mean 1, the limit of a bootstrap of many pairs, and a function of the pair's number and the member's:
    the same in each epoch. A single member sees each pair once.
    """
    if members == 1:
        return torch.ones(1, len(numbers))
    keys = numbers.cpu().numpy().astype(np.uint64)
    counts = [
        np.searchsorted(POISSON, uniforms(mix(keys) ^ np.uint64(derive(seed, "member", member)), 1)[:, 0])
        for member in range(members)
    ]
    return torch.from_numpy(np.stack(counts))
