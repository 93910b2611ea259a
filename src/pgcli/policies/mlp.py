"""A multilayer perceptron, for observations that are vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        activation: Literal["tanh", "relu"] = Field(description="activation of the hidden layers")
        orthogonal: bool = Field(
            description="orthogonal initialisation of the weights; otherwise uniform within 1/sqrt(fan-in)"
        )

    @classmethod
    def make(
        cls, spec: Spec, config: Config, needs: Needs, generator: torch.Generator
    ) -> MLP | ActionValueNetwork | ActorQ | Actor:
        match needs:
            case ActionValues():
                spec = control_spec(spec, config.name, dimensions=1)
                actions = count_actions(spec, config.name)
                network = Perceptron(spec.observation_shape[0], config, actions, 1.0, generator)
                return ActionValueNetwork(network, actions, network.arrays, network.for_a_step)
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
        actor, critic = self.actor, self.critic
        assert isinstance(actor, Perceptron)

        def evaluate(observations: Tensor, actions: Tensor) -> Evaluation:
            outputs = actor.for_a_step(observations)
            log_probs, entropy = self.head.evaluate(outputs, actions)
            values = critic.for_a_step(observations).squeeze(-1) if isinstance(critic, Perceptron) else ABSENT
            return Evaluation(log_probs, entropy, values, self.head.distribution(outputs))

        return evaluate


def _actor_q(spec: ControlSpec, config: MLP.Config, needs: ActorWithQ, generator: torch.Generator) -> ActorQ:
    head = make_actor_head(spec, config, needs)
    inputs = spec.observation_shape[0]
    actor = Perceptron(inputs, config, head.size, 0.01, generator)
    critics = [Perceptron(inputs + len(head.box.low), config, 1, 1.0, generator) for _ in range(needs.critics)]
    return ActorQ(head, actor, critics, arrays=actor.arrays, fused=_for_a_step)


def _for_a_step(networks: Sequence[Any], x: Tensor, constant: bool) -> list[Tensor]:
    """Perceptrons on the same input; with constant weights only the input gets a gradient."""
    return [LookedThrough.apply(x, network) if constant else network.for_a_step(x) for network in networks]


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
        )  # walking through the modules takes longer than a small layer

    def forward(self, x: Tensor) -> Tensor:
        activation = torch.tanh if self.activation == "tanh" else torch.relu
        *hidden, last = self.layers
        for layer in hidden:
            x = activation(layer(x))
        return last(x)

    def tensors(self) -> list[Tensor]:
        """Weight and bias of each layer, in order."""
        return self._tensors

    def for_a_step(self, x: Tensor) -> Tensor:
        """The same outputs for inputs without a gradient; a hand-written `backward()` adds to the parameters' `grad`.

        Autograd's overhead for each weight and activation takes longer than a small layer.
        """
        with torch.no_grad():
            *hidden, outputs = _activations(x, self.tensors(), self.activation)
        if not torch.is_grad_enabled():
            return outputs

        def send_on(leaf: Tensor) -> None:
            gradient, leaf.grad = leaf.grad, None
            _backwards(gradient, [x, *hidden], self.tensors(), self.activation, train=True)

        outputs.requires_grad_().register_post_accumulate_grad_hook(send_on)
        return outputs

    def arrays(self) -> ArrayNetwork:
        """The same network in NumPy on the same weights, without torch's few microseconds per operation."""
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
    """Outputs of every layer, the last one linear. No graph is built."""
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


class LookedThrough(torch.autograd.Function):
    """A perceptron with constant weights: only its input gets a gradient. Differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, network: Perceptron) -> Tensor:
        *hidden, outputs = _activations(x, network.tensors(), network.activation)
        ctx.network = network
        ctx.save_for_backward(x, *hidden)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        network = ctx.network
        return _backwards(gradient, ctx.saved_tensors, network.tensors(), network.activation, train=False), None


def _backwards(
    gradient: Any, inputs: Sequence[Tensor], weights: Sequence[Tensor], activation: str, *, train: bool
) -> Tensor | None:
    """The backward pass, from the gradient of the outputs and the inputs of each layer.

    train: add the weights' gradients to their `grad`; otherwise return the input's gradient.
    """
    through = _through_tanh if activation == "tanh" else _through_relu
    for i in reversed(range(len(inputs))):
        weight, bias = weights[2 * i : 2 * i + 2]
        if train:
            _add(weight, outer(gradient, inputs[i]))
            _add(bias, gradient.sum(0))
            if not i:
                return None
        # For a single output it is an outer product, for which a matrix multiplication is slower.
        back = gradient * weight if i and gradient.shape[1] == 1 else product(gradient, weight.t())
        gradient = through(back, inputs[i]) if i else back
    return gradient


def _add(weight: Tensor, gradient: Tensor) -> None:
    if weight.requires_grad:
        weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)


def _through_tanh(gradient: Tensor, output: Tensor) -> Tensor:
    """gradient * (1 - output^2), in place."""
    return torch.ops.aten.tanh_backward.grad_input(gradient, output, grad_input=gradient)


def _through_relu(gradient: Tensor, output: Tensor) -> Tensor:
    """gradient where output > 0, else 0, in place."""
    return torch.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=gradient)
