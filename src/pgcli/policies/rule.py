"""A decision list: the first rule whose comparison holds gives the action. It has no gradient, only parameters.

    if   s_1 o[f_1] > t_1: action a_1
    elif s_2 o[f_2] > t_2: action a_2
    ...
    else:                  action a_0                    s: +1 or -1; o[f]: a feature of the observation; t: a threshold

The parameters are real numbers (L rules, I features, n actions or A components of a continuous one):

    votes    L x 2 I   the largest chooses s_l and f_l: the first I stand for +1, the others for -1
    t        L
    action   L + 1 x n the largest chooses a_l (the last row a_0); continuous actions, L + 1 x A, are taken as they are

Small changes of a vote change nothing until another vote is the largest: the return is a step function, whose gradient
is zero wherever it exists. Evolution strategies smooth it; a genetic algorithm does not need a gradient.
Source: Rivest 1987, "Learning Decision Lists", with comparisons for literals.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from pgcli.policies.acting import Actor, outputs_of
from pgcli.settings import Settings
from pgcli.types import Acting, Continuous, ControlSpec, Discrete, Needs


class Rule(nn.Module):
    """The parameters of a decision list, standard normal at first: random rules with thresholds near zero."""

    offers: ClassVar = (Acting,)
    reads: ClassVar = ("vectors", "images", "arrays")

    class Config(Settings):
        name: Literal["rule"]
        rules: int = Field(ge=1, le=1000, description="number of comparisons, made one after the other until one holds")

    @classmethod
    def make(cls, spec: ControlSpec, config: Config, needs: Needs, generator: torch.Generator) -> Actor:
        inputs = int(np.prod(spec.observation_shape))
        rules = cls(config.rules, inputs, outputs_of(spec.actions), generator)
        return Actor(rules, partial(RuleCrowd, config.rules, inputs, spec.actions))

    def __init__(self, rules: int, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.votes = nn.Parameter(torch.randn((rules, 2 * inputs), generator=generator))
        self.thresholds = nn.Parameter(torch.randn(rules, generator=generator))
        self.actions = nn.Parameter(torch.randn((rules + 1, outputs), generator=generator))


class RuleCrowd:
    """Many decision lists at once, (K, P) candidates in the order of `Rule`'s parameters."""

    def __init__(self, rules: int, inputs: int, actions: Discrete | Continuous, candidates: np.ndarray) -> None:
        K, at = len(candidates), rules * 2 * inputs
        chosen = candidates[:, :at].reshape(K, rules, 2 * inputs).argmax(2)
        self.features = (chosen % inputs).T  # (L, K)
        self.signs = np.where(chosen < inputs, 1, -1).T.astype(np.float32)
        self.thresholds = candidates[:, at : at + rules].T
        said = candidates[:, at + rules :].reshape(K, rules + 1, -1).swapaxes(0, 1)
        self.said = said.argmax(2) if isinstance(actions, Discrete) else said  # (L + 1, K) or (L + 1, K, A)

    def seat(self, candidates: np.ndarray) -> None:
        self.rows = np.arange(len(candidates))
        *rules, self.otherwise = self.said[:, candidates]
        comparisons = (x[:, candidates] for x in (self.features, self.signs, self.thresholds))
        self.list = list(zip(*comparisons, rules, strict=True))

    def act(self, observations: np.ndarray) -> np.ndarray:
        observations = observations.reshape(len(observations), -1)
        actions = self.otherwise.copy()
        for feature, sign, threshold, said in reversed(self.list):  # so that an earlier rule overrides a later one
            holds = sign * observations[self.rows, feature] > threshold
            actions[holds] = said[holds]
        return actions
