"""Sums and means over the actions that were taken, and the weights with which a loss adds them up.

Padding is removed by `where`, never by multiplying with zero: NaN * 0 is NaN.
"""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

Aggregation: TypeAlias = Literal["token_mean", "sequence_mean", "sequence_sum", "constant"]


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of `x` where `mask`: over everything, or along `dim`. An empty sum is 0.

    Args:
        x, mask: one shape; `mask` is bool.
    """
    return torch.where(mask, x, 0).sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of `x` where `mask`: over everything, or along `dim`. An empty mean is 0.

    Args:
        x, mask: one shape; `mask` is bool.
    """
    return masked_sum(x, mask, dim) / mask.sum(dim).clamp(min=1)


def last_of(mask: Tensor) -> Tensor:
    """(N, T) bool -> (N,) int64: the index of the last 1 in each row; there may be zeros before it."""
    return (mask * torch.arange(mask.shape[1], device=mask.device)).amax(dim=1)


def row_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of each row where `mask`, repeated along the row. For example, a sequence's log-probability per action.

    Args:
        x, mask: (N, T); `mask` is bool.

    Returns: (N, T), equal along a row.
    """
    return masked_mean(x, mask, dim=1)[:, None].expand_as(x)


def masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    """Population variance (divided by n, so that one element has variance 0) of `x` where `mask`.

    Args:
        x, mask: one shape; `mask` is bool.

    Returns: a scalar.
    """
    return masked_mean((x - masked_mean(x, mask)).square(), mask)


def masked_std(x: Tensor, mask: Tensor) -> Tensor:
    """The square root of `masked_variance`."""
    return masked_variance(x, mask).sqrt()


def whiten(x: Tensor, mask: Tensor | None, *, eps: float = 1e-8) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1 where `mask`; 0 on padding. No mask: no padding.

        (x - mean) / (std + eps)

    Every action counts the same, whatever weight the loss gives it.

    Args:
        x, mask: one shape; `mask` is bool.
        eps: keeps a constant `x` from dividing by zero.

    Returns: the shape of `x`.
    """
    if mask is None:
        return (x - x.mean()) / (x.std(correction=0) + eps)
    centred = x - masked_mean(x, mask)
    return torch.where(mask, centred / (masked_std(x, mask) + eps), 0)


def aggregation_weights(
    mask: Tensor, mode: Aggregation, *, row_weights: Tensor | None = None, constant: float | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """How much each action counts in the loss: `loss = weighted_sum(per_action, weights)`.

        token_mean     m / sum(m)           every action alike: a long row counts more       DAPO (Yu et al. 2025)
        sequence_mean  m / (N * length)     every row alike: an action of a long row less    GRPO (Shao et al. 2024)
        sequence_sum   m / N                the policy gradient of the expected return
        constant       m / (N * constant)   the same, at a scale that no length changes      Dr. GRPO (Liu et al. 2025)

    The first two sum to one over the batch; where lengths differ, they are not the gradient of the expected return.
    A row that is all padding has weight 0, and N does not count it.

    Args:
        mask: (N, T) bool, 1 where the policy chose the action.
        mode: one of the four.
        row_weights: (N,), the probability of each row where the rows enumerate a distribution; replaces 1 / N.
        constant: of the mode `constant`: a length, such as the limit of a completion.
        dtype: of the weights; None: torch's default.

    Returns: (N, T), 0 on padding.
    """
    lengths = mask.sum(dim=1, keepdim=True)
    taken = lengths > 0
    rows = (
        row_weights[:, None] if row_weights is not None else taken.to(dtype or torch.get_default_dtype()) / taken.sum()
    )
    match mode:
        case "token_mean":
            weights = rows / (rows * lengths).sum()
        case "sequence_mean":
            weights = rows / lengths
        case "sequence_sum":
            weights = rows
        case "constant":
            if constant is None:
                raise ValueError("the aggregation `constant` needs its constant")
            weights = rows / constant
        case _:
            raise ValueError(f"no aggregation is called {mode!r}")
    return torch.where(mask, weights, 0)


def weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    """Sum of `weights * x` where `weights` is not 0.

    Other values of `x`, NaN included, reach neither the sum nor the gradient with respect to `x`. (A NaN that is a
    *factor* of `x`, such as an advantage on padding, is still multiplied with that zero gradient in the backward pass:
    0 * NaN. So keep padding finite in what multiplies a log-probability.)

    Args:
        x, weights: one shape, (N, T), or (B,), which has no padding.

    Returns: a scalar.
    """
    if x.dim() == 1:
        return torch.dot(x, weights)
    return (x.masked_fill(weights == 0, 0) * weights).sum()
