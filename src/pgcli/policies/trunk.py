"""The decoder-only trunk of the built-in language models: tokens in, hidden states out.

Pre-norm with RMSNorm (Zhang & Sennrich 2019), rotary positions (Su et al. 2021), a gated feed-forward layer (SwiGLU,
Shazeer 2020), no biases: the layout of Llama.

Shapes: N rows, S tokens of a row, W width, H heads, D = W / H, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pgcli.policies.products import Linear, linear
from pgcli.settings import Settings

ROTARY_BASE = 10_000.0
EPSILON = 1e-6
"""Added under the root of RMSNorm, as in Llama."""


class TrunkSettings(Settings):
    width: PositiveInt = Field(description="width of the residual stream")
    layers: PositiveInt = Field(description="number of blocks of attention and feed-forward")
    heads: PositiveInt = Field(description="number of attention heads; the width is divided among them")
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
        self.record: Any = (
            None  # `recording.Record` of the completions it wrote last, until a gradient step has used it
        )
        self.embedding = matrix(vocabulary, config.width, 1.0, generator)
        self.blocks = nn.ModuleList(Block(config, generator) for _ in range(config.layers))
        self.norm = nn.Parameter(torch.ones(config.width))
        self.register_buffer("rotary", _rotary(capacity, config.width // config.heads), persistent=False)

    def forward(self, tokens: Tensor, *, last: int, padding: Tensor | None = None, times: Linear = linear) -> Tensor:
        """(N, S) -> (N, last, W): the last positions, after the last norm.

        padding: (N,), number of padding tokens at a row's start, which must not be read; None: there is no padding.
            Rotary attention sees only distances, so a padded row has the same hidden states as without its padding.
        """
        return self.read(tokens, last, padding, times)[0]

    def read(
        self, tokens: Tensor, last: int, padding: Tensor | None, times: Linear
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The result of `forward`, and each block's keys and values, (N, H, S, D)."""
        length = tokens.shape[1]
        rotary = self.rotary[:, :length]
        allowed = None if padding is None else _allowed(padding, length)
        x, read = F.embedding(tokens, self.embedding), []
        for block in self.blocks:
            # The top block's outputs at the prompt are not needed: leaving them out saves a fifth of the arithmetic.
            keep = last if block is self.blocks[-1] else length
            x, *both = block(x, rotary, keep, allowed, times)
            read.append(both)
        return F.rms_norm(x, self.norm.shape, self.norm, EPSILON), read


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: TrunkSettings, generator: torch.Generator) -> None:
        super().__init__()
        width, hidden = config.width, config.hidden
        self.heads = config.heads
        # Additions to the residual stream are scaled down by their number (Radford et al. 2019).
        residual = 1 / math.sqrt(2 * config.layers)
        self.attention_norm = nn.Parameter(torch.ones(width))
        self.qkv = matrix(3 * width, width, 1 / math.sqrt(width), generator)
        self.out = matrix(width, width, residual / math.sqrt(width), generator)
        self.feed_norm = nn.Parameter(torch.ones(width))
        self.gate_up = matrix(2 * hidden, width, 1 / math.sqrt(width), generator)
        self.down = matrix(width, hidden, residual / math.sqrt(hidden), generator)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """All parameters, in the order of their use."""
        return self.attention_norm, self.qkv, self.out, self.feed_norm, self.gate_up, self.down

    def forward(
        self, x: Tensor, rotary: Tensor, keep: int, allowed: Tensor | None, times: Linear = linear
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(N, S, W) -> (N, keep, W), the last positions; and all keys and values, (N, H, S, D).

        allowed: (N, 1, S, S) bool, the positions that each may read; None: those not after it.
        """
        n, s, width = x.shape
        qkv = times(F.rms_norm(x, (width,), self.attention_norm, EPSILON), self.qkv).view(n, s, 3, self.heads, -1)
        queries, keys = _rotate(qkv[:, :, :2], rotary).transpose(1, 3).unbind(2)
        values = qkv[:, :, 2].transpose(1, 2)
        if keep == 1:  # the last position reads all positions
            queries, allowed = queries[:, :, -1:], None if allowed is None else allowed[:, :, -1:]
        causal = allowed is None and keep > 1
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed, is_causal=causal)
        x, attended = x[:, -keep:], attended[:, :, -keep:]
        x = x + times(attended.transpose(1, 2).reshape(n, keep, width), self.out)
        gate, up = times(F.rms_norm(x, (width,), self.feed_norm, EPSILON), self.gate_up).chunk(2, dim=-1)
        return x + times(F.silu(gate) * up, self.down), keys, values


def _allowed(padding: Tensor, length: int) -> Tensor:
    """(N,) -> (N, 1, length, length): neither later positions nor padding may be read. A padding position may read
    itself, because an average over nothing would be NaN.
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
    """Rotate each pair (x_i, x_{i + D/2}) of an axis by its angle: (N, S, ..., D) -> the same shape."""
    cos, sin = rotary
    return x * cos + x.roll(x.shape[dim] // 2, dim) * sin
