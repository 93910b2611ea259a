"""Answers that were criticised and revised: the policy learns to give the revised answer at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgcli.collectors.completions import Decoding, decode
from pgcli.functional.precision import widest
from pgcli.seeding import episode_seeds, numpy_generator, uniforms
from pgcli.types import Observations, Revising, Rollout, State

METRICS = {
    "revisions/criticised": "share of first answers that the constitution criticised",
    "revisions/reward": "mean reward of the texts that are learned: last revisions, and answers that needed none",
    "revisions/improved": "share of criticised answers whose last revision has a higher reward",
}


class RevisionCollector:
    """An answer to each prompt; as long as it is criticised, it is revised, up to `rounds` times."""

    def __init__(self, decoding: Decoding, task: Revising, writer: Any, *, rows: int, rounds: int, seed: int) -> None:
        self.decoding, self.task, self.writer = decoding, task, writer
        self.rows, self.rounds, self.seed = rows, rounds, seed
        self.begun = 0
        self.noise, self.judging = numpy_generator(seed, "actions"), numpy_generator(seed, "judge")

    def collect(self, policy: Any) -> Rollout:
        """A Rollout of (rows, completion_length) without log-probs: the last revisions, as answers to the requests.

        `metrics` describe the first answers, except those named `revisions/`.
        """
        writer = self.writer or policy
        numbers = range(self.begun, self.begun + self.rows)
        self.begun += self.rows
        first = self.decoding.play(writer, episode_seeds(self.seed, "train", numbers), self.noise)
        observations, actions, mask = first.observations, first.actions.clone(), first.mask.clone()
        criticised = torch.zeros_like(mask[:, 0])
        for _ in range(self.rounds):
            rules = self.task.criticise(observations, actions, mask, self.judging)
            rows = (rules >= 0).nonzero().squeeze(1)
            if not len(rows):
                break
            criticised[rows] = True
            requests = {name: x[rows] for name, x in observations.items()}
            asked = self.task.revision_prompts(requests, actions[rows], mask[rows], rules[rows])
            actions[rows], mask[rows] = self._write(writer, asked)
        rewards = self._rewards(observations, actions, mask)
        before = first.aux["reward"]
        ended = (actions == self.decoding.task.spec.end) & mask
        metrics = first.metrics | {
            "revisions/criticised": float(criticised.float().mean()),
            "revisions/reward": float(rewards.mean()),
        }
        if criticised.any():
            metrics["revisions/improved"] = float((rewards > before)[criticised].float().mean())
        return Rollout(
            observations=observations, actions=actions, mask=mask,
            rewards=torch.zeros_like(actions, dtype=torch.float32), terminated=ended,
            truncated=torch.zeros_like(mask), metrics=metrics, episodes=first.episodes,
        )  # fmt: skip

    def _write(self, writer: Any, observations: Observations) -> tuple[Tensor, Tensor]:
        spec, device = self.decoding.task.spec, self.decoding.device
        keys = self.noise.integers(2**63, size=len(observations["prompt"]), dtype=np.uint64)
        noise = torch.from_numpy(uniforms(keys, spec.completion_length)).to(device, widest(device))
        written = decode(writer, observations, length=spec.completion_length, end=spec.end, pad=spec.pad, noise=noise)
        return written.actions, written.mask

    def _rewards(self, observations: Observations, actions: Tensor, mask: Tensor) -> Tensor:
        """(N,), the rewards of whole completions."""
        found = self.decoding.task.rewards(observations, actions, mask)["reward"]
        return found if found.dim() == 1 else (found * mask).sum(1)

    def state_dict(self) -> State:
        return {
            "begun": self.begun,
            "noise": self.noise.bit_generator.state,
            "judging": self.judging.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> None:
        self.begun = state["begun"]
        self.noise.bit_generator.state = state["noise"]
        self.judging.bit_generator.state = state["judging"]
