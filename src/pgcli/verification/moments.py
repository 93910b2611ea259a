"""Exact mean and variance of GAE with a wrong V, and the exact variance of a gradient, for the checks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pgcli.functional import dynamic_programming as dp
from pgcli.types import Rollout
from pgcli.verification.method import Method
from pgcli.verification.oracle import Oracle, Table, each_row_its_own, reward_to_go

LAMBDAS = (0.0, 0.5, 0.95, 1.0)


# ---------------------------------------------------------------- mean and variance of GAE


def _gae_moments(oracle: Oracle, lam: float) -> tuple[Tensor, Tensor]:
    """E[A_t | s, a] and E[A_t^2 | s, a] of GAE by the oracle's wrong V: (H, S, A) each, by backward induction.

    A_t = delta_t + lam A_{t+1}: the first moment needs that of the next step, the second both of them.
    """
    mdp, v = oracle.mdp, oracle.guess
    live = (~mdp.terminal).double()
    first, second = [], []
    mean, square = torch.zeros_like(v), torch.zeros_like(v)  # of A_{t+1}, in the state reached
    for t in reversed(range(oracle.horizon)):
        further = live if t < oracle.horizon - 1 else torch.zeros_like(live)
        delta = mdp.rewards + further * v - v[:, None, None]  # (S, A, S)
        ahead, ahead_square = lam * further * mean, lam**2 * further * square
        first.append((mdp.transitions * (delta + ahead)).sum(-1))
        second.append((mdp.transitions * (delta.square() + 2 * delta * ahead + ahead_square)).sum(-1))
        mean, square = ((oracle.policy * moments[-1]).sum(-1) for moments in (first, second))
    return torch.stack(first[::-1]), torch.stack(second[::-1])


def gae_gradient(oracle: Oracle, lam: float) -> Tensor:
    return dp.softmax_gradient(oracle.visits, oracle.policy, _gae_moments(oracle, lam)[0])


def gae_variance(oracle: Oracle, lam: float) -> Tensor:
    """Var(A_t | s_t, a_t), averaged over the actions taken."""
    first, second = _gae_moments(oracle, lam)
    taken = oracle.visits[..., None] * oracle.policy
    return (taken * (second - first.square())).sum() / oracle.mean_length


def variance_of_estimates(oracle: Oracle, rollout: Rollout, estimates: Tensor) -> Tensor:
    """The same for given estimates, (N, T), by summation: first within each (t, s, a), then over them."""
    assert rollout.weights is not None
    steps, (states, actions) = rollout.mask.shape[1], oracle.policy.shape
    place = (torch.arange(steps) * states + rollout.observations.argmax(-1)) * actions + rollout.actions
    place, x = place[rollout.mask], estimates[rollout.mask]
    w = rollout.weights[:, None].expand_as(rollout.mask)[rollout.mask]

    def total(y: Tensor) -> Tensor:
        return torch.zeros(steps * states * actions, dtype=torch.float64).index_add(0, place, y)

    mass = total(w)
    mean = total(w * x) / mass.clamp(min=1e-300)
    return total(w * (x - mean[place]).square()).sum() / mass.sum()


# ---------------------------------------------------------------- the variance of a gradient


def gradient_variance(oracle: Oracle, rollout: Rollout, baseline: Tensor) -> Tensor:
    """E |g - E g|^2 of one episode's sum_t grad log pi (G_t - b_t(s_t)), with b (H + 1, S)."""
    assert rollout.weights is not None
    s = rollout.observations.argmax(-1)
    steps = torch.arange(s.shape[1])
    credit = torch.where(rollout.mask, reward_to_go(rollout) - baseline[steps, s], 0)
    states, actions = oracle.policy.shape
    score = torch.nn.functional.one_hot(rollout.actions, actions) - oracle.policy[s]
    placed = torch.nn.functional.one_hot(s, states).double()
    each = torch.einsum("nt,nts,nta->nsa", credit, placed, score)
    return _spread(each, rollout.weights)


def variance_through(method: Method, oracle: Oracle, rollout: Rollout, **settings: Any) -> Tensor:
    """The same for the method's own loss, from the gradient of each row."""
    assert rollout.weights is not None
    table = Table(oracle.logits, oracle.guess)
    policy, leaf = each_row_its_own(table, len(rollout.weights))
    loss = method.loss(table, rollout, policy=policy, **settings) * method.scale(rollout)
    (gradients,) = torch.autograd.grad(loss, [leaf])
    return _spread(-gradients / rollout.weights[:, None, None], rollout.weights)


def _spread(each: Tensor, weights: Tensor) -> Tensor:
    mean = (weights[:, None, None] * each).sum(0)
    return (weights * (each - mean).square().flatten(1).sum(1)).sum()
