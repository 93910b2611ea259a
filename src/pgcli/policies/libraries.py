"""The operations of decoding, in NumPy and in torch.

On the CPU NumPy takes less time: an operation's overhead is a third of torch's, and an einsum writes no array of all
the products.

Arrays have their rows last. Shapes: N rows, W width, H heads, D = W / H, t positions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pgcli.policies.trunk import EPSILON


class InTorch:
    """On any device, under any autocast."""

    array = tensor = staticmethod(lambda x: x)

    @staticmethod
    def columns(weight: Tensor, x: Tensor, added: Tensor | None = None) -> Tensor:
        """weight x + added, of (m, n), (n, N) and (m, N) -> (m, N)."""
        return torch.mm(weight, x) if added is None else torch.addmm(added, weight, x)

    @staticmethod
    def embedded(embedding: Tensor, tokens: Tensor) -> Tensor:
        """(V, W), (N,) -> (W, N)."""
        return F.embedding(tokens, embedding).t().contiguous()

    @staticmethod
    def normed(x: Tensor) -> Tensor:
        """(W, N) -> x / rms(x) / sqrt(W)."""
        return x * (x * x).sum(0).add_(EPSILON * len(x)).rsqrt_()

    @staticmethod
    def scores(keys: Tensor, queries: Tensor) -> Tensor:
        """(t, D, H, N), (D, H, N) -> (t, H, N)."""
        return (keys * queries).sum(1)

    @staticmethod
    def shares(scores: Tensor) -> Tensor:
        """The softmax over positions."""
        return torch.softmax(scores, 0)

    @staticmethod
    def mixed(values: Tensor, shares: Tensor) -> Tensor:
        """(t, D, H, N), (t, H, N) -> (D, H, N)."""
        return (values * shares[:, None]).sum(0)

    @staticmethod
    def gated(both: Tensor) -> Tensor:
        """(2 M, N), gate above up -> silu(gate) up, (M, N)."""
        half = len(both) // 2
        return F.silu(both[:half]).mul_(both[half:])


class InNumPy:
    """On the CPU, in the type of the weights. See `InTorch` for what each is."""

    @staticmethod
    def array(x: Tensor) -> np.ndarray:
        """The same memory."""
        return x.detach().numpy()

    tensor = staticmethod(torch.from_numpy)

    @staticmethod
    def columns(weight: np.ndarray, x: np.ndarray, added: np.ndarray | None = None) -> np.ndarray:
        found = weight @ x
        if added is not None:
            found += added
        return found

    @staticmethod
    def embedded(embedding: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return embedding[tokens].T.copy()

    @staticmethod
    def normed(x: np.ndarray) -> np.ndarray:
        squares = (x * x).sum(0)
        squares += EPSILON * len(x)
        return x / np.sqrt(squares, out=squares)

    @staticmethod
    def scores(keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
        return np.einsum("tdhn,dhn->thn", keys, queries)

    @staticmethod
    def shares(scores: np.ndarray) -> np.ndarray:
        return torch.softmax(torch.from_numpy(scores), 0).numpy()

    @staticmethod
    def mixed(values: np.ndarray, shares: np.ndarray) -> np.ndarray:
        return np.einsum("tdhn,thn->dhn", values, shares)

    @staticmethod
    def gated(both: np.ndarray) -> np.ndarray:
        return InTorch.gated(torch.from_numpy(both)).numpy()


def library(x: Tensor) -> Any:
    """The faster one for computing with x."""
    plain = x.dtype in (torch.float32, torch.float64)
    return InNumPy if x.is_cpu and plain and not torch.is_autocast_enabled("cpu") else InTorch
