"""Batched decoding of completions: a prompt is an initial state, a token is an action, a completion is an episode."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from pgcli.functional.distributions import categorical
from pgcli.types import Episode, Rollout, State, TextTask


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


class Decoding:
    """Writes one completion for each seed's prompt, and has the task score it. The reward stands on the last token."""

    def __init__(self, task: TextTask, *, device: torch.device) -> None:
        self.task, self.device = task, device

    def play(
        self, policy: Any, seeds: list[int], generator: np.random.Generator | None, *, held_out: bool = False
    ) -> Rollout:
        """A Rollout of (len(seeds), completion_length). A completion that the length limit cut is truncated."""
        spec = self.task.spec
        prompts = self.task.prompts(seeds, held_out=held_out).to(self.device)
        N, T = len(seeds), spec.completion_length
        noise = None
        if generator is not None:
            noise = torch.from_numpy(generator.gumbel(size=(N, T, spec.vocabulary)).astype(np.float32)).to(self.device)
        written = decode(policy, prompts, length=T, end=spec.end, pad=spec.pad, noise=noise)
        parts = self.task.rewards(prompts, written.actions, written.mask)

        lengths = written.mask.sum(1)
        last = torch.zeros_like(written.mask).scatter_(1, (lengths - 1)[:, None], True)
        ended = last & (written.actions == spec.end)
        rollout = Rollout(
            observations={"prompt": prompts}, actions=written.actions, mask=written.mask, log_probs=written.log_probs,
            rewards=torch.where(last, parts["reward"][:, None], 0.0), terminated=ended, truncated=last & ~ended,
            aux=parts,
            episodes=list(map(Episode, parts["reward"].tolist(), lengths.tolist(), seeds)),
        )  # fmt: skip
        if policy.has_critic:
            with torch.no_grad():
                rollout.values = policy(rollout.observations, rollout.actions).values
            # The limit is part of the task (its reward says so), so there is nothing to bootstrap behind it: V = 0.
            following = torch.cat([rollout.values[:, 1:], torch.zeros_like(rollout.values[:, :1])], dim=1)
            rollout.next_values = torch.where(last, 0.0, following)
        return rollout

    def state_dict(self) -> State:
        """A prompt is a function of its seed: there is nothing to remember."""
        return {}

    def load_state_dict(self, state: State) -> None: ...
