"""The operations of decoding, in NumPy and in torch.

On the CPU NumPy takes less time: an operation's overhead is a third of torch's.

`out` is where a result is written, so that it can be kept; torch ignores it, and keeps nothing.
Shapes: N rows, W width, H heads, D = W / H, t positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pgcli.policies.trunk import EPSILON


class InTorch:
    """On any device, under any autocast."""

    array = staticmethod(Tensor.detach)
    tensor = staticmethod(lambda x: x)

    @staticmethod
    def scratch(rows: int, sizes: Iterable[int], like: Tensor) -> list[Any]:
        """Places for results of (rows, size)."""
        return [None for _ in sizes]

    @staticmethod
    def product(x: Tensor, weight: Tensor, out: Any = None) -> Tensor:
        """(n, k), (k, m) -> (n, m)."""
        return torch.mm(x, weight)

    @staticmethod
    def normed(x: Tensor, out: Any, norm: Any) -> Tensor:
        """(N, W) -> x / n, as in `reading`. The norms n, (N, 1), go to `norm`."""
        return x / x.square().sum(1, keepdim=True).add_(EPSILON * x.shape[1]).sqrt_()

    @staticmethod
    def rotations(cos: Tensor, sin: Tensor) -> Tensor:
        """Of the angles of pairs of neighbours, (C, n / 2), to what `turn` takes for each of C positions."""
        return torch.stack([torch.stack([cos, cos], -1), torch.stack([-sin, sin], -1)], 1).flatten(2)

    @staticmethod
    def turn(x: Tensor, rotation: Tensor) -> None:
        """(N, n), each pair of neighbours by its angle, in place."""
        cos, sin = rotation
        x.copy_(x * cos + x.unflatten(1, (-1, 2)).flip(2).flatten(1) * sin)

    @staticmethod
    def shares(scores: Tensor) -> Tensor:
        """The softmax over the last axis."""
        return torch.softmax(scores, -1)

    @staticmethod
    def mixed(shares: Tensor, values: Tensor, out: Any) -> Tensor:
        """(N, H, 1, t), (N, H, D, t) -> (N, W)."""
        return (values @ shares.mT).flatten(1)

    @staticmethod
    def gated(gate: Tensor, up: Tensor, opened: Any, out: Any) -> Tensor:
        """silu(gate) up. silu(gate) goes to `opened`."""
        return F.silu(gate).mul_(up)


class InNumPy:
    """On the CPU, in the type of the weights. See `InTorch` for what each is."""

    @staticmethod
    def array(x: Tensor) -> np.ndarray:
        """The same memory."""
        return x.detach().numpy()

    tensor = staticmethod(torch.from_numpy)

    @staticmethod
    def scratch(rows: int, sizes: Iterable[int], like: Tensor) -> list[Any]:
        return [np.empty((rows, size), InNumPy.array(like).dtype) for size in sizes]

    product = staticmethod(np.matmul)

    @staticmethod
    def normed(x: np.ndarray, out: np.ndarray, norm: np.ndarray) -> np.ndarray:
        np.add(np.vecdot(x, x)[:, None], EPSILON * x.shape[1], out=norm)
        return np.divide(x, np.sqrt(norm, out=norm), out=out)

    @staticmethod
    def rotations(cos: Tensor, sin: Tensor) -> np.ndarray:
        return torch.complex(cos, sin).numpy()

    @staticmethod
    def turn(x: np.ndarray, rotation: np.ndarray) -> None:
        pairs = x.view(rotation.dtype)
        np.multiply(pairs, rotation, out=pairs)

    @staticmethod
    def shares(scores: np.ndarray) -> np.ndarray:
        return torch.softmax(torch.from_numpy(scores), -1).numpy()

    @staticmethod
    def mixed(shares: np.ndarray, values: np.ndarray, out: np.ndarray) -> np.ndarray:
        np.matmul(values, shares.swapaxes(-1, -2), out=out.reshape(*values.shape[:3], 1))
        return out

    @staticmethod
    def gated(gate: np.ndarray, up: np.ndarray, opened: np.ndarray, out: np.ndarray) -> np.ndarray:
        torch._C._nn.silu(torch.from_numpy(gate), out=torch.from_numpy(opened))  # type: ignore[call-arg]
        return np.multiply(opened, up, out=out)


def library(x: Tensor) -> Any:
    """The faster one for computing with x."""
    plain = x.dtype in (torch.float32, torch.float64)
    return InNumPy if x.is_cpu and plain and not torch.is_autocast_enabled("cpu") else InTorch
