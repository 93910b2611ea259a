"""Temporal-difference targets and losses of action values Q(s, a). Sutton & Barto 2018, chapter 6.

Shapes: B transitions, n actions, K critics.
"""

import torch
from torch import Tensor


def bellman_target(rewards: Tensor, next_values: Tensor, terminated: Tensor, *, gamma: float) -> Tensor:
    """r + gamma V(s'), and r alone after termination. The methods differ in V.

        max_a Q(s', a)                            Q-learning (Watkins 1989), DQN with Q of the target network
        Q_target(s', argmax_a Q(s', a))           double DQN (van Hasselt et al. 2016, eq. 4)
        Q(s', a'),  a' the action taken next      SARSA (Rummery & Niranjan 1994)
        sum_a pi(a | s') Q(s', a)                 expected SARSA (van Seijen et al. 2009, eq. 5)
        Q_target(s', mu_target(s'))               DDPG (Lillicrap et al. 2016, algorithm 1)
        `soft_value` of the target critics        SAC (Haarnoja et al. 2018, eq. 8)

    Args:
        rewards, next_values, terminated: (B,). A truncated episode is bootstrapped like any other.

    Returns: (B,).
    """
    return rewards + gamma * next_values * ~terminated


def epsilon_greedy(action_values: Tensor, epsilon: float) -> Tensor:
    """Probabilities of the actions: `epsilon` is spread over all of them, the rest over the best.

        pi(a | s) = epsilon / n + (1 - epsilon) [a in argmax Q] / |argmax Q|

    Args:
        action_values: (..., n).

    Returns: (..., n).
    """
    best = (action_values == action_values.amax(-1, keepdim=True)).to(action_values.dtype)
    return epsilon / action_values.shape[-1] + (1 - epsilon) * best / best.sum(-1, keepdim=True)


def select(action_values: Tensor, actions: Tensor) -> Tensor:
    """Q(s, a) of the actions that were taken: (B, n), (B,) -> (B,)."""
    return action_values.gather(-1, actions[:, None]).squeeze(-1)


def huber(errors: Tensor, *, threshold: float = 1.0) -> Tensor:
    """e^2 / 2 near zero, and |e| - 1/2 (times the threshold) beyond it: the gradient is the error, clipped.

    Source: Huber 1964. With a threshold of 1 its gradient is Mnih et al. 2015's "error term clipped to [-1, 1]".
    """
    return torch.nn.functional.huber_loss(errors, torch.zeros_like(errors), reduction="none", delta=threshold)


def squared(errors: Tensor) -> Tensor:
    """e^2 / 2, so that the gradient is the error itself."""
    return errors.square() / 2


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
    """min_k Q_k, (K, B) -> (B,), each with the gradient of the lowest one alone."""
    return values.min(0).values  # the gradient of amin, which shares among equals, takes several times as long


def temperature_loss(log_temperature: Tensor, log_probs: Tensor, target_entropy: float) -> Tensor:
    """-log alpha (log pi + H_target): its derivative by log alpha is H - H_target on average, so alpha falls while the
    entropy H is above its target.

    The published objective has alpha in place of log alpha (Haarnoja et al. 2018b, equation 18); this is that of their
    code. Both have the same sign and the same zero.

    Args:
        log_temperature: a scalar.
        log_probs: (B,). No gradient flows into them.

    Returns: (B,).
    """
    return -log_temperature * (log_probs.detach() + target_entropy)


def follow(target: Tensor, online: Tensor, *, tau: float) -> None:
    """Move the target network's parameters, in place: target <- (1 - tau) target + tau online.

    tau = 1 copies them (Mnih et al. 2015); a small one averages (Polyak; Lillicrap et al. 2016).
    """
    target.lerp_(online, tau)


def visit_step_sizes(visits: Tensor, *, c: float, offset: float) -> Tensor:
    """c / (k + offset) for the k-th visit of each state-action pair, as the convergence theorems require.

    Every pair has a schedule of its own, sum = infinity and sum of squares < infinity (Robbins & Monro 1951; Watkins &
    Dayan 1992, theorem; Jaakkola et al. 1994).
    """
    return c / (visits + offset)
