"""Estimators of the advantage: the predicted bias and variance of each, compared with its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from pgcli.algorithms.grpo import EPSILON
from pgcli.functional import dynamic_programming as dp
from pgcli.verification import oracle as oracles
from pgcli.verification.check import Check, equal
from pgcli.verification.method import GROUP, KEEPS_DISCOUNT, Method
from pgcli.verification.moments import (
    LAMBDAS,
    gae_gradient,
    gae_variance,
    gradient_variance,
    variance_of_estimates,
    variance_through,
)
from pgcli.verification.oracle import angle, each_row_its_own, reward_to_go, row, rows_of

ODDS = (
    torch.tensor([[1.0, -0.5, 2.0], [0.3, 1.5, -1.0]], dtype=torch.float64),
    torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], dtype=torch.float64),
)
"""Rewards and probabilities of a bandit with two states and three actions."""


def discounting(method: Method) -> Iterator[Check]:
    """With gamma < 1, reward-to-go leaves out gamma^t: the result is known, and not the gradient of any objective."""
    if not method.has("gamma"):
        return
    gamma, oracle = 0.8, oracles.ending()
    ours = method.ascent(oracle.table(), oracle.rollout(oracle.solve(gamma).values), gamma=gamma)
    exact, usual = oracle.gradient(gamma), oracle.gradient(gamma, discounted_states=False)
    bias, turned = float((usual - exact).norm()), angle(usual, exact)
    # A plug-in may do either; of a built-in method it is known.
    nearer = bool((ours - exact).norm() < (ours - usual).norm())
    if method.option in KEEPS_DISCOUNT if method.built_in else nearer:
        yield equal(method.option, f"grad J, gamma {gamma}", exact, ours, note="unbiased: gamma^t is kept")
    else:
        note = f"drops gamma^t: predicted bias {bias:.3g}, {turned:.1f} degrees from grad J"
        yield equal(method.option, f"biased grad J, gamma {gamma}", usual, ours, note=note)


def a_wrong_critic(method: Method) -> Iterator[Check]:
    """A wrong critic causes no bias as a baseline, but does if it is bootstrapped from."""
    if not method.critic():
        return
    oracle = oracles.ending()
    ours = method.ascent(oracle.table(), oracle.rollout())
    exact, biased = oracle.gradient(), gae_gradient(oracle, 0.0)
    # A plug-in may bootstrap without a setting for it; no built-in method does at lambda 1.
    if method.built_in or (ours - exact).norm() < (ours - biased).norm():
        yield equal(method.option, "grad J, wrong V", exact, ours, note="V is a baseline only")
    else:
        bias = float((biased - exact).norm())
        note = f"bootstraps from V after one step: predicted bias {bias:.3g}"
        yield equal(method.option, "biased grad J, wrong V", biased, ours, note=note)


def truncation(method: Method) -> Iterator[Check]:
    """A cut segment is bootstrapped with V: with the exact V, the gradient is that of its steps."""
    if not method.critic():
        return
    oracle, cut = oracles.ending(), 2
    solved = oracle.solve()
    exact = dp.softmax_gradient(oracle.visits[:cut], oracle.policy, solved.action_values[:cut])
    ours = method.ascent(oracle.table(), oracle.rollout(solved.values, cut=cut))
    yield equal(
        method.option, "grad J, cut segments", exact, ours, note="the first 2 of 3 steps, bootstrapped from exact V"
    )


def trading_bias_for_variance(method: Method) -> Iterator[Check]:
    """lambda: no effect on the expectation if V is exact; otherwise it trades bias for variance."""
    oracle = oracles.ending()
    table, solved = oracle.table(), oracle.solve()
    right, wrong = oracle.rollout(solved.values), oracle.rollout()

    unbiased = torch.stack([method.ascent(table, right, gae_lambda=lam) for lam in LAMBDAS])
    exact = oracle.gradient().expand_as(unbiased)
    several = ", ".join(f"{lam:g}" for lam in LAMBDAS)
    yield equal(method.option, "grad J, exact V, any lambda", exact, unbiased, note=f"lambda {several}")

    predicted = torch.stack([gae_gradient(oracle, lam) for lam in LAMBDAS])
    ours = torch.stack([method.ascent(table, wrong, gae_lambda=lam) for lam in LAMBDAS])
    biases = (predicted - exact).flatten(1).norm(dim=1)
    note = f"lambda {several}: predicted bias {_list(biases)}"
    yield equal(method.option, "biased grad J, wrong V, any lambda", predicted, ours, note=note)

    variances = torch.stack([gae_variance(oracle, lam) for lam in LAMBDAS])
    found = []
    for lam in LAMBDAS:
        batch = method.make(table, gae_lambda=lam).prepare(wrong)
        found.append(variance_of_estimates(oracle, wrong, batch.advantages))
    note = f"lambda {several}: predicted variance {_list(variances)}"
    yield equal(method.option, "variance of A, wrong V", variances, torch.stack(found), note=note)


def baselines(method: Method) -> Iterator[Check]:
    """A baseline changes no expectation; its effect on the variance depends on the baseline."""
    choices = method.choices("baseline")
    oracle = oracles.ending()
    for choice in choices:
        ours = method.ascent(oracle.table(), oracle.rollout(), baseline=choice)
        note = "a constant here; in a batch, see the next" if choice == "mean" else ""
        if choice != "none":
            yield equal(method.option, f"grad J, baseline {choice}", oracle.gradient(), ours, note=note)
    if "mean" in choices:
        yield from _batch_mean(method)
    if not {"none", "value"} <= set(choices):
        return

    level, shift = oracles.endless(), 5.0
    shifted = oracles.endless()
    shifted.mdp = shifted.mdp._replace(rewards=shifted.mdp.rewards + shift)
    variances = {}
    for name, world in (("r", level), (f"r + {shift:g}", shifted)):
        values = world.solve().values
        for choice, subtracted in (("none", torch.zeros_like(values)), ("value", values)):
            rollout = world.rollout(values)
            exact = gradient_variance(world, rollout, subtracted)
            ours = variance_through(method, world, rollout, baseline=choice)
            variances[choice, name] = float(exact)
            note = ""
            if choice == "none" and name != "r":
                note = f"{variances[choice, name] / variances[choice, 'r']:.0f} times that without the shift"
            if choice == "value":
                note = "the shift changes nothing: that is a baseline's gift" if name != "r" else "with exact V"
            yield equal(method.option, f"variance, baseline {choice}, {name}", exact, ours, note=note)
    gift = [variances["value", name] for name in ("r", f"r + {shift:g}")]
    yield equal(method.option, "variance, baseline value: both", gift[0], gift[1], note="shift-invariant")

    rare = oracles.bandit(row(1.0, 0.0), row(0.9, 0.1))  # the better action is the common one
    values = rare.solve().values
    rollout = rare.rollout(values)
    without = gradient_variance(rare, rollout, torch.zeros_like(values))
    exact = gradient_variance(rare, rollout, values)
    note = f"of a rare action, {float(exact / without):.1f} times that without: a baseline does not always lower it"
    ours = variance_through(method, rare, rollout, baseline="value")
    yield equal(method.option, "variance, baseline value, bandit", exact, ours, note=note)


def _batch_mean(method: Method) -> Iterator[Check]:
    """A batch's mean contains each episode's own return. In one-step episodes: (N-1)/N of the gradient is left."""
    oracle = oracles.bandit(*ODDS)
    every, table = oracle.rollout(), oracle.table()
    assert every.weights is not None
    rows = len(every.weights)
    total = torch.zeros_like(oracle.policy)
    for pair in product(range(rows), repeat=2):
        drawn = torch.tensor(pair)
        batch = replace(rows_of(every, drawn), weights=None)
        total += every.weights[drawn].prod() * method.ascent(table, batch, baseline="mean")
    note = "the mean of a batch of 2: predicted (N-1)/N grad J"
    yield equal(method.option, "biased grad J, baseline mean", oracle.gradient() / 2, total, note=note)


def group_statistics(method: Method) -> Iterator[Check]:
    """Divided by their group's deviation, returns give another direction than grad J, enumerated independently."""
    if not method.can("advantage", "standardised"):
        return
    oracle = oracles.small()
    for size in (2, 3):
        rollout = oracle.groups(size)
        returns = reward_to_go(rollout)[:, 0].view(-1, size)
        deviation = (returns - returns.mean(1, keepdim=True)).square().mean(1, keepdim=True).sqrt()
        credit = ((returns - returns.mean(1, keepdim=True)) / (deviation + EPSILON)).view(-1, 1)
        exact = oracle.expected_score(rollout, credit.expand_as(rollout.rewards))
        ours = method.ascent(oracle.table(), rollout, advantage="standardised")
        note = f"{angle(exact, oracle.gradient()):.1f} degrees from grad J: dividing by the deviation turns it"
        yield equal(method.option, f"standardised, groups of {size}", exact, ours, note=note)


def a_shift_of_the_reward(method: Method) -> Iterator[Check]:
    """With a baseline, a constant added to every return changes no episode's gradient, in any sample."""
    oracle = oracles.bandit(*ODDS)
    rollout, shift = oracle.groups(GROUP), 5.0
    table = oracle.table()
    policy, leaf = each_row_its_own(table, len(rollout.rewards))

    def each(rewards: Tensor) -> Tensor:
        loss = method.loss(table, replace(rollout, rewards=rewards), policy=policy)
        return torch.autograd.grad(loss, [leaf])[0]

    level, shifted = each(rollout.rewards), each(rollout.rewards + shift)
    if (level - shifted).norm() < level.norm():  # there is a baseline
        yield equal(method.option, f"each gradient, r and r + {shift:g}", level, shifted, note="shift-invariant")


def likelihood_of_success(method: Method) -> Iterator[Check]:
    """MaxRL: with groups of K, for rewards of 0 or 1, the gradient of sum_{k<K} pass@k / k, and not that of the return.

    log p = -sum_k (1 - p)^k / k: these are the first terms of the likelihood, up to a constant.
    """
    oracle = oracles.bandit(row(1.0, 0.0, 0.0), row(0.2, 0.5, 0.3))
    score = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64) - oracle.policy
    p = oracle.policy[0, 0]
    for size in (2, 3, 4):
        slope = sum((1 - p) ** (k - 1) for k in range(1, size))  # d/dp of pass@k is k (1 - p)^(k - 1)
        ours = method.ascent(oracle.table(), oracle.groups(size), advantage="maxrl")
        note = f"the sum of pass@k / k for k < {size}; log p weights by {float(1 / p):g}, this by {float(slope):.3g}"
        yield equal(method.option, f"grad, groups of {size}", slope * p * score, ours, note=note)


def _list(x: Tensor) -> str:
    return ", ".join(f"{value:.2g}" if value > 1e-12 else "0" for value in x.tolist())
