"""The processes of a run started by `torchrun`: all take the same optimiser steps, and rows are divided among them.

All processes have the same seeds, so that each of them draws the same prompts, computes the same advantages and the
same loss from the same numbers. Only expensive work is divided: each process decodes its share of the rows, evaluates
the policy on them and gathers the results; and each differentiates the whole loss through its own rows. The sum of
those gradients is the gradient:

    L(l_1, ..., l_N),  l_i = log pi of row i        grad L = sum over processes p of  sum_{i of p} dL/dl_i grad l_i

Rank 0 writes files and prints. With a single process these functions do nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from pgcli.errors import RunError

FAILURE = "pgcli/failure"
"""Key under which a failing process reports its error."""


class _Team:
    """The process group; a single process until `joined`."""

    size, rank, local_rank = 1, 0, 0
    store: Any = None


def size() -> int:
    """Number of processes."""
    return _Team.size


def rank() -> int:
    """Number of this process, from 0."""
    return _Team.rank


def local_rank() -> int:
    """Number of this process on its machine, from 0."""
    return _Team.local_rank


@contextmanager
def joined() -> Iterator[None]:
    """Joins the process group; a failing rank reports its error to rank 0, which prints it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield
        return
    _Team.store, _Team.rank, _Team.size = next(dist.rendezvous("env://"))
    _Team.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=_Team.store, rank=rank(), world_size=size())
    try:
        yield
    except BaseException as error:
        if rank() > 0 and not isinstance(error, Lost):
            with suppress(RuntimeError):
                _Team.store.set(FAILURE, f"process {rank()} of {size()}: {error or type(error).__name__}")
        raise
    finally:
        dist.destroy_process_group()
        _Team.size, _Team.rank, _Team.local_rank = 1, 0, 0


class Lost(RunError):  # noqa: N818  (what another process is)
    """Another process has ended."""


@contextmanager
def _heard() -> Iterator[None]:
    """If a collective operation fails, raises RunError with the error of the process that failed."""
    try:
        yield
    except RuntimeError as error:
        said = "another process of this run has ended"
        with suppress(RuntimeError):
            if _Team.store.check([FAILURE]):
                said = _Team.store.get(FAILURE).decode()
        raise Lost(said) from error


# ---------------------------------------------------------------- dividing and gathering rows


def share(rows: int) -> slice:
    """Rows of this process, of `rows` in all: consecutive, and each row belongs to exactly one process.

    If there are fewer rows than processes, each process has all rows.
    """
    return _share(rows, rank())


def _share(rows: int, process: int) -> slice:
    if rows < size():
        return slice(0, rows)
    return slice(rows * process // size(), rows * (process + 1) // size())


def gather(own: Tensor, rows: int) -> Tensor:
    """All processes' rows from each one's own: (n, ...) -> (rows, ...). No gradient."""
    if rows < size() or size() == 1:
        return own
    kind = own.dtype
    shares = [_share(rows, process) for process in range(size())]
    most = max(s.stop - s.start for s in shares)
    padded = own.new_zeros(most, *own.shape[1:], dtype=torch.uint8 if kind == torch.bool else kind)
    padded[: len(own)] = own.detach()
    found = [torch.empty_like(padded) for _ in shares]
    with _heard():
        dist.all_gather(found, padded)
    return torch.cat([x[: s.stop - s.start] for x, s in zip(found, shares, strict=True)]).to(kind)


def add_up(tensor: Tensor) -> None:
    """Sum over all processes, in place."""
    if size() > 1:
        with _heard():
            dist.all_reduce(tensor)


def anybody(flag: bool) -> bool:
    """Whether `flag` is true in any process."""
    if size() == 1:
        return flag
    found = torch.tensor(int(flag))
    add_up(found)
    return bool(found)


def tell(text: str) -> str:
    """Rank 0's text, in every process."""
    if size() == 1:
        return text
    length = torch.tensor([len(text.encode())])
    with _heard():
        dist.broadcast(length, 0)
        letters = torch.zeros(int(length), dtype=torch.uint8)
        if rank() == 0:
            letters = torch.tensor(list(text.encode()), dtype=torch.uint8)
        dist.broadcast(letters, 0)
    return bytes(letters.tolist()).decode()


# ---------------------------------------------------------------- a policy on shared rows


class _Whole(torch.autograd.Function):
    """`gather` with a gradient: that of this process's own rows, or its part of a gradient that all of them have."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: int) -> Tensor:
        ctx.rows = rows
        return gather(own, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        own = gradients[0][share(ctx.rows)]
        return own / size() if ctx.rows < size() else own, None


def shared(policy: Callable[..., Any]) -> Callable[..., Any]:
    """The policy, evaluated by each process on its share of the rows; `add_up` then sums the processes' gradients."""
    if size() == 1:
        return policy

    def evaluate(observations: Any, actions: Tensor) -> Any:
        rows = len(actions)
        own = share(rows)
        mine = {name: value[own] for name, value in observations.items()}
        found = policy(mine, actions[own])
        if isinstance(found, Tensor):  # of judges: (members, N, T)
            return _Whole.apply(found.transpose(0, 1), rows).transpose(0, 1)
        log_probs, entropy, values = (x if x is None else _Whole.apply(x, rows) for x in found[:3])
        return type(found)(log_probs, entropy, values, _Everybodys(found.distribution, rows))

    return evaluate


class _Everybodys:
    """A distribution over the actions of all rows, gathered only when it is used, because it can be large."""

    def __init__(self, own: Any, rows: int) -> None:
        self._own, self._rows = own, rows

    @cached_property
    def _found(self) -> Any:
        return self._own._make(_Whole.apply(x, self._rows) for x in self._own)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._found)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._found, name)
