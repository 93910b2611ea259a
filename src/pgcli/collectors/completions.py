"""Batched decoding of completions: a prompt is an initial state, a token is an action, a completion is an episode."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from pgcli import processes
from pgcli.functional.distributions import Categorical
from pgcli.functional.masked import masked_sum
from pgcli.functional.precision import widest
from pgcli.seeding import uniforms
from pgcli.types import ABSENT, Episode, Observations, Replying, Rollout, Sample, State, TextTask, each_tensor


class Decoder(Protocol):
    """A policy that writes token by token and keeps what it has read in a cache of its own kind.

    A cache may also have methods that only save time, in place:

        keep(rows)      drops all rows but these, (n,) int64: those that still write
        expand(counts)  each row becomes `counts` (N,) int64 equal rows, side by side: a prompt is read once for a group
        keep_pass(steps=, end=)
                        what the next steps compute is kept for who reads all these rows next, and of each nothing
                        after `end`

    With a cache that has no `expand`, equal prompts are read twice: once each, then once per row.
    """

    def prefill(self, observations: Observations) -> tuple[Tensor, Any]:
        """N prompts -> logits of the first action, (N, V), and a cache."""
        ...

    def step(self, tokens: Tensor, cache: Any) -> Tensor:
        """(N,), the tokens just chosen -> logits of the next action, (N, V)."""
        ...


class Decoded(NamedTuple):
    """(N, T) each. `mask`: 1 where the policy chose the token, up to and including its last end token; elsewhere
    log-probs are 0, and actions are the task's reply or padding.

    ended: (N,) bool, not cut by the limit.
    logits: (N, T, V), of the distributions that were sampled, with `keep_logits`; 0 where no token was chosen.
    """

    actions: Tensor
    log_probs: Tensor
    mask: Tensor
    ended: Tensor
    logits: Tensor = ABSENT


Replies: TypeAlias = Callable[[Observations, Tensor, Tensor], Tensor]
"""(observations, actions (N, T), mask (N, T)) of rows whose first turn is over -> the task's reply to it, (N, R)."""
COMPACT = 0.75
"""Share of the cache's rows still writing at which the others are dropped: moving the rest costs about one step."""


@torch.no_grad()
def decode(
    policy: Decoder, observations: Observations, *, length: int, end: int, pad: int, noise: Tensor | None,
    keep_logits: bool = False, replies: Replies | None = None, keep_pass: bool = False,
) -> Decoded:  # fmt: skip
    """Write a completion of at most `length` tokens for each of N prompts.

        a_t = the first v with  sum_{w <= v} pi(w | prompt, a_<t)  >=  u_t,   u uniform in (0, 1)

    which is an exact sample of pi, from the whole vocabulary, so that the log-probs are those of the distribution that
    was sampled. Without noise: greedy. If the cache supports it, equal prompts that follow one another are read once,
    and finished rows leave the cache; neither changes more than the last bits of a row.

    noise: (N, T), of the device's `widest` type, or None. The tokens of a row are a function of its prompt and
        its noise alone.
    replies: for a task of two turns. The reply follows the first end token; the policy reads it but did not choose it.
        The second end token is the last. Noise is numbered by position, replies included.
    keep_pass: the policy reads all these rows next, and may use what it computes now.
    """
    prompts = observations["prompt"]
    actions = prompts.new_full((len(prompts), length), pad)
    conversation = None if replies is None else _Conversation(replies, observations, actions, end)
    with torch.inference_mode():  # an operation's overhead is a tenth less than without a gradient only
        log_probs, seen = _write(
            policy, observations, actions, end, pad, noise, keep_logits, conversation, keep_pass=keep_pass
        )
    ends, turns = actions == end, 1
    forced = None
    if conversation is not None:
        forced, turns = conversation.forced, 2
        ends &= ~forced
    # A row stays in the cache for a while after its end: what it wrote there goes.
    mask = ends.cumsum(1) - ends.long() < turns
    actions = torch.where(mask, actions, pad)
    mask = mask if forced is None else mask & ~forced
    return Decoded(
        actions, torch.where(mask, log_probs, 0), mask, ends.sum(1) >= turns,
        torch.where(mask[..., None], seen, 0) if keep_logits else ABSENT,
    )  # fmt: skip


def _write(
    policy: Decoder, observations: Observations, actions: Tensor, end: int, pad: int, noise: Tensor | None,
    keep_logits: bool, conversation: _Conversation | None, *, keep_pass: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Fills in `actions`, (N, T), until each row has written its last end token. Returns log-probs and logits."""
    length = actions.shape[1]
    logits, cache = _prefill(policy, observations)
    if keep_pass and conversation is None and hasattr(cache, "keep_pass"):
        cache.keep_pass(steps=length - 1, end=end)
    log_probs = logits.new_zeros(actions.shape, dtype=torch.promote_types(logits.dtype, torch.float32))
    seen = logits.new_zeros((*actions.shape, logits.shape[1])) if keep_logits else ABSENT
    rows: slice | Tensor = slice(None)  # rows of the batch that the cache holds; a slice of all costs no indexing
    writing = torch.ones_like(actions[:, 0], dtype=torch.bool)  # which of these have more to write
    left = len(writing)
    for t in range(length):
        tokens, log_probs[rows, t] = choose(logits, None if noise is None else noise[rows, t])
        if keep_logits:
            seen[rows, t] = logits
        if conversation is None:
            if left < len(tokens):
                tokens = tokens.masked_fill(~writing, pad)
            actions[rows, t] = tokens
            over = tokens == end
        else:
            tokens, over = conversation.turn(rows, t, tokens, writing)
        if over.any():
            writing &= ~over
            left = int(writing.sum())
        if t + 1 == length or not left:
            break
        if left <= COMPACT * len(tokens) and hasattr(cache, "keep"):
            kept = writing.nonzero().squeeze(1)
            cache.keep(kept)
            rows, tokens, writing = _among(rows, kept), tokens[kept], writing[kept]
        logits = policy.step(tokens, cache)
    return log_probs, seen


class _Conversation:
    """The task's replies to first turns that are over. `forced`: (N, T) bool, their tokens, which nobody chose."""

    def __init__(self, replies: Replies, observations: Observations, actions: Tensor, end: int) -> None:
        self.replies, self.observations, self.actions, self.end = replies, observations, actions, end
        self.forced = torch.zeros_like(actions, dtype=torch.bool)
        self.last_turn = torch.zeros_like(actions[:, 0], dtype=torch.bool)

    def turn(self, rows: slice | Tensor, t: int, tokens: Tensor, writing: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) tokens that the rows of the cache chose -> those that they go on with, and whose last turn is over."""
        actions, T = self.actions, self.actions.shape[1]
        tokens = torch.where(self.forced[rows, t], actions[rows, t], tokens)
        actions[rows, t] = tokens
        ended = (tokens == self.end) & ~self.forced[rows, t]
        now, over = ended & writing & ~self.last_turn[rows], ended & self.last_turn[rows]
        if t + 1 < T and now.any():
            spoken = _among(rows, now.nonzero().squeeze(1))
            mask = (torch.arange(T, device=actions.device) <= t).expand(len(spoken), T)
            said = self.replies(_of(self.observations, spoken), actions[spoken], mask)
            until = min(t + 1 + said.shape[1], T)
            actions[spoken, t + 1 : until] = said[:, : until - t - 1]
            self.forced[spoken, t + 1 : until] = True
            self.last_turn[spoken] = True
        return tokens, over


def _prefill(policy: Decoder, observations: Observations) -> tuple[Tensor, Any]:
    """Read the prompts; a prompt equal to the one before it is copied from it instead of read again."""
    new = torch.zeros_like(observations["prompt"][:, 0], dtype=torch.bool)
    new[0] = True
    for x in observations.values():
        flat = x.reshape(len(x), -1)
        new[1:] |= (flat[1:] != flat[:-1]).any(1)
    first = new.nonzero().squeeze(1)
    logits, cache = policy.prefill(_of(observations, first))
    if len(first) == len(new):
        return logits, cache
    if not hasattr(cache, "expand"):
        return policy.prefill(observations)
    counts = torch.cat([first[1:], first.new_tensor([len(new)])]) - first
    cache.expand(counts)
    return logits.repeat_interleave(counts, 0), cache


def _among(rows: slice | Tensor, some: Tensor) -> Tensor:
    """The batch's row numbers of `some` of the rows in the cache."""
    return some if isinstance(rows, slice) else rows[some]


def _of(observations: Observations, rows: Tensor) -> Observations:
    return each_tensor(observations, lambda x: x[rows])


def choose(logits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """(N, V), (N,) uniform -> (N,): the token in whose share of [0, 1] the noise falls, and its log-prob.

    Without noise, the likeliest token.
    """
    log_pi = torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
    if noise is None:
        tokens = log_pi.argmax(-1, keepdim=True)
    else:
        shares = log_pi.exp().cumsum(-1, dtype=noise.dtype)
        tokens = torch.searchsorted(shares, noise[:, None] * shares[:, -1:])
        tokens.clamp_(max=shares.shape[-1] - 1)  # out of range only if logits are NaN, which the update refuses
    return tokens.squeeze(-1), log_pi.gather(-1, tokens).squeeze(-1)


def everybodys(own: Rollout, rows: int) -> Rollout:
    """The `rows` of all processes, each of which has written its `processes.share` of them."""
    if processes.size() == 1:
        return own
    columns = {f.name: getattr(own, f.name) for f in fields(own) if f.name not in ("episodes", "metrics", "discarded")}
    return replace(own, **{name: each_tensor(x, lambda x: processes.gather(x, rows)) for name, x in columns.items()})


METRICS = {
    "rollout/finished": "share of completions that ended by themselves, before the length limit",
}
LARGEST_VOCABULARY = 4096
"""Largest vocabulary for which whole distributions, (N, T, V), are kept where they are needed."""


class Decoding:
    """Writes one completion for each seed's prompt, and lets the task score it. The reward is on the last token."""

    def __init__(
        self, task: TextTask, *, device: torch.device, distributions: bool = False, keep_pass: bool = False
    ) -> None:
        self.task, self.device, self.keep_pass = task, device, keep_pass
        self.distributions = distributions and task.spec.vocabulary <= LARGEST_VOCABULARY

    def play(
        self, policy: Any, seeds: list[int], generator: np.random.Generator | None, *, held_out: bool = False
    ) -> Rollout:
        """A Rollout of (len(seeds), completion_length). A completion that the length limit cut is truncated."""
        spec = self.task.spec
        prompts = self.task.prompts(seeds, held_out=held_out)
        N, T = len(seeds), spec.completion_length
        own = processes.share(N)
        observations = each_tensor(prompts, lambda x: x[own].to(self.device))
        noise = None
        if generator is not None:  # a row's noise is keyed by one number, so that it is the same beside any other rows
            keys = generator.integers(2**63, size=N, dtype=np.uint64)
            noise = torch.from_numpy(uniforms(keys[own], T)).to(self.device, widest(self.device))
        written = decode(
            policy, observations,
            length=T, end=spec.end, pad=spec.pad, noise=noise, keep_logits=self.distributions,
            replies=cast("Replying", self.task).replies if spec.reply_length else None,
            keep_pass=not held_out and (self.keep_pass or policy.has_critic),
        )  # fmt: skip
        parts = self.task.rewards(observations, written.actions, written.mask)

        positions = torch.where(written.mask, torch.arange(T, device=self.device), -1)
        last = positions == positions.amax(1, keepdim=True)
        ended = last & written.ended[:, None]
        rewards = parts["reward"]
        if rewards.dim() == 1:
            rewards = torch.where(last, rewards[:, None], 0.0)
        totals = masked_sum(rewards, written.mask, dim=1)
        parts = parts | {"reward": totals}
        rollout = Rollout(
            observations=observations, actions=written.actions, mask=written.mask, log_probs=written.log_probs,
            rewards=rewards, terminated=ended, truncated=last & ~ended, aux=parts,
        )  # fmt: skip
        if self.distributions:
            rollout.distribution = Categorical(written.logits)
        if policy.has_critic:
            with torch.no_grad():
                evaluate = getattr(policy, "once_differentiable", lambda: policy)()  # may use the pass that wrote them
                rollout.values = evaluate(rollout.observations, rollout.actions).values
            if spec.reply_length:
                # The state after an end token is the one where the policy chooses next: after the task's reply.
                chosen = torch.where(written.mask, torch.arange(T, device=self.device), T - 1)
                following = chosen.flip(1).cummin(1).values.flip(1)
                rollout.values = rollout.values.gather(1, following)
            # The limit is part of the task (its reward says so), so nothing is bootstrapped after it: V = 0.
            following = torch.cat([rollout.values[:, 1:], torch.zeros_like(rollout.values[:, :1])], dim=1)
            rollout.next_values = torch.where(last, 0.0, following)
        rollout = everybodys(rollout, N)
        returns, counts = rollout.aux["reward"].tolist(), rollout.mask.sum(1).tolist()
        rollout.episodes = list(map(Episode, returns, counts, seeds))
        scored = {name: value[~value.isnan()] for name, value in rollout.aux.items()}
        rollout.metrics = {"rollout/finished": float(rollout.terminated.any(1).float().mean())} | {
            f"reward/{name}": float(values.mean()) for name, values in scored.items() if len(values)
        }
        return rollout

    def describe(self, rollout: Rollout, rows: int) -> list[Sample]:
        """Texts without padding and without the end token: `finished` tells whether there was one."""
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
            parts = {name: value for name, value in parts.items() if name == "reward" or not math.isnan(value)}
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
        """Empty: a prompt is a function of its seed."""
        return {}

    def load_state_dict(self, state: State) -> None: ...
