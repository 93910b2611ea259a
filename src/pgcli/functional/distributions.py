"""Action distributions as functions of a network's outputs. In few operations, because each update calls them often."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

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


def gauss_hermite(nodes: int) -> tuple[Tensor, Tensor]:
    """Points z_k and weights w_k with E[f(z)] = sum_k w_k f(z_k) for a standard normal z, exact up to degree 2 n - 1.

    The points are the eigenvalues of the recurrence's symmetric matrix, with sqrt(k) beside its zero diagonal.

    Returns: two of (nodes,), float64. Source: Golub & Welsch 1969.
    """
    beside = torch.arange(1, nodes, dtype=torch.float64).sqrt()
    points, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return points, vectors[0].square()


def tanh_log_slope(u: Tensor) -> Tensor:
    """log of d tanh(u) / du = 1 - tanh(u)**2, element by element, without the cancellation where tanh is near 1.

        2 (log 2 - u - softplus(-2 u))

    Source: Haarnoja et al. 2018, appendix C, in the form of Dillon et al. 2017 (TensorFlow Distributions).
    """
    return 2 * (math.log(2) - u - softplus(-2 * u))


def squashed_gaussian_log_probs(mean: Tensor, log_std: Tensor, u: Tensor) -> Tensor:
    """Log-density of a = tanh(u), u of independent normals, by the change of variables.

        log pi(a) = log N(u; mean, std) - sum(log(1 - a**2))

    Args:
        mean, u: (..., A). `u`: the actions before tanh.
        log_std: (..., A) or (A,).

    Returns: (...).
    """
    return gaussian_log_probs(mean, log_std, u) - tanh_log_slope(u).sum(-1)


def squashed_gaussian_sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """a = tanh(mean + std * noise) and log pi(a): the reparameterised sample, with a gradient through both.

    Args:
        mean, log_std: (..., A).
        noise: (..., A), standard normal.

    Returns: (..., A) in [-1, 1], and (...). Source: Haarnoja et al. 2018, equations 11 and 21.
    """
    u = mean + torch.exp(log_std) * noise
    # (u - mean) / std is the noise itself, and no function of the parameters.
    normal = -0.5 * noise.square().sum(-1) - log_std.sum(-1) - log_std.shape[-1] * HALF_LOG_TWO_PI
    return torch.tanh(u), normal - tanh_log_slope(u).sum(-1)


ENTROPY_POINTS, ENTROPY_WEIGHTS = gauss_hermite(16)


def squashed_gaussian_entropy(mean: Tensor, log_std: Tensor) -> Tensor:
    """H of a = tanh(u), in nats. It has no closed form, and is not the Gaussian's: one integral for each component.

        H = H(u) + sum_i E[ log(1 - tanh(u_i)**2) ]

    The expectation is taken by Gauss-Hermite quadrature with 16 points: deterministic, with the gradient of what is
    reported, and right to 0.005 nats a component for a standard deviation of at most 2.

    Args:
        mean, log_std: (..., A).

    Returns: (...).
    """
    points, weights = ENTROPY_POINTS.to(mean), ENTROPY_WEIGHTS.to(mean)
    u = mean[..., None] + torch.exp(log_std)[..., None] * points
    return gaussian_entropy(log_std) + (tanh_log_slope(u) * weights).sum((-1, -2))


class Categorical(NamedTuple):
    """One of A actions. `logits`: (..., A), finite."""

    logits: Tensor

    def kl(self, other: "Categorical") -> Tensor:
        """KL(self || other), (...)."""
        return categorical_kl(self.logits, other.logits)


class Gaussian(NamedTuple):
    """Independent normals. `mean`: (..., A); `log_std`: (..., A), or (A,) where no state changes it.

    A squashed Gaussian has the same KL as the one that it squashes, for tanh can be undone: it is told by this, too.
    """

    mean: Tensor
    log_std: Tensor

    def kl(self, other: "Gaussian") -> Tensor:
        """KL(self || other), (...)."""
        return gaussian_kl(self.mean, self.log_std, other.mean, other.log_std)
