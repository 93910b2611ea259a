"""Q(s, a) of all actions at once, for methods that learn action values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pgcli.errors import InputError
from pgcli.functional.temporal_difference import epsilon_greedy
from pgcli.policies.actor_critic import ArrayNetwork
from pgcli.types import ControlSpec, Discrete, Memoryless

ActionValueFunction = Callable[[Tensor], Tensor]


class ActionValueNetwork(nn.Module):
    """A policy that takes the action of highest value.

    Args:
        network: observations (B, *shape) -> Q(s, a), (B, n).
        actions: n.
        arrays: returns the same network in NumPy on the present weights, if it is small enough to gain from it.
        for_a_step: the same for a gradient step, if there is something faster than the network itself.
    """

    unit = "action"
    has_critic = False

    def __init__(
        self, network: nn.Module, actions: int, arrays: Callable[[], ArrayNetwork] | None = None,
        for_a_step: ActionValueFunction | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.actions = network, actions
        self._arrays, self._for_a_step = arrays, for_a_step

    def forward(self, observations: Tensor) -> Tensor:
        """Q(s, a), (B, n)."""
        return self.network(observations)

    def once_differentiable(self) -> ActionValueFunction:
        """The same for a gradient step, if a faster one exists. A test compares the two."""
        return self._for_a_step or self

    def exploring(self, epsilon: float) -> Exploring:
        """The policy that takes any action with probability `epsilon`, otherwise one of the best."""
        return Exploring(self, epsilon)

    def sampler(self, epsilon: float = 0.0) -> EpsilonGreedy:
        return EpsilonGreedy(self._arrays() if self._arrays else self._through_torch, self.actions, epsilon)

    @torch.no_grad()
    def _through_torch(self, observations: np.ndarray) -> np.ndarray:
        device = next(self.parameters()).device
        return self.network(torch.from_numpy(observations).to(device)).cpu().numpy()


@dataclass(frozen=True)
class Exploring:
    """The behaviour policy while values are learned."""

    policy: ActionValueNetwork
    epsilon: float

    def sampler(self) -> EpsilonGreedy:
        return self.policy.sampler(self.epsilon)


class EpsilonGreedy(Memoryless):
    """Draws actions in NumPy: exactly `functional.temporal_difference.epsilon_greedy`, ties broken uniformly."""

    def __init__(self, network: ArrayNetwork, actions: int, epsilon: float) -> None:
        self.network, self.actions, self.epsilon = network, actions, epsilon

    def act(self, observations: np.ndarray, noise: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """(N, *shape) -> actions, (N,) int64, and the action values, (N, n). Without noise the first best action."""
        values = self.network(observations)
        if noise is None:
            return values.argmax(-1), values
        # The largest of uniform draws: uniform among the best actions, or among all.
        allowed = (values == values.max(-1, keepdims=True)) | (noise[:, :1] <= self.epsilon)
        return (allowed * noise[:, 1:]).argmax(-1), values

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Uniform on (0, 1], (*shape, 1 + n): whether to explore, and a draw for each action."""
        return 1 - generator.random((*shape, 1 + self.actions))

    @torch.no_grad()
    def log_probs(self, outputs: Tensor, actions: Tensor) -> Tensor:
        return epsilon_greedy(outputs, self.epsilon).gather(-1, actions[..., None]).squeeze(-1).log()


def count_actions(spec: ControlSpec, policy: str) -> int:
    """Number of discrete actions. Raises InputError for continuous ones."""
    if not isinstance(spec.actions, Discrete):
        raise InputError(f"policy={policy} cannot list the values of all actions: they are continuous")
    return spec.actions.n
