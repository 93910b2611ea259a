"""Matrix products by the fastest of the libraries at hand: NumPy's and the two that torch carries."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
LARGE = 750_000
"""Multiplications above which oneDNN's product is faster than torch's own: 79 us instead of 164 for 2048 x 64 x 64 on a
recent AMD EPYC, 20 instead of 35 for 256 x 256 x 12. Its preparation for each new number of rows takes 0.4 ms."""
SMALL, HUGE = 100_000, 20_000_000
"""Multiplications between which NumPy's product is faster than both, as long as nothing is added: 29 us instead of 33
(oneDNN) and 58 (torch) for 256 x 64 x 192 (AVX-512; with AVX2 alone NumPy and torch are level). Below, its preparation
costs more than it saves; above, oneDNN takes a tenth less."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """x weight^T + bias, of (B, n), (m, n) and (m,) -> (B, m), or its positive part. No graph is built."""
    size = x.shape[0] * weight.numel()
    if bias is None and SMALL <= size < HUGE:
        found = batched(x, weight.t())
    elif size >= LARGE and _for_onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if relu else "none", [], "")
    else:
        found = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
    return found.relu_() if relu else found


def _for_onednn(x: Tensor) -> bool:
    return ONEDNN and x.is_cpu and x.dtype == torch.float32


def outer(a: Tensor, b: Tensor) -> Tensor:
    """a^T b of (B, m) and (B, n), a sum over many rows. No graph is built.

    NumPy's takes 14 us where torch's takes 22 and oneDNN's 27, for 256 rows of 64 and 64; 152, 325, 174 for 256 rows of
    256 and 256 (AVX-512; with AVX2 alone NumPy and torch are level).
    """
    return batched(a.t(), b) if a.numel() * b.shape[1] >= SMALL else a.t() @ b


def batched(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a b of (..., m, k) and (..., k, n), many of them. No graph is built.

    NumPy's takes 40 us where torch's takes 80, for 128 products of 31 x 47 and 47 x 16 (AVX-512, likewise).
    """
    if not a.is_cpu or a.dtype not in (torch.float32, torch.float64):
        return torch.matmul(a, b, out=out)
    found = np.matmul(a.detach().numpy(), b.detach().numpy(), out=None if out is None else out.numpy())
    return torch.from_numpy(found)


Linear: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""x weight^T, of (..., n) and (m, n) -> (..., m)."""


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """The product with its ordinary graph, differentiable any number of times."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight)
    if x.dim() == 2:
        return product(x, weight)
    return product(x.reshape(-1, x.shape[-1]), weight).unflatten(0, x.shape[:-1])


def linear_once(x: Tensor, weight: Tensor) -> Tensor:
    """The product for a gradient step: differentiable once, in less than two thirds of the time."""
    if not x.is_cpu or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight)
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight).unflatten(0, x.shape[:-1])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad
        return product(gradient, weight.t()) if of_x else None, outer(gradient, x) if of_weight else None
