"""A multilayer perceptron as a network, with faster passes for a gradient step and for acting.

Autograd's overhead for each weight and activation takes longer than a small layer: for a gradient step the backward
pass is written by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pgcli.policies.actor_critic import ArrayNetwork, initialise
from pgcli.policies.products import outer, product


class Perceptron(nn.Module):
    """Linear layers with an activation between them: (B, inputs) -> (B, outputs)."""

    def __init__(
        self, sizes: Sequence[int], activation: str, last_gain: float, *, orthogonal: bool, generator: torch.Generator
    ) -> None:
        """
        Args:
            sizes: of the input, of each hidden layer and of the output.
            activation: `tanh` or `relu`.
            last_gain: of the last layer's orthogonal initialisation; the others' is sqrt(2).
            orthogonal: otherwise the weights are uniform within 1/sqrt(fan-in).
        """
        super().__init__()
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.layers = nn.ModuleList(layers)
        self.activation = activation
        gains = [math.sqrt(2)] * (len(layers) - 1) + [last_gain]
        initialise(layers, gains, orthogonal=orthogonal, generator=generator)
        # Walking through the modules takes longer than a small layer.
        self._tensors: list[Tensor] = list(self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        activation = torch.tanh if self.activation == "tanh" else torch.relu
        *hidden, last = self.layers
        for layer in hidden:
            x = activation(layer(x))
        return last(x)

    def for_a_step(self, x: Tensor) -> Tensor:
        """The same outputs for inputs without a gradient; `backward()` adds to the parameters' `grad`."""
        with torch.no_grad():
            *hidden, outputs = self.layer_outputs(x)
        return backed(outputs, lambda gradient: self.backwards(gradient, [x, *hidden], len(x)))

    def for_a_step_beside(self, x: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """`for_a_step` of x, and the outputs of others without a gradient: one pass takes less time than two."""
        with torch.no_grad():
            every = torch.cat([x, others])
            *hidden, outputs = self.layer_outputs(every)
            inputs = [layer[: len(x)] for layer in (every, *hidden)]
            mine, theirs = outputs[: len(x)], outputs[len(x) :]
        return backed(mine, lambda gradient: self.backwards(gradient, inputs, len(x))), theirs

    def tensors(self) -> list[Tensor]:
        """Weight and bias of each layer, in order."""
        return self._tensors

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

    def layer_outputs(self, x: Tensor) -> list[Tensor]:
        """Outputs of every layer, the last one linear. No graph is built."""
        weights, found = self.tensors(), []
        for i in range(0, len(weights), 2):
            hidden = i + 2 < len(weights)
            x = product(x, weights[i], weights[i + 1], relu=hidden and self.activation == "relu")
            found.append(x)
            if hidden and self.activation == "tanh":
                if x.is_cpu:
                    array = x.numpy()
                    np.tanh(array, out=array)  # a tenth of the time of torch's
                else:
                    x.tanh_()
        return found

    def backwards(self, gradient: Tensor, inputs: Sequence[Tensor], rows: int, last: int = 0) -> Tensor:
        """Back from the gradient of the outputs, (B, outputs), and the inputs of each layer.

        The first `rows` rows add to the `grad` of the parameters. Of the others, the gradient of the last components of
        the input is returned, (B - rows, last).
        """
        weights = self.tensors()
        for i in reversed(range(len(inputs))):
            weight, bias = weights[2 * i : 2 * i + 2]
            if rows:
                own = gradient[:rows]
                _add(weight, outer(own, inputs[i][:rows]))
                _add(bias, own.sum(0))
            if i:
                gradient = self._through(gradient, weight, inputs[i])
        if rows == len(gradient):
            return gradient.new_empty(0, last)
        columns = weights[0][:, -last:].t().contiguous()  # as a view it takes oneDNN hundreds of times as long
        return product(gradient[rows:], columns)

    def _through(self, gradient: Tensor, weight: Tensor, output: Tensor) -> Tensor:
        """Back through a layer's weight and the activation before it, whose output is given."""
        # With a single output it is an outer product, for which a matrix multiplication is slower.
        back = gradient * weight if gradient.shape[1] == 1 else product(gradient, weight.t())
        if self.activation == "tanh":  # back * (1 - output^2), in place
            return torch.ops.aten.tanh_backward.grad_input(back, output, grad_input=back)
        return torch.ops.aten.threshold_backward.grad_input(back, output, 0, grad_input=back)


def backed(outputs: Tensor, backward: Callable[[Tensor], Any]) -> Tensor:
    """Outputs that have no graph, as a leaf of one: `backward` is called with their gradient, where there are any."""
    if not torch.is_grad_enabled():
        return outputs

    def send_on(leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        assert gradient is not None
        backward(gradient)

    outputs.requires_grad_().register_post_accumulate_grad_hook(send_on)
    return outputs


def _add(parameter: Tensor, gradient: Tensor) -> None:
    if parameter.requires_grad:
        parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
