"""What off-policy actor-critics minimise, transition by transition. B transitions, K critics."""

import torch
from torch import Tensor


def bellman_targets(rewards: Tensor, next_values: Tensor, terminated: Tensor, *, gamma: float) -> Tensor:
    """What Q(s, a) should be: y = r + gamma (1 - terminated) V(s').

    Args:
        rewards, next_values, terminated: (B,). A truncated transition is bootstrapped like any other.

    Returns: (B,), without a gradient. Source: Lillicrap et al. 2016, algorithm 1; Haarnoja et al. 2018, equation 8.
    """
    return (rewards + gamma * next_values * ~terminated).detach()


def soft_value(values: Tensor, log_probs: Tensor, temperature: Tensor) -> Tensor:
    """One sample of V(s) = E[ min_k Q_k(s, a) - alpha log pi(a | s) ].

    Args:
        values: (K, B). Their minimum counters the overestimation of a maximum (Fujimoto et al. 2018, equation 10).
        log_probs: (B,).
        temperature: alpha, a scalar.

    Returns: (B,). Source: Haarnoja et al. 2018, equation 3.
    """
    return lowest(values) - temperature * log_probs


def lowest(values: Tensor) -> Tensor:
    """min_k Q_k, (K, B) -> (B,), each with the gradient of the one that was chosen."""
    return values.min(0).values  # the gradient of amin, which shares among equals, takes several times as long


def squared_errors(values: Tensor, targets: Tensor) -> Tensor:
    """sum_k (Q_k - y)^2, without 1/2.

    Args:
        values: (K, B).
        targets: (B,).

    Returns: (B,).
    """
    return (values - targets).square().sum(0)


def temperature_loss(log_temperature: Tensor, log_probs: Tensor, target_entropy: float) -> Tensor:
    """-log alpha (log pi + H_target): its slope by log alpha is H - H_target in the mean, so alpha falls while there is
    more entropy than asked for.

    The published objective has alpha in place of log alpha (Haarnoja et al. 2018b, equation 18); this is their code's.
    Both have the same sign and the same zero.

    Args:
        log_temperature: a scalar.
        log_probs: (B,). No gradient flows into them.

    Returns: (B,).
    """
    return -log_temperature * (log_probs.detach() + target_entropy)


def follow(target: Tensor, online: Tensor, *, tau: float) -> None:
    """Polyak averaging in place: target <- (1 - tau) target + tau online. Lillicrap et al. 2016, section 3."""
    target.lerp_(online, tau)


def mean(x: Tensor, weights: Tensor | None) -> Tensor:
    """Over (B,) transitions: all alike, or by weights that sum to one."""
    return x.mean() if weights is None else torch.dot(x, weights)
