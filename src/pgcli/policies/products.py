"""Matrix products by the faster of the two libraries that torch carries."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
LARGE = 750_000
"""Multiplications above which oneDNN's product is faster than torch's own: 79 us instead of 164 for 2048 x 64 x 64 on a
recent AMD EPYC, 20 instead of 35 for 256 x 256 x 12. Its preparation for each new number of rows takes 0.4 ms."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """x weight^T + bias, of (B, n), (m, n) and (m,) -> (B, m), or its positive part. No graph is built."""
    if x.shape[0] * weight.numel() >= LARGE and _for_onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if relu else "none", [], "")
    found = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
    return found.relu_() if relu else found


def columns(weight: Tensor, x: Tensor, added: Tensor | None = None) -> Tensor:
    """weight x + added, of (m, n), (n, N) and (m, N) -> (m, N). No graph is built."""
    if weight.numel() * x.shape[1] >= LARGE and _for_onednn(x):
        found = product(weight, x.t())
        return found if added is None else found.add_(added)
    return torch.mm(weight, x) if added is None else torch.addmm(added, weight, x)


def _for_onednn(x: Tensor) -> bool:
    return ONEDNN and x.is_cpu and x.dtype == torch.float32


def outer(a: Tensor, b: Tensor) -> Tensor:
    """a^T b of (B, m) and (B, n). The narrower one must be first: the other order takes up to eight times as long."""
    return product(a.t(), b.t()) if a.shape[1] <= b.shape[1] else product(b.t(), a.t()).t()


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
