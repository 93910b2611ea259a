"""Objectives of a policy, one term per action. Aggregate with `masked.weighted_sum`.

Mind the sign: `policy_gradient` is a loss, to be minimised; a surrogate is an objective, to be maximised, as in the
papers. No gradient flows into advantages or old log-probs.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pgcli.functional.kl import MAX_LOG_RATIO


def policy_gradient(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """The loss whose gradient is minus the policy gradient.

        -A_t * log pi(a_t | s_t)

    With A = 1 it is the cross-entropy of the actions: maximum likelihood is a policy gradient whose advantage is 1.

    Args:
        log_probs, advantages: (N, T) or (B,).

    Returns: the same shape. Source: Williams 1992; Sutton et al. 2000, theorem 1.
    """
    return -advantages.detach() * log_probs


def surrogate(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
    """The gain of a new policy over the old one, estimated on the old one's states.

        L_t = rho_t A_t,    rho_t = pi(a_t | s_t) / pi_old(a_t | s_t)

    At rho = 1 its gradient is the policy gradient's. Away from it nothing limits a step: the estimated gain grows with
    rho, while the states are still the old policy's.

    Args:
        log_probs, old_log_probs, advantages: (N, T) or (B,). `old_log_probs` are the behaviour policy's.

    Returns: the same shape. Source: Kakade and Langford 2002; Schulman et al. 2017, eq. 6.
    """
    return torch.exp(log_probs - old_log_probs.detach()) * advantages.detach()


def clipped_surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    low: float,
    high: float,
    dual: float | None = None,
) -> Tensor:
    """PPO's objective: a lower bound of rho_t A_t that does not reward a policy for moving out of the range.

        rho_t = pi(a_t | s_t) / pi_old(a_t | s_t)
        L_t   = min(rho_t A_t, clip(rho_t, 1 - low, 1 + high) A_t)

    Inside the range L = rho A. Outside it, there are four corners, and in two of them the gradient is *not* zero:

        A > 0, rho > 1 + high   clipped     (1 + high) A   gradient 0           already likelier by enough
        A > 0, rho < 1 - low    unclipped   rho A          gradient A grad rho  went the wrong way: pulled back
        A < 0, rho > 1 + high   unclipped   rho A          gradient A grad rho  went the wrong way: pulled back
        A < 0, rho < 1 - low    clipped     (1 - low) A    gradient 0           already rarer by enough

    At rho = 1 the gradient is the policy gradient's. `low` = `high` is PPO; `high` > `low` is DAPO's clip-higher.

    Args:
        log_probs, old_log_probs, advantages: (N, T) or (B,). `old_log_probs` are the behaviour policy's. Given the
            means over a row in place of each action's (`masked.row_mean`), it is GSPO's (Zheng et al. 2025, eq. 5).
        dual: c > 1, a bound on the third corner, which has none: where A < 0, L is at least c A, and beyond rho = c the
            gradient is 0. A single action that has become far likelier then cannot outweigh all others.

    Returns: the same shape. Source: Schulman et al. 2017, eq. 7; two bounds: Yu et al. 2025, eq. 10; `dual`: Ye et al.
    2020, eq. 5.
    """
    ratio, advantages = torch.exp(log_probs - old_log_probs.detach()), advantages.detach()
    # Where A > 0 only the upper bound can be the smaller, else only the lower one: a constant without a gradient.
    bound = torch.maximum((1 + high) * advantages, (1 - low) * advantages)
    objective = torch.minimum(ratio * advantages, bound)
    if dual is None:
        return objective
    return torch.where(advantages < 0, torch.maximum(objective, dual * advantages), objective)


def clipped_weight(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, low: float, high: float) -> Tensor:
    """CISPO: the policy gradient, each action weighted by its clipped ratio. Only the weight is clipped.

        L_t = sg[ clip(rho_t, 1 - low, 1 + high) ] A_t log pi(a_t | s_t)         gradient  clip(rho) A grad log pi

    Differs from `clipped_surrogate` where the ratio is out of the range: an action keeps its gradient there, with the
    bound as its weight. With `low` = 1 no ratio is below the range.

    Args:
        log_probs, old_log_probs, advantages: (N, T) or (B,). `old_log_probs` are the behaviour policy's.

    Returns: the same shape; only its gradient is meaningful. Source: MiniMax 2025 (MiniMax-M1), eq. 4 and 5.
    """
    weight = torch.exp(log_probs - old_log_probs).clamp(1 - low, 1 + high)
    return (weight * advantages).detach() * log_probs


def gated_surrogate(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, positive: float, negative: float
) -> Tensor:
    """SAPO: a smooth gate in place of the clip, which closes on both sides as the ratio moves away from 1.

        f(rho) = 4 / tau * sigmoid(tau (rho - 1)),    tau = positive where A > 0, else negative
        L_t    = f(rho_t) A_t
        gradient  4 p (1 - p) rho A grad log pi,    p = sigmoid(tau (rho - 1))

    At rho = 1 the gradient is the policy gradient's. The larger tau, the sooner it fades; `negative` is usually larger,
    because the probability that a negative advantage takes from one action goes to all the others.

    Args:
        log_probs, old_log_probs, advantages: (N, T) or (B,). `old_log_probs` are the behaviour policy's.

    Returns: the same shape. Source: Gao et al. 2025 (Soft Adaptive Policy Optimization), eq. 5 and 6.
    """
    ratio, advantages = torch.exp(log_probs - old_log_probs.detach()), advantages.detach()
    tau = torch.full_like(advantages, negative).masked_fill(advantages > 0, positive)
    return 4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantages


class RatioStatistics(NamedTuple):
    """See `ratio_statistics`."""

    approx_kl: float
    clipped_high: float
    clipped_low: float
    smallest: float
    largest: float
    effective: float


def ratio_statistics(log_ratios: Tensor, weights: Tensor, *, low: float, high: float) -> RatioStatistics:
    """How far a policy has moved from the behaviour policy; w: the weights of the actions.

        approx_kl                 mean of rho - 1 - log rho                          (Schulman 2020: k3)
        clipped_high, _low        share of actions with rho > 1 + high, rho < 1 - low
        smallest, largest         of the ratios
        effective                 (sum w rho)^2 / (sum w * sum w rho^2): the effective sample size, as a share of the
                                  actions (Kish)

    The clipped shares count all four corners of `clipped_surrogate`, also those with a gradient.

    Args:
        log_ratios: log pi - log pi_old of the actions, which are samples of the old policy. (N, T) or (B,).
        weights: the same shape, 0 on padding, where the log-ratios may have any value.
    """
    w = weights.flatten()
    padding = w == 0
    moved = log_ratios.detach().flatten().masked_fill(padding, 0).clamp_(max=MAX_LOG_RATIO)
    above = torch.expm1(moved)
    ratio = above + 1
    rows = torch.stack([above - moved, above > high, above < -low, ratio, ratio.square(), torch.ones_like(above)])
    *sums, total = (rows @ w).tolist()
    kl, over, under, mean, square = (x / total for x in sums)
    least, most = ratio.masked_fill(padding, torch.inf).amin(), ratio.masked_fill(padding, -torch.inf).amax()
    effective = mean * mean / square if square else math.nan  # no sample is worth anything: of none, no share
    return RatioStatistics(kl, over, under, float(least), float(most), effective)
