"""Soft actor-critic (Haarnoja et al. 2018b, algorithm 1, with the temperature of its section 5).

    y             = r + gamma (1 - terminated) (min_k Q'_k(s', a') - alpha log pi(a' | s')),       a' ~ pi(. | s')
    L_critic      = E[ sum_k (Q_k(s, a) - y)^2 / 2 ]
    L_actor       = E[ alpha log pi(a~ | s) - min_k Q_k(s, a~) ],    a~ = tanh(mean(s) + std(s) z)  reparameterised
    L_temperature = -log alpha E[ log pi(a~ | s) + H_target ],       H_target = -|A|
    Q' follows Q by Polyak averaging

Maximises the return plus alpha times the entropy, so that exploring is part of what is learned and no noise is added.
Differs from TD3: the actor is a distribution, whose own entropy smooths the target and explores; no target actor.
Differs from A2C with an entropy bonus: the bonus is inside the value, so that future entropy counts; and off-policy.
All three losses are taken at the same parameters, as in the authors' code; densities are in the unit box [-1, 1]^A.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from pgcli.algorithms import _off_policy
from pgcli.algorithms._adam import Adam, flatten
from pgcli.algorithms._off_policy import Averages, OffPolicySettings
from pgcli.algorithms._update import Terms
from pgcli.collectors.settings import Replay as ReplaySettings
from pgcli.functional.temporal_difference import bellman_target, follow, soft_value, squared, temperature_loss
from pgcli.types import ActorCritics, ActorWithQ, Drawn, Metrics, Needs, Replay, State, Transitions


class Noise(NamedTuple):
    """Standard normals for the actions of a batch, (B, A) each."""

    now: Tensor
    """For a~ in s."""
    next: Tensor
    """For a' in s'."""


class SAC:
    class Config(OffPolicySettings, ReplaySettings):
        name: Literal["sac"]
        critics: int = Field(ge=1, le=10, description="number of critics; the lowest of their values counts")
        initial_temperature: float = Field(gt=0, description="alpha at the start, the weight of the entropy")
        learn_temperature: bool = Field(
            description="adapt alpha so that the policy's entropy approaches target_entropy"
        )
        target_entropy: float | None = Field(
            description="with learn_temperature: entropy to which alpha is adapted, in nats, of an action in the unit "
            "box; null: minus the number of its components"
        )
        temperature_learning_rate: float = Field(
            gt=0, le=10, description="with learn_temperature: Adam's step size for log alpha at the start"
        )

    METRICS: ClassVar = _off_policy.METRICS | {
        "loss/critic": "half the mean squared error of the critics against their soft targets, summed over the critics",
        "loss/temperature": "loss of log alpha; only its gradient is meaningful, not its value",
        "policy/entropy": "entropy of the policy, minus the mean log-prob of its own actions, in nats in the unit box",
        "policy/temperature": "alpha, the weight of the entropy in the return",
    }
    collects = ("replay",)
    actions = ("continuous",)

    @staticmethod
    def needs(config: Config) -> Needs:
        return ActorWithQ(critics=config.critics, stochastic=True)

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.policy, self.config, self.total_steps = policy, config, total_steps
        self.actor = Adam(policy.actor_parameters(), config)
        self.critics = Adam(policy.critics.parameters(), config)
        self.target_critics = flatten(policy.target_critics.parameters())
        start = self.actor.flat.new_full((1,), math.log(config.initial_temperature))
        self.log_temperature = start.requires_grad_()
        self.temperature = Adam([self.log_temperature], config)
        self.target_entropy = -float(policy.actions) if config.target_entropy is None else config.target_entropy
        self.generator = torch.Generator().manual_seed(seed)
        self.updates, self.steps = 0, 0

    def critic_loss(
        self, policy: ActorCritics, batch: Transitions, values: Tensor, drawn: Drawn
    ) -> tuple[Tensor, Terms]:
        """values: Q_k(s, a), (K, B). drawn: a' of the policy in s', not differentiated through."""
        c = self.config
        with torch.no_grad():
            next_actions, next_log_probs = drawn
            judged = policy.target_values(batch.next_observations, next_actions)
            next_values = soft_value(judged, next_log_probs, self.log_temperature.exp())
            targets = bellman_target(c.reward_scale * batch.rewards, next_values, batch.terminated, gamma=c.gamma)
        loss = batch.mean(squared(values - targets).sum(0))
        return loss, {
            "loss/critic": loss,
            "value/q": batch.mean(values.mean(0)),
            "value/target": batch.mean(targets),
        }

    def actor_loss(self, batch: Transitions, values: Tensor, log_probs: Tensor) -> tuple[Tensor, Terms]:
        """Losses of the actor and of the temperature, by Q_k(s, a~), (K, B), and log pi(a~ | s), (B,)."""
        temperature = self.log_temperature.detach().exp()
        actor = -batch.mean(soft_value(values, log_probs, temperature))
        adapted = batch.mean(temperature_loss(self.log_temperature, log_probs, self.target_entropy))
        return actor + adapted, {
            "loss/actor": actor,
            "loss/temperature": adapted,
            "policy/entropy": -batch.mean(log_probs),
            "policy/temperature": temperature.squeeze(),
        }

    def loss(self, policy: ActorCritics, batch: Transitions, noise: Noise) -> tuple[Tensor, Terms]:
        """No term has a gradient for another's parameters."""
        s, next_s = batch.observations, batch.next_observations
        (actions, log_probs), following = policy.act_now_and_next(s, next_s, *noise)
        values, of_drawn = policy.values_beside(s, batch.actions, actions)
        critic, critic_terms = self.critic_loss(policy, batch, values, following)
        actor, actor_terms = self.actor_loss(batch, of_drawn, log_probs)
        return critic + actor, critic_terms | actor_terms

    def update(self, replay: Replay) -> Metrics:
        c, seen = self.config, Averages()
        self.updates += 1
        rate = c.factor(update=self.updates, steps=self.steps, total_steps=self.total_steps)
        self.steps += replay.steps
        evaluate = self.policy.once_differentiable()
        for _ in range(c.gradient_steps):
            batch = replay.draw(c.batch_size)
            normals = torch.randn(2, *batch.actions.shape, generator=self.generator).to(batch.actions.device)
            total, terms = self.loss(evaluate, batch, Noise(normals[0], normals[1]))
            for part in (self.critics, self.actor, self.temperature):
                part.gradient.zero_()
            total.backward()
            critic_norm, actor_norm = self.critics.norm(), self.actor.norm()
            norms = {"optimiser/critic_grad_norm": critic_norm, "optimiser/actor_grad_norm": actor_norm}
            seen.add(terms | norms, self.updates)
            self.critics.step(rate * c.critic_learning_rate, critic_norm)
            self.actor.step(rate * c.actor_learning_rate, actor_norm)
            if c.learn_temperature:
                self.temperature.step(rate * c.temperature_learning_rate, self.temperature.norm())
            follow(self.target_critics, self.critics.flat, tau=c.tau)
        return seen.metrics() | {
            "optimiser/rate": rate,
            "optimiser/gradient_steps": float(c.gradient_steps),
            "replay/size": float(replay.size),
        }

    def state_dict(self) -> State:
        return {
            "actor": self.actor.state_dict(),
            "critics": self.critics.state_dict(),
            "temperature": self.temperature.state_dict() | {"log": self.temperature.flat},
            "generator": self.generator.get_state(),
            "updates": self.updates,
            "steps": self.steps,
        }

    def load_state_dict(self, state: State) -> None:
        self.actor.load_state_dict(state["actor"])
        self.critics.load_state_dict(state["critics"])
        self.temperature.load_state_dict(state["temperature"])
        self.temperature.flat.copy_(state["temperature"]["log"])
        self.generator.set_state(state["generator"])
        self.updates, self.steps = state["updates"], state["steps"]
