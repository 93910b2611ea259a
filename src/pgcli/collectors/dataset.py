"""Demonstrations: a text task's own right answers, as a Rollout whose actions are a teacher's."""

from __future__ import annotations

from typing import Any

import torch

from pgcli.seeding import episode_seeds
from pgcli.types import Rollout, State, TextTask


class DemonstrationCollector:
    """A fresh batch of prompts and their answers each time; none of them is ever a held-out prompt."""

    def __init__(self, task: TextTask, *, num_demonstrations: int, seed: int, device: torch.device) -> None:
        self.task, self.num_demonstrations, self.seed, self.device = task, num_demonstrations, seed, device
        self.drawn = 0

    def collect(self, policy: Any) -> Rollout:
        """A Rollout of (num_demonstrations, T) without log-probs: nobody sampled these actions."""
        del policy
        numbers = range(self.drawn, self.drawn + self.num_demonstrations)
        self.drawn += self.num_demonstrations
        prompts = self.task.prompts(episode_seeds(self.seed, "train", numbers), held_out=False)
        answers = self.task.demonstrations(prompts).to(self.device)
        end = answers == self.task.spec.end
        mask = (end.cumsum(1) - end.long()) == 0  # up to and including the first end token
        nothing = torch.zeros_like(answers, dtype=torch.float32)
        return Rollout(
            observations={"prompt": prompts.to(self.device)}, actions=answers, mask=mask, rewards=nothing,
            terminated=end & mask, truncated=torch.zeros_like(mask),
        )  # fmt: skip

    def state_dict(self) -> State:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: State) -> None:
        self.drawn = state["drawn"]
