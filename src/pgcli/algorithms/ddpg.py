"""Deep deterministic policy gradient (Lillicrap et al. 2016, algorithm 1), and its repaired form TD3.

    y        = r + gamma (1 - terminated) min_k Q'_k(s', clip(mu'(s') + clip(sigma z, -c, c)))
    L_critic = E[ sum_k (Q_k(s, a) - y)^2 ]
    L_actor  = -E[ Q_1(s, mu(s)) ]            its gradient: grad_a Q(s, a) at a = mu(s), times grad mu(s)
    Q', mu' follow Q, mu by Polyak averaging

DDPG has one critic, sigma 0, and moves the actor at every step. TD3 (Fujimoto et al. 2018, algorithm 1) makes three
repairs, which conf/algo/td3.yaml sets in this module: two critics, whose lower value is the target; smoothing of the
target action; and a step of actor and targets only after every second step of the critics (`actor_every` 2).
Differs from Q-learning: mu(s) stands for the argmax over continuous actions. Differs from the policy gradients: no
density, so the actor's gradient comes through the critic, and old actions of other policies can be learned from.
Both losses are taken at the same parameters; as published, the actor's loss uses the critics after their step.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pgcli.algorithms import _off_policy
from pgcli.algorithms._adam import Adam, flatten
from pgcli.algorithms._off_policy import Averages, OffPolicySettings
from pgcli.algorithms._update import Terms
from pgcli.collectors.exploration import Exploring, OrnsteinUhlenbeck, WhiteNoise
from pgcli.collectors.settings import Replay as ReplaySettings
from pgcli.functional.temporal_difference import bellman_target, follow, lowest
from pgcli.types import ActorCritics, ActorWithQ, Metrics, Needs, Replay, State, Transitions


class DDPG:
    class Config(OffPolicySettings, ReplaySettings):
        name: Literal["ddpg"]
        critics: int = Field(ge=1, le=10, description="number of critics; a target takes their lowest value")
        target_noise: float = Field(
            ge=0,
            description="sigma: standard deviation of the noise on a target's action, in units of half the action's "
            "range",
        )
        target_noise_clip: float = Field(
            ge=0,
            description="c: bound to which target_noise is clipped, in units of half the action's range",
        )
        actor_every: int = Field(
            ge=1, description="steps of the critics for each step of the actor and of the target networks"
        )
        exploration: Literal["gaussian", "ornstein_uhlenbeck"] = Field(
            description="noise on the actions while collecting: independent at each step (gaussian), or correlated in "
            "time (ornstein_uhlenbeck)"
        )
        exploration_std: float = Field(
            ge=0,
            description="standard deviation of the exploration noise per step, in units of half the action's range",
        )
        exploration_theta: float = Field(
            ge=0, le=1, description="theta: share of ornstein_uhlenbeck noise that decays at each step"
        )

    METRICS: ClassVar = _off_policy.METRICS
    collects = ("replay",)
    actions = ("continuous",)

    @staticmethod
    def needs(config: Config) -> Needs:
        return ActorWithQ(critics=config.critics, stochastic=False)

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.policy, self.config, self.total_steps = policy, config, total_steps
        self.actor = Adam(policy.actor_parameters(), config)
        self.critics = Adam(policy.critics.parameters(), config)
        self.target_actor = flatten(policy.target_actor.parameters())
        self.target_critics = flatten(policy.target_critics.parameters())
        self.generator = torch.Generator().manual_seed(seed)
        ornstein = OrnsteinUhlenbeck(config.exploration_std, config.exploration_theta)
        self.process = ornstein if config.exploration == "ornstein_uhlenbeck" else WhiteNoise(config.exploration_std)
        self.updates, self.steps, self.critic_steps = 0, 0, 0

    def behaviour(self) -> Any:
        return Exploring(self.policy, self.process, self.policy.actions)

    def critic_loss(self, policy: ActorCritics, batch: Transitions, noise: Tensor) -> tuple[Tensor, Terms]:
        c = self.config
        smoothing = (c.target_noise * noise).clamp(-c.target_noise_clip, c.target_noise_clip)
        next_actions = policy.target_act(batch.next_observations, smoothing)
        next_values = lowest(policy.target_values(batch.next_observations, next_actions))
        targets = bellman_target(c.reward_scale * batch.rewards, next_values, batch.terminated, gamma=c.gamma)
        values = policy.values(batch.observations, batch.actions)
        loss = batch.mean((values - targets).square().sum(0))
        return loss, {
            "loss/critic": loss,
            "value/q": batch.mean(values.mean(0)),
            "value/target": batch.mean(targets),
        }

    def actor_loss(self, policy: ActorCritics, batch: Transitions, noise: Tensor) -> tuple[Tensor, Terms]:
        actions, _ = policy.act(batch.observations, noise)
        loss = -batch.mean(policy.fixed_values(batch.observations, actions, first=1)[0])
        return loss, {"loss/actor": loss}

    def loss(self, policy: ActorCritics, batch: Transitions, noise: Tensor) -> tuple[Tensor, Terms]:
        """noise: (B, A), standard normal. Neither term has a gradient for the other's parameters."""
        critic, critic_terms = self.critic_loss(policy, batch, noise)
        actor, actor_terms = self.actor_loss(policy, batch, noise)
        return critic + actor, critic_terms | actor_terms

    def update(self, replay: Replay) -> Metrics:
        c, seen = self.config, Averages()
        self.updates += 1
        rate = c.factor(update=self.updates, steps=self.steps, total_steps=self.total_steps)
        self.steps += replay.steps
        evaluate = self.policy.once_differentiable()
        for _ in range(c.gradient_steps):
            self.critic_steps += 1
            actor_too = self.critic_steps % c.actor_every == 0
            batch = replay.draw(c.batch_size)
            noise = torch.randn(batch.actions.shape, generator=self.generator).to(batch.actions.device)
            total, terms = (self.loss if actor_too else self.critic_loss)(evaluate, batch, noise)
            self.critics.gradient.zero_()
            self.actor.gradient.zero_()
            total.backward()
            norms = {"optimiser/critic_grad_norm": self.critics.norm()}
            if actor_too:
                norms["optimiser/actor_grad_norm"] = self.actor.norm()
            seen.add(terms | norms, self.updates)
            self.critics.step(rate * c.critic_learning_rate, norms["optimiser/critic_grad_norm"])
            if actor_too:
                self.actor.step(rate * c.actor_learning_rate, norms["optimiser/actor_grad_norm"])
                follow(self.target_critics, self.critics.flat, tau=c.tau)
                follow(self.target_actor, self.actor.flat, tau=c.tau)
        return seen.metrics() | {
            "optimiser/rate": rate,
            "optimiser/gradient_steps": float(c.gradient_steps),
            "replay/size": float(replay.size),
        }

    def state_dict(self) -> State:
        return {
            "actor": self.actor.state_dict(),
            "critics": self.critics.state_dict(),
            "generator": self.generator.get_state(),
            "process": self.process.state_dict(),
            "updates": self.updates,
            "steps": self.steps,
            "critic_steps": self.critic_steps,
        }

    def load_state_dict(self, state: State) -> None:
        self.actor.load_state_dict(state["actor"])
        self.critics.load_state_dict(state["critics"])
        self.generator.set_state(state["generator"])
        self.process.load_state_dict(state["process"])
        self.updates, self.steps, self.critic_steps = state["updates"], state["steps"], state["critic_steps"]
