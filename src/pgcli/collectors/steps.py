"""Segments: a fixed number of steps of every environment, bootstrapped where they end."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgcli.collectors.open_episodes import OpenEpisodes
from pgcli.seeding import numpy_generator
from pgcli.types import Continuous, Episode, Rollout, State, VectorEnvironment


class SegmentCollector:
    """Steps `env` for `num_steps` per call; an environment whose episode ends is reset at once with a new seed.

    An episode still open at the end of a segment goes on in the next. There are no dummy transitions: each is a real
    step.
    """

    def __init__(self, env: VectorEnvironment, *, num_steps: int, seed: int, device: torch.device) -> None:
        self.env, self.num_steps, self.device = env, num_steps, device
        self.generator = numpy_generator(seed, "actions")
        self.open = OpenEpisodes(env, seed=seed)
        self.observations: np.ndarray | None = None
        self.memory: dict[str, np.ndarray] | None = None  # the memory that a recurrent policy has of the open episodes

    def collect(self, policy: Any) -> Rollout:
        """`num_steps` of every environment: a Rollout of (num_envs, num_steps)."""
        env, T, N = self.env, self.num_steps, self.env.num_envs
        if self.observations is None:
            self.observations = self.open.begin(np.arange(N))
        sampler = policy.sampler()
        sampler.start(N, self.memory)
        first = self.open.lengths == 0
        noise = sampler.noise(self.generator, (T, N))

        # Time-major while collecting, so that each step writes one contiguous block.
        observations = np.empty((T + 1, *self.observations.shape), dtype=np.float32)
        outputs: list[np.ndarray] = []
        rewards = np.empty((T, N), dtype=np.float32)
        terminated, truncated = np.empty((T, N), dtype=bool), np.empty((T, N), dtype=bool)
        discrete = not isinstance(env.spec.actions, Continuous)
        actions = np.empty((T, N), dtype=np.int64) if discrete else np.empty(noise.shape, dtype=np.float32)
        episodes: list[Episode] = []
        cut: list[tuple[int, np.ndarray, np.ndarray]] = []  # t, rows, their true final observations

        current = self.observations
        for t in range(T):
            observations[t] = current
            actions[t], said = sampler.act(current, noise[t])
            outputs.append(said)
            step = env.step(actions[t])
            rewards[t], terminated[t], truncated[t] = step.rewards, step.terminated, step.truncated
            current = step.observations
            self.open.earn(step.task_rewards)
            done = step.terminated | step.truncated
            if done.any():
                rows = np.flatnonzero(done)
                cut.append((t, rows, current[rows]))
                episodes += self.open.ended(rows)
                sampler.forget(rows)
                current = current.copy()
                current[rows] = self.open.begin(rows)
        observations[T] = current
        self.observations = current

        rollout = Rollout(
            observations=self._rows_first(observations[:-1]), actions=self._rows_first(actions),
            rewards=self._rows_first(rewards), terminated=self._rows_first(terminated),
            truncated=self._rows_first(truncated), mask=torch.ones((N, T), dtype=torch.bool, device=self.device),
            episodes=episodes,
        )  # fmt: skip
        rollout.log_probs = sampler.log_probs(self._rows_first(np.array(outputs)), rollout.actions)
        if sampler.memory is not None:
            self._remember(policy, sampler, rollout, first, observations[-1], cut)
        elif policy.has_critic:
            rollout.values, rollout.next_values = self._values(policy, observations, cut)
        return rollout

    def _remember(
        self, policy: Any, sampler: Any, rollout: Rollout, first: np.ndarray, last: np.ndarray,
        cut: list[tuple[int, np.ndarray, np.ndarray]],
    ) -> None:  # fmt: skip
        """Add the policy's memory at the segment's start to the observations, value every state given its history, and
        keep the memory at the end. `first`: (N,) bool, an episode begins with the segment. `last`: (N, *shape), after
        it.
        """
        starts = rollout.done.roll(1, dims=1)
        starts[:, 0] = torch.from_numpy(first)
        before = {role: torch.from_numpy(state).to(self.device) for role, state in (self.memory or {}).items()}
        rollout.observations = {"observation": rollout.observations, "starts": starts, **before}
        self.memory = sampler.memory
        if policy.has_critic:
            done = rollout.done[:, -1].cpu().numpy()
            ends = [*cut, (self.num_steps - 1, np.flatnonzero(~done), last[~done])]
            rows = np.concatenate([rows for _, rows, _ in ends])
            times = np.concatenate([np.full(len(rows), t) for t, rows, _ in ends])
            finals = np.concatenate([states for _, _, states in ends])
            rollout.values, rollout.next_values, after = policy.foresee(
                rollout.observations, *(torch.from_numpy(array).to(self.device) for array in (rows, times, finals))
            )
            sampler.memory.update(after)

    @torch.no_grad()
    def _values(
        self, policy: Any, observations: np.ndarray, cut: list[tuple[int, np.ndarray, np.ndarray]]
    ) -> tuple[Tensor, Tensor]:
        """V of every state and of its true successor, (N, T) each."""
        T, N = self.num_steps, self.env.num_envs
        states = torch.from_numpy(observations).to(self.device)
        grid = policy.values(states.flatten(0, 1)).view(T + 1, N)
        successors = grid[1:].clone()
        if cut:
            # V of the *final* observation: after the reset the next one belongs to another episode.
            at = np.concatenate([t * N + rows for t, rows, _ in cut])
            finals = np.concatenate([states for _, _, states in cut])
            values = policy.values(torch.from_numpy(finals).to(self.device))
            successors.view(-1)[torch.from_numpy(at).to(self.device)] = values
        return grid[:-1].T.contiguous(), successors.T.contiguous()

    def _rows_first(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array.swapaxes(0, 1))).to(self.device)

    def state_dict(self) -> State:
        return {
            **self.open.state_dict(),
            "generator": self.generator.bit_generator.state,
            "observations": self.observations,
            "memory": self.memory,
        }

    def load_state_dict(self, state: State) -> None:
        self.open.load_state_dict(state)
        self.generator.bit_generator.state = state["generator"]
        self.observations, self.memory = state["observations"], state["memory"]
