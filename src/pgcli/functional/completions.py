"""Finished completions: a punishment for length, the probability of a preference, the KL-regularised optimum."""

import torch
from torch import Tensor


def soft_overlong(lengths: Tensor, *, limit: int, buffer: int) -> Tensor:
    """A punishment that grows over the last tokens before the limit, instead of setting in all at once there.

        0                               length <= limit - buffer
        (limit - buffer - length) / buffer    up to the limit, where it is -1

    Args:
        lengths: (N,) tokens, the end token included; at most `limit`.
        buffer: L_cache of the paper.

    Returns: (N,) in [-1, 0]. Source: DAPO (Yu et al. 2025), eq. 13, where a completion cut by the limit has -1 too.
    """
    return ((limit - buffer - lengths) / buffer).clamp(-1, 0)


def preference_probability(difference: Tensor, *, scale: float, flip: float) -> Tensor:
    """The probability that a labeller prefers a to b: Bradley-Terry, and a share `flip` of the labels turned round.

        p = flip + (1 - 2 flip) sigmoid((r(a) - r(b)) / scale)

    The best possible judge is right with probability max(p, 1 - p): the ceiling of every reward model.

    Args:
        difference: (N,), r(a) - r(b) of two completions of one prompt.
        scale: the difference at which a is preferred to b in 73 of 100 cases (before flips).
        flip: in [0, 1/2).

    Returns: (N,). Source: Bradley and Terry 1952; Ouyang et al. 2022, section 3.5.
    """
    return flip + (1 - 2 * flip) * torch.sigmoid(difference / scale)


def tilt(log_reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """The optimal policy of a KL-regularised objective, if all completions can be enumerated.

        max_pi  E_pi[r] - beta KL(pi || ref)     at     pi*(y) = ref(y) exp(r(y) / beta) / Z

    Args:
        log_reference, rewards: (..., Y), of every completion of a prompt along the last axis.

    Returns: (..., Y), log pi*. Source: Ziegler et al. 2019, section 2; Rafailov et al. 2023, eq. 4.
    """
    return torch.log_softmax(log_reference + rewards / beta, dim=-1)
