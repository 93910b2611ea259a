"""The protocols of an algorithm and of the collector that it learns from."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from pgcli.types.policy import Needs
from pgcli.types.tree import Metrics, State


class Algorithm(Protocol):
    """One class per module. It declares what it needs; it never checks which world (control or text) it is in."""

    Config: ClassVar[type]
    """A `Settings` model; its values are in `conf/algo/<name>.yaml`."""
    METRICS: ClassVar[dict[str, str]]
    """Every key that `update` returns, with its meaning."""
    collects: ClassVar[tuple[str, ...]]
    """Ways of collecting that it can learn from, best first: `segments`, `episodes`, `groups`, `demonstrations`,
    `revisions`, `pairs`, `judged`, `labelled`, `checked`, `transitions`, `replay`, `population`, `gradients`."""

    @staticmethod
    def needs(config: Any) -> Needs:
        """The role that its policy must fill."""
        ...

    def update(self, rollout: Any) -> Metrics:
        """Learn from the collector's data. An algorithm may also have `behaviour()`: the policy that acts in training,
        if it is not the policy itself (an exploring one, a population); `warnings(config)`: problems of settings that
        run nevertheless; `implicit_reward(policy, texts)`: (N,), if it makes the policy its own reward model, which is
        then evaluated on what a task holds out of its pairs. Two more say what `pgcli verify` should expect of it: if a
        policy gradient is biased on purpose, `expected_credit(config, rollout)`: (N, T), the credit of each action,
        E[-grad L] = E[sum_t credit_t grad log pi(a_t | s_t)]; and if action values are learned for another policy than
        the greedy one, `expected_values(config, values)`: (S,), the value of each state with these action values,
        (S, n).
        """
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


class Collector(Protocol):
    """Plays a policy and returns the data that an algorithm learns from: a Rollout, a Replay, ..."""

    def collect(self, policy: Any) -> Any: ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...
