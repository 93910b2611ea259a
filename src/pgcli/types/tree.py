"""Trees: of tensors, of what a checkpoint holds; and numbers by name."""

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
"""The value of a field that only some rollouts have. An algorithm that needs it has said so, and it is there."""


class Appended(NamedTuple):
    """Rows that are numbered from 0 and only ever appended: a checkpoint writes those that the one before it has not.

    first, end: the oldest row that is not forgotten, and the number that the next row will have.
    pieces: consecutive and none of them empty, each the number of its first row and its columns, name -> (n, ...).
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
