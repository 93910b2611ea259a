"""Texts that a task provides, as a Rollout whose actions are a teacher's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pgcli.seeding import episode_seeds
from pgcli.types import Rollout, State, Written, each_tensor


class DatasetCollector:
    """A fresh batch each time, of right answers or of a corpus; it never contains a held-out prompt."""

    def __init__(
        self, source: Callable[[Sequence[int]], Written], *, end: int, rows: int, seed: int, device: torch.device,
        reply_length: int = 0,
    ) -> None:  # fmt: skip
        self.source, self.end, self.rows, self.seed, self.device = source, end, rows, seed, device
        self.reply_length = reply_length
        self.drawn = 0

    def collect(self, policy: Any) -> Rollout:
        """A Rollout of (rows, T) without log-probs: these actions were not sampled."""
        del policy
        numbers = range(self.drawn, self.drawn + self.rows)
        self.drawn += self.rows
        written = self.source(episode_seeds(self.seed, "train", numbers))
        actions = written.actions.to(self.device)
        end = actions == self.end
        turn = end.cumsum(1) - end.long()  # turns that ended before this token
        mask = turn == 0
        if self.reply_length:  # the task replies between the first turn and the second
            mask |= (turn == 1) & ((turn > 0).cumsum(1) > self.reply_length)
            end &= turn == 1
        return Rollout(
            observations=each_tensor(written.observations, lambda x: x.to(self.device)), actions=actions, mask=mask,
            rewards=torch.zeros_like(actions, dtype=torch.float32), terminated=end & mask,
            truncated=torch.zeros_like(mask),
        )  # fmt: skip

    def state_dict(self) -> State:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: State) -> None:
        self.drawn = state["drawn"]
