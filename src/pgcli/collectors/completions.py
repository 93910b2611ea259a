"""Batched decoding of completions: a prompt is an initial state, a token is an action, a completion is an episode."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pgcli.functional.distributions import categorical


class Decoder(Protocol):
    """A policy that writes token by token and remembers what it has read."""

    def prefill(self, prompt: Tensor) -> tuple[Tensor, Any]:
        """(N, P) -> logits of the first action, (N, V), and a cache."""
        ...

    def step(self, tokens: Tensor, cache: Any) -> Tensor:
        """(N,), the tokens just chosen -> logits of the next action, (N, V)."""
        ...


class Decoded(NamedTuple):
    """(N, T) each. `mask`: 1 up to and including the end token; after it, actions are padding and log-probs 0."""

    actions: Tensor
    log_probs: Tensor
    mask: Tensor


@torch.no_grad()
def decode(policy: Decoder, prompts: Tensor, *, length: int, end: int, pad: int, noise: Tensor | None) -> Decoded:
    """Write a completion of at most `length` tokens for each prompt, (N, P).

        a_t = argmax_v  log pi(v | prompt, a_<t) + g_tv,   g standard Gumbel

    which is an exact sample of pi (Gumbel 1954), at temperature 1 and from the whole vocabulary, so that the log-probs
    are those of the distribution that was sampled. Without noise: greedy.

    noise: (N, T, V), or None. The tokens of a row are a function of its prompt and its noise alone.
    """
    actions = prompts.new_full((len(prompts), length), pad)
    mask = torch.zeros_like(actions, dtype=torch.bool)
    steps = []
    alive = torch.ones_like(mask[:, 0])
    logits, cache = policy.prefill(prompts)
    for t in range(length):
        tokens = (logits if noise is None else logits + noise[:, t]).argmax(-1)
        steps.append(categorical(logits, tokens)[0])
        mask[:, t] = alive
        actions[:, t] = torch.where(alive, tokens, pad)
        alive = alive & (tokens != end)
        if t + 1 == length or not alive.any():
            break
        logits = policy.step(actions[:, t], cache)
    log_probs = torch.stack(steps, dim=1)
    log_probs = torch.nn.functional.pad(log_probs, (0, length - log_probs.shape[1])) * mask
    return Decoded(actions, log_probs, mask)
