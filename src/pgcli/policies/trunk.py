"""The decoder-only trunk of the built-in language models: tokens in, hidden states out.

Pre-norm with RMSNorm (Zhang & Sennrich 2019), rotary positions (Su et al. 2021), a gated feed-forward layer (SwiGLU,
Shazeer 2020), no biases: the layout of Llama.

Shapes: N rows, S tokens of a row, W width, H heads, D = W / H, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pgcli.policies.products import Linear, linear, product
from pgcli.settings import Settings

ROTARY_BASE = 10_000.0
EPSILON = 1e-6
"""Under the root of RMSNorm, as in Llama."""


class TrunkSettings(Settings):
    width: PositiveInt = Field(description="of the residual stream")
    layers: PositiveInt = Field(description="blocks of attention and feed-forward")
    heads: PositiveInt = Field(description="attention heads; the width is divided among them")
    hidden: PositiveInt = Field(description="units of each gated feed-forward layer")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> TrunkSettings:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}")
        return self


class Trunk(nn.Module):
    """Each position's hidden state has read the tokens of its row up to and including its own."""

    rotary: Tensor

    def __init__(self, vocabulary: int, capacity: int, config: TrunkSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.capacity = config, capacity
        self.embedding = matrix(vocabulary, config.width, 1.0, generator)
        self.blocks = nn.ModuleList(Block(config, generator) for _ in range(config.layers))
        self.norm = nn.Parameter(torch.ones(config.width))
        self.register_buffer("rotary", _rotary(capacity, config.width // config.heads), persistent=False)

    def forward(self, tokens: Tensor, *, last: int, padding: Tensor | None = None, times: Linear = linear) -> Tensor:
        """(N, S) -> (N, last, W): the last positions, after the last norm.

        padding: (N,), how many of a row's first tokens are not its own and must not be read; None: all of them are.
            Rotary attention sees only distances, so such a row has the hidden states that it has without its padding.
        """
        return self._read(tokens, last, padding, times)[0]

    def _read(
        self, tokens: Tensor, last: int, padding: Tensor | None, times: Linear
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The same, and each block's keys and values, (N, H, S, D)."""
        length = tokens.shape[1]
        rotary = self.rotary[:, :length]
        allowed = None if padding is None else _allowed(padding, length)
        x, read = F.embedding(tokens, self.embedding), []
        for block in self.blocks:
            # Of the top block nobody reads the prompt's positions: to leave them out saves a fifth of the arithmetic.
            keep = last if block is self.blocks[-1] else length
            x, *both = block(x, rotary, keep, allowed, times)
            read.append(both)
        return F.rms_norm(x, self.norm.shape, self.norm, EPSILON), read

    def prefill(self, tokens: Tensor, padding: Tensor | None) -> tuple[Tensor, Cache]:
        """(N, S) -> (N, W), what the last position has read, and a cache with room for more. No graph."""
        hidden, read = self._read(tokens, 1, padding, linear)
        (rows, heads, length, size), layers = read[0][0].shape, len(read)
        cache = Cache(hidden.new_empty(self.capacity, layers, 2, heads, size, rows), length)
        for layer, both in enumerate(read):
            for part, x in enumerate(both):
                cache.memory[:length, layer, part] = x.permute(2, 1, 3, 0)
        if padding is not None:
            positions = torch.arange(self.capacity, device=padding.device)
            unreadable = positions[:, None, None] < padding
            cache.bias = torch.zeros_like(unreadable, dtype=hidden.dtype).masked_fill(unreadable, -torch.inf)
        return hidden[:, 0], cache

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """(N,), a further token of each row -> (N, W), what it has read. No graph."""
        t, cache.length = cache.length, cache.length + 1
        rotary = self.rotary[:, t].view(2, -1, 1)
        bias = None if cache.bias is None else cache.bias[: t + 1]
        x = F.embedding(tokens, self.embedding).t().contiguous()
        for layer, block in enumerate(cast("list[Block]", self.blocks)):
            x = block.step(x, rotary, cache.memory[: t + 1, layer], bias)
        return _normed(x, self.norm).t()


@dataclass
class Cache:
    """Keys and values of the tokens read so far, (capacity, layers, 2, H, D, N), of which `length` are filled.

    bias: (capacity, 1, N), -inf where a row must not read; None: it may read everything.
    """

    memory: Tensor
    length: int
    bias: Tensor | None = None

    def keep(self, rows: Tensor) -> None:
        """From now on there are only `rows`: (n,) int64, their numbers, each as often as it is named."""
        old = self.memory
        self.memory = old.new_empty(*old.shape[:-1], len(rows))
        torch.index_select(old[: self.length], -1, rows, out=self.memory[: self.length])
        if self.bias is not None:
            self.bias = self.bias.index_select(-1, rows)

    def expand(self, counts: Tensor) -> None:
        """Each row becomes `counts` (N,) rows like it, side by side."""
        self.keep(torch.repeat_interleave(counts))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: TrunkSettings, generator: torch.Generator) -> None:
        super().__init__()
        width, hidden = config.width, config.hidden
        self.heads = config.heads
        # What is added to the residual stream is scaled down by the number of additions (Radford et al. 2019).
        residual = 1 / math.sqrt(2 * config.layers)
        self.attention_norm = nn.Parameter(torch.ones(width))
        self.qkv = matrix(3 * width, width, 1 / math.sqrt(width), generator)
        self.out = matrix(width, width, residual / math.sqrt(width), generator)
        self.feed_norm = nn.Parameter(torch.ones(width))
        self.gate_up = matrix(2 * hidden, width, 1 / math.sqrt(width), generator)
        self.down = matrix(width, hidden, residual / math.sqrt(hidden), generator)

    def forward(
        self, x: Tensor, rotary: Tensor, keep: int, allowed: Tensor | None, times: Linear = linear
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(N, S, W) -> (N, keep, W), the last positions; and all keys and values, (N, H, S, D).

        allowed: (N, 1, S, S) bool, what each may read; None: whatever does not come after it.
        """
        n, s, width = x.shape
        qkv = times(F.rms_norm(x, (width,), self.attention_norm, EPSILON), self.qkv).view(n, s, 3, self.heads, -1)
        queries, keys = _rotate(qkv[:, :, :2], rotary).transpose(1, 3).unbind(2)
        values = qkv[:, :, 2].transpose(1, 2)
        if keep == 1:  # the last position reads them all
            queries, allowed = queries[:, :, -1:], None if allowed is None else allowed[:, :, -1:]
        causal = allowed is None and keep > 1
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed, is_causal=causal)
        x, attended = x[:, -keep:], attended[:, :, -keep:]
        x = x + times(attended.transpose(1, 2).reshape(n, keep, width), self.out)
        gate, up = times(F.rms_norm(x, (width,), self.feed_norm, EPSILON), self.gate_up).chunk(2, dim=-1)
        return x + times(F.silu(gate) * up, self.down), keys, values

    def step(self, x: Tensor, rotary: Tensor, memory: Tensor, bias: Tensor | None) -> Tensor:
        """The same for one further position of each row: (W, N) -> (W, N). No graph.

        Rows are the last axis: each operation then runs along contiguous numbers, however narrow the heads are.

        rotary: (2, D, 1). memory: (t + 1, 2, H, D, N), keys and values; the last are written here.
        bias: (t + 1, 1, N), added to the scores.
        """
        width, rows = x.shape
        qkv = _times(self.qkv, _normed(x, self.attention_norm)).view(3, self.heads, -1, rows)
        queries, memory[-1, 0] = _rotate(qkv[:2], rotary, dim=-2)
        memory[-1, 1] = qkv[2]
        scores = (memory[:, 0] * (queries * queries.shape[1] ** -0.5)).sum(2)  # (t + 1, H, N)
        if bias is not None:
            scores += bias
        attended = (memory[:, 1] * torch.softmax(scores, 0)[:, :, None]).sum(0)  # (H, D, N)
        x = x + _times(self.out, attended.view(width, rows))
        gate, up = _times(self.gate_up, _normed(x, self.feed_norm)).chunk(2)
        return x + _times(self.down, F.silu(gate) * up)


def _normed(x: Tensor, gains: Tensor) -> Tensor:
    """F.rms_norm along the first axis, (W, N)."""
    return x * torch.rsqrt(x.square().mean(0) + EPSILON) * gains[:, None]


def _times(weight: Tensor, x: Tensor) -> Tensor:
    """(m, n) times (n, N)."""
    return product(weight, x.t())


def _allowed(padding: Tensor, length: int) -> Tensor:
    """(N,) -> (N, 1, length, length): not what comes later, nor padding. What nobody reads may read itself,
    for an average over nothing would be NaN.
    """
    others = torch.arange(length, device=padding.device)
    own = others[:, None]
    readable = (others <= own) & (others >= padding[:, None, None])
    return (readable | (others == own))[:, None]


def matrix(rows: int, columns: int, std: float, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, columns).normal_(0.0, std, generator=generator))


def _rotary(length: int, dimensions: int) -> Tensor:
    """Cosines and signed sines of the angles p / base^(2i/D): (2, length, 1, 1, D)."""
    frequencies = ROTARY_BASE ** (-torch.arange(0, dimensions, 2, dtype=torch.float64) / dimensions)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    cos, sin = angles.cos(), angles.sin()
    both = torch.stack([torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)])
    return both[:, :, None, None].to(torch.get_default_dtype())


def _rotate(x: Tensor, rotary: Tensor, dim: int = -1) -> Tensor:
    """Turn each pair (x_i, x_{i + D/2}) of an axis by its angle: (N, S, ..., D) -> the same."""
    cos, sin = rotary
    return x * cos + x.roll(x.shape[dim] // 2, dim) * sin
