"""REINFORCE: reward-to-go with a baseline (Williams 1992; the form of Sutton & Barto 2018, section 13.4).

    G_t = sum_{k >= t} gamma^(k-t) r_k
    L   = -E[ sum_t log pi(a_t | s_t) * (G_t - b) ]   (+ c_v E[ (V(s_t) - G_t)^2 ] where b is a learned V)

    baseline none    b = 0
             mean    b = mean of G over the batch: a little biased, since it contains the action's own return
             value   b = V(s_t), learned on the same returns
             optimal b* = E[Z . S] / E[|S|^2], the constant of least variance: S is an episode's score
                     sum_t grad log pi(a_t | s_t), Z the same sum with G_t in it. For one action an episode it is
                     E[|grad log pi|^2 Q] / E[|grad log pi|^2]. From the other episodes, so that nothing is biased

Episodes are whole and returns are Monte Carlo: a time limit is a finite horizon, and nothing is bootstrapped.
With gamma < 1 the usual omission of gamma^t in front of the sum is made here too: the direction is then not grad J.
Differs from vanilla policy gradient: an action is not credited with earlier rewards.
Differs from A2C: V is a baseline only, and is never bootstrapped from.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from pgcli.algorithms import _kl, _ratio, _update
from pgcli.algorithms._kl import KL, KLSettings
from pgcli.algorithms._update import LOG_RATIOS, LargeNetwork, Terms, Updater, twice_differentiable
from pgcli.collectors.settings import Episodes
from pgcli.functional.advantages import variance_minimising_baseline
from pgcli.functional.masked import masked_mean, weighted_sum, whiten
from pgcli.functional.policy_loss import policy_gradient
from pgcli.functional.returns import discounted_returns
from pgcli.functional.value_loss import explained_variance, value_mse
from pgcli.types import Batch, Metrics, Needs, PolicyFunction, Rollout, State, Stochastic, each_tensor

EPISODES_AT_ONCE = 64
"""Episodes whose gradients the variance-minimising baseline keeps in memory together."""


class Reinforce:
    class Config(LargeNetwork, Episodes):
        name: Literal["reinforce"]
        gamma: float = Field(ge=0, le=1, description="discount per step")
        baseline: Literal["none", "mean", "value", "optimal"] = Field(
            description="what is subtracted from the return: nothing, the batch's mean, a learned V(s), or the "
            "constant of least variance"
        )
        normalise_advantages: bool = Field(description="scale a batch's advantages to mean 0 and standard deviation 1")
        aggregation: Literal["sequence_sum", "sequence_mean", "token_mean"] = Field(
            description="how the policy loss is averaged: sequence_sum gives the gradient of the expected return; the "
            "means divide by lengths"
        )
        value_coefficient: float = Field(ge=0, description="weight of the value loss; with baseline=value")
        entropy_coefficient: float = Field(ge=0, description="weight of the entropy bonus, per action")
        kl: KLSettings = Field(description="a price on leaving a frozen reference policy")

    METRICS: ClassVar = {
        **_update.METRICS,
        **_kl.METRICS,
        **_ratio.MISMATCH,
        **_ratio.ADVANTAGES,
        "loss/policy": "minus the sum of log-prob times advantage; only its gradient is meaningful, not its value",
        "loss/value": "mean squared error of V against the returns; with baseline=value",
        "policy/entropy": "entropy of the policy, mean per action, in nats",
        "value/explained_variance": "share of the returns' variance that V explains, 1 - Var(return - V) / "
        "Var(return), before the update; with baseline=value",
    }
    collects = ("episodes",)
    actions = ("discrete", "continuous")

    @staticmethod
    def needs(config: Config) -> Needs:
        return Stochastic(critic=config.baseline == "value")

    @staticmethod
    def refers(config: Config) -> bool:
        return config.kl.refers

    @staticmethod
    def warnings(config: Config) -> list[str]:
        return config.kl.warnings(gamma=config.gamma)

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.policy, self.config = policy, config
        self.updater = Updater(policy, config, total_steps=total_steps, seed=seed)
        self.kl = KL(config.kl)

    def prepare(self, rollout: Rollout) -> Batch:
        returns = discounted_returns(self.kl.rewards(rollout), rollout.done, gamma=self.config.gamma, mask=rollout.mask)
        match self.config.baseline:
            case "none":
                advantages = returns
            case "mean":
                advantages = returns - masked_mean(returns, rollout.mask)
            case "value":
                advantages = returns - rollout.values
            case "optimal":
                products, squares = self._scores(rollout, returns)
                advantages = returns - variance_minimising_baseline(products, squares, rollout.weights)[:, None]
        if self.config.normalise_advantages:
            advantages = whiten(advantages, rollout.mask)
        return rollout.batch(advantages, self.config.aggregation, returns)

    def _scores(self, rollout: Rollout, returns: Tensor) -> tuple[Tensor, Tensor]:
        """Z . S and |S|^2 of each episode, (N,) each: one forward and two backward passes over the batch.

        Vectorised over EPISODES_AT_ONCE episodes, with one gradient in memory for each; one for each *action* would be
        hundreds of times as many.
        """
        batch = replace(rollout, weights=None).batch(returns, self.config.aggregation)
        # vmap takes the rows one by one: a policy without memory gets a row's actions, another one a batch of one row.
        data: Any = (batch.observations, batch.actions, batch.weights, batch.advantages)
        if self.policy.unit == "sequence":
            data = [each_tensor(tree, lambda x: x.unsqueeze(1)) for tree in data]

        def sums(parameters: State, observations: Any, actions: Tensor, weights: Tensor, credit: Tensor) -> Tensor:
            log_probs = functional_call(self.policy, parameters, (observations, actions)).log_probs
            return torch.stack([weighted_sum(log_probs, weights), weighted_sum(log_probs * credit, weights)])

        def products(parameters: State, *episode: Any) -> Tensor:
            gradients = jacrev(sums)(parameters, *episode).values()  # (2, *shape) each
            score, climb = torch.cat([g.flatten(1) for g in gradients], dim=1)
            return torch.stack([climb @ score, score @ score])

        parameters = {name: p.detach() for name, p in self.policy.named_parameters()}
        with twice_differentiable():
            each = vmap(products, in_dims=(None, 0, 0, 0, 0), chunk_size=EPISODES_AT_ONCE)(parameters, *data)
        return each[:, 0], each[:, 1]

    def loss(self, policy: PolicyFunction, batch: Batch, noise: None) -> tuple[Tensor, Terms]:
        new = policy(batch.observations, batch.actions)
        policy_loss = weighted_sum(policy_gradient(new.log_probs, batch.advantages), batch.weights)
        entropy = weighted_sum(new.entropy, batch.per_action)
        total = policy_loss - self.config.entropy_coefficient * entropy
        terms = {
            "loss/policy": policy_loss,
            "policy/entropy": entropy,
            LOG_RATIOS: (new.log_probs - batch.log_probs).detach(),
        }
        if self.config.baseline == "value":
            terms["loss/value"] = weighted_sum(value_mse(new.values, batch.returns), batch.per_action)
            total = total + self.config.value_coefficient * terms["loss/value"]
        if self.kl.in_loss:
            terms["loss/kl"] = self.kl.loss(new.log_probs, batch)
            total = total + terms["loss/kl"]
        return total, terms

    def update(self, rollout: Rollout) -> Metrics:
        batch = self.prepare(rollout)
        metrics = self.updater.one_step(self.loss, batch, steps=rollout.steps, watch=_ratio.mismatch)
        metrics |= _ratio.spread(batch)
        if self.config.baseline == "value":
            with torch.no_grad():
                fit = explained_variance(batch.values, batch.returns, batch.mask)
            metrics["value/explained_variance"] = float(fit)
        return metrics | self.kl.finish(rollout)

    def state_dict(self) -> State:
        return self.updater.state_dict() | {"kl": self.kl.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)
        self.kl.load_state_dict(state["kl"])
