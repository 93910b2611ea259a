"""Completions as whole episodes: the language side of `collectors.episodes`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pgcli.collectors.completions import decode
from pgcli.types import Episode, Rollout, State, TextTask


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
