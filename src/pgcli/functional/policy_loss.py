"""What a policy climbs, action by action. Aggregate with `masked.weighted_sum`.

Mind the sign: `policy_gradient` is a loss, to be minimised; a surrogate is an objective, to be maximised, as in the
papers. No gradient flows into advantages or old log-probs.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pgcli.functional.kl import k3


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
    """What another policy would gain over the old one, as far as the old one's states tell.

        L_t = rho_t A_t,    rho_t = pi(a_t | s_t) / pi_old(a_t | s_t)

    At rho = 1 its gradient is the policy gradient's. Farther off nothing holds it back: the gain it promises grows with
    rho, while the states are still the old policy's.

    Args:
        log_probs, old_log_probs, advantages: (N, T) or (B,). `old_log_probs` are the behaviour policy's.

    Returns: the same shape. Source: Kakade and Langford 2002; Schulman et al. 2017, eq. 6.
    """
    return torch.exp(log_probs - old_log_probs.detach()) * advantages.detach()


def clipped_surrogate(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, low: float, high: float
) -> Tensor:
    """PPO's objective: a lower bound of the ratio's, that stops rewarding a policy for moving out of the range.

        rho_t = pi(a_t | s_t) / pi_old(a_t | s_t)
        L_t   = min(rho_t A_t, clip(rho_t, 1 - low, 1 + high) A_t)

    Inside the range L = rho A. Outside it, there are four corners, and in two of them the gradient is *not* zero:

        A > 0, rho > 1 + high   clipped     (1 + high) A   gradient 0           already likelier by enough
        A > 0, rho < 1 - low    unclipped   rho A          gradient A grad rho  went the wrong way: pulled back
        A < 0, rho > 1 + high   unclipped   rho A          gradient A grad rho  went the wrong way: pulled back
        A < 0, rho < 1 - low    clipped     (1 - low) A    gradient 0           already rarer by enough

    At rho = 1 the gradient is the policy gradient's. `low` = `high` is PPO; `high` > `low` is DAPO's clip-higher.

    Args:
        log_probs, old_log_probs, advantages: (N, T) or (B,). `old_log_probs` are the behaviour policy's.

    Returns: the same shape. Source: Schulman et al. 2017, eq. 7; two bounds: Yu et al. 2025.
    """
    ratio, advantages = torch.exp(log_probs - old_log_probs.detach()), advantages.detach()
    # Where A > 0 only the upper bound can be the smaller, else only the lower one: a constant without a gradient.
    bound = torch.maximum((1 + high) * advantages, (1 - low) * advantages)
    return torch.minimum(ratio * advantages, bound)


class RatioStatistics(NamedTuple):
    """Per action, no gradient. approx_kl: k3 of KL(pi_old || pi). clip_fraction: 1 where the ratio is out of range."""

    approx_kl: Tensor
    clip_fraction: Tensor


def ratio_statistics(log_probs: Tensor, old_log_probs: Tensor, *, low: float, high: float) -> RatioStatistics:
    """How far the policy has moved from the one that acted, per action, to be weighted like the loss.

        approx_kl_t     = rho_t - 1 - log rho_t       (Schulman 2020)
        clip_fraction_t = 1[rho_t < 1 - low or rho_t > 1 + high]

    The clip fraction counts all four corners of `clipped_surrogate`, those with a gradient too.

    Args:
        log_probs, old_log_probs: (N, T) or (B,). The actions are samples of the old policy.

    Returns: two of the same shape.
    """
    new, old = log_probs.detach(), old_log_probs.detach()
    ratio = torch.exp(new - old)
    return RatioStatistics(k3(old, new), ((ratio < 1 - low) | (ratio > 1 + high)).to(new.dtype))
