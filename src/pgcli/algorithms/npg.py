"""Natural policy gradient (Kakade 2001).

    L(theta) = E[ pi(a_t | s_t) / pi_old(a_t | s_t) A_t ] + c_e E[ H ],   grad L at pi_old: the policy gradient
    F        = E_s[ Hessian of KL(pi_old(. | s) || pi(. | s)) ]                            Fisher, never built
    theta   <- theta + alpha (F + eps I)^-1 grad L

    step plain        alpha = step_size
         normalised   alpha = sqrt(2 max_kl / x^T (F + eps I) x), x the direction: the quadratic model's KL is max_kl

and then V is fitted by Adam, on the parameters that the policy does not depend on: where the two share a trunk, only
the critic's own, so that fitting V does not move the policy.
Differs from A2C: distance is measured between policies and not between parameters, so that coordinates do not matter.
Differs from TRPO: one step of that length is taken without a check that it improves the objective.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pgcli.algorithms import _update
from pgcli.algorithms._finite import finite
from pgcli.algorithms._update import (
    OptimiserSettings,
    Terms,
    Updater,
    by_unit,
    held_still,
    present_distribution,
    twice_differentiable,
)
from pgcli.collectors.settings import Either
from pgcli.functional.advantages import gae
from pgcli.functional.masked import weighted_sum, whiten
from pgcli.functional.policy_loss import surrogate
from pgcli.functional.trust_region import assign, depends_on, flatten, natural_gradient
from pgcli.functional.value_loss import explained_variance, value_mse
from pgcli.types import Batch, Metrics, Needs, PolicyFunction, Rollout, State, Stochastic


class NPG:
    class Config(OptimiserSettings, Either):
        name: Literal["npg"]
        gamma: float = Field(ge=0, le=1, description="discount per step")
        gae_lambda: float = Field(
            ge=0, le=1, description="lambda of the advantages: 0 gives the one-step TD error, 1 the return minus V"
        )
        step: Literal["plain", "normalised"] = Field(
            description="length of the step: plain is step_size times the natural gradient; normalised goes as far as "
            "max_kl allows"
        )
        step_size: float = Field(gt=0, description="alpha of a plain step")
        max_kl: float = Field(
            gt=0, description="KL(pi_old || pi) of a normalised step according to the quadratic model, in nats"
        )
        damping: float = Field(ge=0, description="eps: added to the Fisher matrix's diagonal")
        cg_iterations: int = Field(ge=1, description="conjugate-gradient iterations, one Fisher-vector product each")
        cg_tolerance: float = Field(
            ge=0,
            description="conjugate gradient stops when the residual's norm falls below this fraction of the gradient's",
        )
        value_epochs: int = Field(ge=1, description="passes over each batch to fit V, after the policy's step")
        value_minibatches: int = Field(ge=1, description="minibatches per value epoch, one Adam step each")
        normalise_advantages: bool = Field(description="scale a batch's advantages to mean 0 and standard deviation 1")
        aggregation: Literal["token_mean", "sequence_mean", "sequence_sum"] = Field(
            description="how the policy loss is averaged over actions"
        )
        entropy_coefficient: float = Field(ge=0, description="weight of the entropy bonus, per action")

    METRICS: ClassVar = _update.METRICS | {
        "loss/policy": "the importance-sampled surrogate, negated, before the step",
        "loss/value": "mean squared error of V against the lambda-returns, averaged over the steps that fit it",
        "policy/entropy": "entropy of the policy before the step, mean per action, in nats",
        "policy/kl": "exact KL(pi_old || pi) of the step that was taken, mean over states, in nats",
        "policy/improvement": "gain of the objective (surrogate and entropy bonus) by the step",
        "policy/predicted_improvement": "gain that the objective's linear model predicted for the step",
        "policy/grad_norm": "norm of the objective's gradient",
        "policy/cg_residual": "|(F + eps I) x - g| / |g|: how far the direction is from solving its equations",
        "value/explained_variance": "share of the returns' variance that V explains, 1 - Var(return - V) / "
        "Var(return), before the update",
    }
    collects = ("segments", "episodes")
    actions = ("discrete", "continuous")

    @staticmethod
    def needs(config: Config) -> Needs:
        return Stochastic(critic=True)

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.policy, self.config = policy, config
        self.updater = Updater(policy, config, total_steps=total_steps, seed=seed)

    def prepare(self, rollout: Rollout) -> Batch:
        advantages = gae(
            rollout.rewards, rollout.values, rollout.next_values, rollout.terminated, rollout.done,
            gamma=self.config.gamma, lam=self.config.gae_lambda, mask=rollout.mask,
        )  # fmt: skip
        returns = advantages + rollout.values
        if self.config.normalise_advantages:
            advantages = whiten(advantages, rollout.mask)
        batch = rollout.batch(advantages, self.config.aggregation, returns)
        batch.distribution = present_distribution(self.policy, rollout)
        return batch

    def loss(self, policy: PolicyFunction, batch: Batch, noise: None) -> tuple[Tensor, Terms]:
        new = policy(batch.observations, batch.actions)
        policy_loss = -weighted_sum(surrogate(new.log_probs, batch.log_probs, batch.advantages), batch.weights)
        entropy = weighted_sum(new.entropy, batch.per_action)
        kl = weighted_sum(batch.distribution.kl(new.distribution), batch.per_action)
        total = policy_loss - self.config.entropy_coefficient * entropy
        return total, {"loss/policy": policy_loss, "policy/entropy": entropy, "policy/kl": kl}

    def value_loss(self, policy: PolicyFunction, batch: Batch, noise: None) -> tuple[Tensor, Terms]:
        new = policy(batch.observations, batch.actions)
        value_loss = weighted_sum(value_mse(new.values, batch.returns), batch.per_action)
        return value_loss, {"loss/value": value_loss}

    def update(self, rollout: Rollout) -> Metrics:
        batch = self.prepare(rollout)
        fit = explained_variance(batch.values, batch.returns, batch.mask)
        moved, metrics = self._step(by_unit(self.policy, batch))
        with held_still(moved):
            fitted = self.updater.epochs(
                self.value_loss, batch,
                epochs=self.config.value_epochs, minibatches=self.config.value_minibatches, steps=rollout.steps,
            )  # fmt: skip
        return fitted | metrics | {"value/explained_variance": float(fit)}

    def _step(self, batch: Batch) -> tuple[list[Tensor], Metrics]:
        """Move the policy. Returns the parameters that it depends on, and metrics."""
        c = self.config
        with twice_differentiable():
            total, terms = self.loss(self.policy, batch, None)
            parameters = depends_on(total, self.policy.parameters())
            found = natural_gradient(
                -total, terms["policy/kl"], parameters,
                damping=c.damping, iterations=c.cg_iterations, tolerance=c.cg_tolerance,
            )  # fmt: skip
        alpha = c.step_size if c.step == "plain" else found.length(c.max_kl)
        step = alpha * self.updater.schedule() * found.direction
        metrics = finite(
            {
                "loss/policy": terms["loss/policy"].item(),
                "policy/entropy": terms["policy/entropy"].item(),
                "policy/grad_norm": float(torch.linalg.vector_norm(found.gradient)),
                "policy/cg_residual": found.residual,
                "policy/predicted_improvement": float(found.gradient @ step),
            },
            self.updater.updates + 1,
        )
        assign(parameters, flatten(parameters) + step)
        with torch.no_grad():
            after, moved = self.loss(self.policy, batch, None)
        return parameters, metrics | {
            "policy/improvement": (total - after).item(),
            "policy/kl": moved["policy/kl"].item(),
        }

    def state_dict(self) -> State:
        return self.updater.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)
