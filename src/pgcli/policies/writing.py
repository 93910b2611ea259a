"""Decoding with a trunk: token by token, with a cache of keys and values. No graph.

It has the hidden states of `Trunk.forward` in few small operations, because their overhead is the cost of a step:

- Rows are the last axis of everything, so that operations run along contiguous numbers however narrow the heads are.
- The gains of a norm, the root of its mean and the scale of the scores are multiplied into the weights beforehand.
- A rotation is a product with one matrix for all rows and heads, because all are at the same position.

Shapes: N rows, W width, H heads, D = W / H, L layers, C positions for which the cache has room.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from pgcli.policies.products import columns, linear
from pgcli.policies.trunk import EPSILON, Block, Trunk


class Weights(NamedTuple):
    """A block's weights, prepared for `step`."""

    qkv: Tensor
    """(3W, W), to (3, D, H)."""
    out: Tensor
    """(W, W), from (D, H)."""
    gate_up: Tensor
    down: Tensor


@dataclass
class Cache:
    """The keys and values of each row, and the weights that read further tokens.

    memory: (L, 2, C, D, H, N), keys and values of the tokens so far, of which `length` are filled.
    rotations: (C, D, D).
    bias: (C, 1, N), -inf at positions that a row must not read; None: it may read all.
    """

    memory: Tensor
    length: int
    weights: list[Weights]
    rotations: Tensor
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
    cache = Cache(
        memory=hidden.new_empty(layers, 2, trunk.capacity, size, heads, rows),
        length=length,
        weights=[_weights(block) for block in cast("list[Block]", trunk.blocks)],
        rotations=torch.diag_embed(cos) + torch.diag_embed(sin).roll(size // 2, -1),
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
    bias = None if cache.bias is None else cache.bias[: t + 1]
    x = F.embedding(tokens, trunk.embedding).t().contiguous()
    for weights, memory in zip(cache.weights, cache.memory, strict=True):
        x = _step(x, weights, cache.rotations[t], memory[:, : t + 1], bias)
    return (_normed(x) * (trunk.norm * math.sqrt(len(x)))[:, None]).t()


def _step(x: Tensor, weights: Weights, rotation: Tensor, memory: Tensor, bias: Tensor | None) -> Tensor:
    """A block, (W, N) -> (W, N). memory: (2, t + 1, D, H, N); the last keys and values are written here."""
    (width, rows), size = x.shape, len(rotation)
    keys, values = memory
    projected = columns(weights.qkv, _normed(x))
    turned = (rotation @ projected[: 2 * width].view(2, size, -1)).view(2, size, -1, rows)
    keys[-1] = turned[1]
    values[-1] = projected[2 * width :].view(size, -1, rows)
    scores = (keys * turned[0]).sum(1)  # (t + 1, H, N)
    if bias is not None:
        scores += bias
    attended = (values * torch.softmax(scores, 0)[:, None]).sum(0)  # (D, H, N)
    x = columns(weights.out, attended.view(width, rows), x)
    both = columns(weights.gate_up, _normed(x))
    half = len(both) // 2
    return columns(weights.down, F.silu(both[:half]).mul_(both[half:]), x)


def _weights(block: Block) -> Weights:
    width, heads = len(block.out), block.heads
    gain = math.sqrt(width)
    qkv = (block.qkv * block.attention_norm * gain).view(3, heads, -1, width)
    qkv[0] *= qkv.shape[2] ** -0.5
    return Weights(
        qkv.transpose(1, 2).reshape(-1, width),
        block.out.view(width, heads, -1).transpose(1, 2).reshape(width, -1),
        block.gate_up * block.feed_norm * gain,
        block.down,
    )


def _normed(x: Tensor) -> Tensor:
    """(W, N) -> x / rms(x) / sqrt(W)."""
    return x * (x * x).sum(0).add_(EPSILON * len(x)).rsqrt_()
