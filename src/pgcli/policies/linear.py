"""A linear policy: softmax of linear preferences, a Gaussian with a linear mean, or deterministic actions."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pgcli.policies.acting import Actor, choose, outputs_of
from pgcli.policies.actor_critic import ActorCritic, ArrayNetwork
from pgcli.policies.heads import HeadSettings, make_head
from pgcli.types import Acting, Continuous, ControlSpec, Discrete, Needs, Stochastic


class Linear(ActorCritic):
    """Preferences or means W o + b, and if there is a critic V = w o + b. Observations of any shape, flattened.

    All parameters start at zero: without a hidden layer there is no symmetry to break, and every action is as likely
    as any other. (Sutton & Barto 2018, section 13.1; Rajeswaran et al. 2017 and Mania et al. 2018 for control.)
    """

    offers: ClassVar = (Stochastic, Acting)
    reads: ClassVar = ("vectors", "images", "arrays")

    class Config(HeadSettings):
        name: Literal["linear"]

    @classmethod
    def make(cls, spec: ControlSpec, config: Config, needs: Needs, generator: torch.Generator) -> Linear | Actor:
        match needs:
            case Acting():
                affine = Affine(spec, outputs_of(spec.actions))
                return Actor(affine, partial(AffineCrowd, spec.actions))
            case Stochastic(critic):
                return cls(spec, config, critic=critic)
        raise AssertionError(needs)

    def __init__(self, spec: ControlSpec, config: Config, *, critic: bool) -> None:
        head = make_head(spec.actions, config)
        actor = Affine(spec, head.size)
        super().__init__(actor, head, Affine(spec, 1) if critic else None, actor.arrays)


class Affine(nn.Linear):
    """x -> W x + b, both zero at first: (B, *shape) -> (B, outputs)."""

    def __init__(self, spec: ControlSpec, outputs: int) -> None:
        super().__init__(int(np.prod(spec.observation_shape)), outputs)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))

    def arrays(self) -> ArrayNetwork:
        """The same map in NumPy, on the same weights."""
        weight, bias = self.weight.detach().cpu().numpy().T, self.bias.detach().cpu().numpy()
        return lambda x: x.reshape(len(x), -1) @ weight + bias


class AffineCrowd:
    """Many affine maps at once, one per row: the products are too small for BLAS to be worth a call."""

    def __init__(self, actions: Discrete | Continuous, candidates: np.ndarray) -> None:
        self.actions = actions
        n = outputs_of(actions)
        last = np.ascontiguousarray(candidates.T)  # one candidate per column: then operations run on contiguous rows
        self.weights = last[:-n].reshape(n, -1, len(candidates)).swapaxes(0, 1)  # (inputs, n, K)
        self.biases = last[-n:]  # (n, K)
        if actions == Discrete(2):  # only the difference of the two preferences matters
            self.weights, self.biases = np.diff(self.weights, axis=1), np.diff(self.biases, axis=0)

    def seat(self, candidates: np.ndarray) -> None:
        weights = self.weights.take(candidates, axis=2)
        self.seated = weights, self.biases.take(candidates, axis=1), np.empty_like(weights)

    def act(self, observations: np.ndarray) -> np.ndarray:
        weights, biases, terms = self.seated
        inputs = observations.reshape(len(observations), -1).T.copy()
        np.multiply(weights, inputs[:, None], out=terms)
        outputs = np.add.reduce(terms, axis=0)
        outputs += biases
        if self.actions == Discrete(2):
            return (outputs[0] > 0).astype(np.int64)
        return choose(outputs, self.actions)
