"""The surrogates: losses that are reused on a policy that has moved, and the effect of the clip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from pgcli.functional import dynamic_programming as dp
from pgcli.types import Rollout
from pgcli.verification import oracle as oracles
from pgcli.verification.check import Check, equal
from pgcli.verification.method import GROUP, Method, case, credit_of
from pgcli.verification.oracle import Table, reward_to_go


def off_the_behaviour_policy(method: Method) -> Iterator[Check]:
    """A surrogate with a wide open clip, at parameters that have moved: importance weights correct for it."""
    opened: dict[str, Any] = {}
    if method.has("clip_range") and method.config.clip_range is not None:
        opened["clip_range"] = 1e9
    if method.has("clip"):
        opened["clip"] = {"low": 1.0, "high": 1e9}
    oracle, rollout, _ = case(method)
    table, moved = oracle.table(), oracle.table(moved=0.5)
    likelier = replace(rollout, log_probs=rollout.log_probs - 1.0)
    ours = method.ascent(table, rollout, at=moved, **opened)
    if torch.equal(ours, method.ascent(table, likelier, at=moved, **opened)):
        return  # it does not use the behaviour policy: one step per batch
    there = moved.probabilities
    if method.grouped:
        returns = reward_to_go(rollout)[:, :1].view(-1, GROUP)
        credit = returns - returns.flip(1)  # leave-one-out with two episodes
        if method.can("advantage", "centred"):
            credit = credit / 2
        s = rollout.observations.argmax(-1)
        ratio = there[s, rollout.actions] / oracle.policy[s, rollout.actions]
        exact = oracle.expected_score(rollout, ratio * credit.view(-1, 1), at=there)
    else:
        exact = dp.softmax_gradient(oracle.visits, there, oracle.solve().action_values)
    note = "off the behaviour policy, the clip open: weighted by the ratio"
    yield equal(method.option, "grad of the surrogate", exact, ours, note=note)


def four_corners(method: Method) -> Iterator[Check]:
    """Outside the clip range the gradient is zero in two corners, and not in the two where the policy went wrong."""
    settings: dict[str, Any]
    low, high = 0.2, 0.3
    if method.has("clip"):
        settings = {"clip": {"low": low, "high": high}}
    elif method.config.clip_range is not None:
        settings, high = {"clip_range": low}, low
    else:
        return
    above, below = 1 + 1.1 * high, 1 - 1.1 * low
    corners = (
        ("A > 0, ratio above: clipped", 1.0, above, False),
        ("A < 0, ratio above: pulled back", -1.0, above, True),
        ("A > 0, ratio below: pulled back", 1.0, below, True),
        ("A < 0, ratio below: clipped", -1.0, below, False),
        ("A > 0, inside", 1.0, 1 + 0.9 * high, True),
        ("A < 0, inside", -1.0, 1 - 0.9 * low, True),
    )
    # One episode of one step for each corner, in a state of its own; pairs of them are groups with mean 0.
    count = len(corners)
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).expand(count, 3)
    oracle = oracles.bandit(torch.zeros_like(policy), policy)
    ratios = torch.tensor([ratio for _, _, ratio, _ in corners], dtype=torch.float64)[:, None]
    rewards = torch.tensor([a for _, a, _, _ in corners], dtype=torch.float64)[:, None]
    ended = torch.ones((count, 1), dtype=torch.bool)
    rollout = Rollout(
        observations=torch.eye(count, dtype=torch.float64)[:, None], actions=torch.ones((count, 1), dtype=torch.int64),
        rewards=rewards, terminated=ended, truncated=~ended, mask=ended, log_probs=policy[:, 1:2].log() - ratios.log(),
        values=torch.zeros_like(rewards), next_values=torch.zeros_like(rewards), groups=torch.arange(count) // 2,
        weights=torch.full((count,), 1 / count, dtype=torch.float64),
    )  # fmt: skip
    ours = method.ascent(oracle.table(), rollout, **settings) * count
    score = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64) - policy[0]
    for i, (name, advantage, ratio, flows) in enumerate(corners):
        exact = advantage * ratio * score if flows else torch.zeros(3, dtype=torch.float64)
        note = "outside the clip range, and not zero" if flows and not 1 - low <= ratio <= 1 + high else ""
        yield equal(method.option, name, exact, ours[i], note=note)


def its_own_surrogate(method: Method) -> Iterator[Check]:
    """A GRPO variant's use of the ratio, on- and off-policy, with each row's sum computed independently."""
    name, config = method.config.surrogate, method.config
    if name == "clipped":
        return  # the corners
    oracle, rollout, exact = case(method)
    settings: dict[str, Any] = {"surrogate": name, "clip": {"low": 0.3, "high": 0.1}}
    lengths = rollout.mask.sum(1, keepdim=True)
    if name == "gspo":
        settings["aggregation"] = "sequence_mean"
        exact = oracle.expected_score(rollout, credit_of(method, rollout) / lengths)
    ours = method.ascent(oracle.table(), rollout, **settings)
    note = f"{name} at ratio 1: the gradient of the expected return, divided by lengths" if name == "gspo" else ""
    yield equal(method.option, "grad at ratio 1", exact, ours, note=note or f"{name}: the policy gradient")

    moved = oracle.table(moved=0.8)
    there, s = moved.probabilities, rollout.observations.argmax(-1)
    log_ratio = torch.where(rollout.mask, (there / oracle.policy).log()[s, rollout.actions], 0)
    credit = credit_of(method, rollout)
    up = credit > 0
    match name:
        case "gspo":
            ratio = (log_ratio.sum(1, keepdim=True) / lengths).exp().expand_as(log_ratio)
            held = torch.where(up, ratio > 1.1, ratio < 0.7)
            weight = torch.where(held, 0, ratio / lengths)
            note = f"a whole episode's ratio: {float(held[:, 0].double().mean()):.0%} of the rows are clipped"
        case "cispo":
            weight = log_ratio.exp().clamp(0.7, 1.1)
            note = "a clipped weight, and no action without its gradient"
        case "sapo":
            tau = torch.where(up, config.gate.positive, config.gate.negative)
            p = (tau * (log_ratio.exp() - 1)).sigmoid()
            weight = 4 * p * (1 - p) * log_ratio.exp()
            note = "4 p (1 - p) times the ratio"
        case _:
            raise AssertionError(name)
    exact = oracle.expected_score(rollout, weight * credit, at=there)
    ours = method.ascent(oracle.table(), rollout, at=moved, **settings)
    yield equal(method.option, f"grad of {name}, moved", exact, ours, note=note)


def value_clipping(method: Method) -> Iterator[Check]:
    """The gradient of a clipped V vanishes only after V has moved towards its target by enough."""
    held = 0.2
    # V, its target, and 2 (V - target) or 0; V_old is 0.
    cases = (
        (1.0, 3.0, 0.0),
        (1.0, 0.0, 2.0),
        (-1.0, -3.0, 0.0),
        (-1.0, 0.0, -2.0),
        (0.1, 1.0, -1.8),
        (-0.1, -1.0, 1.8),
    )
    v, target, exact = torch.tensor(cases, dtype=torch.float64).T
    count = len(cases)
    oracle = oracles.bandit(target[:, None], torch.ones((count, 1), dtype=torch.float64))
    table = Table(oracle.logits, v)
    loss = method.loss(
        table, oracle.rollout(torch.zeros((2, count), dtype=torch.float64)), clip_range_value=held, value_coefficient=1
    )
    (ours,) = torch.autograd.grad(loss, [table.critic])
    note = "nearer by enough: 0; farther, or within the range: twice the error"
    yield equal(method.option, "grad of the clipped value loss", exact / count, ours, note=note)
