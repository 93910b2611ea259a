"""Decoding with a trunk: token by token, with a cache of keys and values. No graph.

It has the hidden states of `Trunk.forward` in few small operations, because their overhead is the cost of a step:

- The gains of a norm and the scale of the scores are multiplied into the weights beforehand (`reading.folded`).
- On the CPU they are NumPy's (`libraries.py`), and what they write can be kept for who reads it next (`recording.py`).

Shapes: N rows, V vocabulary, W width, H heads, D = W / H, L layers, C positions for which the cache has room.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from pgcli.policies.libraries import InNumPy, library
from pgcli.policies.products import linear
from pgcli.policies.reading import SHORT, folded, neighbours
from pgcli.policies.recording import Places, Prompts, Record, read_prompts, sizes
from pgcli.policies.trunk import Block, Trunk


class Weights(NamedTuple):
    """A block's weights, prepared for products `x weight`, as arrays of the library."""

    qkv: Any
    """(W, 3W)"""
    out: Any
    gate: Any
    up: Any
    down: Any


@dataclass
class Cache:
    """The keys and values of each row, and the weights that read further tokens.

    dtype: of the logits.
    library: of the arrays that are not Tensors.
    embedding, head: (V, W) and (W, V), the latter with the gains of the last norm.
    rotations: the library's, of C positions, for the pairs of neighbours in queries and keys.
    memory: (L, 2, N, H, D, C), keys and values of the tokens so far, of which `length` are filled.
    groups: (N,), the prompt that each row begins with.
    bias: (N, 1, 1, C), -inf at positions that a row must not read; None: it may read all.
    prompts: their pass, with which a record begins; None: it was not kept.
    record: where `step` writes what it computes; None: in `scratch`, as the next step does.
    """

    trunk: Trunk
    dtype: torch.dtype
    library: Any
    embedding: Any
    blocks: list[Weights]
    head: Any
    rotations: Any
    memory: Tensor
    length: int
    groups: Tensor
    bias: Tensor | None
    prompts: Prompts | None
    record: Record | None = None
    scratch: Places | None = None

    def keep(self, rows: Tensor) -> None:
        """Keep only `rows`: (n,) int64, indices, which may repeat."""
        if self.record is not None:
            self.record.keep(rows)
        self._take(rows)

    def expand(self, counts: Tensor) -> None:
        """Each row becomes `counts` (N,) copies, next to each other."""
        self._take(torch.repeat_interleave(counts))

    def keep_pass(self, *, steps: int, end: int) -> None:
        """Record the next steps, for who reads these rows next. Without effect where nobody could use it."""
        if self.prompts is not None and self.length + steps <= SHORT:
            self.record = Record(self.trunk, self.prompts, self.groups, self.memory, steps=steps, end=end)
            self.trunk.record = self.record

    def places(self, tokens: Any) -> tuple[list[Places], Any]:
        """Where the step that reads `tokens` writes: in each block, and for the last norm."""
        if self.record is not None:
            return self.record.next(tokens)
        if self.scratch is None:
            self.scratch = Places(*self.library.scratch(len(tokens), sizes(self.trunk), self.trunk.embedding))
        return [self.scratch] * len(self.blocks), self.scratch[:2]

    def _take(self, rows: Tensor) -> None:
        filled = self.memory[..., : self.length][:, :, rows]
        self.memory = filled.new_empty(*filled.shape[:-1], self.trunk.capacity)
        self.memory[..., : self.length] = filled
        self.groups = self.groups[rows]
        self.bias = None if self.bias is None else self.bias[rows]
        self.scratch = None


def prefill(trunk: Trunk, head: Tensor, tokens: Tensor, padding: Tensor | None) -> tuple[Tensor, Cache]:
    """head (V, W), tokens (N, S), padding (N,) -> logits after the last token, (N, V), and a cache with more room."""
    if padding is not None and not bool(padding.any()):
        padding = None
    ops, (rows, length) = library(trunk.embedding), tokens.shape
    blocks = cast("list[Block]", trunk.blocks)
    gains = trunk.norm * math.sqrt(len(trunk.norm))
    prompts = None
    if ops is InNumPy and length <= SHORT:
        prompts = read_prompts(trunk, tokens, padding)
        hidden = prompts.done.normed * gains
        read = [(kept.prompt_keys, kept.prompt_values) for kept in prompts.done.blocks]
        weights = [(kept.folded_qkv, kept.folded_gate, kept.folded_up) for kept in prompts.done.blocks]
    else:
        states, memories = trunk.read(tokens, 1, padding, linear)
        hidden, order = states[:, 0], neighbours(trunk.rotary.shape[-1]).to(tokens.device)
        read = [(keys[..., order], values) for keys, values in memories]
        weights = [folded(x.attention_norm, x.qkv, x.feed_norm, x.gate_up, x.heads) for x in blocks]
    memory = hidden.new_empty(len(read), 2, *read[0][0].mT.shape[:-1], trunk.capacity)
    for layer, both in enumerate(read):
        for part, x in enumerate(both):
            memory[layer, part, ..., :length] = x.mT
    bias = None
    if padding is not None:
        unreadable = torch.arange(trunk.capacity, device=padding.device) < padding[:, None, None, None]
        bias = torch.zeros_like(unreadable, dtype=hidden.dtype).masked_fill(unreadable, -torch.inf)
    return linear(hidden, head).to(head.dtype), Cache(
        trunk=trunk, dtype=head.dtype, library=ops, embedding=ops.array(trunk.embedding),
        blocks=[_prepared(ops, block, *own) for block, own in zip(blocks, weights, strict=True)],
        head=ops.array((head * gains).t().contiguous()), rotations=ops.rotations(*_angles(trunk)),
        memory=memory, length=length, groups=torch.arange(rows, device=tokens.device), bias=bias, prompts=prompts,
    )  # fmt: skip


def step(tokens: Tensor, cache: Cache) -> Tensor:
    """(N,), one more token of each row -> logits after it, (N, V)."""
    t, cache.length = cache.length, cache.length + 1
    ops = cache.library
    read = ops.array(tokens)
    places, last = cache.places(read)
    memory = ops.array(cache.memory)[..., : t + 1]
    bias = None if cache.bias is None else ops.array(cache.bias)[..., : t + 1]
    x = cache.embedding[read]
    for weights, own, to in zip(cache.blocks, memory, places, strict=True):
        x = _step(ops, x, weights, cache.rotations[t], own, bias, to)
    return ops.tensor(ops.product(ops.normed(x, *last), cache.head)).to(cache.dtype)


def _step(ops: Any, x: Any, weights: Weights, rotation: Any, memory: Any, bias: Any, to: Places) -> Any:
    """A block, (N, W) -> (N, W). memory: (2, N, H, D, t + 1); the last keys and values are written here."""
    (rows, width), (keys, values) = x.shape, memory
    projected = ops.product(ops.normed(x, to.normed, to.norm), weights.qkv, to.projected)
    ops.turn(projected[:, : 2 * width], rotation)
    queries, keys[..., -1], values[..., -1] = projected.reshape(rows, 3, *keys.shape[1:3]).swapaxes(0, 1)
    scores = queries[:, :, None] @ keys
    if bias is not None:
        scores += bias
    x = x + ops.product(ops.mixed(ops.shares(scores), values, to.attended), weights.out)
    middle = ops.normed(x, to.middle, to.middle_norm)
    gate, up = ops.product(middle, weights.gate, to.gate), ops.product(middle, weights.up, to.up)
    return x + ops.product(ops.gated(gate, up, to.opened, to.active), weights.down)


def _prepared(ops: Any, block: Block, qkv: Tensor, gate: Tensor, up: Tensor) -> Weights:
    return Weights(*map(ops.array, (qkv, block.out.t().contiguous(), gate, up, block.down.t().contiguous())))


def _angles(trunk: Trunk) -> Iterable[Tensor]:
    """Cosines and sines of the angles of all pairs in queries and keys, (C, W) each."""
    half = trunk.rotary.shape[-1] // 2
    (cos, _), (_, sin) = (x[:, 0, 0].split(half, -1) for x in trunk.rotary)
    return (x.repeat(1, 2 * trunk.config.heads) for x in (cos, sin))
