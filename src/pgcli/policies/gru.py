"""A gated recurrent unit, for environments whose observations do not contain the whole state.

    r  = sigmoid(W_r x + b_r + U_r h + c_r)          how much of the past the candidate may use
    z  = sigmoid(W_z x + b_z + U_z h + c_z)          how much of the past stays
    n  = tanh(W_n x + b_n + r * (U_n h + c_n))       the candidate
    h' = (1 - z) * n + z * h                         h = 0 where an episode starts

(Cho et al. 2014, eq. 5-8, with the reset gate after the product, as cuDNN and torch.nn.GRU have it.) Actor and critic
have one each: with separate ones recurrent actor-critics learn more reliably (Ni et al. 2022).

The policy's observations are a tree: {"observation": (N, T, I), "starts": (N, T) bool, "actor": (N, H), "critic":
(N, H)}. `starts`: an episode starts with this observation. The last two are the hidden states before the first column,
absent if every row starts an episode. They are stored as they were when the actions were taken: from PPO's second
gradient step on they are a little out of date, as in CleanRL and Stable-Baselines3, which store them too. No gradient
goes past the first column (truncated backpropagation through time, Williams & Peng 1990).

Shapes: N rows, T steps, I inputs, H units, K networks (the actor, and the critic if there is one).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pgcli.policies.actor_critic import ActorCritic, Sampler, initialise
from pgcli.policies.heads import Head, HeadSettings, make_head
from pgcli.types import ABSENT, ControlSpec, Evaluation, PolicyFunction, Stochastic

Tree = dict[str, Tensor]
Memory = dict[str, np.ndarray]


class GRU(ActorCritic):
    offers: ClassVar = (Stochastic,)
    reads: ClassVar = ("vectors",)

    class Config(HeadSettings):
        name: Literal["gru"]
        hidden: PositiveInt = Field(description="units of the actor's GRU, and of the critic's")
        orthogonal: bool = Field(
            description="orthogonal initialisation of the weights; otherwise uniform within 1/sqrt(fan-in)"
        )

    unit = "sequence"
    actor: Recurrent
    critic: Recurrent | None

    @classmethod
    def make(cls, spec: ControlSpec, config: Config, needs: Stochastic, generator: torch.Generator) -> GRU:
        return cls(spec, config, critic=needs.critic, generator=generator)

    def __init__(self, spec: ControlSpec, config: Config, *, critic: bool, generator: torch.Generator) -> None:
        head = make_head(spec.actions, config)
        inputs = spec.observation_shape[0]
        actor = Recurrent("actor", inputs, config, head.size, 0.01, generator)
        super().__init__(actor, head, Recurrent("critic", inputs, config, 1, 1.0, generator) if critic else None)

    def once_differentiable(self) -> PolicyFunction:
        """The whole recurrence in NumPy, as one node of the graph instead of a dozen per step and network: PPO's
        gradient on 16 x 32 steps takes 3.0 ms instead of 9.2, on 8 x 128 steps 7.5 instead of 38.
        """
        networks = self._networks()
        if not networks[0].on_cpu:
            return self

        def evaluate(observations: Tree, actions: Tensor) -> Evaluation:
            hidden = unroll(networks, observations)
            outputs = self.actor.readout(hidden[0]).transpose(0, 1)
            log_probs, entropy = self.head.evaluate(outputs, actions)
            values = self.critic.readout(hidden[1]).squeeze(-1).t() if self.critic is not None else ABSENT
            return Evaluation(log_probs, entropy, values, self.head.distribution(outputs))

        return evaluate

    @torch.no_grad()
    def foresee(self, observations: Tree, rows: Tensor, times: Tensor, finals: Tensor) -> tuple[Tensor, Tensor, Memory]:
        """V of every state and of its true successor, (N, T) each, and the critic's hidden state after the last one.

        finals: (E, I), the observations after `times` (E,) of `rows` (E,), where the next column is not the successor:
        at the end of an episode, and at the last column. An observation has a value only with the memory before it.
        """
        critic = self.critic
        assert critic is not None
        hidden = unroll([critic], observations)[0].transpose(0, 1) if critic.on_cpu else critic.hidden(observations)
        values = critic.readout(hidden).squeeze(-1)
        following = torch.cat([values[:, 1:], values[:, :1]], dim=1)
        goes_on = torch.zeros((len(rows), 1), dtype=torch.bool, device=rows.device)
        step = {"observation": finals[:, None], "starts": goes_on, "critic": hidden[rows, times]}
        following[rows, times] = critic(step)[:, 0, 0]
        return values, following, {"critic": hidden[:, -1].cpu().numpy()}

    def sampler(self) -> RecurrentSampler:
        return RecurrentSampler(self._networks(), self.head)

    def _networks(self) -> list[Recurrent]:
        return [self.actor] if self.critic is None else [self.actor, self.critic]


class Recurrent(nn.Module):
    """A GRU and a linear layer on top of it: tree -> (N, T, outputs). `role`: the tree's key of its memory."""

    def __init__(
        self, role: str, inputs: int, config: GRU.Config, outputs: int, last_gain: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.role, self.width = role, config.hidden
        self.input = nn.Linear(inputs, 3 * self.width)  # rows of r, z and n, in this order
        self.recurrent = nn.Linear(self.width, 3 * self.width)
        self.readout = nn.Linear(self.width, outputs)
        layers = [self.input, self.recurrent, self.readout]
        initialise(layers, [1.0, 1.0, last_gain], orthogonal=config.orthogonal, generator=generator)

    @property
    def on_cpu(self) -> bool:
        return self.readout.weight.is_cpu

    def tensors(self) -> list[Tensor]:
        """Weight and bias of the input layer, then of the recurrent one."""
        return [*self.input.parameters(), *self.recurrent.parameters()]

    def forward(self, observations: Tree) -> Tensor:
        return self.readout(self.hidden(observations))

    def hidden(self, observations: Tree) -> Tensor:
        """h after each observation, (N, T, H): step by step by the equations, and differentiable twice."""
        projected = self.input(observations["observation"])
        h = observations.get(self.role, projected.new_zeros(len(projected), self.width))
        found = []
        for x, start in zip(projected.unbind(1), observations["starts"].unbind(1), strict=True):
            h = torch.where(start[:, None], 0.0, h)
            past = self.recurrent(h)
            gates, candidate = slice(2 * self.width), slice(2 * self.width, None)
            r, z = torch.sigmoid(x[:, gates] + past[:, gates]).chunk(2, dim=1)
            n = torch.tanh(x[:, candidate] + r * past[:, candidate])
            h = (1 - z) * n + z * h
            found.append(h)
        return torch.stack(found, dim=1)


class RecurrentSampler(Sampler):
    """Steps the actor in NumPy, and keeps each row's hidden states, also the critic's, which `foresee` updates."""

    memory: Memory

    def __init__(self, networks: Sequence[Recurrent], head: Head) -> None:
        super().__init__(self._step, head)
        self._widths = {network.role: network.width for network in networks}
        self._cells = Cells(networks[0].tensors())
        weight, bias = (tensor.detach().cpu().numpy() for tensor in networks[0].readout.parameters())
        self._weight, self._bias = weight.T, bias

    def start(self, rows: int, memory: Memory | None = None) -> None:
        blank = {role: np.zeros((rows, width), dtype=np.float32) for role, width in self._widths.items()}
        self.memory = {role: state.copy() for role, state in (memory or blank).items()}

    def forget(self, rows: np.ndarray) -> None:
        for state in self.memory.values():
            state[rows] = 0.0

    def keep(self, rows: np.ndarray) -> None:
        self.memory = {role: state[rows] for role, state in self.memory.items()}

    def _step(self, observations: np.ndarray) -> np.ndarray:
        hidden = self._cells.step(self._cells.project(observations), self.memory["actor"][None]).hidden[0]
        self.memory["actor"] = hidden
        return hidden @ self._weight + self._bias


class Trace(NamedTuple):
    """Intermediate results of one step, (K, N, .), or of all T steps, (K, T, N, .)."""

    gates: np.ndarray
    """r and z side by side, (..., 2 H)"""
    past: np.ndarray
    """U_n h + c_n"""
    candidate: np.ndarray
    """n"""
    hidden: np.ndarray
    """h'"""

    @classmethod
    def empty(cls, shape: tuple[int, ...], width: int, dtype: Any) -> Trace:
        sizes = (2 * width, width, width, width)
        return cls(*(np.empty((*shape, size), dtype=dtype) for size in sizes))


class Cells:
    """The GRUs of K networks at once, in NumPy and on their present weights.

    sigmoid(x) = tanh(x / 2) / 2 + 1/2, and NumPy's tanh is fast: hence the halved weights of r and z.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """tensors: `Recurrent.tensors()` of all networks, concatenated."""
        weight, bias, recurrent, recurrent_bias = (
            np.stack([tensor.detach().cpu().numpy() for tensor in tensors[i::4]]) for i in range(4)
        )
        self.width = H = recurrent.shape[-1]
        half = np.ones(3 * H, dtype=weight.dtype)
        half[: 2 * H] = 0.5
        self.recurrent = recurrent  # (K, 3 H, H)
        self._weight = np.ascontiguousarray((half[:, None] * weight).transpose(0, 2, 1))
        self._recurrent = np.ascontiguousarray((half[:, None] * recurrent).transpose(0, 2, 1))
        self._past_bias = recurrent_bias[:, None, 2 * H :].copy()
        recurrent_bias[:, 2 * H :] = 0.0
        self._bias = (half * (bias + recurrent_bias))[:, None]

    def project(self, x: np.ndarray) -> np.ndarray:
        """(B, I) -> the observations' terms of r, z and n: (K, B, 3 H)."""
        return x @ self._weight + self._bias

    def step(self, projected: np.ndarray, before: np.ndarray, into: Trace | None = None) -> Trace:
        """h (K, N, H) and `project` of an observation (K, N, 3 H) -> h' and the intermediate results."""
        H = self.width
        trace = into or Trace.empty(before.shape[:2], H, before.dtype)
        gates, past, candidate, hidden = trace
        both = before @ self._recurrent
        np.add(projected[..., : 2 * H], both[..., : 2 * H], out=gates)
        np.tanh(gates, out=gates)
        gates *= 0.5
        gates += 0.5
        np.add(both[..., 2 * H :], self._past_bias, out=past)
        np.multiply(gates[..., :H], past, out=candidate)
        candidate += projected[..., 2 * H :]
        np.tanh(candidate, out=candidate)
        np.subtract(before, candidate, out=hidden)
        hidden *= gates[..., H:]
        hidden += candidate
        return trace


def unroll(networks: Sequence[Recurrent], observations: Tree) -> list[Tensor]:
    """h of each network after each observation, (T, N, H): equal to `Recurrent.hidden`, differentiable once."""
    memory = [observations.get(network.role) for network in networks]
    weights = [tensor for network in networks for tensor in network.tensors()]
    return list(Unrolled.apply(observations["observation"], observations["starts"], memory, *weights))


class Unrolled(torch.autograd.Function):
    """K recurrences over T steps in one node. Not differentiable with respect to the inputs and the first hidden state.

    Let g be the gradient of h', p = U_n h + c_n, and a_r, a_z, a_n the arguments of the sigmoids and the tanh:

        d a_n = g (1 - z) (1 - n^2)        d a_z = g (h - n) z (1 - z)        d a_r = d a_n p r (1 - r)
        g of the step before  =  dL/dh + (g z + U^T [d a_r, d a_z, r d a_n])  where no episode starts, else  dL/dh

    All factors of g are known before the backward loop, so that one product per step is left to do.
    """

    @staticmethod
    def forward(
        ctx: Any, observation: Tensor, starts: Tensor, memory: list[Tensor | None], *weights: Tensor
    ) -> tuple[Tensor, ...]:
        cells = Cells(weights)
        K, (N, T, inputs), H = len(memory), observation.shape, cells.width
        x = np.ascontiguousarray(observation.numpy().swapaxes(0, 1)).reshape(T * N, inputs)
        goes_on = 1 - np.ascontiguousarray(starts.numpy().T)[..., None].astype(x.dtype)  # (T, N, 1)
        projected = cells.project(x).reshape(K, T, N, 3 * H)
        before = np.zeros((K, T, N, H), dtype=projected.dtype)
        for state, first in zip(memory, before[:, 0], strict=True):
            if state is not None:
                first[:] = state.numpy()
        trace = Trace.empty((K, T, N), H, projected.dtype)
        for t in range(T):
            np.multiply(trace.hidden[:, t - 1] if t else before[:, 0], goes_on[t], out=before[:, t])
            cells.step(projected[:, t], before[:, t], Trace(*(part[:, t] for part in trace)))
        ctx.saved = cells.recurrent, x, goes_on, before, trace
        return tuple(map(torch.from_numpy, trace.hidden))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        recurrent, x, goes_on, before, (gates, past, n, _) = ctx.saved
        K, T, N, H = before.shape
        r, z = gates[..., :H], np.ascontiguousarray(gates[..., H:])
        candidate = (1 - z) * (1 - n * n)
        factors = np.empty((K, T, N, 3, H), dtype=before.dtype)
        np.multiply(candidate, r, out=factors[..., 2, :])
        factors[..., 0, :] = factors[..., 2, :] * past * (1 - r)
        factors[..., 1, :] = (before - n) * z * (1 - z)

        g = np.stack([gradient.numpy() for gradient in gradients])
        through = np.empty(
            (K, T, N, 3 * H), dtype=before.dtype
        )  # gradients of W x + b + U h + c, without r's part in n
        carried = np.zeros((K, N, H), dtype=before.dtype)
        for t in reversed(range(T)):
            g[:, t] += carried
            np.multiply(g[:, t, :, None], factors[:, t], out=through[:, t].reshape(K, N, 3, H))
            np.matmul(through[:, t], recurrent, out=carried)
            carried += g[:, t] * z[:, t]
            carried *= goes_on[t]

        def sums(layer_input: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """Gradients of a layer's weights, (K, 3 H, inputs), and of its bias, (K, 3 H)."""
            return own.swapaxes(1, 2) @ layer_input, own.sum(axis=1)

        through = through.reshape(K, T * N, 3 * H)
        recurrent_gradients = sums(before.reshape(K, T * N, H), through)
        np.multiply(g, candidate, out=through.reshape(K, T, N, 3 * H)[..., 2 * H :])
        found = [*sums(x, through), *recurrent_gradients]
        return None, None, None, *(torch.from_numpy(part[k]) for k in range(K) for part in found)
