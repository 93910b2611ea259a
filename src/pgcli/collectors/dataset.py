"""Texts that a task provides, as a Rollout whose actions are a teacher's."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from pgcli.seeding import episode_seeds, numpy_generator
from pgcli.types import Rollout, State, Written, each_tensor


class DatasetCollector:
    """A fresh batch each time, of right answers or of a corpus; it never contains a held-out prompt.

    source: from seeds; or, with a `count`, from numbers below it, each of which comes once in each pass, in another
        order.
    """

    def __init__(
        self, source: Callable[[Any], Written], *, end: int, rows: int, seed: int, device: torch.device,
        reply_length: int = 0, count: int | None = None,
    ) -> None:  # fmt: skip
        self.source, self.end, self.rows, self.seed, self.device = source, end, rows, seed, device
        self.reply_length, self.count = reply_length, count
        self.drawn = 0

    def collect(self, policy: Any) -> Rollout:
        """A Rollout of (rows, T) without log-probs: these actions were not sampled."""
        del policy
        numbers = range(self.drawn, self.drawn + self.rows)
        self.drawn += self.rows
        if self.count is None:
            written = self.source(episode_seeds(self.seed, "train", numbers))
        else:
            written = self.source(shuffled(numbers, self.count, self.seed))
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


def shuffled(numbers: range, count: int, seed: int) -> np.ndarray:
    """Running numbers -> numbers below `count`, each once in each pass, in another order."""
    return np.array([_order(number // count, count, seed)[number % count] for number in numbers])


@lru_cache(maxsize=2)  # a batch may reach into the next pass; of a large file an order takes longer than a batch
def _order(number: int, count: int, seed: int) -> np.ndarray:
    """Pass number `number`."""
    return numpy_generator(seed, "epoch", number).permutation(count)
