"""The policy gradients: every policy-gradient method, through its own `prepare` and `loss`, against exact grad J.

Conditions of most rows: fixed horizon, gamma 1, the policy term alone, advantages not whitened, summed over an
episode's steps and averaged over episodes, before any clip and before the optimiser. `NEUTRAL` sets a method's own
settings to these, if it has them, so that a plug-in is checked like a built-in. Later rows remove one condition at a
time, and compare the gradient with its predicted bias.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from pgcli.functional import dynamic_programming as dp
from pgcli.types import Batch, Rollout
from pgcli.verification import oracle as oracles
from pgcli.verification.check import Check, at_most, equal, of_each, safely
from pgcli.verification.estimators import (
    a_shift_of_the_reward,
    a_wrong_critic,
    baselines,
    discounting,
    group_statistics,
    likelihood_of_success,
    trading_bias_for_variance,
    truncation,
)
from pgcli.verification.method import GROUP, Method, case, credit_of
from pgcli.verification.oracle import Table, angle
from pgcli.verification.shared import SHARED
from pgcli.verification.surrogates import four_corners, its_own_surrogate, off_the_behaviour_policy, value_clipping


def checks(only: Collection[str] = ()) -> Iterator[Check]:
    """Rows of the algorithms in `only`; of all and of what they share, if it is empty."""
    if not only:
        for shared in SHARED:
            yield from safely("", shared)
    yield from of_each(only, Method, _topics, what="its loss")


def _topics(method: Method) -> Iterator[Callable[[Method], Iterator[Check]]]:
    """The topics that apply to a method, by its way of collecting and its settings."""
    if not method.stochastic:
        return
    if method.collects("demonstrations"):
        yield maximum_likelihood
    if not method.collects("segments", "episodes", "groups", "gradients") or method.has("selection"):
        return  # the topics `language` and `preferences` check these
    if method.declares:
        yield as_it_declares
    else:
        yield gradient_of_the_return
        yield from _of_an_unbiased(method)
    if not method.collects("gradients"):
        yield an_update
    yield adding_up
    if method.has("entropy_coefficient"):
        yield entropy_bonus
    if method.has("value_coefficient") or hasattr(method.algorithm, "value_loss"):
        yield fitting_the_values


def _of_an_unbiased(method: Method) -> Iterator[Callable[[Method], Iterator[Check]]]:
    """The topics of an unbiased method, and of its bias when a condition is removed."""
    yield from (group_statistics, a_shift_of_the_reward) if method.grouped else (discounting, a_wrong_critic)
    if method.collects("segments", "gradients"):
        yield truncation
    if method.has("gae_lambda"):
        yield trading_bias_for_variance
    if method.has("baseline"):
        yield baselines
    yield off_the_behaviour_policy
    if method.has("clip") or method.has("clip_range"):
        yield four_corners
    if method.has("surrogate"):
        yield its_own_surrogate
    if method.has("advantage") and method.config.advantage == "maxrl":
        yield likelihood_of_success
    if method.has("clip_range_value"):
        yield value_clipping


def gradient_of_the_return(method: Method) -> Iterator[Check]:
    """The basic check: at the behaviour policy's parameters, E[-grad L] = grad J."""
    oracle, rollout, exact = case(method)
    quantity = note = ""
    if method.grouped:
        note = f"over all groups of K = {GROUP} with one initial state"
    if method.can("advantage", "centred"):
        quantity, note = "(K-1)/K ", f"{note}: the mean contains its own return"
    elif method.has("clip_range"):
        note = "of the surrogate, at ratio 1"
    if method.per_action:
        note = f"a mean over actions: times the mean length{'; ' * bool(note)}{note}"
    yield equal(method.option, f"{quantity}grad J", exact, method.ascent(oracle.table(), rollout), note=note)


def as_it_declares(method: Method) -> Iterator[Check]:
    """A method that is biased on purpose must have the gradient of the credit that it declares, instead of grad J."""
    oracle, rollout, exact = case(method)
    right = oracle.gradient()
    note = f"{angle(exact, right):.1f} degrees from grad J, and {float(exact.norm() / right.norm()):.2f} times as long"
    ours = method.ascent(oracle.table(), rollout)
    yield equal(method.option, "biased grad J, as it declares", exact, ours, note=note)


def an_update(method: Method) -> Iterator[Check]:
    """Its own `update`, which no other row calls: whatever the optimiser makes of the gradient, it must climb."""
    oracle, rollout, exact = case(method)
    yield _rises(method, oracle.table(), rollout, exact)


def _rises(method: Method, table: Table, rollout: Rollout, exact: Tensor) -> Check:
    before = table.logits.detach().clone()
    one_step = {setting: 1 for setting in ("epochs", "minibatches") if method.can(setting, 1)}
    method.make(table, **one_step).update(rollout)
    turned = angle(table.logits.detach() - before, exact)
    return at_most(method.option, "angle of an update", 90.0, turned, note="degrees from the exact gradient")


def adding_up(method: Method) -> Iterator[Check]:
    """The weights of actions, and that cutting a batch into minibatches does not change them."""
    oracle, rollout, exact = case(method)
    table = oracle.table()
    length = 7.0
    predicted = {"token_mean": exact / oracle.mean_length, "constant": exact / length}
    notes = {"token_mean": "predicted: divided by the mean length", "constant": f"predicted: divided by {length:g}"}
    for choice in method.choices("aggregation"):
        settings = {"aggregation": choice} | ({"aggregation_length": length} if choice == "constant" else {})
        if choice == "sequence_mean":
            credit = credit_of(method, rollout) / rollout.mask.sum(1, keepdim=True)
            predicted[choice] = oracle.expected_score(rollout, credit)
            turned = angle(predicted[choice], exact)
            notes[choice] = f"an action of a long episode counts less: {turned:.1f} degrees from grad J"
        if choice in predicted:
            ours = method.ascent(table, rollout, **settings)
            yield equal(method.option, f"grad, {choice}", predicted[choice], ours, note=notes[choice])

    one = method.make(table)
    batch = one.prepare(rollout)
    if isinstance(batch, Batch):
        pieces = batch.single_actions()
        order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0))
        total = sum(one.loss(table, piece, None)[0] for piece in pieces.minibatches(5, order)) / 5
        total = total * method.scale(rollout)
        (ours,) = torch.autograd.grad(total, [table.logits])
        yield equal(
            method.option,
            "grad, in 5 minibatches",
            exact,
            -ours,
            note="of single actions, shuffled: the mean of their gradients",
        )


def entropy_bonus(method: Method) -> Iterator[Check]:
    """The gradient of the entropy bonus, per action, at the visited states."""
    oracle, rollout, _ = case(method)
    coefficient = 0.7
    table = oracle.table()
    ours = method.ascent(table, rollout, entropy_coefficient=coefficient) - method.ascent(table, rollout)
    ours = ours / method.scale(rollout)  # the bonus is always a mean over actions
    log_pi = oracle.policy.log()
    entropy = -(oracle.policy * log_pi).sum(-1, keepdim=True)
    share = oracle.visits.sum(0)[:, None] / oracle.mean_length
    exact = -coefficient * share * oracle.policy * (log_pi + entropy)
    yield equal(method.option, "grad of the entropy bonus", exact, ours, note=f"coefficient {coefficient:g}")


def fitting_the_values(method: Method) -> Iterator[Check]:
    """The critic moves towards the exact values: twice the error, at the visited states."""
    settings: dict[str, Any] = {"baseline": "value"} if "value" in method.choices("baseline") else {}
    oracle = oracles.ending()
    table, values = oracle.table(), oracle.solve().values
    coefficient = 1.0
    if method.has("value_coefficient"):
        settings["value_coefficient"] = coefficient = 0.3
    one = method.make(table, **settings)
    batch = one.prepare(oracle.rollout(values))
    fit = getattr(one, "value_loss", one.loss)
    (ours,) = torch.autograd.grad(fit(table, batch, None)[0], [table.critic])
    exact = 2 * coefficient * (oracle.visits * (oracle.guess - values[:-1])).sum(0) / oracle.mean_length
    yield equal(method.option, "grad of the value loss", exact, ours, note=f"coefficient {coefficient:g}")


def maximum_likelihood(method: Method) -> Iterator[Check]:
    """On demonstrations of another policy: the gradient of their likelihood, per action."""
    oracle = oracles.ending()
    teacher = oracle.table(moved=1.0).probabilities
    seen = dp.visits(oracle.mdp, teacher, oracle.horizon).sum(0)
    exact = seen[:, None] * (teacher - oracle.policy) / seen.sum()
    rollout = oracle.rollout(behaviour=teacher)
    yield equal(
        method.option, "grad of the log-likelihood", exact, method.ascent(oracle.table(), rollout),
        note="of another policy's actions: a policy gradient with advantage 1",
    )  # fmt: skip
    yield _rises(method, oracle.table(), rollout, exact)
