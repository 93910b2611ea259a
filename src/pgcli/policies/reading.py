"""A trunk's pass for a gradient step on the CPU: one node of the graph, with its backward pass written out.

It has the hidden states and the gradient of `Trunk.forward`, in half the time or less:

- A prompt is read once, however many rows begin with it. They share its keys and values, whose gradients add up.
- What was computed when the rows were written (`Record`) is not computed again.
- Attention is two batched products and a softmax: the fused kernels, made for long rows, take five times as long.
- Constant factors are multiplied into the weights beforehand: gains and root of a norm, the scale of the scores.
- Rows of the weights are reordered, so that the pairs of a rotation are neighbours: it is a complex product.

Shapes: N rows, G different prompts of P tokens, T tokens that follow them, S = P + T, W width, H heads, D = W / H.
M = P G + T N positions in one matrix, position by position: those of the prompts, then those of the rows. (A record has
no positions after the end of a row.) The top block's output is needed at M' of them only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pgcli.policies.products import batched, linear_once, outer, product
from pgcli.policies.trunk import EPSILON, Block, Trunk

SHORT = 192
"""Tokens of a row up to which attention by its formula is faster; it also keeps all attention weights."""
Reader: TypeAlias = Callable[[Trunk, Tensor, Tensor, int, Tensor | None], Tensor]
"""(trunk, prompts (N, P), following (N, T), last, padding) -> the `last` hidden states, (N, last, W)."""


def read(trunk: Trunk, prompts: Tensor, following: Tensor, last: int, padding: Tensor | None) -> Tensor:
    """The trunk's own pass, differentiable any number of times."""
    return trunk(torch.cat([prompts, following], 1), last=last, padding=padding)


def read_once(trunk: Trunk, prompts: Tensor, following: Tensor, last: int, padding: Tensor | None) -> Tensor:
    """The same, differentiable once. `last`: T, or T + 1. Where a row has ended, its hidden states may be anything."""
    long = prompts.shape[1] + following.shape[1] > SHORT
    if long or not trunk.embedding.is_cpu or torch.is_autocast_enabled("cpu"):
        return trunk(torch.cat([prompts, following], 1), last=last, padding=padding, times=linear_once)
    record, done = trunk.record, None
    if record is not None and not record.is_of(trunk, prompts, following, last, padding):
        record = None
    if not torch.is_grad_enabled():
        if record is not None:
            return _of_length(record.hidden(trunk), last)
    else:
        trunk.record = None  # used now, or never
    if record is not None:
        plan = record.plan(trunk)
        done = record.done(plan)
    else:
        plan = _plan(trunk, prompts, following, last, padding)
    blocks = [weight for block in cast("list[Block]", trunk.blocks) for weight in block.weights]
    return _of_length(_Read.apply(plan, done, trunk.embedding, trunk.norm, *blocks), last)


def _of_length(hidden: Tensor, last: int) -> Tensor:
    """With 0 at the positions after the ends of all rows, of which nothing is read."""
    after = last - hidden.shape[1]
    return F.pad(hidden, (0, 0, 0, after)) if after else hidden


def _plan(trunk: Trunk, prompts: Tensor, following: Tensor, last: int, padding: Tensor | None) -> Plan:
    if padding is not None and not padding.any():
        padding = None
    told = prompts if padding is None else torch.cat([prompts, padding[:, None]], 1)
    different, groups = torch.unique(told, dim=0, return_inverse=True)
    T, P = following.shape[1], prompts.shape[1]
    paddings = None if padding is None else different[:, P]
    return planned(trunk, different[:, :P], paddings, groups, following.t().flatten(), steps=T, asked=last - T)


class Plan(NamedTuple):
    """Sizes, indices and masks of one pass."""

    tokens: Tensor
    """(M,)"""
    groups: Tensor
    """(N,): index of the prompt that each row begins with."""
    sizes: tuple[int, int, int, int, int, int]
    """P, G, T, N, H, D."""
    asked: int
    """Number of a prompt's last positions whose hidden states are needed: 0 or 1."""
    rotations: Tensor
    """(S, D / 2), complex."""
    of_prompts: Tensor
    """(P, P) or (G H, P, P): 0 where a position may read another, else -inf."""
    of_rows: Tensor
    """(T, S) or (N H, T, S)."""
    present: Tensor | None = None
    """Which of the T N positions of the rows are among the M; None: all."""

    @property
    def unread(self) -> int:
        """M - M'."""
        return (self.sizes[0] - self.asked) * self.sizes[1]


class Kept(NamedTuple):
    """What the backward pass through a block needs of the forward pass."""

    folded_qkv: Tensor
    """(W, 3W)"""
    normed: Tensor
    """(M, W): a position's vector, divided by its `norm`, (M, 1)."""
    norm: Tensor
    prompt_queries: Tensor
    """(G, H, P or asked, D)"""
    prompt_keys: Tensor
    """(G, H, P, D), and so are the values."""
    prompt_values: Tensor
    prompt_shares: Tensor
    """(G H, P or asked, P): attention weights."""
    queries: Tensor
    """(N, H, T, D)"""
    keys: Tensor
    """(N, H, S, D), of all positions that a row can read; and so are the values."""
    values: Tensor
    shares: Tensor
    """(N H, T, S)"""
    attended: Tensor
    """(M', W)"""
    folded_gate: Tensor
    folded_up: Tensor
    middle: Tensor
    """(M', W), likewise, between attention and feed-forward."""
    middle_norm: Tensor
    gate: Tensor
    """(M', hidden), and so are the following."""
    up: Tensor
    opened: Tensor
    """silu(gate)"""
    active: Tensor
    """silu(gate) up"""


def planned(
    trunk: Trunk, prompts: Tensor, padding: Tensor | None, groups: Tensor, following: Tensor, *, steps: int, asked: int,
    present: Tensor | None = None,
) -> Plan:  # fmt: skip
    """prompts (G, P), their padding (G,), groups (N,), and the tokens that follow, position by position."""
    (G, P), N, T, H = prompts.shape, len(groups), steps, trunk.config.heads
    S = P + T
    cos, sin = trunk.rotary[:, :S, 0, 0]
    D, half = cos.shape[1], cos.shape[1] // 2
    bias = torch.full((S, S), -torch.inf, dtype=cos.dtype).triu_(1)
    of_prompts, of_rows = bias[:P, :P], bias[P:]
    if padding is not None:
        column = torch.arange(S)
        unread = padding[:, None, None] > column
        # A padding position may read itself: an average over nothing would be NaN.
        others = unread[..., :P] & (column[:P] != column[:P, None])
        of_prompts = of_prompts.masked_fill(others, -torch.inf).repeat_interleave(H, 0)
        of_rows = of_rows.masked_fill(unread[groups], -torch.inf).repeat_interleave(H, 0)
    return Plan(
        tokens=torch.cat([prompts.t().flatten(), following]), groups=groups, sizes=(P, G, T, N, H, D), asked=asked,
        rotations=torch.complex(cos[:, :half], sin[:, half:]), of_prompts=of_prompts, of_rows=of_rows, present=present,
    )  # fmt: skip


class Pass(NamedTuple):
    """A forward pass: what is kept of each block, and of the last norm."""

    blocks: list[Kept]
    normed: Tensor
    """(M', W), likewise."""
    norm: Tensor


def passed(plan: Plan, embedding: Tensor, blocks: Sequence[Sequence[Tensor]]) -> Pass:
    x = F.embedding(plan.tokens, embedding)
    kept: list[Kept] = []
    for weights in blocks:
        x, own = _forward(x, weights, plan, top=weights is blocks[-1])
        kept.append(own)
    return Pass(kept, *_normed(x))


def outputs(normed: Tensor, gains: Tensor, plan: Plan) -> Tensor:
    """(M', W) -> the hidden states that are asked for, (N, asked + T, W)."""
    _, G, T, N, _, _ = plan.sizes
    hidden = normed * (gains * math.sqrt(len(gains)))
    rows = filled(hidden[plan.asked * G :], plan).view(T, N, len(gains)).transpose(0, 1)
    return torch.cat([hidden[plan.groups, None], rows], 1) if plan.asked else rows.contiguous()


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, done: Pass | None, embedding: Tensor, gains: Tensor, *blocks: Tensor) -> Tensor:
        weights = [blocks[i : i + PARAMETERS] for i in range(0, len(blocks), PARAMETERS)]
        kept, normed, norm = done or passed(plan, embedding, weights)
        ctx.plan, ctx.vocabulary = plan, len(embedding)
        ctx.save_for_backward(gains, normed, norm, *blocks, *(x for own in kept for x in own))
        return outputs(normed, gains, plan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        plan = ctx.plan
        gains, normed, norm, *saved = ctx.saved_tensors
        size = len(Kept._fields)
        layers = len(saved) // (PARAMETERS + size)
        blocks, kept = saved[: layers * PARAMETERS], saved[layers * PARAMETERS :]
        d = gradient[:, plan.asked :].transpose(0, 1).reshape(-1, gradient.shape[-1])
        d = d if plan.present is None else d[plan.present]
        if plan.asked:
            of_prompts = d.new_zeros(plan.sizes[1], d.shape[1]).index_add_(0, plan.groups, gradient[:, 0])
            d = torch.cat([of_prompts, d])
        root = math.sqrt(len(gains))
        of_gains = (d * normed).sum(0) * root
        d = _through_norm(d * (gains * root), normed, norm)
        found: list[Tensor] = []
        for layer in reversed(range(layers)):
            weights = blocks[layer * PARAMETERS : (layer + 1) * PARAMETERS]
            d, own = _backward(d, weights, Kept(*kept[layer * size : (layer + 1) * size]), plan, layer == layers - 1)
            found = own + found
        of_embedding = torch.ops.aten.embedding_dense_backward(d, plan.tokens, ctx.vocabulary, -1, False)
        return None, None, of_embedding, of_gains, *found


PARAMETERS = 6
"""A block's weights."""


def _forward(x: Tensor, weights: Sequence[Tensor], plan: Plan, top: bool) -> tuple[Tensor, Kept]:
    """A block: (M, W) -> (M, W), or only the positions that are needed."""
    attention_gains, qkv, out, feed_gains, gate_up, down = weights
    P, G, T, N, H, D = plan.sizes
    asked, first = (plan.asked, plan.unread) if top else (P, 0)
    width = x.shape[1]

    folded_qkv, folded_gate, folded_up = folded(attention_gains, qkv, feed_gains, gate_up, H)
    normed, norm = _normed(x)
    of_prompts, of_rows = _by_head(product(normed, folded_qkv.t()), plan)
    prompts, prompt_read = _attention(of_prompts, plan.rotations[:P], None, plan.of_prompts, last=asked)
    attended = x.new_empty(len(x) - first, width)
    attended[: asked * G].view(asked, G, H, D).copy_(prompt_read.permute(2, 0, 1, 3))
    rows = NOBODY
    if N:
        before = torch.stack([prompts.keys, prompts.values])[:, plan.groups]
        rows, read = _attention(of_rows, plan.rotations[P:], before, plan.of_rows, last=T)
        attended[asked * G :].view(T, N, H, D).copy_(read.permute(2, 0, 1, 3))
    x = product(attended, out).add_(x[first:])

    middle, middle_norm = _normed(x)
    gate, up = product(middle, folded_gate.t()), product(middle, folded_up.t())
    opened = F.silu(gate)
    active = opened * up
    x = product(active, down).add_(x)
    return x, Kept(
        folded_qkv, normed, norm, *prompts, *rows, attended,
        folded_gate, folded_up, middle, middle_norm, gate, up, opened, active,
    )  # fmt: skip


def _backward(d: Tensor, weights: Sequence[Tensor], kept: Kept, plan: Plan, top: bool) -> tuple[Tensor, list[Tensor]]:
    """Gradients of a block's input and weights from the gradient of its output."""
    attention_gains, qkv, out, feed_gains, gate_up, down = weights
    P, G, T, N, H, D = plan.sizes
    asked, first = (plan.asked, plan.unread) if top else (P, 0)
    width = d.shape[1]

    of_active = product(d, down.t())
    of_down = outer(d, kept.active)
    of_up = of_active * kept.opened
    of_gate = torch.ops.aten.silu_backward(of_active.mul_(kept.up), kept.gate)
    of_folded_gate_up = torch.cat([outer(of_gate, kept.middle), outer(of_up, kept.middle)])
    of_middle = product(of_gate, kept.folded_gate).add_(product(of_up, kept.folded_up))
    d = d + _through_norm(of_middle, kept.middle, kept.middle_norm)

    of_out = outer(d, kept.attended)
    of_attended = product(d, out.t())
    of_prompt_read = of_attended[: asked * G].view(asked, G, H, D).permute(1, 2, 0, 3)
    of_read = filled(of_attended[asked * G :], plan).view(T, N, H, D).permute(1, 2, 0, 3)
    of_queries, of_memory = _through_attention(of_read.contiguous(), kept.queries, kept.keys, kept.values, kept.shares)
    of_prompt_queries, of_shared = _through_attention(
        of_prompt_read.contiguous(), kept.prompt_queries, kept.prompt_keys, kept.prompt_values, kept.prompt_shares
    )
    of_shared.index_add_(1, plan.groups, of_memory[..., :P, :])
    of_qkv = d.new_zeros(P * G + T * N, 3 * width)
    of_prompts, of_rows = _by_head(of_qkv, plan)
    back = plan.rotations.conj().resolve_conj()
    _turn(of_prompt_queries, back[P - asked : P], of_prompts[0][..., P - asked :, :])
    _turn(of_shared[0], back[:P], of_prompts[1])
    of_prompts[2] = of_shared[1]
    _turn(of_queries, back[P:], of_rows[0])
    _turn(of_memory[0, ..., P:, :], back[P:], of_rows[1])
    of_rows[2] = of_memory[1, ..., P:, :]
    if plan.present is not None:
        of_qkv = torch.cat([of_qkv[: P * G], of_qkv[P * G :][plan.present]])
    of_folded_qkv = outer(of_qkv, kept.normed)
    of_x = _through_norm(product(of_qkv, kept.folded_qkv), kept.normed, kept.norm)
    of_x[first:] += d

    root = math.sqrt(width)
    of_folded_qkv[:width] *= D**-0.5
    unfolded = torch.empty_like(of_folded_qkv)
    unfolded[_order(H, width)] = of_folded_qkv
    return of_x, [
        (unfolded * qkv).sum(0) * root, unfolded * (attention_gains * root), of_out,
        (of_folded_gate_up * gate_up).sum(0) * root, of_folded_gate_up * (feed_gains * root), of_down,
    ]  # fmt: skip


def folded(
    attention_gains: Tensor, qkv: Tensor, feed_gains: Tensor, gate_up: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A block's `qkv`, gate and up, transposed: factors multiplied in, and pairs of a rotation made neighbours."""
    width = qkv.shape[1]
    qkv = (qkv * (attention_gains * math.sqrt(width)))[_order(heads, width)]
    qkv[:width] *= (width // heads) ** -0.5
    gate, up = (gate_up * (feed_gains * math.sqrt(width))).chunk(2)
    return qkv.t().contiguous(), gate.t().contiguous(), up.t().contiguous()


def neighbours(size: int) -> Tensor:
    """(D,): the order of a head's components in which those that a rotation pairs, i and i + D / 2, are neighbours."""
    return torch.arange(size).view(2, -1).t().flatten()


@cache
@torch.inference_mode(False)
def _order(heads: int, width: int) -> Tensor:
    """(3W,): the same of the rows of `qkv`, for queries and keys."""
    places = torch.arange(3 * width).view(3, heads, -1)
    return torch.cat([places[:2, :, neighbours(width // heads)].flatten(), places[2].flatten()])


def _normed(x: Tensor) -> tuple[Tensor, Tensor]:
    """(M, W) -> x / n, and n, (M, 1): the norm of x, with that of RMSNorm's EPSILON under the root."""
    norm = x.square().sum(1, keepdim=True).add_(EPSILON * x.shape[1]).sqrt_()
    return x / norm, norm


def _through_norm(d: Tensor, normed: Tensor, norm: Tensor) -> Tensor:
    """The gradient of x from that of `normed`."""
    along = (d * normed).sum(1, keepdim=True)
    return torch.addcmul(d, normed, along, value=-1).div_(norm)


def filled(x: Tensor, plan: Plan) -> Tensor:
    """(positions of rows among the M, n) -> (T N, n): 0 at the others."""
    if plan.present is None:
        return x
    _, _, T, N, _, _ = plan.sizes
    return x.new_zeros(T * N, x.shape[1]).index_copy_(0, plan.present, x)


def _by_head(qkv: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """(M, 3W) -> views of the prompts' part, (3, G, H, P, D), and of the rows', (3, N, H, T, D)."""
    P, G, T, N, H, D = plan.sizes
    prompts, rows = qkv[: P * G].view(P, G, 3, H, D), qkv[P * G :].view(T, N, 3, H, D)
    return prompts.permute(2, 1, 3, 0, 4), rows.permute(2, 1, 3, 0, 4)


def _turn(x: Tensor, rotations: Tensor, out: Tensor) -> None:
    """(..., S, D) by (S, D / 2) -> out, (..., S, D): each pair of neighbours as one complex number."""
    a, b = (torch.view_as_complex(y.unflatten(-1, (-1, 2))) for y in (x, out))
    torch.mul(a, rotations, out=b)


class Attention(NamedTuple):
    """Of B prompts or rows."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    shares: Tensor


NOBODY = Attention(*(4 * [torch.empty(0)]))


def _attention(
    own: Tensor, rotations: Tensor, before: Tensor | None, bias: Tensor, *, last: int
) -> tuple[Attention, Tensor]:
    """What the `last` of Q positions read there, (B, H, last, D).

    own: (3, B, H, Q, D), queries, keys and values before their rotation.
    before: (2, B, H, P, D), keys and values of earlier positions.
    """
    _, B, H, Q, D = own.shape
    first = 0 if before is None else before.shape[3]
    keys, values = memory = own.new_empty(2, B, H, first + Q, D)
    if before is not None:
        memory[..., :first, :] = before
    _turn(own[1], rotations, keys[..., first:, :])
    values[..., first:, :] = own[2]
    queries = own.new_empty(B, H, last, D)
    _turn(own[0, ..., Q - last :, :], rotations[Q - last :], queries)
    shares = shares_of(queries, keys, bias[..., Q - last :, :])
    return Attention(queries, keys, values, shares), batched(shares, values.flatten(0, 1)).view(B, H, last, D)


def shares_of(queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    """(B, H, Q, D), (B, H, S, D), (Q, S) or (B H, Q, S) -> attention weights (B H, Q, S)."""
    return torch.softmax(batched(queries.flatten(0, 1), keys.flatten(0, 1).mT).add_(bias), -1)


def _through_attention(
    d: Tensor, queries: Tensor, keys: Tensor, values: Tensor, shares: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the queries and of the keys and values, (2, B, H, S, D), from the gradient of the outputs."""
    of_memory = d.new_empty(2, *keys.shape)
    of_keys, of_values = of_memory.flatten(1, 2)
    d, queries_, keys, values = (x.flatten(0, 1) for x in (d, queries, keys, values))
    batched(shares.mT, d, out=of_values)
    of_scores = torch._softmax_backward_data(batched(d, values.mT), shares, -1, shares.dtype)
    batched(of_scores.mT, queries_, out=of_keys)
    return batched(of_scores, keys).view(queries.shape), of_memory
