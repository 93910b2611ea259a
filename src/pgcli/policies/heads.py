"""From a network's outputs to actions: one head for each kind of action space.

A head's mathematics is `functional.distributions`; what is here are its parameters, and its sampling in NumPy, which is
several times faster than torch on the few rows of a single environment step.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pgcli.errors import InputError
from pgcli.functional.distributions import Categorical, Gaussian, categorical, gaussian_entropy, gaussian_log_probs
from pgcli.types import Continuous, Discrete


class CategoricalHead(nn.Module):
    """Discrete actions: the outputs are logits, (..., n)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.size = n

    def evaluate(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """log-probs and entropy, (...)."""
        return categorical(outputs, actions)

    def distribution(self, outputs: Tensor) -> Categorical:
        return Categorical(outputs)

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Standard Gumbel noise, (*shape, n): the argmax of logits plus it is an exact categorical sample."""
        return generator.gumbel(size=(*shape, self.size)).astype(np.float32)

    def sample(self, outputs: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """Actions, (N,) int64; the most probable ones without noise."""
        return (outputs if noise is None else outputs + noise).argmax(-1)


class GaussianHead(nn.Module):
    """Real actions: the outputs are means, (..., A); the standard deviation is a parameter that no state changes."""

    def __init__(self, n: int, initial_log_std: float) -> None:
        super().__init__()
        self.size = n
        self.log_std = nn.Parameter(torch.full((n,), initial_log_std))

    def evaluate(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """log-probs and entropy, (...)."""
        log_probs = gaussian_log_probs(outputs, self.log_std, actions)
        return log_probs, gaussian_entropy(self.log_std).expand_as(log_probs)

    def distribution(self, outputs: Tensor) -> Gaussian:
        return Gaussian(outputs, self.log_std.expand_as(outputs))

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Standard normal noise, (*shape, A)."""
        return generator.standard_normal(size=(*shape, self.size), dtype=np.float32)

    def sample(self, outputs: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """Actions, (N, A) float32; the means without noise."""
        return outputs if noise is None else outputs + np.exp(self.log_std.detach().cpu().numpy()) * noise


Head = CategoricalHead | GaussianHead


def make_head(actions: Discrete | Continuous, initial_log_std: float) -> Head:
    """The head that an action space asks for. Raises InputError for a kind that no head serves."""
    match actions:
        case Discrete(n):
            return CategoricalHead(n)
        case Continuous():
            return GaussianHead(len(actions.low), initial_log_std)
    raise InputError(f"no policy head serves the action space {actions}")
