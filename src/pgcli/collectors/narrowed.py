"""Temperature, top-k and top-p sampling: for inspection only, never for training."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pgcli.errors import InputError
from pgcli.functional.narrowing import narrow
from pgcli.types import Observations


def narrowed(policy: Any, *, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None) -> Any:
    """The policy with a narrowed distribution, or the policy itself if nothing is narrowed. Raises InputError."""
    if not 0 < temperature < float("inf"):
        raise InputError(f"--temperature must be above 0, not {temperature:g}; --greedy takes the likeliest token")
    if top_k is not None and top_k < 1:
        raise InputError(f"--top-k must be 1 or more, not {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"--top-p must be above 0 and at most 1, not {top_p:g}")
    if min_p is not None and not 0 < min_p <= 1:
        raise InputError(f"--min-p must be above 0 and at most 1, not {min_p:g}")
    if (temperature, top_k, top_p, min_p) == (1.0, None, None, None):
        return policy
    if not hasattr(policy, "prefill"):
        raise InputError("temperature, top-k, top-p and min-p narrow what a policy writes, and this one writes nothing")
    return Narrowed(policy, {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p})


class Narrowed:
    """A policy whose improbable tokens are cut off while it writes; everything else is passed on to the policy."""

    has_critic = False

    def __init__(self, policy: Any, how: dict[str, Any]) -> None:
        self._policy, self._how = policy, how

    def prefill(self, observations: Observations) -> tuple[Tensor, Any]:
        logits, cache = self._policy.prefill(observations)
        return narrow(logits, **self._how), cache

    def step(self, tokens: Tensor, cache: Any) -> Tensor:
        return narrow(self._policy.step(tokens, cache), **self._how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)
