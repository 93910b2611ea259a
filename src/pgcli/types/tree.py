"""Trees of tensors and of a checkpoint's contents; and metrics: numbers by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

Metrics: TypeAlias = dict[str, float]
State: TypeAlias = dict[str, Any]
"""A checkpointable tree: dicts and lists of tensors, NumPy arrays, what JSON can hold, and at most one `Appended`.
Never an object.
"""
Observations: TypeAlias = Any
"""A tensor, or a dict of tensors, whose leading axes are those of the actions. Opaque to algorithms."""
ABSENT: Any = None
"""None where a collector does not produce this field; an algorithm that declares the need may rely on it."""


class Appended(NamedTuple):
    """Rows numbered from 0 that are only ever appended: a checkpoint writes those that the one before it does not have.

    first, end: the number of the oldest row still kept, and the number of the next row.
    pieces: consecutive and not empty, each the number of its first row and its columns, name -> (n, ...).
    """

    first: int
    end: int
    pieces: list[tuple[int, dict[str, np.ndarray]]]


def each_tensor(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`change` applied to a tensor, or to those of a dict or a NamedTuple; None stays None."""
    if tree is None or isinstance(tree, Tensor):
        return tree if tree is None else change(tree)
    if isinstance(tree, dict):
        return {key: each_tensor(value, change) for key, value in tree.items()}
    return tree._make(each_tensor(value, change) for value in tree)
