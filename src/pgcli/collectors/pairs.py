"""Comparisons of completions, and labels of single ones: written by a policy, labelled from the task's reward.

        P(a preferred to b) = sigmoid((r(a) - r(b)) / label_scale), and a share label_flip of labels is turned round

r is the task's reward, or that of a trained judge in its place. Because this law is known, so is the ceiling: how often
the best possible judge of these labels would be right.

A dataset is a function of its seed and of the frozen policy that wrote it. It is made at first use, and a resumed run
makes the same one again.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from pgcli.collectors.completions import Decoding
from pgcli.collectors.learned_reward import has_reward, true_reward
from pgcli.errors import InputError
from pgcli.functional.completions import preference_probability
from pgcli.functional.precision import widest
from pgcli.seeding import derive, episode_seeds, numpy_generator
from pgcli.types import (
    Comparing,
    Completions,
    Rollout,
    TextTask,
    Written,
    each_tensor,
)

CHUNK = 512
"""Completions written in one batch; each row has its own noise, so the size changes no token."""


class Law(NamedTuple):
    """How a difference of rewards becomes a label."""

    scale: float
    flip: float


class Answers(NamedTuple):
    """Completions and their rewards."""

    texts: Completions
    reward: Tensor
    """(N,), the reward that the labels are drawn from."""
    gold: Tensor
    """(N,), the task's true reward, also where a trained one replaces it in `reward`."""


class Pairs(NamedTuple):
    """B labelled pairs, preferred before rejected."""

    preferred: Completions
    rejected: Completions
    gold: Tensor
    """(B,), true reward of the preferred minus that of the rejected."""
    predictable: Tensor
    """(B,), the probability of the likelier label."""


def answers(rollout: Rollout) -> Answers:
    texts = Completions(rollout.observations, rollout.actions, rollout.mask, rollout.reference_log_probs)
    return Answers(texts, rollout.aux["reward"], true_reward(rollout.aux, rollout.mask))


def write(
    decoding: Decoding, policy: Any, seeds: list[int], generator: np.random.Generator, *, held_out: bool = False
) -> Answers:
    """A completion for each seed's prompt, with the log-probs of the policy that wrote it as those of the reference."""
    pieces = []
    for start in range(0, len(seeds), CHUNK):
        rollout = decoding.play(policy, seeds[start : start + CHUNK], generator, held_out=held_out)
        rollout.reference_log_probs = rollout.log_probs
        pieces.append(answers(rollout))
    return stack(pieces)


def compare(first: Answers, second: Answers, law: Law, noise: np.ndarray) -> Pairs:
    """Label two completions of each prompt.

    noise: (B, 2) uniform: one for the label, one for whether it is turned round.
    """
    difference = (first.reward - second.reward).to(widest(first.reward.device))
    drawn, turned = torch.from_numpy(noise).to(difference).unbind(1)
    wins = (drawn < preference_probability(difference, scale=law.scale, flip=0)) ^ (turned < law.flip)
    labelled = preference_probability(difference, scale=law.scale, flip=law.flip)
    gold = first.gold - second.gold
    return Pairs(
        _either(wins, first.texts, second.texts), _either(wins, second.texts, first.texts),
        torch.where(wins, gold, -gold), torch.maximum(labelled, 1 - labelled),
    )  # fmt: skip


def _either(which: Tensor, one: Completions, other: Completions) -> Completions:
    """Row by row one completion or the other. Both belong to the same prompts."""

    def rows(a: Tensor, b: Tensor) -> Tensor:
        return a if a is None else torch.where(which[:, None], a, b)

    return Completions(one.observations, *map(rows, one[1:], other[1:]))


def identical(pairs: Pairs) -> Tensor:
    """(B,) bool: both completions are the same. (After its end every completion is padding, so all tokens compare.)"""
    return (pairs.preferred.actions == pairs.rejected.actions).all(dim=1)


def agreement(differences: Tensor) -> float:
    """Share of positive differences; a difference of 0 counts 1/2, because either order is as good."""
    return float((torch.sign(differences) + 1).mean() / 2)


def pick(tree: Any, rows: Tensor | slice) -> Any:
    return each_tensor(tree, lambda x: x[rows])


def stack(parts: list[Any]) -> Any:
    """Trees of tensors, one below the other."""
    first = parts[0]
    if len(parts) == 1 or first is None:
        return first
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, dict):
        return {key: stack([part[key] for part in parts]) for key in first}
    return first._make(stack(list(column)) for column in zip(*parts, strict=True))


def write_pairs(
    decoding: Decoding, policy: Any, law: Law, seeds: list[int], *, seed: int, held_out: bool = False
) -> Pairs:
    """Two completions for each seed's prompt, labelled; without pairs that are identical or cannot be scored.

    seed: seed of all noise.
    """
    given = given_pairs(decoding.task, held_out=held_out)
    if given is not None:
        pairs = read_pairs(decoding, policy, *given)
        pairs = pick(pairs, ~identical(pairs))
        if not len(pairs.gold):
            raise InputError("every pair of the file is the same completion twice: nothing can be preferred")
        return pairs
    noise = numpy_generator(seed, "actions")
    first, second = (write(decoding, policy, seeds, noise, held_out=held_out) for _ in range(2))
    pairs = compare(first, second, law, numpy_generator(seed, "labels").random((len(seeds), 2)))
    pairs = pick(pairs, ~identical(pairs) & ~pairs.gold.isnan() & ~pairs.predictable.isnan())
    if not len(pairs.gold):
        raise InputError(
            "both completions of every prompt are identical (or cannot be scored), so there is nothing to label; raise "
            "policy.temperature"
        )
    return pairs


def given_pairs(task: TextTask, *, held_out: bool) -> tuple[Written, Written] | None:
    """The task's own pairs, or None if it has none."""
    return cast("Comparing", task).given_pairs(held_out=held_out) if hasattr(task, "given_pairs") else None


def given_labels(task: TextTask, *, held_out: bool) -> tuple[Written, Tensor] | None:
    """The task's own labelled completions, or None if it has none."""
    return cast("Comparing", task).given_labels(held_out=held_out) if hasattr(task, "given_labels") else None


def read_pairs(decoding: Decoding, policy: Any, preferred: Written, rejected: Written) -> Pairs:
    """A task's own pairs. Their labels count as the truth (gold 1), unless the task has a true reward."""
    one, other = (_scored(decoding, read_texts(decoding, policy, written)) for written in (preferred, rejected))
    gold = (one.gold - other.gold).nan_to_num()
    if not has_reward(decoding.task):
        gold = torch.ones_like(gold)
    return Pairs(one.texts, other.texts, gold, torch.ones_like(gold))


@torch.no_grad()
def read_texts(decoding: Decoding, policy: Any, written: Written) -> Completions:
    """Texts that no policy of this run wrote, with the log-probs that a frozen one gives to them."""
    task, device = decoding.task, decoding.device
    observations, actions = each_tensor(written, lambda x: x.to(device))
    end = actions == task.spec.end
    mask = (end.cumsum(1) - end.long()) == 0
    found = []
    for start in range(0, len(actions), CHUNK):
        rows = slice(start, start + CHUNK)
        found.append(policy(pick(observations, rows), actions[rows]).log_probs)
    return Completions(observations, actions, mask, torch.where(mask, torch.cat(found), 0))


def read_labels(decoding: Decoding, policy: Any, written: Written, right: Tensor) -> tuple[Completions, Tensor]:
    """A task's own labelled completions, as `read_texts` reads them."""
    return read_texts(decoding, policy, written), right.to(decoding.device)


def _scored(decoding: Decoding, texts: Completions) -> Answers:
    reward = decoding.task.rewards(texts.observations, texts.actions, texts.mask)["reward"]
    return Answers(texts, reward, reward)


def dataset(decoding: Decoding, policy: Any, law: Law, *, pairs: int, seed: int) -> Pairs:
    """Pairs for `pairs` training prompts, without those that are identical or cannot be scored."""
    return write_pairs(decoding, policy, law, episode_seeds(seed, "pairs", range(pairs)), seed=derive(seed, "pairs"))
