"""The base of control networks: an actor and, if the algorithm needs one, a critic, without shared parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pgcli.policies.heads import Head
from pgcli.types import ABSENT, Evaluation, Memoryless, PolicyFunction


class ActorCritic(nn.Module):
    """Two separate networks in one module; a policy without memory, unless a subclass adds it.

    Args:
        actor: observations (B, *shape) -> the head's outputs (B, n).
        head: outputs -> a distribution over actions.
        critic: observations (B, *shape) -> values (B, 1), or None.
        arrays: returns the actor in NumPy on the present weights, if it is small enough to gain from it.
    """

    unit = "action"

    def __init__(
        self, actor: nn.Module, head: Head, critic: nn.Module | None, arrays: Callable[[], ArrayNetwork] | None = None
    ) -> None:
        super().__init__()
        self.actor, self.head, self.critic = actor, head, critic
        self.has_critic = critic is not None
        self._arrays = arrays

    def forward(self, observations: Tensor, actions: Tensor) -> Evaluation:
        """observations (B, *shape), actions (B,) or (B, A) -> an Evaluation of (B,)."""
        outputs = self.actor(observations)
        log_probs, entropy = self.head.evaluate(outputs, actions)
        values = self.critic(observations).squeeze(-1) if self.critic is not None else ABSENT
        return Evaluation(log_probs, entropy, values, self.head.distribution(outputs))

    def once_differentiable(self) -> PolicyFunction:
        """The same evaluation for a gradient step, if a faster one exists. A test compares the two."""
        return self

    @torch.no_grad()
    def values(self, observations: Tensor) -> Tensor:
        """V(s), (B,), without a gradient."""
        assert self.critic is not None
        return self.critic(observations).squeeze(-1)

    def sampler(self) -> Sampler:
        """The actor with its present weights, for stepping an environment."""
        if self._arrays:
            return Sampler(self._arrays(), self.head)
        return Sampler(self._through_torch, self.head)

    @torch.no_grad()
    def _through_torch(self, observations: np.ndarray) -> np.ndarray:
        device = next(self.parameters()).device
        return self.actor(torch.from_numpy(observations).to(device)).cpu().numpy()


ArrayNetwork = Callable[[np.ndarray], np.ndarray]


class Sampler(Memoryless):
    """Draws actions in NumPy. Its outputs equal the module's to float32 rounding; a test compares them."""

    def __init__(self, network: ArrayNetwork, head: Head) -> None:
        self.network, self.head = network, head

    def act(self, observations: np.ndarray, noise: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """(N, *shape) -> actions (N,) or (N, A), and the head's outputs (N, n). Greedy if `noise` is None."""
        outputs = self.network(observations)
        return self.head.sample(outputs, noise), outputs

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return self.head.noise(generator, shape)

    @torch.no_grad()
    def log_probs(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Log-probs of the actions under exactly the distribution that they were drawn from: (...)."""
        return self.head.to(outputs.device).evaluate(outputs, actions)[0]


ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def initialise(
    layers: Sequence[nn.Linear | nn.Conv2d], gains: Sequence[float], *, orthogonal: bool, generator: torch.Generator
) -> None:
    """Weights from `generator` alone, biases zero.

    Orthogonal (Saxe et al. 2014) with the given gains, else uniform within 1/sqrt(fan-in), as torch's own default.
    """
    for layer, gain in zip(layers, gains, strict=True):
        weight, bias = layer.weight, layer.bias
        assert bias is not None
        if orthogonal:
            nn.init.orthogonal_(weight, gain, generator=generator)
            nn.init.zeros_(bias)
        else:
            bound = 1 / math.sqrt(weight[0].numel())
            nn.init.uniform_(weight, -bound, bound, generator=generator)
            nn.init.uniform_(bias, -bound, bound, generator=generator)
