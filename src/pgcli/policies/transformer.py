"""A small decoder-only transformer, for text tasks.

Pre-norm with RMSNorm (Zhang & Sennrich 2019), rotary positions (Su et al. 2021), a gated feed-forward layer (SwiGLU,
Shazeer 2020), no biases: the layout of Llama. 64 wide, 2 layers and 14 characters are 108,608 parameters.

Shapes: N rows, P prompt tokens, T completion tokens, S tokens in all, W width, H heads, D = W / H, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pgcli.errors import InputError
from pgcli.functional.distributions import Categorical, categorical
from pgcli.settings import Settings
from pgcli.types import ABSENT, Evaluation, PolicyFunction, Spec, Stochastic, TextSpec

ROTARY_BASE = 10_000.0


class Transformer(nn.Module):
    """A policy over tokens: token t of a completion is an action, the prompt and the tokens before it are its state."""

    offers: ClassVar = (Stochastic,)

    class Config(Settings):
        name: Literal["transformer"]
        width: PositiveInt = Field(description="of the residual stream")
        layers: PositiveInt = Field(description="blocks of attention and feed-forward")
        heads: PositiveInt = Field(description="attention heads; the width is divided among them")
        hidden: PositiveInt = Field(description="units of each gated feed-forward layer")

        @model_validator(mode="after")
        def _heads_divide_the_width(self) -> Transformer.Config:
            if self.width % (2 * self.heads):
                raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}")
            return self

    unit = "sequence"
    rotary: Tensor

    @classmethod
    def make(cls, spec: Spec, config: Config, needs: Stochastic, generator: torch.Generator) -> Transformer:
        return cls(spec, config, critic=needs.critic, generator=generator)

    def __init__(self, spec: Spec, config: Config, *, critic: bool, generator: torch.Generator) -> None:
        super().__init__()
        if not isinstance(spec, TextSpec):
            raise InputError("policy=transformer writes text; a stepped environment needs policy=mlp or policy=cnn")
        self.has_critic = critic
        self.config = config
        self.capacity = spec.prompt_length + spec.completion_length
        width = config.width
        self.embedding = _matrix(spec.vocabulary, width, 1.0, generator)
        self.blocks = nn.ModuleList(Block(config, generator) for _ in range(config.layers))
        self.norm = nn.Parameter(torch.ones(width))
        self.unembedding = _matrix(spec.vocabulary, width, 1 / math.sqrt(width), generator)
        # Zero: a critic that has learnt nothing says nothing, and its first gradients leave the shared trunk alone.
        self.critic = nn.Parameter(torch.zeros(1, width)) if critic else None
        self.register_buffer("rotary", _rotary(self.capacity, width // config.heads), persistent=False)

    def forward(self, observations: dict[str, Tensor], actions: Tensor) -> Evaluation:
        """observations {"prompt": (N, P)}, actions (N, T) -> an Evaluation of (N, T), in one pass.

        Position P - 1 + t has read the prompt and the actions before t: it gives the logits of action t and V(s_t).
        Whatever pads a row after its end comes later, so it changes nothing before it.
        """
        prompt = observations["prompt"]
        hidden = self._hidden(torch.cat([prompt, actions[:, :-1]], dim=1), last=actions.shape[1])
        logits = F.linear(hidden, self.unembedding)
        log_probs, entropy = categorical(logits, actions)
        values = F.linear(hidden, self.critic).squeeze(-1) if self.critic is not None else ABSENT
        return Evaluation(log_probs, entropy, values, Categorical(logits))

    def once_differentiable(self) -> PolicyFunction:
        return self

    def prefill(self, observations: dict[str, Tensor]) -> tuple[Tensor, Cache]:
        """{"prompt": (N, P)} -> logits of the first action, (N, V), and the cache that `step` goes on with."""
        c, prompt = self.config, observations["prompt"]
        memory = self.norm.new_empty(c.layers, 2, len(prompt), c.heads, self.capacity, c.width // c.heads)
        cache = Cache(memory, 0)
        return F.linear(self._hidden(prompt, last=1, cache=cache)[:, 0], self.unembedding), cache

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """(N,), the tokens just chosen -> logits of the next action, (N, V). The cache remembers them."""
        return F.linear(self._hidden(tokens[:, None], last=1, cache=cache)[:, 0], self.unembedding)

    def _hidden(self, tokens: Tensor, *, last: int, cache: Cache | None = None) -> Tensor:
        """(N, S) -> (N, last, W): the last positions, after the last norm. With a cache, S further tokens."""
        length = tokens.shape[1]
        start = cache.length if cache else 0
        rotary = self.rotary[:, start : start + length]
        x = F.embedding(tokens, self.embedding)
        for layer, block in enumerate(self.blocks):
            # Of the top block nobody reads the prompt's positions: to leave them out saves a fifth of the arithmetic.
            keep = last if block is self.blocks[-1] else length
            x = block(x, rotary, keep, cache.memory[layer] if cache else None, start)
        if cache:
            cache.length += length
        return F.rms_norm(x, self.norm.shape, self.norm)


@dataclass
class Cache:
    """Keys and values of the tokens read so far, (layers, 2, N, H, capacity, D), of which `length` are filled."""

    memory: Tensor
    length: int


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: Transformer.Config, generator: torch.Generator) -> None:
        super().__init__()
        width, hidden = config.width, config.hidden
        self.heads = config.heads
        # What is added to the residual stream is scaled down by the number of additions (Radford et al. 2019).
        residual = 1 / math.sqrt(2 * config.layers)
        self.attention_norm = nn.Parameter(torch.ones(width))
        self.qkv = _matrix(3 * width, width, 1 / math.sqrt(width), generator)
        self.out = _matrix(width, width, residual / math.sqrt(width), generator)
        self.feed_norm = nn.Parameter(torch.ones(width))
        self.gate_up = _matrix(2 * hidden, width, 1 / math.sqrt(width), generator)
        self.down = _matrix(width, hidden, residual / math.sqrt(hidden), generator)

    def forward(self, x: Tensor, rotary: Tensor, keep: int, memory: Tensor | None, start: int) -> Tensor:
        """(N, S, W) -> (N, keep, W), the last positions.

        With a memory, (2, N, H, capacity, D), the S tokens stand at `start` and see those before it.
        """
        n, s, width = x.shape
        qkv = F.linear(F.rms_norm(x, (width,), self.attention_norm), self.qkv).view(n, s, 3, self.heads, -1)
        queries, keys = _rotate(qkv[:, :, :2], rotary).transpose(1, 3).unbind(2)  # (N, H, S, D)
        values = qkv[:, :, 2].transpose(1, 2)
        if memory is not None:
            memory[0, :, :, start : start + s] = keys
            memory[1, :, :, start : start + s] = values
            keys, values = memory[:, :, :, : start + s].unbind(0)
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=s > 1)
        x, attended = x[:, -keep:], attended[:, :, -keep:]
        x = x + F.linear(attended.transpose(1, 2).reshape(n, keep, width), self.out)
        gate, up = F.linear(F.rms_norm(x, (width,), self.feed_norm), self.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down)


def _matrix(rows: int, columns: int, std: float, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, columns).normal_(0.0, std, generator=generator))


def _rotary(length: int, dimensions: int) -> Tensor:
    """Cosines and signed sines of the angles p / base^(2i/D): (2, length, 1, 1, D)."""
    frequencies = ROTARY_BASE ** (-torch.arange(0, dimensions, 2, dtype=torch.float64) / dimensions)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    cos, sin = angles.cos(), angles.sin()
    both = torch.stack([torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)])
    return both[:, :, None, None].to(torch.get_default_dtype())


def _rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + D/2}) by its angle: (N, S, ..., D) -> the same."""
    cos, sin = rotary
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin
