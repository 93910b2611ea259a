"""Policies that only act, for searches over parameters that need no gradient.

They are deterministic: the action of the largest output, or for continuous actions the outputs themselves. A search
explores by its candidates' parameters and not by noise in their actions (Salimans et al. 2017, section 3.1), so that
greedy and stochastic evaluations of such a policy are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from pgcli.errors import InputError
from pgcli.types import ABSENT, Continuous, Discrete, Memoryless


class Crowd(Protocol):
    """Many candidates that act in one batch, each in its own rows."""

    def seat(self, candidates: np.ndarray) -> None:
        """Assigns row i to the candidate `candidates[i]`: (R,) int64."""
        ...

    def act(self, observations: np.ndarray) -> np.ndarray:
        """(R, *shape) -> actions, (R,) int64 or (R, A) float32."""
        ...


class Actor(nn.Module):
    """A deterministic policy, all of whose parameters are searched over.

    Args:
        module: holds the parameters.
        crowd: makes a crowd of candidates, (K, P) float32, each row the module's parameters, flattened in order.
    """

    unit = "action"
    has_critic = False
    deterministic = True

    def __init__(self, module: nn.Module, crowd: Callable[[np.ndarray], Crowd]) -> None:
        super().__init__()
        self.module, self.crowd = module, crowd

    def sampler(self) -> Alone:
        """The policy with its present parameters, for stepping an environment."""
        return Alone(self.crowd(parameters_to_vector(self.parameters()).detach().cpu().numpy()[None]))


class Alone(Memoryless):
    """Sampler for a single deterministic policy; it has no log-probs."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd, self.rows = crowd, -1

    def act(self, observations: np.ndarray, noise: None) -> tuple[np.ndarray, np.ndarray]:
        """The actions, also as the outputs: (actions, actions)."""
        if len(observations) != self.rows:
            self.rows = len(observations)
            self.crowd.seat(np.zeros(self.rows, dtype=np.int64))
        actions = self.crowd.act(observations)
        return actions, actions

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> None:
        return None

    def log_probs(self, outputs: Tensor, actions: Tensor) -> Tensor:
        return ABSENT


def outputs_of(actions: Discrete | Continuous) -> int:
    """Number of outputs that an action needs. Raises InputError for other action spaces."""
    match actions:
        case Discrete(n):
            return n
        case Continuous():
            return len(actions.low)
    raise InputError(f"no policy acts in the action space {actions}")


def choose(outputs: np.ndarray, actions: Discrete | Continuous) -> np.ndarray:
    """The actions of outputs (n, R), one column per row: the index of the (first) largest, or the outputs themselves.

    `argmax` along such a short axis costs several times as much.
    """
    match actions:
        case Discrete(2):
            return (outputs[1] > outputs[0]).astype(np.int64)
        case Discrete(n):
            best, chosen = outputs[0], np.zeros(outputs.shape[1], dtype=np.int64)
            for action in range(1, n):
                chosen[outputs[action] > best] = action
                best = np.maximum(best, outputs[action])
            return chosen
    return np.ascontiguousarray(outputs.T)


class ModuleCrowd:
    """Any module's candidates, one after the other in torch: for networks so large that the overhead does not matter.

    Args:
        network: observations (B, *shape) -> outputs (B, n).
    """

    def __init__(self, network: nn.Module, actions: Discrete | Continuous, candidates: np.ndarray) -> None:
        self.network, self.actions = network, actions
        self.named = dict(network.named_parameters())
        device = next(network.parameters()).device
        self.candidates = [self._unflatten(torch.from_numpy(c).to(device)) for c in candidates]

    def _unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        parts = vector.split([p.numel() for p in self.named.values()])
        return {name: x.view_as(p) for (name, p), x in zip(self.named.items(), parts, strict=True)}

    def seat(self, candidates: np.ndarray) -> None:
        self.seats = [(self.candidates[c], np.flatnonzero(candidates == c)) for c in np.unique(candidates)]
        self.order = np.argsort(candidates, kind="stable").argsort()  # from candidate by candidate to row by row

    @torch.no_grad()
    def act(self, observations: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(observations).to(next(iter(self.named.values())).device)
        outputs = torch.cat([functional_call(self.network, bound, x[rows]) for bound, rows in self.seats])
        return choose(outputs.cpu().numpy()[self.order].T, self.actions)


class PerceptronCrowd:
    """Many perceptrons at once: one product of stacked matrices per layer, (C, M, inputs) @ (C, inputs, outputs).

    C candidates have a row, M is the largest number of rows of one of them; unused rows are computed and ignored. With
    one row each, as in most searches, rows and matrices are in the same order and nothing is sorted.

    Args:
        sizes: units of the layers, from the inputs to the outputs.
    """

    def __init__(
        self, sizes: Sequence[int], activation: str, actions: Discrete | Continuous, candidates: np.ndarray
    ) -> None:
        self.sizes, self.actions = sizes, actions
        self.activate: Any = np.tanh if activation == "tanh" else partial(np.maximum, 0)
        self.layers, at = [], 0
        for a, b in pairwise(sizes):
            weights = candidates[:, at : at + a * b].reshape(-1, b, a).swapaxes(1, 2)
            if a < b:  # with few inputs the product takes a third of the time if outputs are contiguous
                weights = np.ascontiguousarray(weights)
            self.layers.append((weights, candidates[:, None, at + a * b : at + a * b + b]))
            at += a * b + b
        # What the products read: in place i the weights of the candidate `held[i]`.
        self.held = np.full(len(candidates), -1)
        self.holding = [(np.empty_like(weights), np.empty_like(biases)) for weights, biases in self.layers]

    def seat(self, candidates: np.ndarray) -> None:
        counts = np.bincount(candidates, minlength=len(self.held))
        self.most = int(counts.max())
        if self.most == 1:
            present, self.cells = candidates, None
        else:
            present, rows = np.flatnonzero(counts), np.arange(len(candidates))
            counts = counts[present]
            firsts = np.arange(len(present)) * self.most - (counts.cumsum() - counts)
            self.cells = np.empty_like(rows)
            self.cells[np.argsort(candidates, kind="stable")] = np.repeat(firsts, counts) + rows
        C = len(present)
        new = np.flatnonzero(self.held[:C] != present)
        self.held[:C] = present
        for (weights, biases), (every_weight, every_bias) in zip(self.holding, self.layers, strict=True):
            weights[new], biases[new] = every_weight[present[new]], every_bias[present[new]]
        self.seated = [(weights[:C], biases[:C]) for weights, biases in self.holding]

    def act(self, observations: np.ndarray) -> np.ndarray:
        inputs = observations
        if self.cells is not None:
            inputs = np.zeros((len(self.seated[0][0]) * self.most, self.sizes[0]), dtype=np.float32)
            inputs[self.cells] = observations
        x = inputs.reshape(-1, self.most, self.sizes[0])
        for number, (weights, biases) in enumerate(self.seated, 1):
            x = x @ weights
            x += biases
            if number < len(self.seated):
                self.activate(x, out=x)
        outputs = x.reshape(-1, self.sizes[-1])
        return choose((outputs if self.cells is None else outputs[self.cells]).T, self.actions)
