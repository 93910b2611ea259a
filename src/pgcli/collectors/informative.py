"""Groups whose episodes differ in return: in the other groups a group baseline makes every advantage zero.

DAPO's dynamic sampling (Yu et al. 2025, section 3.2): sample until the batch is full of groups with non-zero
advantages. Discarded groups still cost their actions: they count as steps, and their episodes as episodes.
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
    "rollout/polls": "collections of this update, until num_groups groups differed in return or max_polls was reached",
    "rollout/kept_groups": "share of the collected groups that the update learned from",
}


class InformativeGroups:
    """Calls a collector of groups, at most `max_polls` times, until `num_groups` groups differ in return."""

    def __init__(self, collector: Collector, *, num_groups: int, max_polls: int) -> None:
        self.collector, self.num_groups, self.max_polls = collector, num_groups, max_polls

    def collect(self, policy: Any) -> Rollout:
        """The first `num_groups` that differ; fewer if max_polls is reached; the last collection if none differs."""
        polled: list[Rollout] = []
        kept: list[Rollout] = []
        found = groups = 0
        while found < self.num_groups and len(polled) < self.max_polls:
            rollout: Rollout = self.collector.collect(policy)
            silent = silent_groups(masked_sum(rollout.rewards, rollout.mask, dim=1), rollout.groups)
            chosen = rollout.groups.unique()[~silent][: self.num_groups - found]
            part = rollout.rows(torch.isin(rollout.groups, chosen))
            part.groups = part.groups + len(polled) * self.num_groups  # every collection numbers its groups from 0
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
        """`close`, `replay_mismatch`: methods that only some collectors have."""
        return getattr(self.collector, name)


DATA = [f.name for f in fields(Rollout) if f.name not in ("metrics", "episodes", "discarded")]


def _join(parts: list[Rollout]) -> Rollout:
    """One below the other. T is the longest of theirs; a prompt has no T axis, and so needs no padding."""
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
    """The mean of each key, over those that have it."""
    found = {key: [metrics[key] for metrics in several if key in metrics] for metrics in several for key in metrics}
    return {key: sum(values) / len(values) for key, values in found.items()}
