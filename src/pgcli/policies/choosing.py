"""From hidden states to the log-probs of tokens: softmax(W h / temperature), as ordinary operations and as one node.

The node is for a gradient step on the CPU. It has the same values and gradient in a third of the time.

Shapes: M positions (or any before the last axis), W width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pgcli.functional.distributions import categorical
from pgcli.policies.products import batched, linear_once, product


class Choice(NamedTuple):
    """log_probs of the actions and entropy, in nats, (M,); logits, (M, V), after the division by the temperature."""

    log_probs: Tensor
    entropy: Tensor
    logits: Tensor


Chooser: TypeAlias = Callable[[Tensor, Tensor, Tensor, float], Choice]
"""(hidden (M, W), unembedding (V, W), actions (M,), temperature) -> `Choice`."""


def choose(hidden: Tensor, unembedding: Tensor, actions: Tensor, temperature: float) -> Choice:
    """Differentiable any number of times."""
    return _chosen(F.linear(hidden, unembedding), unembedding, actions, temperature)


def choose_once(hidden: Tensor, unembedding: Tensor, actions: Tensor, temperature: float) -> Choice:
    """Differentiable once."""
    if not hidden.is_cpu or torch.is_autocast_enabled("cpu"):
        return _chosen(linear_once(hidden, unembedding), unembedding, actions, temperature)
    shape = actions.shape
    found = _Choose.apply(hidden.reshape(-1, hidden.shape[-1]), unembedding, actions.reshape(-1), temperature)
    return Choice(*(x.unflatten(0, shape) for x in found))


def _chosen(products: Tensor, unembedding: Tensor, actions: Tensor, temperature: float) -> Choice:
    logits = products.to(unembedding.dtype) / temperature
    return Choice(*categorical(logits, actions), logits)


class _Choose(torch.autograd.Function):
    """Tokens are the first axis within: along a short last axis a softmax is several times slower."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, unembedding: Tensor, actions: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits = product(unembedding, hidden).div_(temperature)  # (V, M)
        log_pi = torch.log_softmax(logits, 0)
        pi = log_pi.exp()
        entropy = (pi * log_pi).sum(0).neg_()
        ctx.save_for_backward(hidden, unembedding, actions, pi, log_pi, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return log_pi.gather(0, actions[None]).squeeze(0), entropy, logits.t()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_log_probs: Tensor | None, of_entropy: Tensor | None, of_logits: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, unembedding, actions, pi, log_pi, entropy = ctx.saved_tensors
        d = torch.zeros_like(pi) if of_logits is None else of_logits.t().clone()
        if of_log_probs is not None:
            d.addcmul_(pi, of_log_probs, value=-1).scatter_add_(0, actions[None], of_log_probs[None])
        if of_entropy is not None:
            d.addcmul_((log_pi + entropy).mul_(pi), of_entropy, value=-1)
        d.div_(ctx.temperature)
        return batched(d.t(), unembedding), batched(d, hidden), None, None
