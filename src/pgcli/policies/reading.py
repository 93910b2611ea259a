"""A trunk's pass for a gradient step on the CPU: one node of the graph, with its backward pass written out.

It has the hidden states and the gradient of `Trunk.forward`, in half the time or less:

- A prompt is read once, however many rows begin with it. They share its keys and values, whose gradients add up.
- Attention is two batched products and a softmax: the fused kernels, made for long rows, take five times as long.
- Constant factors are multiplied into the weights beforehand: the gains of a norm, the scale of the scores. Rows of the
  weights are also reordered, so that the pairs of a rotation are neighbours, and the rotation is a complex product.

Shapes: N rows, G different prompts of P tokens, T tokens that follow them, S = P + T, W width, H heads, D = W / H.
M = P G + T N positions in one matrix: those of the prompts, position by position, then those of the rows, row by row.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """The same, differentiable once. `last`: T, or T + 1."""
    long = prompts.shape[1] + following.shape[1] > SHORT
    if long or not trunk.embedding.is_cpu or torch.is_autocast_enabled("cpu"):
        return trunk(torch.cat([prompts, following], 1), last=last, padding=padding, times=linear_once)
    plan = _plan(trunk, prompts, following, last, padding)
    blocks = [weight for block in cast("list[Block]", trunk.blocks) for weight in block.parameters()]
    return _Read.apply(plan, trunk.embedding, trunk.norm, *blocks)


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
    order: Tensor
    """(3W,): the order of the rows of `qkv` in which pairs of a rotation are neighbours."""
    of_prompts: Tensor
    """(P, P) or (G H, P, P): 0 where a position may read another, else -inf."""
    of_rows: Tensor
    """(T, S) or (N H, T, S)."""

    @property
    def unread(self) -> int:
        """Number of first positions whose output of the top block is not needed."""
        return (self.sizes[0] - self.asked) * self.sizes[1]


def _plan(trunk: Trunk, prompts: Tensor, following: Tensor, last: int, padding: Tensor | None) -> Plan:
    if padding is not None and not padding.any():
        padding = None
    told = prompts if padding is None else torch.cat([prompts, padding[:, None]], 1)
    different, groups = torch.unique(told, dim=0, return_inverse=True)
    (N, T), P, G = following.shape, prompts.shape[1], len(different)
    width, H, S = trunk.config.width, trunk.config.heads, P + T
    cos, sin = trunk.rotary[:, :S, 0, 0]
    D, half = cos.shape[1], cos.shape[1] // 2
    places = torch.arange(3 * width).view(3, H, 2, half)
    order = torch.cat([places[:2].transpose(2, 3).flatten(), places[2].flatten()])
    column = torch.arange(S)
    later = column > column[:, None]
    hidden = [later[:P, :P], later[P:]]
    if padding is not None:
        # A padding position may read itself: an average over nothing would be NaN.
        nothing = different[:, P:, None] > column[:P]
        nothing = nothing & (column[:P] != column[:P, None])
        hidden[0] = (hidden[0] | nothing).repeat_interleave(H, 0)
        hidden[1] = (hidden[1] | (padding[:, None, None] > column)).repeat_interleave(H, 0)
    of_prompts, of_rows = (torch.zeros_like(x, dtype=cos.dtype).masked_fill_(x, -torch.inf) for x in hidden)
    return Plan(
        tokens=torch.cat([different[:, :P].t().flatten(), following.flatten()]), groups=groups,
        sizes=(P, G, T, N, H, D), asked=last - T, rotations=torch.complex(cos[:, :half], sin[:, half:]),
        order=order, of_prompts=of_prompts, of_rows=of_rows,
    )  # fmt: skip


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, embedding: Tensor, norm: Tensor, *blocks: Tensor) -> Tensor:
        x = F.embedding(plan.tokens, embedding)
        kept: list[Tensor] = []
        for i in range(0, len(blocks), PARAMETERS):
            top = i + PARAMETERS == len(blocks)
            x, own = _forward(x, blocks[i : i + PARAMETERS], plan, top)
            kept += own
        normed, scale = _normed(x)
        ctx.plan, ctx.vocabulary = plan, len(embedding)
        ctx.save_for_backward(norm, normed, scale, *blocks, *kept)
        _, G, T, N, _, _ = plan.sizes
        hidden = normed * norm
        rows = hidden[plan.asked * G :].view(N, T, len(norm))
        return torch.cat([hidden[plan.groups, None], rows], 1) if plan.asked else rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        plan = ctx.plan
        norm, normed, scale, *saved = ctx.saved_tensors
        layers = len(saved) // (PARAMETERS + KEPT)
        blocks, kept = saved[: layers * PARAMETERS], saved[layers * PARAMETERS :]
        d = gradient[:, plan.asked :].reshape(-1, gradient.shape[-1])
        if plan.asked:
            of_prompts = d.new_zeros(plan.sizes[1], d.shape[1]).index_add_(0, plan.groups, gradient[:, 0])
            d = torch.cat([of_prompts, d])
        of_norm = (d * normed).sum(0)
        d = _through_norm(d * norm, normed, scale)
        found: list[Tensor] = []
        for layer in reversed(range(layers)):
            weights = blocks[layer * PARAMETERS : (layer + 1) * PARAMETERS]
            d, own = _backward(d, weights, kept[layer * KEPT : (layer + 1) * KEPT], plan, layer == layers - 1)
            found = own + found
        of_embedding = torch.ops.aten.embedding_dense_backward(d, plan.tokens, ctx.vocabulary, -1, False)
        return None, of_embedding, of_norm, *found


PARAMETERS, KEPT = 6, 18
"""A block's weights, and the tensors that its backward pass needs."""


def _forward(x: Tensor, weights: tuple[Tensor, ...], plan: Plan, top: bool) -> tuple[Tensor, list[Tensor]]:
    """A block: (M, W) -> (M, W), or only the positions that are needed."""
    attention_gains, qkv, out, feed_gains, gate_up, down = weights
    P, G, T, N, H, D = plan.sizes
    asked, first = (plan.asked, plan.unread) if top else (P, 0)
    width = x.shape[1]

    folded_qkv = (qkv * attention_gains)[plan.order]
    folded_qkv[:width] *= D**-0.5
    normed, scale = _normed(x)
    of_prompts, of_rows = _by_head(product(normed, folded_qkv), plan)
    queries = _turned(of_rows[0], plan.rotations[P:])
    memory = x.new_empty(2, N, H, P + T, D)  # keys and values of all positions that a row can read
    prompt_queries, shared = x.new_empty(G, H, P, D), x.new_empty(2, G, H, P, D)
    _turn(of_prompts[0], plan.rotations[:P], prompt_queries)
    _turn(of_prompts[1], plan.rotations[:P], shared[0])
    shared[1] = of_prompts[2]
    memory[..., :P, :] = shared[:, plan.groups]
    _turn(of_rows[1], plan.rotations[P:], memory[0, ..., P:, :])
    memory[1, ..., P:, :] = of_rows[2]
    prompt_queries = prompt_queries[:, :, P - asked :]
    prompt_shares, prompt_read = _attend(prompt_queries, shared, plan.of_prompts[..., P - asked :, :])
    shares, read = _attend(queries, memory, plan.of_rows)
    attended = x.new_empty(len(x) - first, width)
    attended[: asked * G].view(asked, G, H, D).copy_(prompt_read.permute(2, 0, 1, 3))
    attended[asked * G :].view(N, T, H, D).copy_(read.transpose(1, 2))
    x = product(attended, out).add_(x[first:])

    folded_gate_up = gate_up * feed_gains
    middle, middle_scale = _normed(x)
    both = product(middle, folded_gate_up)
    gate, up = both.chunk(2, 1)
    opened = F.silu(gate)
    active = opened * up
    x = product(active, down).add_(x)
    return x, [
        folded_qkv, normed, scale, prompt_queries, shared, prompt_shares, prompt_read, queries, memory, shares, read,
        attended, folded_gate_up, middle, middle_scale, both, opened, active,
    ]  # fmt: skip


def _backward(
    d: Tensor, weights: list[Tensor], kept: list[Tensor], plan: Plan, top: bool
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of a block's input and weights from the gradient of its output."""
    attention_gains, qkv, out, feed_gains, gate_up, down = weights
    (
        folded_qkv, normed, scale, prompt_queries, shared, prompt_shares, prompt_read, queries, memory, shares, read,
        attended, folded_gate_up, middle, middle_scale, both, opened, active,
    ) = kept  # fmt: skip
    P, G, T, N, H, D = plan.sizes
    asked, first = (plan.asked, plan.unread) if top else (P, 0)
    width = d.shape[1]

    gate, up = both.chunk(2, 1)
    of_active = product(d, down.t())
    of_both = torch.empty_like(both)
    of_gate, of_up = of_both.chunk(2, 1)
    torch.mul(of_active, opened, out=of_up)
    torch.ops.aten.silu_backward.grad_input(of_active.mul_(up), gate, grad_input=of_gate)
    of_down = outer(d, active)
    of_folded_gate_up = outer(of_both, middle)
    d = d + _through_norm(product(of_both, folded_gate_up.t()), middle, middle_scale)

    of_out = outer(d, attended)
    of_attended = product(d, out.t())
    of_prompt_read = of_attended[: asked * G].view(asked, G, H, D).permute(1, 2, 0, 3)
    of_read = of_attended[asked * G :].view(N, T, H, D).transpose(1, 2)
    of_queries, of_memory = _through_attention(of_read.contiguous(), read, queries, memory, shares)
    of_prompt_queries, of_shared = _through_attention(
        of_prompt_read.contiguous(), prompt_read, prompt_queries, shared, prompt_shares
    )
    of_shared.index_add_(1, plan.groups, of_memory[..., :P, :])
    of_qkv = d.new_zeros(len(normed), 3 * width)
    of_prompts, of_rows = _by_head(of_qkv, plan)
    back = plan.rotations.conj().resolve_conj()
    _turn(of_prompt_queries, back[P - asked : P], of_prompts[0][..., P - asked :, :])
    _turn(of_shared[0], back[:P], of_prompts[1])
    of_prompts[2] = of_shared[1]
    _turn(of_queries, back[P:], of_rows[0])
    _turn(of_memory[0, ..., P:, :], back[P:], of_rows[1])
    of_rows[2] = of_memory[1, ..., P:, :]
    of_folded_qkv = outer(of_qkv, normed)
    of_x = _through_norm(product(of_qkv, folded_qkv.t()), normed, scale)
    of_x[first:] += d

    of_folded_qkv[:width] *= D**-0.5
    unfolded = torch.empty_like(of_folded_qkv)
    unfolded[plan.order] = of_folded_qkv
    return of_x, [
        (unfolded * qkv).sum(0), unfolded * attention_gains, of_out,
        (of_folded_gate_up * gate_up).sum(0), of_folded_gate_up * feed_gains, of_down,
    ]  # fmt: skip


def _normed(x: Tensor) -> tuple[Tensor, Tensor]:
    """(M, W) -> x / rms(x), and 1 / rms(x), (M, 1)."""
    scale = x.square().mean(1, keepdim=True).add_(EPSILON).rsqrt_()
    return x * scale, scale


def _through_norm(d: Tensor, normed: Tensor, scale: Tensor) -> Tensor:
    """The gradient of x from that of `normed`."""
    along = (d * normed).mean(1, keepdim=True)
    return torch.addcmul(d, normed, along, value=-1).mul_(scale)


def _by_head(qkv: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """(M, 3W) -> views of the prompts' part, (3, G, H, P, D), and of the rows', (3, N, H, T, D)."""
    P, G, T, N, H, D = plan.sizes
    prompts, rows = qkv[: P * G].view(P, G, 3, H, D), qkv[P * G :].view(N, T, 3, H, D)
    return prompts.permute(2, 1, 3, 0, 4), rows.permute(2, 0, 3, 1, 4)


def _turn(x: Tensor, rotations: Tensor, out: Tensor) -> None:
    """(..., S, D) by (S, D / 2) -> out, (..., S, D): each pair of neighbours as one complex number."""
    a, b = (torch.view_as_complex(y.unflatten(-1, (-1, 2))) for y in (x, out))
    torch.mul(a, rotations, out=b)


def _turned(x: Tensor, rotations: Tensor) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _turn(x, rotations, out)
    return out


def _attend(queries: Tensor, memory: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H, Q, D), (2, B, H, S, D), (Q, S) or (B H, Q, S) -> attention weights (B H, Q, S), outputs (B, H, Q, D)."""
    keys, values = memory.flatten(1, 2)
    shares = torch.softmax(torch.baddbmm(bias, queries.flatten(0, 1), keys.mT), -1)
    return shares, batched(shares, values).view(queries.shape)


def _through_attention(
    d: Tensor, read: Tensor, queries: Tensor, memory: Tensor, shares: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the queries and of the keys and values from the gradient of the outputs."""
    d, queries_, (keys, values) = d.flatten(0, 1), queries.flatten(0, 1), memory.flatten(1, 2)
    of_memory = torch.empty_like(memory)
    of_keys, of_values = of_memory.flatten(1, 2)
    batched(shares.mT, d, out=of_values)
    of_scores = torch._softmax_backward_data(batched(d, values.mT), shares, -1, shares.dtype)
    batched(of_scores.mT, queries_, out=of_keys)
    return batched(of_scores, keys).view(queries.shape), of_memory
