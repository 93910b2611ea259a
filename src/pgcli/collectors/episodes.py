"""Whole episodes: a fixed number of them is begun, and each is played to its end.

Keeping the first to finish would favour short episodes. A `Player` plays them: `Stepping` an environment here, or
decoding completions (`collectors.completions`). Evaluation uses the same players.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from pgcli.errors import RunError
from pgcli.seeding import episode_seeds, numpy_generator
from pgcli.types import ABSENT, Continuous, Episode, Metrics, Rollout, Sample, State, VectorEnvironment

METRICS = {
    "rollout/length_finished": "mean length of the training episodes that ended by themselves, if whole episodes are "
    "collected",
    "rollout/length_cut": "mean length of the training episodes that a limit cut, if whole episodes are collected",
    "rollout/unscorable": "share of episodes that could not be scored and are left out of training",
}

TRIES = 10
"""Batches in a row that may hold nothing to learn from, because of bad luck, before the run fails."""


class Player(Protocol):
    """Plays one whole episode for each seed."""

    def play(
        self, policy: Any, seeds: list[int], generator: np.random.Generator | None, *, held_out: bool = False
    ) -> Rollout:
        """A Rollout with one episode per row. Greedy if there is no generator; `held_out`: for an evaluation."""
        ...

    def describe(self, rollout: Rollout, rows: int) -> list[Sample]:
        """The first `rows` episodes as readable texts; empty if the episodes are not texts."""
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


class EpisodeCollector:
    """`num_groups` x `group_size` whole episodes at a time; those of a group share their seed, so their first state."""

    def __init__(self, player: Player, *, num_groups: int, group_size: int, seed: int) -> None:
        self.player, self.num_groups, self.group_size, self.seed = player, num_groups, group_size, seed
        self.generator = numpy_generator(seed, "actions")
        self.begun = 0  # groups so far: the next one's number, and so its seed

    def collect(self, policy: Any) -> Rollout:
        """A Rollout of (num_groups * group_size, T), T the longest episode.

        Raises RunError if `TRIES` times in a row there was nothing to learn from.
        """
        discarded = 0
        for _ in range(TRIES):
            rollout = self._play(policy)
            if len(rollout.episodes):
                rollout.discarded += discarded
                return rollout
            discarded += rollout.steps
        least = "no completion" if self.group_size == 1 else "no group of whose completions two"
        raise RunError(f"{TRIES} batches in a row had {least} could be scored: there is nothing to learn from")

    def _play(self, policy: Any) -> Rollout:
        numbers = range(self.begun, self.begun + self.num_groups)
        self.begun += self.num_groups
        seeds = [seed for seed in episode_seeds(self.seed, "train", numbers) for _ in range(self.group_size)]
        rollout = self.player.play(policy, seeds, self.generator)
        rollout.groups = torch.arange(len(seeds), device=rollout.rewards.device) // self.group_size
        rollout.metrics = rollout.metrics | _lengths(rollout)
        unscored = rollout.rewards.isnan().any(1)
        return self._scored(rollout, ~unscored) if unscored.any() else rollout

    def _scored(self, rollout: Rollout, scored: torch.Tensor) -> Rollout:
        """Only the episodes whose reward is a number; of groups, only those that keep at least two such episodes.

        A reward of 0 for an episode that could not be scored would distort the others' baseline.
        """
        sizes = torch.bincount(rollout.groups, weights=scored.float())
        kept = rollout.rows(scored & (sizes[rollout.groups] >= min(2, self.group_size)))
        kept.metrics = rollout.metrics | {"rollout/unscorable": float((~scored).float().mean())}
        return kept

    def state_dict(self) -> State:
        return {
            "begun": self.begun,
            "generator": self.generator.bit_generator.state,
            "player": self.player.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        self.begun = state["begun"]
        self.generator.bit_generator.state = state["generator"]
        self.player.load_state_dict(state["player"])


def _lengths(rollout: Rollout) -> Metrics:
    lengths, cut = rollout.mask.sum(1).float(), rollout.truncated.any(1)
    kinds = {"rollout/length_finished": lengths[~cut], "rollout/length_cut": lengths[cut]}
    return {key: float(some.mean()) for key, some in kinds.items() if len(some)}


class Stepping:
    """Plays whole episodes in a stepped environment, each row its own."""

    def __init__(self, env: VectorEnvironment, *, device: torch.device) -> None:
        self.env, self.device = env, device

    def play(
        self, policy: Any, seeds: list[int], generator: np.random.Generator | None, *, held_out: bool = False
    ) -> Rollout:
        """One episode per seed, at most `env.num_envs` of them at a time."""
        del held_out  # an initial state is held out by its seed alone
        parts = [
            self._play(policy, seeds[i : i + self.env.num_envs], generator)
            for i in range(0, len(seeds), self.env.num_envs)
        ]
        return parts[0] if len(parts) == 1 else _stack(parts)

    def describe(self, rollout: Rollout, rows: int) -> list[Sample]:
        return []

    def _play(self, policy: Any, seeds: list[int], generator: np.random.Generator | None) -> Rollout:
        env, N = self.env, len(seeds)
        sampler = policy.sampler()
        rows = np.arange(N)
        sampler.start(N)
        current = env.reset(rows, seeds)
        columns: list[tuple[np.ndarray, ...]] = []  # for each t, of the rows still open at t
        finals = np.zeros_like(current)
        totals, lengths = np.zeros(N), np.zeros(N, dtype=np.int64)
        while len(rows):
            noise = sampler.noise(generator, (len(rows),)) if generator else None
            actions, outputs = sampler.act(current, noise)
            step = env.step(actions, rows)
            columns.append((rows, current, actions, outputs, step.rewards, step.terminated, step.truncated))
            totals[rows] += step.task_rewards
            lengths[rows] += 1
            done = step.terminated | step.truncated
            current = step.observations
            if done.any():
                finals[rows[done]] = current[done]
                rows, current = rows[~done], current[~done]
                sampler.keep(~done)
        return self._rollout(policy, sampler, columns, finals, totals, lengths, seeds)

    def _rollout(
        self, policy: Any, sampler: Any, columns: list[tuple[np.ndarray, ...]], finals: np.ndarray, totals: np.ndarray,
        lengths: np.ndarray, seeds: list[int],
    ) -> Rollout:  # fmt: skip
        """Columns of shrinking height -> right-padded (N, T)."""
        N, T = len(seeds), len(columns)

        def grid(field: int, dtype: Any) -> torch.Tensor:
            array = np.zeros((N, T, *columns[0][field].shape[1:]), dtype=dtype)
            for t, column in enumerate(columns):
                array[column[0], t] = column[field]
            return torch.from_numpy(array).to(self.device)

        real = isinstance(self.env.spec.actions, Continuous)
        mask = torch.from_numpy(np.arange(T) < lengths[:, None]).to(self.device)
        rollout = Rollout(
            observations=grid(1, np.float32), actions=grid(2, np.float32 if real else np.int64),
            rewards=grid(4, np.float32), terminated=grid(5, bool), truncated=grid(6, bool), mask=mask,
            episodes=[Episode(float(r), int(n), s) for r, n, s in zip(totals, lengths, seeds, strict=True)],
        )  # fmt: skip
        rollout.log_probs = sampler.log_probs(grid(3, np.float32), rollout.actions)
        if sampler.memory is not None:
            starts = torch.zeros_like(mask)
            starts[:, 0] = True
            rollout.observations = {"observation": rollout.observations, "starts": starts}
            if policy.has_critic:
                ends = (torch.from_numpy(x).to(self.device) for x in (np.arange(N), lengths - 1, finals))
                rollout.values, rollout.next_values, _ = policy.foresee(rollout.observations, *ends)
        elif policy.has_critic:
            with torch.no_grad():
                flat = torch.cat([rollout.observations.flatten(0, 1), torch.from_numpy(finals).to(self.device)])
                values = policy.values(flat)
            rollout.values = values[: N * T].view(N, T)
            following = torch.cat([rollout.values[:, 1:], rollout.values[:, :1]], dim=1)
            rollout.next_values = torch.where(rollout.done, values[N * T :, None], following)
        return rollout

    def state_dict(self) -> State:
        return {"env": self.env.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.env.load_state_dict(state["env"])


def _stack(parts: list[Rollout]) -> Rollout:
    """Rollouts of different lengths as one, padded on the right."""
    longest = max(part.mask.shape[1] for part in parts)

    names = (
        "observations",
        "actions",
        "rewards",
        "terminated",
        "truncated",
        "mask",
        "log_probs",
        "values",
        "next_values",
    )
    joined = {name: _join([getattr(part, name) for part in parts], longest) for name in names}
    return Rollout(**joined, episodes=[e for part in parts for e in part.episodes])


def _join(pieces: list[Any], longest: int) -> Any:
    """Tensors of (N_i, T_i, ...), or dicts of them, padded to (sum of N, longest, ...)."""
    if pieces[0] is ABSENT:
        return ABSENT
    if isinstance(pieces[0], dict):
        return {key: _join([piece[key] for piece in pieces], longest) for key in pieces[0]}
    padded = []
    for x in pieces:
        out = x.new_zeros((x.shape[0], longest, *x.shape[2:]))
        out[:, : x.shape[1]] = x
        padded.append(out)
    return torch.cat(padded)
