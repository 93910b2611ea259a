"""One row of `pgcli verify`: a quantity, its exact value, the algorithm's value, and the tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from pgcli.options import options, search_path


class Check(NamedTuple):
    """`exact`, `ours`: a number, or the Euclidean norm of a vector. `error`: the largest absolute difference."""

    algo: str
    """The option of `algo` that is checked; empty for the shared mathematics."""
    quantity: str
    exact: float
    ours: float
    error: float
    tolerance: float
    note: str = ""
    """A condition of the check, or a number worth knowing (an angle, a predicted bias)."""

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # false for NaN


def equal(
    algo: str, quantity: str, exact: Tensor | float, ours: Tensor | float, *, tolerance: float = 1e-8, note: str = ""
) -> Check:
    """Two numbers or two vectors of one shape that must be the same, element by element."""
    a, b = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (exact, ours))
    if a.shape != b.shape:
        raise ValueError(f"{quantity}: shapes {tuple(a.shape)} and {tuple(b.shape)}")
    return Check(algo, quantity, _size(a), _size(b), float((a - b).abs().max()), tolerance, note)


def along(algo: str, quantity: str, exact: Tensor, ours: Tensor, *, note: str = "") -> Check:
    """Two vectors, the same up to a positive factor, which a learning rate absorbs: ours is brought to exact's size."""
    factor = float((ours * exact).sum() / exact.square().sum())
    if factor <= 0:
        return equal(algo, quantity, exact, ours, note="points the other way" if factor else "has no such part")
    scale = "" if abs(factor - 1) < 1e-8 else f"divided by {factor:.3g}"
    return equal(algo, quantity, exact, ours / factor, note="; ".join(filter(None, (scale, note))))


def at_most(algo: str, quantity: str, bound: float, ours: float, *, note: str = "") -> Check:
    """A number that must not exceed a bound; the error is the excess."""
    excess = max(0.0, ours - bound) if math.isfinite(ours) else ours
    return Check(algo, f"{quantity} <= bound", bound, ours, excess, 0.0, note)


def broken(algo: str, quantity: str, error: Exception) -> Check:
    """A check that could not be made: it counts as failed, and the note says why."""
    first = str(error).partition("\n")[0]
    nan = float("nan")
    return Check(algo, quantity, nan, nan, nan, 0.0, f"could not be checked: {type(error).__name__}: {first}")


def safely(algo: str, topic: Callable[..., Iterator[Check]], *arguments: Any) -> Iterator[Check]:
    """The rows of a topic; if it raises an error, a row that says so."""
    try:
        yield from topic(*arguments)
    except Exception as error:
        yield broken(algo, topic.__name__.replace("_", " "), error)


Method = TypeVar("Method")


def of_each(
    only: Collection[str], make: Callable[[str], Method],
    topics: Callable[[Method], Iterable[Callable[[Method], Iterator[Check]]]], *, what: str,
) -> Iterator[Check]:  # fmt: skip
    """The rows of every option of `algo`, or of those in `only`, for the topics that apply to its method.

    what: name of the failed check if the topics cannot be determined.
    """
    for option in options("algo", search_path()):
        if only and option not in only:
            continue
        try:
            method = make(option)
            found = list(topics(method))
        except Exception as error:
            yield broken(option, what, error)
            continue
        for topic in found:
            yield from safely(option, topic, method)


def _size(x: Tensor) -> float:
    return float(x) if x.dim() == 0 else float(torch.linalg.vector_norm(x))
