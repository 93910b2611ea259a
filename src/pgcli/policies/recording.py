"""A trunk's pass over completions, recorded while they are written.

Writing a completion computes all that reading it computes. While the parameters are the same, neither a critic's values
nor the first gradient step on all the rows that were written need a forward pass of their own: `reading` takes the
record in its place.

Shapes: those of `reading`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from pgcli.policies.reading import Kept, Pass, Plan, filled, outputs, passed, planned, shares_of
from pgcli.policies.trunk import Block, Trunk


class Prompts(NamedTuple):
    """A pass over prompts, each read once."""

    tokens: Tensor
    """(G, P)"""
    padding: Tensor | None
    """(G,)"""
    plan: Plan
    done: Pass


@torch.inference_mode(False)
@torch.no_grad()
def read_prompts(trunk: Trunk, tokens: Tensor, padding: Tensor | None) -> Prompts:
    """tokens (G, P), padding (G,). No graph, and no inference mode: a graph refuses what was made in it."""
    none = tokens.new_empty(0)
    plan = planned(trunk, tokens, padding, none, none, steps=0, asked=1)
    blocks = [block.weights for block in cast("list[Block]", trunk.blocks)]
    return Prompts(tokens, padding, plan, passed(plan, trunk.embedding, blocks))


class Places(NamedTuple):
    """Where a block's step writes what it computes of N rows: arrays of (N, size), by the names of `Kept`."""

    normed: Any
    norm: Any
    projected: Any
    """Queries, keys and values, the former two rotated."""
    attended: Any
    middle: Any
    middle_norm: Any
    gate: Any
    up: Any
    opened: Any
    active: Any


def sizes(trunk: Trunk) -> Places:
    width, hidden = trunk.config.width, trunk.config.hidden
    return Places(width, 1, 3 * width, width, width, 1, hidden, hidden, hidden, hidden)


class Record:
    """Room for T steps of N rows, after the prompts with which they begin. Rows may leave.

    groups: (N,), the prompt of each row.
    end: the token after which nothing of a row is read.
    memory: (L, 2, N, H, D, C), the cache: it has the keys and values too, until a row leaves.
    """

    def __init__(self, trunk: Trunk, prompts: Prompts, groups: Tensor, memory: Tensor, *, steps: int, end: int) -> None:
        self.prompts, self.groups, self.memory, self.end = prompts, groups, memory, end
        self.parameters = [p.detach().clone() for p in _parameters(trunk)]
        self.rows, self.left = np.arange(len(groups)), False
        self.steps = 0
        self.positions = 0
        room = steps * len(groups)
        self.tokens, self.present = np.empty(room, np.int64), np.empty(room, np.int64)
        done, wanted = prompts.done, sizes(trunk)._asdict()
        # What is projected of the prompts has no room here: `Kept` has it by head.
        self.blocks = [
            [_Room(getattr(kept, name, None), room, size, kept.norm) for name, size in wanted.items()]
            for kept in done.blocks
        ]
        self.last = [_Room(x, room, x.shape[1], x) for x in (done.normed, done.norm)]

    def keep(self, rows: Tensor) -> None:
        """Only these of the rows go on."""
        self.rows, self.left = self.rows[rows.numpy()], True

    def next(self, tokens: np.ndarray) -> tuple[list[Places], list[np.ndarray]]:
        """Places for a step that reads these tokens, (n,), one of each row."""
        first, last = self.positions, self.positions + len(tokens)
        self.tokens[first:last] = tokens
        np.add(self.rows, self.steps * len(self.groups), out=self.present[first:last])
        self.positions, self.steps = last, self.steps + 1
        blocks = [Places(*[room.of_rows[first:last] for room in rooms]) for rooms in self.blocks]
        return blocks, [room.of_rows[first:last] for room in self.last]

    def is_of(self, trunk: Trunk, prompts: Tensor, following: Tensor, last: int, padding: Tensor | None) -> bool:
        """Whether this is the pass that `reading` is asked for, as far as anything of it is read."""
        if last != following.shape[1] + 1 or len(following) != len(self.groups):
            return False
        own = self.prompts.padding
        if padding is not None and not padding.any():
            padding = None
        return (
            (padding is None) == (own is None)
            and (padding is None or own is None or torch.equal(own[self.groups], padding))
            and torch.equal(self.prompts.tokens[self.groups], prompts)
            and self._has(following)
            and all(map(torch.equal, self.parameters, _parameters(trunk)))
        )

    def _has(self, following: Tensor) -> bool:
        """Whether these tokens, (N, T), were read up to the end of each row."""
        tokens, present = self.tokens[: self.positions], self.present[: self.positions]
        if not np.array_equal(following.numpy().T.reshape(-1)[present], tokens):
            return False
        N, T = following.shape
        if self.positions == N * T:
            return True
        read = np.bincount(present % N, minlength=N)
        ends = (following == self.end).numpy()
        return bool((ends.any(1) & (ends.argmax(1) <= read) | (read == T)).all())

    def plan(self, trunk: Trunk) -> Plan:
        tokens, present = (torch.from_numpy(x[: self.positions]) for x in (self.tokens, self.present))
        return planned(
            trunk, self.prompts.tokens, self.prompts.padding, self.groups, tokens,
            steps=self.steps, asked=1, present=present if self.left else None,
        )  # fmt: skip

    def hidden(self, trunk: Trunk) -> Tensor:
        """(N, steps + 1, W), without a graph."""
        return outputs(self.last[0].filled(self.positions), trunk.norm, self.plan(trunk))

    def done(self, plan: Plan) -> Pass:
        """The pass. The rows' attention weights are computed again: to keep them took longer."""
        P, _, T, N, H, D = plan.sizes
        blocks = []
        for kept, rooms, memory in zip(self.prompts.done.blocks, self.blocks, self.memory, strict=True):
            written = Places(*(room.filled(self.positions) for room in rooms))
            projected = filled(written.projected, plan).view(T, N, 3, H, D).permute(2, 1, 3, 0, 4)
            if plan.present is None:
                keys, values = torch.from_numpy(memory.numpy())[..., : P + T].mT  # made in inference mode
            else:
                before = torch.stack([kept.prompt_keys, kept.prompt_values])[:, self.groups]
                keys, values = torch.cat([before, projected[1:]], 3)
            queries = projected[0].contiguous()
            shares = shares_of(queries, keys, plan.of_rows)
            shared = {name: x for name, x in written._asdict().items() if name in Kept._fields}
            blocks.append(kept._replace(queries=queries, keys=keys, values=values, shares=shares, **shared))
        return Pass(blocks, *(room.filled(self.positions) for room in self.last))


class _Room:
    """all: (M or M', size), of which the prompts' part is given. of_rows: the rest."""

    def __init__(self, of_prompts: Tensor | None, room: int, size: int, like: Tensor) -> None:
        first = 0 if of_prompts is None else len(of_prompts)
        self.all = np.empty((first + room, size), dtype=like.numpy().dtype)
        if of_prompts is not None:
            self.all[:first] = of_prompts.numpy()
        self.of_rows = self.all[first:]

    def filled(self, positions: int) -> Tensor:
        return torch.from_numpy(self.all[: len(self.all) - len(self.of_rows) + positions])


def _parameters(trunk: Trunk) -> list[Tensor]:
    return [trunk.embedding, trunk.norm, *(x for block in cast("list[Block]", trunk.blocks) for x in block.weights)]
