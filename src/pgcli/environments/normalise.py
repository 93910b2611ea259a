"""Observations and rewards as an algorithm sees them, around any stepped environment: scaled, clipped, normalised.

    o' = clip((o - mean(o)) / std(o))           over all observations so far, per element
    r1 = clip(reward_scale * (r + reward_shift), -reward_clip, reward_clip)     equal to r by default
    r' = clip(r1 / std(G)),  G_t = gamma G_{t-1} + r1_t    G: per row, starts at 0 with each episode

Normalised rewards are scaled, never shifted: if episodes differ in length, a shift changes which policy is best;
`reward_shift` exists to study just that. A clip changes it too, if one large reward is worth many small ones (Mnih et
al. 2015 clip at 1, so that all games have rewards of one scale).
The task's own rewards are kept as `task_rewards`: episode returns and evaluations use only those.
Source: Engstrom et al. 2020, section 3; as in OpenAI Baselines' VecNormalize.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field

from pgcli.environments.raw import decoded, encoded
from pgcli.settings import Settings
from pgcli.types import State, Step, VectorEnvironment

EPSILON = 1e-8


class Normalisation(Settings):
    observations: bool = Field(
        description="subtract the running mean of observations and divide by their running standard deviation"
    )
    rewards: bool = Field(description="divide rewards by the running standard deviation of the discounted return")
    reward_shift: float = Field(default=0.0, description="constant added to rewards; 0: no shift")
    reward_scale: float = Field(gt=0, description="factor on the shifted rewards; 1: no scaling")
    reward_clip: float | None = Field(
        gt=0, description="bound to which the scaled rewards are clipped on both sides; null: no bound"
    )
    clip: float = Field(
        gt=0,
        description="bound to which observations and rewards are clipped, in standard deviations, where normalised",
    )
    gamma: float = Field(
        ge=0, le=1, description="discount of the return whose deviation divides rewards; best the algorithm's own gamma"
    )


class RunningMoments:
    """Mean and variance of all rows seen, merged batch by batch in float64 (Chan, Golub and LeVeque 1979, eq. 2.1)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0
        self.mean = np.zeros(shape)
        self.squares = np.zeros(shape)
        """Sum of squared deviations from the mean."""

    @property
    def deviation(self) -> np.ndarray:
        return np.sqrt(self.squares / max(self.count, 1) + EPSILON)

    def update(self, batch: np.ndarray) -> None:
        """batch: (k, *shape)."""
        if len(batch) == 0:
            return
        batch = batch.astype(np.float64)
        alone = len(batch) == 1  # the case of one environment: no variance within the batch, at half the cost
        mean = batch[0] if alone else batch.mean(axis=0)
        within = 0.0 if alone else ((batch - mean) ** 2).sum(axis=0)
        total = self.count + len(batch)
        shift = mean - self.mean
        self.squares = self.squares + within + shift**2 * (self.count * len(batch) / total)
        self.mean = self.mean + shift * (len(batch) / total)
        self.count = total

    def state_dict(self) -> State:
        return {"count": self.count, "mean": self.mean.copy(), "squares": self.squares.copy()}

    def load_state_dict(self, state: State) -> None:
        self.count = int(state["count"])
        self.mean = np.array(state["mean"], dtype=np.float64)
        self.squares = np.array(state["squares"], dtype=np.float64)


class Normalised:
    """A `VectorEnvironment` around another. While `frozen`, the statistics are used but not updated: for evaluation."""

    def __init__(self, environment: VectorEnvironment, config: Normalisation) -> None:
        # A normalised observation is no longer the one-hot vector of a state.
        self.spec = replace(environment.spec, states=None) if config.observations else environment.spec
        self.num_envs = environment.num_envs
        self.frozen = False
        self._environment = environment
        self._config = config
        self._observations = RunningMoments(self.spec.observation_shape)
        self._returns = RunningMoments((1,))
        self._discounted = np.zeros(self.num_envs)
        self.raw: np.ndarray = np.zeros((0, *self.spec.observation_shape), dtype=np.float32)
        """The raw observations of the last `reset` or `step`."""

    @property
    def replay_mismatch(self) -> str | None:
        return self._environment.replay_mismatch

    def reset(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        self._discounted[rows] = 0.0
        return self._seen(self._environment.reset(rows, seeds))

    def step(self, actions: np.ndarray, rows: np.ndarray | None = None) -> Step:
        step = self._environment.step(actions, rows)
        return step._replace(
            observations=self._seen(step.observations),
            rewards=self._scaled(step.task_rewards, slice(None) if rows is None else rows),
        )

    def _seen(self, observations: np.ndarray) -> np.ndarray:
        self.raw = observations
        if self._config.observations and not self.frozen:
            self._observations.update(observations)
        return self.normalise(observations)

    def _scaled(self, rewards: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
        if self._config.rewards and not self.frozen:
            self._discounted[rows] = self._config.gamma * self._discounted[rows] + self._shaped(rewards)
            self._returns.update(self._discounted[rows, None])
        return self.scale(rewards)

    def _shaped(self, rewards: np.ndarray) -> np.ndarray:
        rewards = self._config.reward_scale * (rewards + self._config.reward_shift)
        bound = self._config.reward_clip
        return rewards if bound is None else np.clip(rewards, -bound, bound)

    def normalise(self, observations: np.ndarray) -> np.ndarray:
        """Normalise raw observations, (k, *shape), by the present statistics."""
        if not self._config.observations:
            return observations
        scaled = (observations - self._observations.mean) / self._observations.deviation
        return np.clip(scaled, -self._config.clip, self._config.clip).astype(np.float32)

    def encode(self, observation: Any) -> np.ndarray:
        return self.normalise(encoded(self._environment, observation)[None])[0]

    def decode(self, action: Any) -> Any:
        return decoded(self._environment, action)

    def scale(self, rewards: np.ndarray) -> np.ndarray:
        """Normalise raw rewards, (k,), by the present statistics; the precision stays."""
        scaled = self._shaped(rewards)
        if self._config.rewards:
            scaled = np.clip(scaled / self._returns.deviation, -self._config.clip, self._config.clip)
        return scaled.astype(rewards.dtype)

    def statistics(self) -> State:
        return {"observations": self._observations.state_dict(), "returns": self._returns.state_dict()}

    def use_statistics(self, statistics: State) -> None:
        """From now on normalise by these (the training environment's, say) without updating them."""
        self._observations.load_state_dict(statistics["observations"])
        self._returns.load_state_dict(statistics["returns"])
        self.frozen = True

    def state_dict(self) -> State:
        return {
            "environment": self._environment.state_dict(),
            "statistics": self.statistics(),
            "discounted": self._discounted.copy(),
        }

    def load_state_dict(self, state: State) -> None:
        self._environment.load_state_dict(state["environment"])
        self._observations.load_state_dict(state["statistics"]["observations"])
        self._returns.load_state_dict(state["statistics"]["returns"])
        self._discounted[:] = state["discounted"]

    def close(self) -> None:
        self._environment.close()


def wrap(environment: VectorEnvironment, config: Normalisation) -> VectorEnvironment:
    """The normalised environment; the environment itself if nothing is to be changed, so that this costs nothing."""
    return Normalised(environment, config) if config.observations or reward_settings(config) else environment


def reward_settings(config: Normalisation) -> list[str]:
    """Names of the settings that change rewards."""
    neutral = {"rewards": False, "reward_shift": 0.0, "reward_scale": 1.0, "reward_clip": None}
    return [name for name, value in neutral.items() if getattr(config, name) != value]


def as_normalised(environment: VectorEnvironment) -> Normalised | None:
    """The environment, if `wrap` made it, else None."""
    return environment if isinstance(environment, Normalised) else None


def statistics(environment: VectorEnvironment) -> State:
    """The state for `use_statistics`; empty for an environment that `wrap` returned as it was."""
    return environment.statistics() if isinstance(environment, Normalised) else {}


def use_statistics(environment: VectorEnvironment, state: State) -> None:
    """Set and freeze an evaluation environment's statistics at `statistics(training environment)`."""
    if isinstance(environment, Normalised):
        environment.use_statistics(state)
