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
        """Assigns row i to the candidate `candidates[i]`: (R,) int64, ascending."""
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
        present, starts = np.unique(candidates, return_index=True)
        ends = [*starts[1:], len(candidates)]
        self.seats = [(self.candidates[c], slice(*place)) for c, *place in zip(present, starts, ends, strict=True)]

    @torch.no_grad()
    def act(self, observations: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(observations).to(next(iter(self.named.values())).device)
        outputs = torch.cat([functional_call(self.network, bound, x[rows]) for bound, rows in self.seats])
        return choose(outputs.cpu().numpy().T, self.actions)


class PerceptronCrowd:
    """Many perceptrons at once: one product of stacked matrices per layer, (C, M, inputs) @ (C, inputs, outputs).

    C candidates have an open row, M is the largest number of rows of one of them; unused rows are computed and ignored.

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
            biases = np.ascontiguousarray(candidates[:, None, at + a * b : at + a * b + b])
            self.layers.append((weights, biases))
            at += a * b + b
        self.held = np.arange(len(candidates))
        self.holding = self.layers

    def seat(self, candidates: np.ndarray) -> None:
        rows = np.arange(len(candidates))
        starts = rows[np.concatenate([[True], candidates[1:] != candidates[:-1]])]
        present, counts = candidates[starts], np.diff(starts, append=len(rows))
        places = np.searchsorted(self.held, present)
        if len(present) < 0.75 * len(self.held) or not np.array_equal(self.held.take(places, mode="clip"), present):
            self.held, places = present, np.arange(len(present))
            # Removing ended rows copies all the others.
            self.holding = [(weights[present], biases[present]) for weights, biases in self.layers]
        self.most = int(counts.max())
        cells = np.repeat(places * self.most - starts, counts) + rows
        self.cells = cells if len(cells) < len(self.held) * self.most else slice(None)

    def act(self, observations: np.ndarray) -> np.ndarray:
        inputs = np.zeros((len(self.held) * self.most, self.sizes[0]), dtype=np.float32)
        inputs[self.cells] = observations
        x = inputs.reshape(len(self.held), self.most, -1)
        for number, (weights, biases) in enumerate(self.holding, 1):
            x = x @ weights
            x += biases
            if number < len(self.holding):
                self.activate(x, out=x)
        return choose(x.reshape(-1, self.sizes[-1])[self.cells].T, self.actions)
