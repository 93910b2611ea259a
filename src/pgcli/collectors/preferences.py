"""What is learned from comparisons and labels: datasets of them, drawn in minibatches, and fresh ones by the policy.

`collectors.pairs` makes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pgcli.collectors.completions import Decoding
from pgcli.collectors.learned_reward import Reading
from pgcli.collectors.pairs import (
    CHUNK,
    Answers,
    Law,
    Pairs,
    agreement,
    answers,
    compare,
    identical,
    pick,
    stack,
)
from pgcli.collectors.reference import divergence, view
from pgcli.errors import InputError, RunError
from pgcli.functional.masked import last_of, masked_mean
from pgcli.seeding import episode_seeds, numpy_generator
from pgcli.types import (
    Checked,
    Completions,
    Labelled,
    Preferences,
    State,
)

METRICS = {
    "preferences/dataset": "pairs (or completions) in the dataset",
    "preferences/epoch": "passes over the dataset, this one included",
    "preferences/gold_agreement": "share of labels that agree with the task's true reward",
    "preferences/ceiling": "share of labels that the best possible judge of them would predict, mean over the batch",
    "preferences/identical": "share of fresh pairs whose two completions are identical and so teach nothing",
    "preferences/right": "share of checked completions, or of their steps, that are right",
    "preferences/desirable": "share of completions that are labelled desirable",
}


# ---------------------------------------------------------------- what is learned from


class PairData:
    """A dataset of pairs."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs.gold)

    def __getitem__(self, rows: Tensor) -> Preferences:
        return preferences(pick(self.pairs, rows), rows)


def preferences(pairs: Pairs, numbers: Tensor) -> Preferences:
    metrics = {
        "preferences/gold_agreement": agreement(pairs.gold),
        "preferences/ceiling": float(pairs.predictable.mean()),
    }
    return Preferences(stack([pairs.preferred, pairs.rejected]), numbers, pairs.gold, metrics)


class LabelledData:
    """Single completions, desirable or not. Beside each stands one of another prompt, for KTO's reference point."""

    def __init__(self, texts: Completions, desirable: Tensor, reference: Any) -> None:
        if len(desirable) < 2:
            raise InputError("KTO compares with the completions of other prompts, and there is only one completion")
        self.texts, self.desirable = texts, desirable
        mismatched = pick(texts, other_prompts(texts.observations["prompt"]))
        self.mismatched = referred(mismatched._replace(observations=texts.observations), reference)

    def __len__(self) -> int:
        return len(self.desirable)

    def __getitem__(self, rows: Tensor) -> Labelled:
        desirable = self.desirable[rows]
        metrics = {"preferences/desirable": float(desirable.float().mean())}
        return Labelled(pick(self.texts, rows), desirable, pick(self.mismatched, rows), metrics)


def taken_apart(pairs: Pairs) -> tuple[Completions, Tensor]:
    """The pairs' completions and whether each is desirable: preferred ones are, rejected ones are not."""
    texts: Completions = stack([pairs.preferred, pairs.rejected])
    return texts, torch.arange(len(texts.mask), device=texts.mask.device) < len(pairs.gold)


def other_prompts(prompts: Tensor) -> Tensor:
    """(B, P) -> (B,): the next row with another prompt; the next row if all prompts are the same."""
    rows = torch.arange(len(prompts), device=prompts.device)
    found = (rows + 1) % len(rows)
    for distance in range(2, len(rows)):
        alike = (prompts[found] == prompts).all(dim=1)
        if not alike.any() or bool((prompts == prompts[0]).all()):
            break
        found = torch.where(alike, (rows + distance) % len(rows), found)
    return found


@torch.no_grad()
def referred(texts: Completions, reference: Any) -> Completions:
    """The texts with the log-probs that a frozen policy gives to them."""
    found = []
    for start in range(0, len(texts.mask), CHUNK):
        part = pick(texts, slice(start, start + CHUNK))
        found.append(torch.where(part.mask, reference(part.observations, part.actions).log_probs, 0))
    return texts._replace(reference_log_probs=torch.cat(found))


class CheckedData:
    """Completions with the task's labels: whether each is right, or which of its steps are."""

    def __init__(self, task: Any, written: Answers, reading: Reading) -> None:
        self.texts = written.texts
        if reading == "process":
            labels = task.step_labels(*self.texts[:3])
            self.known = ~labels.isnan()
            self.right = labels.nan_to_num()
        else:
            mask = self.texts.mask
            scored = ~written.reward.isnan()
            self.known = torch.zeros_like(mask).scatter_(1, last_of(mask)[:, None], scored[:, None])
            last = self.texts.actions.gather(1, last_of(mask)[:, None]).squeeze(1)
            labels = written.reward.where(last == task.spec.end, written.reward.clamp(0, 1))  # what a cut one earns
            if not ((labels == 0) | (labels == 1))[scored].all():
                raise InputError(
                    "an outcome reward model learns from rewards of 0 or 1; this task also gives parts of 1 "
                    "(see env.partial, env.reward_kind, env.overlong_buffer)"
                )
            self.right = labels.nan_to_num()[:, None].expand_as(mask)

    def __len__(self) -> int:
        return len(self.known)

    def __getitem__(self, rows: Tensor) -> Checked:
        right, known = self.right[rows], self.known[rows]
        metrics = {"preferences/right": float(masked_mean(right, known))}
        return Checked(pick(self.texts, rows), right, known, metrics)


# ---------------------------------------------------------------- collectors


class DataCollector:
    """Minibatches of a finite dataset, in another order each epoch. The dataset is made at first use."""

    def __init__(self, make: Callable[[], Any], *, rows: int, seed: int) -> None:
        self.make, self.rows, self.seed = make, rows, seed
        self.data: Any = None
        self.drawn = 0  # minibatches so far

    def collect(self, policy: Any) -> Any:
        """At most `rows` rows. The minibatches of an epoch differ by one row at most."""
        del policy
        if self.data is None:
            self.data = self.make()
        size = len(self.data)
        pieces = -(-size // self.rows)
        epoch, piece = divmod(self.drawn, pieces)
        self.drawn += 1
        order = numpy_generator(self.seed, "epoch", epoch).permutation(size)
        rows = order[size * piece // pieces : size * (piece + 1) // pieces]
        batch = self.data[torch.from_numpy(rows)]
        batch.metrics |= {"preferences/dataset": float(size), "preferences/epoch": float(epoch + 1)}
        return batch

    def state_dict(self) -> State:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: State) -> None:
        self.drawn = state["drawn"]


class JudgedCollector:
    """Two fresh completions of each prompt by the present policy, labelled like the pairs of a dataset."""

    def __init__(self, decoding: Decoding, reference: Any, law: Law, *, rows: int, seed: int) -> None:
        self.decoding, self.reference, self.law, self.rows, self.seed = decoding, reference, law, rows, seed
        self.begun = 0
        self.noise, self.labels = numpy_generator(seed, "actions"), numpy_generator(seed, "labels")

    def collect(self, policy: Any) -> Preferences:
        numbers = torch.arange(self.begun, self.begun + self.rows)
        self.begun += self.rows
        seeds = episode_seeds(self.seed, "train", numbers.tolist())
        rollout = self.decoding.play(policy, [*seeds, *seeds], self.noise)
        found = view(self.reference, rollout)
        rollout.reference_log_probs = torch.where(rollout.mask, found.log_probs, 0)
        both = answers(rollout)
        first, second = pick(both, slice(0, self.rows)), pick(both, slice(self.rows, None))
        pairs = compare(first, second, self.law, self.labels.random((self.rows, 2)))
        scored = ~pairs.gold.isnan() & ~pairs.predictable.isnan()
        if not scored.any():
            raise RunError("not one of the completions could be scored: there is nothing to compare")
        batch = preferences(pick(pairs, scored), numbers[scored.cpu()])
        batch.metrics |= rollout.metrics | divergence(rollout, found)
        batch.metrics["preferences/identical"] = float(identical(pairs).float().mean())
        batch.episodes = [episode for episode in rollout.episodes if not math.isnan(episode.total)]
        return batch

    def state_dict(self) -> State:
        return {
            "begun": self.begun,
            "noise": self.noise.bit_generator.state,
            "labels": self.labels.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> None:
        self.begun = state["begun"]
        self.noise.bit_generator.state = state["noise"]
        self.labels.bit_generator.state = state["labels"]
