"""The mathematics that all methods share: the oracle, the trade of lambda, and the estimators of a KL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from pgcli.functional import dynamic_programming as dp
from pgcli.functional.kl import k1, k2, k3, k3_corrected
from pgcli.functional.masked import weighted_sum
from pgcli.functional.policy_loss import policy_gradient
from pgcli.verification import oracle as oracles
from pgcli.verification.check import Check, at_most, equal
from pgcli.verification.moments import LAMBDAS, gae_gradient, gae_variance
from pgcli.verification.oracle import angle, reward_to_go, row


def the_oracle_itself() -> Iterator[Check]:
    """The same number in two ways: by dynamic programming, and by the sum over all trajectories."""
    oracle = oracles.ending()
    rollout, solved = oracle.rollout(), oracle.solve()
    assert rollout.weights is not None
    value = dp.expected_return(oracle.mdp, solved.values[0])
    returns = reward_to_go(rollout)[:, 0]
    yield equal("", "J", value, (rollout.weights * returns).sum(), note=f"the sum over {len(returns)} trajectories")
    added = oracle.expected_score(rollout, reward_to_go(rollout))
    yield equal("", "grad J", oracle.gradient(), added, note="by the policy gradient theorem; by adding up")
    table = oracle.table()
    evaluated = table(rollout.observations, rollout.actions)
    ones = torch.ones_like(rollout.rewards)
    weights = torch.where(rollout.mask, rollout.weights[:, None], 0)
    loss = weighted_sum(policy_gradient(evaluated.log_probs, ones), weights)
    (score,) = torch.autograd.grad(loss, [table.logits])
    yield equal(
        "", "mean of the score", torch.zeros_like(score), score, note="E[grad log pi] = 0, so a baseline is free"
    )


def the_trade_of_lambda() -> Iterator[Check]:
    """With a wrong V, bias falls with lambda and variance rises: true here and usually, but not a theorem."""
    oracle = oracles.ending()
    exact = oracle.gradient()
    biases = [float((gae_gradient(oracle, lam) - exact).norm()) for lam in LAMBDAS]
    variances = [float(gae_variance(oracle, lam)) for lam in LAMBDAS]
    yield equal("", "bias of GAE, lambda 1", 0.0, biases[-1], note="whatever V is: V is a baseline only")
    for i, (low, high) in enumerate(pairwise(LAMBDAS)):
        yield at_most("", f"bias, lambda {high:g}", biases[i], biases[i + 1], note=f"of lambda {low:g}")
        yield at_most("", f"variance, lambda {low:g}", variances[i + 1], variances[i], note=f"of lambda {high:g}")


def kl_estimators() -> Iterator[Check]:
    """Value, gradient in the loss, gradient in the reward: an estimator may be right in one and wrong in another.

    One state, four actions, each weighted by its probability.
    """
    logits, reference = row(0.3, -1.0, 0.8, 0.1)[0], row(-0.5, 0.4, 0.2, 1.0)[0].log_softmax(-1)
    behaviour = row(0.0, 0.5, -0.5, 0.3)[0].log_softmax(-1)
    logits = logits.requires_grad_()
    new = logits.log_softmax(-1)
    log_pi = new.detach()
    pi, ratio = log_pi.exp(), log_pi - reference
    forward = (pi * ratio).sum()
    to_reference = pi * (ratio - forward)  # grad KL(pi || ref)
    from_reference = pi - reference.exp()  # grad KL(ref || pi)
    half_square = 0.5 * (pi * ratio.square()).sum()

    def slope(x: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(x, [logits], retain_graph=True)
        return gradient

    estimators = {"k1": k1(new, reference), "k2": k2(new, reference), "k3": k3(new, reference)}
    for name, x in estimators.items():
        exact = half_square if name == "k2" else forward
        note = f"biased: E[ratio^2]/2, and not the KL of {float(forward):.4f}" if name == "k2" else "KL(pi || ref)"
        yield equal("", f"{name}, value", exact, (pi * x).sum(), note=note)
    in_loss = {
        "k1": (torch.zeros_like(pi), "zero: it holds nothing in a loss"),
        "k2": (to_reference, "grad KL(pi || ref)"),
        "k3": (from_reference, "grad KL(ref || pi): the other direction"),
    }
    for name, (exact, note) in in_loss.items():
        yield equal("", f"{name}, gradient in the loss", exact, slope((pi * estimators[name]).sum()), note=note)
    in_reward = {
        "k1": (to_reference, "grad KL(pi || ref)"),
        "k2": (pi * (0.5 * ratio.square() - half_square), f"{_angle_of(half_square, ratio, pi):.1f} degrees from it"),
        "k3": (to_reference - from_reference, "grad KL(pi || ref) - grad KL(ref || pi)"),
    }
    for name, (exact, note) in in_reward.items():
        penalised = (pi * policy_gradient(new, -estimators[name])).sum()
        yield equal("", f"{name}, gradient in the reward", exact, slope(penalised), note=note)

    acted = behaviour.exp()
    corrected = k3_corrected(new, reference, behaviour)
    note = "KL(pi || ref), on actions of another policy"
    yield equal("", "k3 corrected, value", forward, (acted * corrected).sum(), note=note)
    yield equal("", "k3 corrected, gradient in the loss", to_reference, slope((acted * corrected).sum()), note=note)


def kl_of_sequences() -> Iterator[Check]:
    """The KL of whole trajectories: k1 as a reward with gamma 1, or k2 of the summed log-ratio in the loss."""
    oracle = oracles.ending()
    reference = oracle.table(moved=0.7).probabilities.log()
    logits = oracle.logits.clone().requires_grad_()
    policy = logits.softmax(-1)
    per_state = (policy * (policy.log() - reference)).sum(-1)
    exact_value = (dp.visits(oracle.mdp, policy, oracle.horizon) @ per_state).sum()
    (exact,) = torch.autograd.grad(exact_value, [logits])

    rollout, table = oracle.rollout(), oracle.table()
    assert rollout.weights is not None
    s = rollout.observations.argmax(-1)
    new = torch.where(rollout.mask, table(rollout.observations, rollout.actions).log_probs, 0)
    old = torch.where(rollout.mask, reference[s, rollout.actions], 0)
    penalties = replace(rollout, rewards=-k1(new, old).detach())
    weights = torch.where(rollout.mask, rollout.weights[:, None], 0)
    (by_reward,) = torch.autograd.grad(
        weighted_sum(policy_gradient(new, reward_to_go(penalties)), weights), [table.logits], retain_graph=True
    )
    whole = k2(new.sum(1), old.sum(1))
    (by_loss,) = torch.autograd.grad((rollout.weights * whole).sum(), [table.logits])
    yield equal("", "sequence KL, value", exact_value, (rollout.weights * k1(new, old).sum(1)).sum(), note="k1, summed")
    yield equal("", "sequence KL, k1 as a reward", exact, by_reward, note="grad KL of trajectories, gamma 1")
    yield equal("", "sequence KL, k2 in the loss", exact, by_loss, note="grad KL of trajectories")


SHARED = (the_oracle_itself, the_trade_of_lambda, kl_estimators, kl_of_sequences)


def _angle_of(half_square: Tensor, ratio: Tensor, pi: Tensor) -> float:
    return angle(pi * (0.5 * ratio.square() - half_square), pi * (ratio - (pi * ratio).sum()))
