"""Transitions: one step of every environment at a time, learned from at once and then dropped."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pgcli.collectors.open_episodes import OpenEpisodes
from pgcli.seeding import numpy_generator
from pgcli.types import ABSENT, Episode, State, Steps, Transitions, VectorEnvironment


class TransitionCollector:
    """Steps `env` once per call; an environment whose episode ends is reset at once with a new seed.

    looks_ahead: choose the next action with the present policy, return it as `next_actions`, and take it in the next
        call (SARSA: Sutton & Barto 2018, section 6.4). Otherwise an action is chosen when it is taken (section 6.5).
    """

    def __init__(self, env: VectorEnvironment, *, looks_ahead: bool, seed: int, device: torch.device) -> None:
        self.env, self.looks_ahead, self.device = env, looks_ahead, device
        self.generator = numpy_generator(seed, "actions")
        self.open = OpenEpisodes(env, seed=seed)
        self.observations: np.ndarray | None = None
        self.chosen: np.ndarray | None = None  # actions that were chosen ahead
        self.fresh = np.ones(env.num_envs, dtype=bool)  # rows whose episode has just begun: no action is chosen yet

    def collect(self, policy: Any) -> Steps:
        """One transition of each environment, (num_envs,)."""
        if self.observations is None:
            self.observations = self.open.begin(np.arange(self.env.num_envs))
        sampler, observations = policy.sampler(), self.observations
        actions = self.chosen
        if actions is None or self.fresh.any():
            new = self._choose(sampler, observations)
            actions = new if actions is None else np.where(self.fresh, new, actions)
        step = self.env.step(actions)
        self.chosen = self._choose(sampler, step.observations) if self.looks_ahead else None
        transitions = Transitions(
            observations=self._tensor(observations), actions=self._tensor(actions),
            rewards=self._tensor(step.rewards.astype(np.float32)),
            # A copy: an environment may hand out the array that it keeps, and rows of it are about to be reset.
            next_observations=self._tensor(step.observations.copy()), terminated=self._tensor(step.terminated),
            next_actions=ABSENT if self.chosen is None else self._tensor(self.chosen),
        )  # fmt: skip
        self.open.earn(step.task_rewards)
        self.fresh = step.terminated | step.truncated
        self.observations = step.observations
        episodes: list[Episode] = []
        if self.fresh.any():
            rows = np.flatnonzero(self.fresh)
            episodes = self.open.ended(rows)
            self.observations = step.observations.copy()
            self.observations[rows] = self.open.begin(rows)
        return Steps(transitions, episodes)

    def _choose(self, sampler: Any, observations: np.ndarray) -> np.ndarray:
        return sampler.act(observations, sampler.noise(self.generator, (len(observations),)))[0]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    def state_dict(self) -> State:
        return {
            **self.open.state_dict(),
            "generator": self.generator.bit_generator.state,
            "observations": self.observations,
            "chosen": self.chosen,
            "fresh": self.fresh,
        }

    def load_state_dict(self, state: State) -> None:
        self.open.load_state_dict(state)
        self.generator.bit_generator.state = state["generator"]
        self.observations, self.chosen, self.fresh = state["observations"], state["chosen"], state["fresh"]
