"""From a network's outputs to actions: one head for each kind of action space.

A head's mathematics is in `functional.distributions`; here are its parameters, and its sampling in NumPy, which is
several times faster than torch on the few rows of a single environment step.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from pgcli.errors import InputError
from pgcli.functional.distributions import (
    Categorical,
    Gaussian,
    categorical,
    gaussian_entropy,
    gaussian_log_probs,
    squashed_gaussian_entropy,
    squashed_gaussian_log_probs,
    squashed_gaussian_sample,
)
from pgcli.settings import Settings
from pgcli.types import ABSENT, Continuous, Discrete


class HeadSettings(Settings):
    """How continuous actions are drawn: the settings of the head at a stochastic policy's end."""

    distribution: Literal["auto", "gaussian", "squashed_gaussian"] = Field(
        description="distribution of a stochastic policy's continuous actions: gaussian, or squashed into their bounds "
        "by tanh; auto: as the algorithm needs it"
    )
    std: Literal["parameter", "network"] = Field(
        description="where the standard deviation of continuous actions comes from: a parameter that is the same in "
        "all states, or an output of the network"
    )
    initial_log_std: float = Field(
        ge=-10, le=5, description="log standard deviation of a stochastic policy's continuous actions at the start"
    )
    log_std_bounds: tuple[float, float] = Field(
        description="bounds to which log standard deviations are clamped, with std=network"
    )

    @field_validator("log_std_bounds")
    @classmethod
    def _in_order(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if not bounds[0] < bounds[1]:
            raise ValueError(f"the lower bound comes first, and is below the other: not {list(bounds)}")
        return bounds


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
    """Continuous actions: the outputs are means, (..., A); the standard deviation is a state-independent parameter.

    With `bounds`, its logarithm is a further output of the network, (..., 2 A) in all, clamped to the bounds.
    """

    def __init__(self, n: int, initial_log_std: float, bounds: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.actions, self.bounds, self.initial_log_std = n, bounds, initial_log_std
        self.size = n if bounds is None else 2 * n
        if bounds is None:
            self.log_std = nn.Parameter(torch.full((n,), initial_log_std))

    def split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean, (..., A), and log standard deviation, (A,) or (..., A)."""
        if self.bounds is None:
            return outputs, self.log_std
        mean, log_std = outputs.split(self.actions, -1)
        return mean, (log_std + self.initial_log_std).clamp(*self.bounds)

    def evaluate(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """log-probs and entropy, (...)."""
        mean, log_std = self.split(outputs)
        log_probs = gaussian_log_probs(mean, log_std, actions)
        return log_probs, gaussian_entropy(log_std).expand_as(log_probs)

    def distribution(self, outputs: Tensor) -> Gaussian:
        mean, log_std = self.split(outputs)
        return Gaussian(mean, log_std.expand_as(mean))

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Standard normal noise, (*shape, A)."""
        return generator.standard_normal(size=(*shape, self.actions), dtype=np.float32)

    def sample(self, outputs: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """Actions, (N, A) float32; the means without noise."""
        if self.bounds is None:
            return outputs if noise is None else outputs + np.exp(self.log_std.detach().cpu().numpy()) * noise
        mean, log_std = outputs[..., : self.actions], outputs[..., self.actions :]
        if noise is None:
            return mean
        return mean + np.exp((log_std + np.float32(self.initial_log_std)).clip(*self.bounds)) * noise


class Box(nn.Module):
    """The bounds of continuous actions, and the maps from and to the unit box [-1, 1]^A. Nothing is trained."""

    def __init__(self, actions: Continuous, needed_by: str) -> None:
        super().__init__()
        if not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all()):
            raise InputError(
                f"{needed_by} needs actions with finite bounds, these have "
                f"{actions.low.tolist()} to {actions.high.tolist()}; try policy.distribution=gaussian with algo=ppo"
            )
        self.low, self.high = (np.asarray(bound, np.float32) for bound in (actions.low, actions.high))
        self.array = (self.low + self.high) / 2, (self.high - self.low) / 2
        self.is_unit = bool((self.low == -1).all() and (self.high == 1).all())
        self.register_buffer("centre", torch.from_numpy(self.array[0]), persistent=False)
        self.register_buffer("reach", torch.from_numpy(self.array[1]), persistent=False)

    centre: Tensor
    reach: Tensor
    """Half the box's width."""

    def scale(self, unit: np.ndarray) -> np.ndarray:
        """[-1, 1]^A -> the box."""
        centre, reach = self.array
        return centre + reach * unit

    def scaled(self, unit: Tensor) -> Tensor:
        """[-1, 1]^A -> the box, in torch."""
        return unit if self.is_unit else self.centre + self.reach * unit

    def unit(self, actions: Tensor) -> Tensor:
        """The box -> [-1, 1]^A."""
        return actions if self.is_unit else (actions - self.centre) / self.reach


NEAR_ONE = 1 - 1e-6


class SquashedGaussianHead(GaussianHead):
    """Continuous actions in a box: centre + reach * tanh(u), u of a Gaussian. Log-probs are densities of these actions.

    A rollout keeps the actions that the environment got, so that u is atanh of a float32 number: where tanh has
    saturated, beyond 1 - 1e-6, u is taken as 7.25. The behaviour policy and the learning one evaluate the same u, so
    that their ratio is right; the density itself is wrong there.
    """

    def __init__(self, space: Continuous, initial_log_std: float, bounds: tuple[float, float] | None = None) -> None:
        super().__init__(len(space.low), initial_log_std, bounds)
        self.box = Box(space, "policy.distribution=squashed_gaussian")

    def evaluate(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """log-probs and entropy, (...); the entropy by quadrature, because it has no closed form."""
        mean, log_std = self.split(outputs)
        u = torch.atanh(self.box.unit(actions).clamp(-NEAR_ONE, NEAR_ONE))
        volume = self.box.reach.log().sum()
        entropy = squashed_gaussian_entropy(mean, log_std.expand_as(mean))
        return squashed_gaussian_log_probs(mean, log_std, u) - volume, entropy + volume

    def draw(self, outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions of the unit box, (..., A), and their log-density there, (...), with a gradient through both."""
        mean, log_std = self.split(outputs)
        return squashed_gaussian_sample(mean, log_std.expand_as(mean), noise)

    def sample(self, outputs: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """Actions in the box, (N, A) float32; the mean's without noise."""
        return self.box.scale(np.tanh(super().sample(outputs, noise)))


class DeterministicHead(nn.Module):
    """One continuous action in a box, centre + reach * tanh(output): a point mass, without density or entropy."""

    def __init__(self, space: Continuous) -> None:
        super().__init__()
        self.size = len(space.low)
        self.box = Box(space, "a deterministic policy")

    def evaluate(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        return ABSENT, ABSENT

    def draw(self, outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The actions in the unit box, (..., A), whatever the noise."""
        return torch.tanh(outputs), ABSENT

    def distribution(self, outputs: Tensor) -> Gaussian:
        return ABSENT

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Zeros, (*shape, A): the head has no noise of its own."""
        return np.zeros((*shape, self.size), np.float32)

    def sample(self, outputs: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """(N, A) -> actions in the box, (N, A) float32. Noise, for exploration, is in units of the unit box."""
        unit = np.tanh(outputs)
        return self.box.scale(unit if noise is None else (unit + noise).clip(-1, 1))


Head = CategoricalHead | GaussianHead | DeterministicHead


def make_head(actions: Discrete | Continuous, settings: HeadSettings) -> CategoricalHead | GaussianHead:
    """The head for an action space. Raises InputError if there is none."""
    match actions:
        case Discrete(n):
            if settings.distribution != "auto":
                raise InputError(
                    f"policy.distribution={settings.distribution} is for real actions, these are discrete; try auto"
                )
            return CategoricalHead(n)
        case Continuous():
            bounds = settings.log_std_bounds if settings.std == "network" else None
            if settings.distribution == "squashed_gaussian":
                return SquashedGaussianHead(actions, settings.initial_log_std, bounds)
            return GaussianHead(len(actions.low), settings.initial_log_std, bounds)
    raise InputError(f"no policy head serves the action space {actions}")
