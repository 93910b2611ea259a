"""How noisy an algorithm's gradient is where its policy stands: measured, on fresh rollouts of the size it learns from.

For comparing estimators at one policy: the same `init`, one evaluation before learning has got anywhere.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

from pgcli.errors import InputError
from pgcli.experiment.build import Parts
from pgcli.functional.gradient_noise import gradient_noise
from pgcli.types import Metrics

METRICS = {
    "gradient/variance": "trace of the covariance of the policy term's gradient, from one rollout to another",
    "gradient/signal": "squared length of its expectation, estimated without bias; may be negative",
    "gradient/relative_variance": "the first over the second; missing where the signal is lost in the noise",
}


def check(parts: Parts) -> None:
    """Raises InputError for an algorithm that follows no gradient of a loss of its own."""
    algorithm: Any = parts.algorithm
    follows = hasattr(algorithm, "prepare") and hasattr(algorithm, "updater") and "loss/policy" in algorithm.METRICS
    if not follows or "gradients" in algorithm.collects:
        raise InputError(
            f"eval.gradients: algo={parts.config.choices['algo']} has no loss on a rollout whose gradient could be "
            "measured: take eval.gradients=0"
        )


def measure(parts: Parts, rollouts: int) -> Metrics:
    """Of the policy term of the loss, at the present parameters. Neither they nor what is collected next change."""
    before = copy.deepcopy(parts.collector.state_dict())
    algorithm: Any = parts.algorithm
    gradients = []
    for _ in range(rollouts):
        rollout = parts.collector.collect(parts.behaviour())
        gradients.append(algorithm.updater.policy_gradient(algorithm.loss, algorithm.prepare(rollout)).cpu())
    parts.collector.load_state_dict(before)
    found = gradient_noise(torch.stack(gradients))
    metrics = {"gradient/variance": float(found.variance), "gradient/signal": float(found.signal)}
    relative = float(found.relative)
    return metrics | ({"gradient/relative_variance": relative} if math.isfinite(relative) else {})
