"""Decoding with a trunk: token by token, with a cache of keys and values. No graph.

It has the hidden states of `Trunk.forward` in few small operations, because their overhead is the cost of a step:

- Rows are the last axis of everything, so that operations run along contiguous numbers however narrow the heads are.
- The gains of a norm, the root of its mean and the scale of the scores are multiplied into the weights beforehand.
- A rotation is a product with one matrix for all rows and heads, because all are at the same position.
- On the CPU they are NumPy's (`libraries.py`).

Shapes: N rows, W width, H heads, D = W / H, L layers, C positions for which the cache has room.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from pgcli.policies.libraries import library
from pgcli.policies.products import linear
from pgcli.policies.trunk import Block, Trunk


class Weights(NamedTuple):
    """A block's weights, prepared for `step`, as arrays of the library."""

    qkv: Any
    """(3W, W), to (3, D, H)."""
    out: Any
    """(W, W), from (D, H)."""
    gate_up: Any
    down: Any


@dataclass
class Cache:
    """The keys and values of each row, and the weights that read further tokens.

    library: of `weights`, `gain` and `rotations`.
    memory: (L, 2, C, D, H, N), keys and values of the tokens so far, of which `length` are filled.
    gain: (W, 1), of the last norm.
    rotations: (C, D, D).
    bias: (C, 1, N), -inf at positions that a row must not read; None: it may read all.
    """

    library: Any
    memory: Tensor
    length: int
    weights: list[Weights]
    gain: Any
    rotations: Any
    bias: Tensor | None = None

    def keep(self, rows: Tensor) -> None:
        """Keep only `rows`: (n,) int64, indices, which may repeat."""
        self._each(lambda x: x[..., rows])

    def expand(self, counts: Tensor) -> None:
        """Each row becomes `counts` (N,) copies, next to each other."""
        if bool((counts == counts[0]).all()):  # repeating whole blocks takes a tenth of the time
            self._each(lambda x: x[..., None].expand(*x.shape, int(counts[0])).flatten(-2))
        else:
            self.keep(torch.repeat_interleave(counts))

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply `change` to the rows, the last axis, of the filled part of the cache."""
        filled = change(self.memory[:, :, : self.length])
        self.memory = filled.new_empty(*self.memory.shape[:-1], filled.shape[-1])
        self.memory[:, :, : self.length] = filled
        self.bias = None if self.bias is None else change(self.bias)


def prefill(trunk: Trunk, tokens: Tensor, padding: Tensor | None) -> tuple[Tensor, Cache]:
    """(N, S) -> (N, W), the hidden state of the last position, and a cache with room for more."""
    if padding is not None and not bool(padding.any()):
        padding = None
    hidden, read = trunk.read(tokens, 1, padding, linear)
    (rows, heads, length, size), layers = read[0][0].shape, len(read)
    cos, sin = trunk.rotary[:, :, 0, 0]
    chosen = library(hidden)
    cache = Cache(
        library=chosen,
        memory=hidden.new_empty(layers, 2, trunk.capacity, size, heads, rows),
        length=length,
        weights=[Weights(*map(chosen.array, _weights(block))) for block in cast("list[Block]", trunk.blocks)],
        gain=chosen.array((trunk.norm * math.sqrt(len(trunk.norm)))[:, None]),
        rotations=chosen.array(torch.diag_embed(cos) + torch.diag_embed(sin).roll(size // 2, -1)),
    )
    for layer, both in enumerate(read):
        for part, x in enumerate(both):
            cache.memory[layer, part, :length] = x.permute(2, 3, 1, 0)
    if padding is not None:
        positions = torch.arange(trunk.capacity, device=padding.device)
        unreadable = positions[:, None, None] < padding
        cache.bias = torch.zeros_like(unreadable, dtype=hidden.dtype).masked_fill(unreadable, -torch.inf)
    return hidden[:, 0], cache


def step(trunk: Trunk, tokens: Tensor, cache: Cache) -> Tensor:
    """(N,), one more token of each row -> (N, W), its hidden state."""
    t, cache.length = cache.length, cache.length + 1
    ops, array = cache.library, cache.library.array
    memory = array(cache.memory)
    bias = None if cache.bias is None else array(cache.bias[: t + 1])
    x = ops.embedded(array(trunk.embedding), array(tokens))
    for weights, own in zip(cache.weights, memory, strict=True):
        x = _step(ops, x, weights, cache.rotations[t], own[:, : t + 1], bias)
    return ops.tensor(ops.normed(x) * cache.gain).t()


def _step(ops: Any, x: Any, weights: Weights, rotation: Any, memory: Any, bias: Any) -> Any:
    """A block, (W, N) -> (W, N). memory: (2, t + 1, D, H, N); the last keys and values are written here."""
    (width, rows), size = x.shape, len(rotation)
    keys, values = memory
    projected = ops.columns(weights.qkv, ops.normed(x))
    turned = (rotation @ projected[: 2 * width].reshape(2, size, -1)).reshape(2, size, -1, rows)
    keys[-1] = turned[1]
    values[-1] = projected[2 * width :].reshape(size, -1, rows)
    scores = ops.scores(keys, turned[0])
    if bias is not None:
        scores += bias
    attended = ops.mixed(values, ops.shares(scores))
    x = ops.columns(weights.out, attended.reshape(width, rows), x)
    return ops.columns(weights.down, ops.gated(ops.columns(weights.gate_up, ops.normed(x))), x)


def _weights(block: Block) -> tuple[Tensor, ...]:
    width, heads = len(block.out), block.heads
    gain = math.sqrt(width)
    qkv = (block.qkv * block.attention_norm * gain).view(3, heads, -1, width)
    qkv[0] *= qkv.shape[2] ** -0.5
    return (
        qkv.transpose(1, 2).reshape(-1, width),
        block.out.view(width, heads, -1).transpose(1, 2).reshape(width, -1),
        block.gate_up * block.feed_norm * gain,
        block.down,
    )
