"""The critic's losses, one term per action, and its explained variance."""

import torch
from torch import Tensor

from pgcli.functional.masked import masked_variance


def value_mse(values: Tensor, returns: Tensor) -> Tensor:
    """(V - R)**2, without the 1/2 that some implementations have: their coefficient of 0.5 is 0.25 here.

    Args:
        values, returns: (N, T) or (B,). No gradient flows into `returns`.

    Returns: the same shape.
    """
    return (values - returns.detach()).square()


def value_clipped(values: Tensor, old_values: Tensor, returns: Tensor, *, clip_range: float) -> Tensor:
    """PPO's clipped value loss: the larger of two squared errors, one of V, one of V clipped to near the old value.

        max((V - R)**2, (V_old + clip(V - V_old, -clip_range, clip_range) - R)**2)

    The gradient vanishes only where V has left the range and the clipped value is *farther* from R: V has moved towards
    R by enough. `clip_range` has the unit of a return.

    Args:
        values, old_values, returns: (N, T) or (B,). No gradient flows into the last two.

    Returns: the same shape, without 1/2. Source: not in Schulman et al. 2017, but in its authors' code; Engstrom et al.
    2020 study it.
    """
    old, target = old_values.detach(), returns.detach()
    held = old + (values - old).clamp(-clip_range, clip_range)
    return torch.maximum((values - target).square(), (held - target).square())


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """The share of the returns' variance that the critic predicts.

        1 - Var(R - V) / Var(R)

    1 is perfect, 0 no better than a constant, below 0 worse. NaN if the returns do not vary: there is nothing to
    explain.

    Args:
        values, returns, mask: (N, T) or (B,); `mask` is bool.

    Returns: a scalar.
    """
    total = masked_variance(returns, mask)
    return torch.where(total == 0, torch.nan, 1 - masked_variance(returns - values, mask) / total)
