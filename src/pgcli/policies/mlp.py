"""A multilayer perceptron, for observations that are vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pgcli.policies.acting import Actor, PerceptronCrowd, outputs_of
from pgcli.policies.action_values import ActionValueNetwork, count_actions
from pgcli.policies.actor_critic import ActorCritic, ArrayNetwork, control_spec, initialise
from pgcli.policies.actor_q import ActorQ, make_actor_head
from pgcli.policies.heads import HeadSettings, make_head
from pgcli.policies.products import outer, product
from pgcli.types import (
    ABSENT,
    Acting,
    ActionValues,
    ActorWithQ,
    ControlSpec,
    Evaluation,
    Needs,
    PolicyFunction,
    Spec,
    Stochastic,
)


class MLP(ActorCritic):
    """Separate actor and critic; orthogonal initialisation of gain sqrt(2), 0.01 at the policy's end, 1 at the value's.

    (Andrychowicz et al. 2021: separate networks and a small last policy layer are what matters most.)
    """

    offers: ClassVar = (Stochastic, ActionValues, ActorWithQ, Acting)

    class Config(HeadSettings):
        name: Literal["mlp"]
        hidden: tuple[PositiveInt, ...] = Field(description="units of each hidden layer")
        activation: Literal["tanh", "relu"] = Field(description="of the hidden layers")
        orthogonal: bool = Field(description="orthogonal initialisation; otherwise uniform by fan-in")

    @classmethod
    def make(
        cls, spec: Spec, config: Config, needs: Needs, generator: torch.Generator
    ) -> MLP | ActionValueNetwork | ActorQ | Actor:
        match needs:
            case ActionValues():
                spec = control_spec(spec, config.name, dimensions=1)
                actions = count_actions(spec, config.name)
                network = Perceptron(spec.observation_shape[0], config, actions, 1.0, generator)
                return ActionValueNetwork(network, actions, network.arrays, network.as_one_node)
            case Acting():
                spec = control_spec(spec, config.name, dimensions=1)
                sizes = (spec.observation_shape[0], *config.hidden, outputs_of(spec.actions))
                network = Perceptron(sizes[0], config, sizes[-1], 0.01, generator)
                return Actor(network, partial(PerceptronCrowd, sizes, config.activation, spec.actions))
            case ActorWithQ():
                return _actor_q(control_spec(spec, config.name, dimensions=1), config, needs, generator)
            case Stochastic(critic):
                return cls(spec, config, critic=critic, generator=generator)
        raise AssertionError(needs)

    def __init__(self, spec: Spec, config: Config, *, critic: bool, generator: torch.Generator) -> None:
        spec = control_spec(spec, config.name, dimensions=1)
        head = make_head(spec.actions, config)
        inputs = spec.observation_shape[0]
        actor = Perceptron(inputs, config, head.size, 0.01, generator)
        super().__init__(actor, head, Perceptron(inputs, config, 1, 1.0, generator) if critic else None, actor.arrays)

    @torch.no_grad()
    def values(self, observations: Tensor) -> Tensor:
        assert isinstance(self.critic, Perceptron)
        return _activations(observations, self.critic.tensors(), self.critic.activation)[-1].squeeze(-1)

    def once_differentiable(self) -> PolicyFunction:
        """The networks as one node of the graph: on small batches most of the time goes into the number of nodes."""
        networks = [net for net in (self.actor, self.critic) if isinstance(net, Perceptron)]
        weights = [tensor for net in networks for tensor in net.tensors()]

        def evaluate(observations: Tensor, actions: Tensor) -> Evaluation:
            outputs, *values = Perceptrons.apply(observations, len(networks), networks[0].activation, *weights)
            log_probs, entropy = self.head.evaluate(outputs, actions)
            found = values[0].squeeze(-1) if values else ABSENT
            return Evaluation(log_probs, entropy, found, self.head.distribution(outputs))

        return evaluate


def _actor_q(spec: ControlSpec, config: MLP.Config, needs: ActorWithQ, generator: torch.Generator) -> ActorQ:
    head = make_actor_head(spec, config, needs)
    inputs = spec.observation_shape[0]
    actor = Perceptron(inputs, config, head.size, 0.01, generator)
    critics = [Perceptron(inputs + len(head.box.low), config, 1, 1.0, generator) for _ in range(needs.critics)]
    return ActorQ(head, actor, critics, arrays=actor.arrays, fused=_in_one_node)


def _in_one_node(networks: Sequence[Any], x: Tensor, constant: bool) -> tuple[Tensor, ...]:
    """Perceptrons of one input, for a gradient step; of constant weights no gradient is computed."""
    weights = [tensor for network in networks for tensor in network.tensors()]
    if constant:
        weights = [tensor.detach() for tensor in weights]
    return Perceptrons.apply(x, len(networks), networks[0].activation, *weights)


class Perceptron(nn.Module):
    """Linear layers with an activation between them: (B, inputs) -> (B, outputs)."""

    def __init__(
        self, inputs: int, config: MLP.Config, outputs: int, last_gain: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        sizes = [inputs, *config.hidden, outputs]
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.layers = nn.ModuleList(layers)
        self.activation = config.activation
        gains = [math.sqrt(2)] * len(config.hidden) + [last_gain]
        initialise(layers, gains, orthogonal=config.orthogonal, generator=generator)
        self._tensors: list[Tensor] = list(
            self.parameters()
        )  # to walk through the modules takes longer than a small layer

    def forward(self, x: Tensor) -> Tensor:
        activation = torch.tanh if self.activation == "tanh" else torch.relu
        *hidden, last = self.layers
        for layer in hidden:
            x = activation(layer(x))
        return last(x)

    def tensors(self) -> list[Tensor]:
        """Weight and bias of each layer in turn."""
        return self._tensors

    def as_one_node(self) -> Callable[[Tensor], Tensor]:
        """The same network on the same weights, for a gradient step."""
        weights = self.tensors()

        def evaluate(x: Tensor) -> Tensor:
            if not torch.is_grad_enabled():  # a target, say: a node of no graph is only slower
                return _activations(x, weights, self.activation)[-1]
            return Perceptrons.apply(x, 1, self.activation, *weights)[0]

        return evaluate

    def arrays(self) -> ArrayNetwork:
        """The same network on the same weights in NumPy: without torch's few microseconds an operation."""
        arrays = [tensor.detach().cpu().numpy() for tensor in self.tensors()]
        *hidden, (last_weight, last_bias) = [(w.T, b) for w, b in zip(arrays[::2], arrays[1::2], strict=True)]
        tanh = self.activation == "tanh"

        def forward(x: np.ndarray) -> np.ndarray:
            for weight, bias in hidden:
                x = x @ weight
                x += bias
                if tanh:
                    np.tanh(x, out=x)
                else:
                    np.maximum(x, 0, out=x)
            x = x @ last_weight
            x += last_bias
            return x

        return forward


def _activations(x: Tensor, weights: Sequence[Tensor], activation: str) -> list[Tensor]:
    """Of every layer, the last one linear. No graph is built."""
    found = []
    for i in range(0, len(weights), 2):
        hidden = i + 2 < len(weights)
        x = product(x, weights[i], weights[i + 1], relu=hidden and activation == "relu")
        found.append(x)
        if hidden and activation == "tanh":
            if x.is_cpu:
                array = x.numpy()
                np.tanh(array, out=array)  # a tenth of the time of torch's
            else:
                x.tanh_()
    return found


class Perceptrons(torch.autograd.Function):
    """Several perceptrons of one input, in one node. Differentiable once; only the gradients that are asked for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, activation: str, *weights: Tensor) -> tuple[Tensor, ...]:
        size = len(weights) // count
        parts = [_activations(x, weights[i : i + size], activation) for i in range(0, len(weights), size)]
        ctx.activation, ctx.count = activation, count
        ctx.save_for_backward(x, *weights, *(tensor for part in parts for tensor in part[:-1]))
        return tuple(part[-1] for part in parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        layers = (len(saved) + ctx.count) // (
            3 * ctx.count
        )  # a network of L layers saves 2 L weights, L - 1 activations
        weights, hidden = saved[: 2 * layers * ctx.count], saved[2 * layers * ctx.count :]
        through = _through_tanh if ctx.activation == "tanh" else _through_relu
        of_input, trained = ctx.needs_input_grad[0], any(ctx.needs_input_grad[3:])
        found: list[Tensor | None] = []
        of_x: Tensor | None = None
        for n, output_gradient in enumerate(gradients):
            gradient = output_gradient
            inputs = [x, *hidden[n * (layers - 1) : (n + 1) * (layers - 1)]]
            own: list[Tensor | None] = []
            for i in reversed(range(layers)):
                own = [*([outer(gradient, inputs[i]), gradient.sum(0)] if trained else [None, None]), *own]
                weight = weights[2 * (n * layers + i)]
                if i:
                    # Of a single output it is an outer product, which a matrix multiplication takes longer for.
                    single = gradient.shape[1] == 1
                    back = gradient * weight if single else product(gradient, weight.t())
                    gradient = through(back, inputs[i])
                elif of_input:
                    back = product(gradient, weight.t())
                    of_x = back if of_x is None else of_x.add_(back)
            found += own
        return of_x, None, None, *found


def _through_tanh(gradient: Tensor, output: Tensor) -> Tensor:
    """gradient * (1 - output^2), in place."""
    return torch.ops.aten.tanh_backward.grad_input(gradient, output, grad_input=gradient)


def _through_relu(gradient: Tensor, output: Tensor) -> Tensor:
    """gradient where output > 0, else 0, in place."""
    return torch.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=gradient)
