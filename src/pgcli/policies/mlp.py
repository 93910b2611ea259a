"""A multilayer perceptron, for observations that are vectors."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from pgcli.policies.acting import Actor, PerceptronCrowd, outputs_of
from pgcli.policies.action_values import ActionValueNetwork, count_actions
from pgcli.policies.actor_critic import ActorCritic
from pgcli.policies.actor_q import ActorQ, make_actor_head
from pgcli.policies.actor_q_step import ActorQStep
from pgcli.policies.heads import HeadSettings, make_head
from pgcli.policies.perceptron import Perceptron
from pgcli.types import (
    ABSENT,
    Acting,
    ActionValues,
    ActorWithQ,
    ControlSpec,
    Evaluation,
    Needs,
    PolicyFunction,
    Stochastic,
)


class MLP(ActorCritic):
    """Separate actor and critic; orthogonal initialisation of gain sqrt(2), 0.01 at the policy's end, 1 at the value's.

    (Andrychowicz et al. 2021: separate networks and a small last policy layer are what matters most.)
    """

    offers: ClassVar = (Stochastic, ActionValues, ActorWithQ, Acting)
    reads: ClassVar = ("vectors",)

    class Config(HeadSettings):
        name: Literal["mlp"]
        hidden: tuple[PositiveInt, ...] = Field(description="units of each hidden layer")
        activation: Literal["tanh", "relu"] = Field(description="activation of the hidden layers")
        orthogonal: bool = Field(
            description="orthogonal initialisation of the weights; otherwise uniform within 1/sqrt(fan-in)"
        )

    @classmethod
    def make(
        cls, spec: ControlSpec, config: Config, needs: Needs, generator: torch.Generator
    ) -> MLP | ActionValueNetwork | ActorQ | Actor:
        match needs:
            case ActionValues():
                actions = count_actions(spec, config.name)
                network = _perceptron(config, spec.observation_shape[0], actions, 1.0, generator)
                return ActionValueNetwork(network, actions, network.arrays, network.for_a_step)
            case Acting():
                sizes = (spec.observation_shape[0], *config.hidden, outputs_of(spec.actions))
                network = _perceptron(config, sizes[0], sizes[-1], 0.01, generator)
                return Actor(network, partial(PerceptronCrowd, sizes, config.activation, spec.actions))
            case ActorWithQ():
                return _actor_q(spec, config, needs, generator)
            case Stochastic(critic):
                return cls(spec, config, critic=critic, generator=generator)
        raise AssertionError(needs)

    def __init__(self, spec: ControlSpec, config: Config, *, critic: bool, generator: torch.Generator) -> None:
        head = make_head(spec.actions, config)
        inputs = spec.observation_shape[0]
        actor = _perceptron(config, inputs, head.size, 0.01, generator)
        values = _perceptron(config, inputs, 1, 1.0, generator) if critic else None
        super().__init__(actor, head, values, actor.arrays)

    @torch.no_grad()
    def values(self, observations: Tensor) -> Tensor:
        assert isinstance(self.critic, Perceptron)
        return self.critic.layer_outputs(observations)[-1].squeeze(-1)

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
    actor = _perceptron(config, inputs, head.size, 0.01, generator)
    critics = [_perceptron(config, inputs + len(head.box.low), 1, 1.0, generator) for _ in range(needs.critics)]
    return ActorQ(head, actor, critics, arrays=actor.arrays, for_a_step=ActorQStep)


def _perceptron(
    config: MLP.Config, inputs: int, outputs: int, last_gain: float, generator: torch.Generator
) -> Perceptron:
    sizes = (inputs, *config.hidden, outputs)
    return Perceptron(sizes, config.activation, last_gain, orthogonal=config.orthogonal, generator=generator)
