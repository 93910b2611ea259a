"""Noise of an algorithm's gradient at its present policy, measured on fresh rollouts of the size it learns from.

To compare estimators at one policy: the same `init`, and an evaluation before the policy has changed much.
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
    "gradient/variance": "trace of the covariance of the policy term's gradient between rollouts",
    "gradient/signal": "squared norm of the policy term's expected gradient, estimated without bias; may be negative",
    "gradient/relative_variance": "gradient/variance divided by gradient/signal; missing if the signal is lost in the "
    "noise",
}


def check(parts: Parts) -> None:
    """Raises InputError for an algorithm that has no loss on a rollout whose gradient it follows."""
    algorithm: Any = parts.algorithm
    follows = hasattr(algorithm, "prepare") and hasattr(algorithm, "updater") and "loss/policy" in algorithm.METRICS
    if not follows or "gradients" in algorithm.collects:
        raise InputError(
            f"eval.gradients: algo={parts.config.choices['algo']} has no loss on a rollout whose gradient could be "
            "measured: take eval.gradients=0"
        )


def measure(parts: Parts, rollouts: int) -> Metrics:
    """Gradient noise of the loss's policy term at the present parameters. Changes neither them nor later rollouts."""
    algorithm: Any = parts.algorithm
    before, drawn = copy.deepcopy(parts.collector.state_dict()), algorithm.updater.generator.get_state()
    gradients = []
    for _ in range(rollouts):
        rollout = parts.collector.collect(parts.behaviour())
        gradients.append(algorithm.updater.policy_gradient(algorithm.loss, algorithm.prepare(rollout)).cpu())
    parts.collector.load_state_dict(before)
    algorithm.updater.generator.set_state(drawn)  # `prepare` may draw, too
    found = gradient_noise(torch.stack(gradients))
    metrics = {"gradient/variance": float(found.variance), "gradient/signal": float(found.signal)}
    relative = float(found.relative)
    return metrics | ({"gradient/relative_variance": relative} if math.isfinite(relative) else {})
