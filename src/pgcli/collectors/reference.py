"""The reference policy: a frozen policy from which the divergence of the trained one is measured."""

from __future__ import annotations

from typing import Any

import torch

from pgcli import processes
from pgcli.functional.kl import k1, k2, k3
from pgcli.functional.masked import masked_sum
from pgcli.types import Collector, Evaluation, Metrics, Rollout, State, each_tensor

ROW = "a row (an episode; with segments, algo.num_steps actions)"
METRICS = {
    "kl/exact": f"KL(policy || reference) of {ROW}: exact in each of its states, summed; mean over rows, nats",
    "kl/k1": f"KL(policy || reference) of {ROW}, estimated by the sum of its log-ratios; mean over rows, nats",
    "kl/k2": f"KL(policy || reference) of {ROW}, estimated by the sum of log-ratio^2 / 2; mean over rows, nats",
    "kl/k3": f"KL(policy || reference) of {ROW}, estimated by the sum of exp(-log-ratio) - 1 + log-ratio; mean over "
    "rows, nats",
}


class Referenced:
    """A collector whose rollouts also get the reference's log-probs of the same actions."""

    def __init__(self, collector: Collector, reference: Any) -> None:
        self.collector, self.reference = collector, reference

    def collect(self, policy: Any) -> Rollout:
        rollout: Rollout = self.collector.collect(policy)
        found = view(self.reference, rollout)
        rollout.reference_log_probs = torch.where(rollout.mask, found.log_probs, 0)
        rollout.metrics = rollout.metrics | divergence(rollout, found)
        return rollout

    def state_dict(self) -> State:
        return self.collector.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.collector.load_state_dict(state)

    def __getattr__(self, name: str) -> Any:
        """`close`, `replay_mismatch`: methods that only some collectors have."""
        return getattr(self.collector, name)


@torch.no_grad()
def view(policy: Any, rollout: Rollout) -> Evaluation:
    """A policy's evaluation of a rollout's actions, (N, T)."""
    if policy.unit == "sequence":
        return processes.shared(policy)(rollout.observations, rollout.actions)
    flat = each_tensor(rollout.observations, lambda x: x.flatten(0, 1))
    found = policy(flat, rollout.actions.flatten(0, 1))
    return Evaluation(*(each_tensor(x, lambda y: y.unflatten(0, rollout.mask.shape)) for x in found))


def divergence(rollout: Rollout, reference: Evaluation) -> Metrics:
    """Divergence of the acting policy from the reference, summed over each row, mean over rows."""

    def of_a_row(per_action: torch.Tensor) -> float:
        return float(masked_sum(per_action, rollout.mask, dim=1).mean())

    own, other = rollout.log_probs, reference.log_probs
    found = {f"kl/{f.__name__}": of_a_row(f(own, other)) for f in (k1, k2, k3)}
    if rollout.distribution is not None:
        found["kl/exact"] = of_a_row(rollout.distribution.kl(reference.distribution))
    return found
