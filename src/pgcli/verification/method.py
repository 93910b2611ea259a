"""A policy-gradient method for the checks: its own `prepare` and `loss`, with the settings that a check needs."""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any, get_args

import torch
from pydantic import ValidationError
from torch import Tensor

from pgcli.experiment.config import compose
from pgcli.registry import complete
from pgcli.types import Rollout, Stochastic
from pgcli.verification import oracle as oracles
from pgcli.verification.oracle import Oracle, Table, reward_to_go

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "surrogate": ("clipped",),
    "dual_clip": (None,),
    "gamma": (1.0,),
    "gae_lambda": (1.0,),
    "normalise_advantages": ("none", False),
    "baseline": ("none",),
    "advantage": ("centred",),
    "aggregation": ("sequence_sum",),
    "aggregation_length": (None,),
    "entropy_coefficient": (0.0,),
    "clip_range_value": (None,),
    "kl_penalty": ({"coefficient": 0.0, "target": None},),
}
"""Setting -> the first of these values that it can have."""
KEEPS_DISCOUNT = ("vanilla_pg",)
"""Built-in methods whose gradient has the factor gamma^t; all others drop it, as nearly everyone does (Thomas 2014)."""
GROUP = 2
"""Members of a group, where groups are enumerated."""


@cache
def configured(option: str) -> Any:
    """A method's settings, none of which depends on the environment. Cached, because every topic needs them."""
    return compose([f"algo={option}", "env=garnet", "tuned=none"]).algo


class Method:
    """An algorithm as `conf/algo/<option>.yaml` has it, to be made with other settings."""

    def __init__(self, option: str) -> None:
        self.option = option
        self.config: Any = configured(option)
        self.algorithm: Any = complete("algo", self.config.name)
        self.neutral = self.config
        for setting, values in NEUTRAL.items():
            fitting = [value for value in values if self.can(setting, value, self.neutral)]
            self.neutral = self.having(self.neutral, {setting: fitting[0]}) if fitting else self.neutral

    def having(self, config: Any, changes: dict[str, Any]) -> Any:
        return type(config).model_validate(config.model_dump() | changes)

    def can(self, setting: str, value: Any, config: Any = None) -> bool:
        """Whether the method has this setting, and accepts this value (in `config`, by default its own)."""
        try:
            return self.having(config or self.config, {setting: value}).model_dump()[setting] == value
        except (ValidationError, KeyError):
            return False

    def has(self, setting: str) -> bool:
        return setting in type(self.config).model_fields

    def with_those_of(self, settings: dict[str, Any]) -> Any:
        """Its own settings, with those of `settings` that it has and accepts."""
        config = self.config
        for setting, value in settings.items():
            config = self.having(config, {setting: value}) if self.can(setting, value, config) else config
        return config

    def choices(self, setting: str) -> tuple[Any, ...]:
        """The possible values of a setting with a few alternatives."""
        return get_args(type(self.config).model_fields[setting].annotation) if self.has(setting) else ()

    def collects(self, *ways: str) -> bool:
        return bool(set(ways) & set(self.algorithm.collects))

    @property
    def grouped(self) -> bool:
        return not self.collects("segments", "episodes", "gradients")

    @property
    def role(self) -> Any:
        return self.algorithm.needs(self.config)

    @property
    def stochastic(self) -> bool:
        return isinstance(self.role, Stochastic)

    def critic(self, **settings: Any) -> bool:
        return self.algorithm.needs(self.having(self.neutral, settings)).critic

    @property
    def built_in(self) -> bool:
        return self.algorithm.__module__.startswith("pgcli.algorithms.")

    @property
    def declares(self) -> bool:
        """Whether it is biased on purpose, and declares its expected gradient."""
        return hasattr(self.algorithm, "expected_credit")

    def declared(self, rollout: Rollout) -> Tensor:
        """(N, T): the credit of each action that it declares."""
        return self.algorithm.expected_credit(self.neutral, rollout).expand_as(rollout.rewards)

    def make(self, table: Any, **settings: Any) -> Any:
        return self.algorithm(table, self.having(self.neutral, settings), total_steps=1_000, seed=0)

    def loss(self, table: Any, rollout: Rollout, *, policy: Any = None, **settings: Any) -> Tensor:
        """Its loss, prepared with `table` and evaluated at `policy` (None: the table itself)."""
        one = self.make(table, **settings)
        return one.loss(policy or table, one.prepare(rollout), None)[0]

    def ascent(self, table: Table, rollout: Rollout, *, at: Table | None = None, **settings: Any) -> Tensor:
        """(S, A): minus the gradient of its loss with respect to the logits, as a sum over an episode."""
        loss = self.loss(table, rollout, policy=at, **settings) * self.scale(rollout)
        (gradient,) = torch.autograd.grad(loss, [(at or table).logits], allow_unused=True)
        return torch.zeros_like(table.logits) if gradient is None else -gradient

    def scale(self, rollout: Rollout) -> Tensor | float:
        """The factor that makes a mean over actions a sum over an episode; 1 if it is already a sum."""
        return mean_length(rollout) if self.per_action else 1.0

    @cached_property
    def per_action(self) -> bool:
        """Whether its loss is a mean over actions that no setting changes."""
        if self.has("aggregation"):
            return False
        oracle, rollout, exact = case(self)
        table = oracle.table()
        (loss,) = torch.autograd.grad(self.loss(table, rollout), [table.logits])
        return bool((loss * oracle.mean_length + exact).norm() < (loss + exact).norm())


def case(method: Method) -> tuple[Oracle, Rollout, Tensor]:
    """All data that the method learns from, enumerated, and the gradient that it must have."""
    oracle = oracles.small() if method.grouped else oracles.ending()
    rollout = oracle.groups(GROUP) if method.grouped else oracle.rollout(oracle.solve().values)
    if method.declares:
        return oracle, rollout, oracle.expected_score(rollout, method.declared(rollout))
    # A group's mean contains the episode's own return: a share 1/K of the gradient cancels.
    share = (GROUP - 1) / GROUP if method.grouped and method.can("advantage", "centred") else 1.0
    return oracle, rollout, oracle.gradient() * share


def credit_of(method: Method, rollout: Rollout) -> Tensor:
    """(N, T): a method's credit of an action, up to terms of expectation zero."""
    if method.declares:
        return method.declared(rollout)
    if not method.grouped:
        # Earlier rewards and baselines drop out of the expectation only if every action has the same weight: here the
        # weight depends on the length. So they must be those of the method.
        return method.make(oracles.ending().table()).prepare(rollout).advantages
    returns = reward_to_go(rollout)[:, :1].view(-1, GROUP)
    credit = (returns - returns.flip(1)) / (2 if method.can("advantage", "centred") else 1)
    return credit.view(-1, 1).expand_as(rollout.rewards)


def mean_length(rollout: Rollout) -> Tensor:
    lengths = rollout.mask.sum(1).double()
    return lengths.mean() if rollout.weights is None else rollout.weights @ lengths
