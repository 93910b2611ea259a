"""Observations and actions as a single environment gives and takes them, beside those of a `VectorEnvironment`."""

from typing import Any

import numpy as np

from pgcli.errors import InputError
from pgcli.types import Continuous, VectorEnvironment


def encoded(environment: VectorEnvironment, observation: Any) -> np.ndarray:
    """An environment's own observation as a policy reads it, (*shape) float32. Raises InputError if it is not one."""
    own = getattr(environment, "encode", np.asarray)
    try:
        seen = np.asarray(own(observation), dtype=np.float32)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise InputError(f"not an observation of the run's environment: {error}") from error
    shape = environment.spec.observation_shape
    if seen.shape != shape:
        raise InputError(f"an observation of shape {seen.shape}, where the run's environment has {shape}")
    return seen


def decoded(environment: VectorEnvironment, action: Any) -> Any:
    """A policy's action as the environment takes it: an int, or an array within its bounds."""
    if hasattr(environment, "decode"):
        return environment.decode(action)
    actions = environment.spec.actions
    return np.clip(action, actions.low, actions.high) if isinstance(actions, Continuous) else int(action)
