"""A target network: a copy of the policy that lags behind it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from pgcli.functional.temporal_difference import follow


class Target:
    """Called like the policy. Its parameters are views of one buffer, as the `Updater`'s are."""

    def __init__(self, policy: Any, flat: Tensor) -> None:
        self.flat = flat.clone()
        module = copy.deepcopy(policy).requires_grad_(False)
        at = 0
        for p in module.parameters():
            p.grad = None
            p.data = self.flat[at : at + p.numel()].view_as(p)
            at += p.numel()
        self._evaluate = module.once_differentiable()

    @torch.no_grad()
    def __call__(self, observations: Tensor) -> Any:
        return self._evaluate(observations)

    def follow(self, online: Tensor, *, tau: float) -> None:
        """Move towards the policy's parameters, (P,): all the way if `tau` is 1."""
        follow(self.flat, online, tau=tau)
