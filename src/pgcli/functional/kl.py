"""Estimates of KL(policy || reference) from actions that the policy sampled, one per action.

        log_ratio = log pi(a) - log ref(a),   a ~ pi
        KL(pi || ref) = E_pi[log_ratio]

A good estimate of the *value* need not be a good loss: the samples are fixed while the gradient is taken, so that the
derivative of E_pi with respect to pi itself is missing. Expected over actions of the current policy:

                    value                gradient, in the loss
    k1              KL, any sign         0
    k2              biased, >= 0         grad KL(pi || ref)
    k3              KL, >= 0             grad KL(ref || pi): the other direction
    k3_corrected    KL, >= 0             grad KL(pi || ref), and still when pi has moved off the samples' policy

k1 as a *reward* has the gradient of KL(pi || ref). Arguments are (N, T) or (B,) for the KL of each state's actions, at
fixed states; summed along rows, (N,), k1 and k2 are those of the whole sequence.

Source: Schulman 2020, "Approximating KL divergence"; the gradients: Tang and Munos 2025, and the tests by enumeration.
"""

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""exp(20) = 5e8. Larger log-ratios are clamped to this: float32 overflows at exp(88)."""


def k1(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """log_ratio. Unbiased, of high variance, negative half the time. In a loss its expected gradient is zero.

    Args:
        log_probs, reference_log_probs: one shape. The actions are samples of the policy.

    Returns: the same shape.
    """
    return log_probs - reference_log_probs


def k2(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """log_ratio**2 / 2. A biased value of low variance, and on-policy the true gradient of KL(policy || reference).

    grad k2 = log_ratio * grad log pi: the score-function gradient with the log-ratio as cost.

    Args:
        log_probs, reference_log_probs: one shape. The actions are samples of the policy.

    Returns: the same shape.
    """
    return 0.5 * (log_probs - reference_log_probs).square()


def k3(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """exp(-log_ratio) - 1 + log_ratio. Unbiased, of low variance, never negative; as a loss, biased.

    On-policy its expected gradient is that of KL(reference || policy), not of KL(policy || reference). GRPO's published
    penalty (Shao et al. 2024, eq. 4).

    Args:
        log_probs, reference_log_probs: one shape. The actions are samples of the policy.

    Returns: the same shape.
    """
    # Clamped in both terms: clamped in exp alone, the linear term would carry k3 below zero.
    opposite = (reference_log_probs - log_probs).clamp(max=MAX_LOG_RATIO)
    return torch.expm1(opposite) - opposite


def k3_corrected(log_probs: Tensor, reference_log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """k3 * pi / pi_old: value *and* gradient are those of KL(policy || reference), on-policy and off.

    The ratio keeps its gradient: it stands for the derivative of the sampling distribution that k3 alone lacks.

    Args:
        log_probs, reference_log_probs, old_log_probs: one shape. The actions are samples of the old policy.

    Returns: the same shape.
    """
    ratio = torch.exp((log_probs - old_log_probs.detach()).clamp(max=MAX_LOG_RATIO))
    return ratio * k3(log_probs, reference_log_probs)


def adapted_coefficient(coefficient: float, kl: float, *, target: float) -> float:
    """The price of a nat for the next update, adapted so that the KL of an update stays near `target`.

        kl > 1.5 target    2 coefficient
        kl < target / 1.5  coefficient / 2

    Source: Schulman et al. 2017, section 4; results are not sensitive to 1.5 and 2.
    """
    if kl > 1.5 * target:
        return 2 * coefficient
    return coefficient / 2 if kl < target / 1.5 else coefficient


def proportional_coefficient(coefficient: float, kl: float, *, target: float, gain: float) -> float:
    """The price of a nat for the next update, adapted so that the KL to the reference approaches `target`.

        e            = clip((kl - target) / target, -0.2, 0.2)
        coefficient <- coefficient * (1 + gain * e)

    A proportional controller of log(coefficient): however far off, a step changes it by at most 20 % of `gain`.

    Source: Ziegler et al. 2019, section 2.2, with a gain of 0.1.
    """
    error = min(max((kl - target) / target, -0.2), 0.2)
    return coefficient * (1 + gain * error)
