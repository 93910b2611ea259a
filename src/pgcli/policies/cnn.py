"""A small convolutional network, for observations that are images."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn

from pgcli.policies.acting import Actor, ModuleCrowd, outputs_of
from pgcli.policies.action_values import ActionValueNetwork, count_actions
from pgcli.policies.actor_critic import ACTIVATIONS, ActorCritic, initialise
from pgcli.policies.heads import HeadSettings, make_head
from pgcli.types import Acting, ActionValues, ControlSpec, Needs, Stochastic


class CNN(ActorCritic):
    """Convolutions of 3x3 with stride 2, then one dense layer; actor and critic separate."""

    offers: ClassVar = (Stochastic, ActionValues, Acting)
    reads: ClassVar = ("images",)

    class Config(HeadSettings):
        name: Literal["cnn"]
        channels: tuple[PositiveInt, ...] = Field(
            description="channels of each convolution; each halves height and width"
        )
        dense: PositiveInt = Field(description="units of the dense layer")
        activation: Literal["tanh", "relu"] = Field(description="activation of the hidden layers")
        orthogonal: bool = Field(
            description="orthogonal initialisation of the weights; otherwise uniform within 1/sqrt(fan-in)"
        )

    @classmethod
    def make(
        cls, spec: ControlSpec, config: Config, needs: Needs, generator: torch.Generator
    ) -> CNN | ActionValueNetwork | Actor:
        match needs:
            case ActionValues():
                actions = count_actions(spec, config.name)
                return ActionValueNetwork(_network(spec.observation_shape, config, actions, 1.0, generator), actions)
            case Acting():
                network = _network(spec.observation_shape, config, outputs_of(spec.actions), 0.01, generator)
                return Actor(network, partial(ModuleCrowd, network, spec.actions))
            case Stochastic(critic):
                return cls(spec, config, critic=critic, generator=generator)
        raise AssertionError(needs)

    def __init__(self, spec: ControlSpec, config: Config, *, critic: bool, generator: torch.Generator) -> None:
        head = make_head(spec.actions, config)
        actor = _network(spec.observation_shape, config, head.size, 0.01, generator)
        super().__init__(actor, head, _network(spec.observation_shape, config, 1, 1.0, generator) if critic else None)


def _network(
    shape: tuple[int, ...], config: CNN.Config, outputs: int, last_gain: float, generator: torch.Generator
) -> nn.Sequential:
    """(B, C, H, W) -> (B, outputs)."""
    activation = ACTIVATIONS[config.activation]
    channels, height, width = shape
    parts: list[nn.Module] = []
    for out in config.channels:
        parts += [nn.Conv2d(channels, out, kernel_size=3, stride=2, padding=1), activation()]
        channels, height, width = out, (height + 1) // 2, (width + 1) // 2
    parts += [
        nn.Flatten(),
        nn.Linear(channels * height * width, config.dense),
        activation(),
        nn.Linear(config.dense, outputs),
    ]
    trained = [part for part in parts if isinstance(part, nn.Conv2d | nn.Linear)]
    gains = [math.sqrt(2)] * (len(trained) - 1) + [last_gain]
    initialise(trained, gains, orthogonal=config.orthogonal, generator=generator)
    return nn.Sequential(*parts)
