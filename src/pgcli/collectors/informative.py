"""Groups whose episodes differ in return: of the others, which are collected too, a baseline would leave nothing.

DAPO's dynamic sampling (Yu et al. 2025, section 3.2): sample until the batch is full of groups that have something to
teach. What is thrown away was acted and is paid for: it counts as steps, its episodes as episodes.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from pgcli.functional.advantages import silent_groups
from pgcli.functional.masked import masked_sum
from pgcli.types import Collector, Metrics, Rollout, State

METRICS = {
    "rollout/polls": "collections that an update took until enough groups differed in return, or the limit was reached",
    "rollout/kept_groups": "share of the groups collected that the update learned from",
}


class InformativeGroups:
    """Asks a collector of groups again, at most `max_polls` times, until `num_groups` of them differ in return."""

    def __init__(self, collector: Collector, *, num_groups: int, max_polls: int) -> None:
        self.collector, self.num_groups, self.max_polls = collector, num_groups, max_polls

    def collect(self, policy: Any) -> Rollout:
        """The first `num_groups` that differ; fewer, where the limit was reached; what came last, if none does."""
        polled: list[Rollout] = []
        kept: list[Rollout] = []
        found = groups = 0
        while found < self.num_groups and len(polled) < self.max_polls:
            rollout: Rollout = self.collector.collect(policy)
            silent = silent_groups(masked_sum(rollout.rewards, rollout.mask, dim=1), rollout.groups)
            chosen = rollout.groups.unique()[~silent][: self.num_groups - found]
            part = rollout.rows(torch.isin(rollout.groups, chosen))
            part.groups = part.groups + len(polled) * self.num_groups  # another collection's have the same numbers
            kept.append(part)
            polled.append(rollout)
            found += len(chosen)
            groups += len(silent)
        joined = _join([part for part in kept if len(part.mask)]) if found else replace(polled[-1])
        joined.discarded = sum(rollout.steps for rollout in polled) - int(joined.mask.sum())
        joined.episodes = [episode for rollout in polled for episode in rollout.episodes]
        joined.metrics = _means([rollout.metrics for rollout in polled])
        joined.metrics |= {"rollout/polls": float(len(polled)), "rollout/kept_groups": found / groups}
        return joined

    def state_dict(self) -> State:
        return self.collector.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.collector.load_state_dict(state)

    def __getattr__(self, name: str) -> Any:
        """`close`, `replay_mismatch`: what only some collectors have."""
        return getattr(self.collector, name)


DATA = [f.name for f in fields(Rollout) if f.name not in ("metrics", "episodes", "discarded")]


def _join(parts: list[Rollout]) -> Rollout:
    """One after the other. Where their lengths differ, T is the longest: a prompt takes no T, so it has none then."""
    longest = max(part.mask.shape[1] for part in parts)

    def together(trees: list[Any], short: list[int]) -> Any:
        first = trees[0]
        if first is None:
            return None
        if isinstance(first, Tensor):
            return torch.cat([_longer(x, missing) for x, missing in zip(trees, short, strict=True)])
        if isinstance(first, dict):
            return {key: together([tree[key] for tree in trees], short) for key in first}
        return first._make(together(list(values), short) for values in zip(*trees, strict=True))

    short = [longest - part.mask.shape[1] for part in parts]
    return Rollout(**{name: together([getattr(part, name) for part in parts], short) for name in DATA})


def _longer(x: Tensor, missing: int) -> Tensor:
    if not missing or x.dim() < 2:
        return x
    return torch.cat([x, x.new_zeros((len(x), missing, *x.shape[2:]))], dim=1)


def _means(several: list[Metrics]) -> Metrics:
    """Of a key that only some have, the mean over those."""
    found = {key: [metrics[key] for metrics in several if key in metrics] for metrics in several for key in metrics}
    return {key: sum(values) / len(values) for key, values in found.items()}
