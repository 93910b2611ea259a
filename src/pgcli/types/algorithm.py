"""What an algorithm is, and the collector that it learns from."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from pgcli.types.policy import Needs
from pgcli.types.tree import Metrics, State


class Algorithm(Protocol):
    """One class a module. It says what it needs; it never asks which world it is in."""

    Config: ClassVar[type]
    """A `Settings` model; its values are in `conf/algo/<name>.yaml`."""
    METRICS: ClassVar[dict[str, str]]
    """Every key that `update` returns, with its meaning."""
    collects: ClassVar[tuple[str, ...]]
    """What it can learn from, best first: `segments`, `episodes`, `groups`, `demonstrations`, `revisions`, `pairs`,
    `judged`, `labelled`, `checked`, `transitions`, `replay`, `population`, `gradients`."""

    @staticmethod
    def needs(config: Any) -> Needs:
        """What it asks of its policy."""
        ...

    def update(self, rollout: Any) -> Metrics:
        """Learn from what the collector handed on. An algorithm may also have `behaviour()`: who acts while training,
        where that is not the policy itself (it explores, or is a population), `warnings(config)`: what it runs though
        something is wrong with it, and `expected_credit(config, rollout)`, where it is biased on purpose: (N, T), what
        it credits each action with, E[-grad L] = E[sum_t credit_t grad log pi(a_t | s_t)], for `pgcli verify`.
        """
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


class Collector(Protocol):
    """Plays a policy and hands on what an algorithm learns from, a Rollout or a Replay."""

    def collect(self, policy: Any) -> Any: ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...
