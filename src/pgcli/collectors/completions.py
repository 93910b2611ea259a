"""Batched decoding of completions: a prompt is an initial state, a token is an action, a completion is an episode."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from pgcli.functional.distributions import Categorical, categorical
from pgcli.functional.masked import masked_sum
from pgcli.seeding import uniforms
from pgcli.types import ABSENT, Episode, Observations, Rollout, Sample, State, TextTask, each_tensor


class Decoder(Protocol):
    """A policy that writes token by token and remembers what it has read."""

    def prefill(self, observations: Observations) -> tuple[Tensor, Any]:
        """N prompts -> logits of the first action, (N, V), and a cache."""
        ...

    def step(self, tokens: Tensor, cache: Any) -> Tensor:
        """(N,), the tokens just chosen -> logits of the next action, (N, V)."""
        ...


class Decoded(NamedTuple):
    """(N, T) each. `mask`: 1 up to and including the end token; after it, actions are padding and log-probs 0.

    logits: (N, T, V), of the distributions that were sampled, where they were asked for; 0 on padding.
    """

    actions: Tensor
    log_probs: Tensor
    mask: Tensor
    logits: Tensor = ABSENT


@torch.no_grad()
def decode(
    policy: Decoder, observations: Observations, *, length: int, end: int, pad: int, noise: Tensor | None,
    keep_logits: bool = False,
) -> Decoded:  # fmt: skip
    """Write a completion of at most `length` tokens for each of N prompts.

        a_t = the first v with  sum_{w <= v} pi(w | prompt, a_<t)  >=  u_t,   u uniform in (0, 1)

    which is an exact sample of pi, from the whole vocabulary, so that the log-probs are those of the distribution that
    was sampled. Without noise: greedy.

    noise: (N, T) float64, or None. The tokens of a row are a function of its prompt and its noise alone.
    """
    prompts = observations["prompt"]
    actions = prompts.new_full((len(prompts), length), pad)
    mask = torch.zeros_like(actions, dtype=torch.bool)
    steps, seen = [], []
    alive = torch.ones_like(mask[:, 0])
    logits, cache = policy.prefill(observations)
    for t in range(length):
        tokens = logits.argmax(-1) if noise is None else sample(logits, noise[:, t])
        steps.append(categorical(logits, tokens)[0])
        if keep_logits:
            seen.append(logits * alive[:, None])
        mask[:, t] = alive
        actions[:, t] = torch.where(alive, tokens, pad)
        alive = alive & (tokens != end)
        if t + 1 == length or not alive.any():
            break
        logits = policy.step(actions[:, t], cache)
    log_probs = torch.stack(steps, dim=1)
    log_probs = torch.nn.functional.pad(log_probs, (0, length - log_probs.shape[1])) * mask
    kept = torch.stack([*seen, *[torch.zeros_like(seen[0])] * (length - len(seen))], dim=1) if keep_logits else ABSENT
    return Decoded(actions, log_probs, mask, kept)


def sample(logits: Tensor, noise: Tensor) -> Tensor:
    """(N, V), (N,) uniform -> (N,): the token in whose share of [0, 1] the noise falls."""
    shares = torch.softmax(logits.double(), dim=-1).cumsum(-1)
    return (shares < noise[:, None] * shares[:, -1:]).sum(-1)


METRICS = {
    "rollout/finished": "share of completions that ended by themselves, before the length limit",
}
LARGEST_VOCABULARY = 4096
"""Up to which whole distributions are kept, where someone asks for them: (N, T, V)."""


class Decoding:
    """Writes one completion for each seed's prompt, and has the task score it. The reward stands on the last token."""

    def __init__(self, task: TextTask, *, device: torch.device, distributions: bool = False) -> None:
        self.task, self.device = task, device
        self.distributions = distributions and task.spec.vocabulary <= LARGEST_VOCABULARY

    def play(
        self, policy: Any, seeds: list[int], generator: np.random.Generator | None, *, held_out: bool = False
    ) -> Rollout:
        """A Rollout of (len(seeds), completion_length). A completion that the length limit cut is truncated."""
        spec = self.task.spec
        prompts = self.task.prompts(seeds, held_out=held_out)
        observations = each_tensor(prompts, lambda x: x.to(self.device))
        N, T = len(seeds), spec.completion_length
        noise = None
        if generator is not None:  # a row's noise is keyed by one number, so that it is the same beside any other rows
            keys = generator.integers(2**63, size=N, dtype=np.uint64)
            noise = torch.from_numpy(uniforms(keys, T)).to(self.device)
        written = decode(
            policy, observations,
            length=T, end=spec.end, pad=spec.pad, noise=noise, keep_logits=self.distributions,
        )  # fmt: skip
        parts = self.task.rewards(observations, written.actions, written.mask)

        lengths = written.mask.sum(1)
        last = torch.zeros_like(written.mask).scatter_(1, (lengths - 1)[:, None], True)
        ended = last & (written.actions == spec.end)
        rewards = parts["reward"]
        if rewards.dim() == 1:
            rewards = torch.where(last, rewards[:, None], 0.0)
        totals = masked_sum(rewards, written.mask, dim=1)
        parts = parts | {"reward": totals}
        rollout = Rollout(
            observations=observations, actions=written.actions, mask=written.mask, log_probs=written.log_probs,
            rewards=rewards, terminated=ended, truncated=last & ~ended, aux=parts,
            episodes=list(map(Episode, totals.tolist(), lengths.tolist(), seeds)),
            metrics={"rollout/finished": float(ended.any(1).float().mean())}
            | {f"reward/{name}": float(value.nanmean()) for name, value in parts.items() if not value.isnan().all()},
        )  # fmt: skip
        if self.distributions:
            rollout.distribution = Categorical(written.logits)
        if policy.has_critic:
            with torch.no_grad():
                rollout.values = policy(rollout.observations, rollout.actions).values
            # The limit is part of the task (its reward says so), so there is nothing to bootstrap behind it: V = 0.
            following = torch.cat([rollout.values[:, 1:], torch.zeros_like(rollout.values[:, :1])], dim=1)
            rollout.next_values = torch.where(last, 0.0, following)
        return rollout

    def describe(self, rollout: Rollout, rows: int) -> list[Sample]:
        """Texts, without what pads them and without the end token, which `finished` tells of."""
        found = []
        for n in range(min(rows, len(rollout.mask))):
            prompt = rollout.observations["prompt"][n]
            if "lengths" in rollout.observations:
                prompt = prompt[len(prompt) - int(rollout.observations["lengths"][n]) :]
            mask = rollout.mask[n]
            length = int(mask.nonzero().max()) + 1
            tokens = rollout.actions[n, :length].tolist()
            finished = bool(rollout.terminated[n].any())
            parts = {name: float(value[n]) for name, value in rollout.aux.items()}
            sample: Sample = {
                "prompt": self.task.decode(prompt.tolist()),
                "completion": self.task.decode(tokens[:-1] if finished else tokens),
                "finished": finished,
                "tokens": int(mask.sum()),
                "reward": parts.pop("reward"),
                "log_prob": float(rollout.log_probs[n][mask].sum()),
                "log_probs": rollout.log_probs[n][mask].tolist(),
            }
            if rollout.reference_log_probs is not None:
                sample["reference_log_prob"] = float(rollout.reference_log_probs[n][mask].sum())
            if "kl" in parts:
                sample["kl"] = parts.pop("kl")
            found.append(sample | {"components": parts})
        return found

    def state_dict(self) -> State:
        """A prompt is a function of its seed: there is nothing to remember."""
        return {}

    def load_state_dict(self, state: State) -> None: ...
