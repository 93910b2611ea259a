"""Action distributions as functions of a network's outputs. In few operations: every update passes here many times."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def categorical(logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of actions and the entropy, from one log-softmax.

        log pi(a) = logits[a] - logsumexp(logits)        H = -sum_a pi(a) log pi(a)

    Args:
        logits: (..., A), finite: a forbidden action has a large negative one, for 0 * -inf in the entropy is NaN.
        actions: (...) int64.

    Returns: two of (...).
    """
    # Actions first: along a short last axis every one of these is several times slower.
    log_pi = torch.log_softmax(logits.movedim(-1, 0).contiguous(), 0)
    log_probs = log_pi.gather(0, actions.unsqueeze(0)).squeeze(0)
    return log_probs, -(log_pi.exp() * log_pi).sum(0)


def categorical_log_probs(logits: Tensor, actions: Tensor) -> Tensor:
    """Of actions: log pi(a) = logits[a] - logsumexp(logits).

    Args:
        logits: (..., A).
        actions: (...) int64.

    Returns: (...).
    """
    return torch.log_softmax(logits, -1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def categorical_entropy(logits: Tensor) -> Tensor:
    """H = -sum_a pi(a) log pi(a), in nats.

    Args:
        logits: (..., A), finite.

    Returns: (...).
    """
    log_pi = torch.log_softmax(logits, -1)
    return -(log_pi.exp() * log_pi).sum(-1)


def categorical_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) = sum_a p(a) (log p(a) - log q(a)), exact.

    Args:
        p_logits, q_logits: (..., A), finite.

    Returns: (...).
    """
    log_p, log_q = torch.log_softmax(p_logits, -1), torch.log_softmax(q_logits, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def gaussian_log_probs(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Log-density of independent normals, summed over the A components.

        z = (a - mean) / std        log pi(a) = -sum(z**2 / 2 + log std + log(2 pi) / 2)

    Args:
        mean, actions: (..., A).
        log_std: (..., A), or (A,) where no state changes it.

    Returns: (...).
    """
    z = (actions - mean) * torch.exp(-log_std)
    return -0.5 * z.square().sum(-1) - log_std.sum(-1) - log_std.shape[-1] * HALF_LOG_TWO_PI


def gaussian_entropy(log_std: Tensor) -> Tensor:
    """H = sum(log std + log(2 pi) / 2 + 1 / 2), in nats. It may be negative: a density can exceed 1.

    Args:
        log_std: (..., A).

    Returns: (...).
    """
    return log_std.sum(-1) + log_std.shape[-1] * (HALF_LOG_TWO_PI + 0.5)


def gaussian_kl(p_mean: Tensor, p_log_std: Tensor, q_mean: Tensor, q_log_std: Tensor) -> Tensor:
    """KL(p || q) of independent normals, exact.

        sum(log(std_q / std_p) + (std_p**2 + (mean_p - mean_q)**2) / (2 std_q**2) - 1/2)

    Args:
        p_mean, q_mean: (..., A).
        p_log_std, q_log_std: (..., A) or (A,).

    Returns: (...).
    """
    log_ratio = q_log_std - p_log_std
    distance = (p_mean - q_mean) * torch.exp(-q_log_std)
    return (log_ratio + 0.5 * (torch.exp(-2 * log_ratio) + distance.square() - 1)).sum(-1)


class Categorical(NamedTuple):
    """One of A actions. `logits`: (..., A), finite."""

    logits: Tensor

    def kl(self, other: "Categorical") -> Tensor:
        """KL(self || other), (...)."""
        return categorical_kl(self.logits, other.logits)


class Gaussian(NamedTuple):
    """Independent normals. `mean`: (..., A); `log_std`: (..., A), or (A,) where no state changes it."""

    mean: Tensor
    log_std: Tensor

    def kl(self, other: "Gaussian") -> Tensor:
        """KL(self || other), (...)."""
        return gaussian_kl(self.mean, self.log_std, other.mean, other.log_std)
