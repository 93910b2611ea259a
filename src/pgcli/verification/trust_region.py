"""Natural gradients, trust regions, a penalty on the KL, and the best constant baseline.

Whole updates of `npg` and `trpo`, including the optimiser, on every trajectory of a world; the required results are
computed here with explicit matrices. An update's states are those that the policy visits, once per action.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor, nn

from pgcli.functional import dynamic_programming as dp
from pgcli.functional.trust_region import fisher_vector_product
from pgcli.types import Rollout
from pgcli.verification import oracle as oracles
from pgcli.verification.check import Check, at_most, equal
from pgcli.verification.method import Method
from pgcli.verification.oracle import Oracle, Table, reward_to_go, rows_of

ALGOS = ("npg", "trpo", "ppo_kl", "cpi", "reinforce")
SOLVED: dict[str, Any] = {"cg_iterations": 100, "cg_tolerance": 1e-13}
"""Settings with which conjugate gradient solves the equations exactly."""


def checks() -> Iterator[Check]:
    yield from fisher()
    yield from natural_step()
    yield from reparameterised()
    yield from trust_region()
    yield from lower_bound()
    yield from monotonic_improvement()
    yield from kl_penalty()
    yield from far_off()
    yield from best_baseline()
    yield from best_baseline_of_a_batch()


# ---------------------------------------------------------------- natural gradients


def fisher() -> Iterator[Check]:
    """The products with F in an update, compared with the matrix; and the matrix is singular."""
    oracle = oracles.ending()
    exact, table = _fisher(oracle), oracle.table()
    one = Method("npg").make(table)
    _, terms = one.loss(table, one.prepare(_rollout(oracle)), None)
    product_ = fisher_vector_product(terms["policy/kl"], [table.logits], damping=0.0)
    ours = torch.stack([product_(row) for row in torch.eye(len(exact), dtype=torch.float64)])
    rank = int(torch.linalg.matrix_rank(exact))
    note = f"12 logits, rank {rank}: of 3 states all logits can be shifted, the 4th ends the episode"
    yield equal("npg", "F, by products", exact, ours, note=note)


def natural_step() -> Iterator[Check]:
    """An update moves the logits by alpha (F + eps I)^-1 grad J, with alpha as configured or by max_kl."""
    oracle, damping = oracles.ending(), 0.05
    gradient = oracle.gradient().flatten()
    damped = _fisher(oracle) + damping * torch.eye(len(gradient), dtype=torch.float64)
    direction = torch.linalg.solve(damped, gradient)

    step, _ = _step("npg", oracle, step="plain", step_size=0.3, damping=damping, **SOLVED)
    yield equal("npg", "plain step", 0.3 * direction, step, note=f"0.3 (F + {damping} I)^-1 grad J")

    step, metrics = _step("npg", oracle, step="normalised", max_kl=0.002, damping=damping, **SOLVED)
    alpha = math.sqrt(2 * 0.002 / float(direction @ gradient))
    note = f"sqrt(2 max_kl / x^T (F + {damping} I) x) = {alpha:.3g} times the same"
    yield equal("npg", "normalised step", alpha * direction, step, note=note)
    predicted = alpha * float(direction @ gradient)
    yield equal("npg", "predicted improvement", predicted, metrics["policy/predicted_improvement"])


def reparameterised() -> Iterator[Check]:
    """In other coordinates the policy after the step is the same; after a plain gradient step it is not."""
    oracle = oracles.ending()
    size = oracle.logits.numel()
    generator = torch.Generator().manual_seed(0)
    matrix = torch.eye(size, dtype=torch.float64) + 0.3 * torch.randn(
        size, size, dtype=torch.float64, generator=generator
    )
    other = Reparameterised(oracle, matrix)
    policies, visited = [], ~oracle.mdp.terminal
    for table in (oracle.table(), other):
        # Damping would depend on the coordinates. Without it F is singular, but the equations still have solutions.
        one = Method("npg").make(
            table, step="plain", step_size=0.3, damping=0.0, cg_iterations=size, cg_tolerance=1e-10
        )
        one.update(_rollout(oracle))
        policies.append(table.probabilities[visited])
    gradient = oracle.gradient().flatten()
    plain = [
        (oracle.logits + 0.3 * step.view_as(oracle.logits)).softmax(-1)
        for step in (gradient, matrix @ matrix.T @ gradient)
    ]
    apart = float((plain[0] - plain[1]).abs().max())
    note = f"logits = M theta; after a plain gradient's step of that size they differ by {apart:.2g}"
    yield equal("npg", "policy, in other coordinates", *policies, note=note)


class Reparameterised(Table):
    """The same policy in other coordinates: logits = M theta."""

    def __init__(self, oracle: Oracle, matrix: Tensor) -> None:
        nn.Module.__init__(self)
        self.matrix, self.shape = matrix, oracle.logits.shape
        self.theta = nn.Parameter(torch.linalg.solve(matrix, oracle.logits.flatten()))
        self.critic = nn.Parameter(oracle.guess.clone())

    @property
    def logits(self) -> Tensor:  # type: ignore[override]
        return (self.matrix @ self.theta).view(self.shape)


# ---------------------------------------------------------------- trust regions


def trust_region() -> Iterator[Check]:
    """The step is the longest of those tried that improves and has an exact KL within the bound."""
    max_kl, damping, shrink = 0.02, 1e-3, 0.8
    rare = torch.tensor([[0.97, 0.03]], dtype=torch.float64)
    worlds = {
        "": oracles.ending(),
        ", rare action": oracles.bandit(torch.tensor([[0.0, 1.0]], dtype=torch.float64), rare),
    }
    for name, oracle in worlds.items():
        gradient = oracle.gradient().flatten()
        damped = _fisher(oracle) + damping * torch.eye(len(gradient), dtype=torch.float64)
        direction = torch.linalg.solve(damped, gradient)
        full = (math.sqrt(2 * max_kl / float(direction @ gradient)) * direction).view_as(oracle.logits)
        kl = math.inf
        for tries in range(1, 10):
            there = (oracle.logits + shrink ** (tries - 1) * full).softmax(-1)
            kl, gained = float(_share(oracle) @ _kl(oracle.policy, there)), float(_promise(oracle, there))
            if kl <= max_kl and gained > 0:
                break
        settings = {"max_kl": max_kl, "damping": damping, "line_search_shrink": shrink, **SOLVED}
        step, metrics = _step("trpo", oracle, **settings)
        note = (
            "as long as the quadratic model has it"
            if tries == 1
            else f"{tries} lengths: the quadratic model is too bold"
        )
        yield equal("trpo", f"step{name}", shrink ** (tries - 1) * full.flatten(), step, note=note)
        yield equal("trpo", f"KL of the step{name}", kl, metrics["policy/kl"], note="mean over visited states")
        yield at_most("trpo", f"KL of the step{name}", max_kl, metrics["policy/kl"])
        yield equal("trpo", f"gain of the surrogate{name}", gained, metrics["policy/improvement"])


def lower_bound() -> Iterator[Check]:
    """L(pi') - C max_s KL <= J(pi'), so a step that raises the left side cannot lower J.

    With a horizon H and no discount: |J - L| <= sum_t 2 max|Abar| TV(d'_t, d_t), where |Abar| <= 2 a max|A|,
    TV(d'_t, d_t) <= t a and a = max_s TV(pi', pi) <= sqrt(max_s KL / 2). So C = H (H - 1) max|A|.
    (Schulman et al. 2015, theorem 1, where the horizon is discounted.)
    """
    oracle = oracles.ending()
    solved = oracle.solve()
    before = dp.expected_return(oracle.mdp, solved.values[0])
    advantages = solved.action_values - solved.values[:-1, :, None]
    largest = advantages[:, ~oracle.mdp.terminal].abs().max()
    price = oracle.horizon * (oracle.horizon - 1) * largest
    for max_kl in (1e-4, 0.02, 0.5):
        table = oracle.table()
        one = Method("trpo").make(table, max_kl=max_kl, damping=1e-6, **SOLVED)
        batch = one.prepare(_rollout(oracle))
        one.update(_rollout(oracle))
        surrogate = before - one.loss(table, batch, None)[0].detach()
        furthest = _kl(oracle.policy, table.probabilities)[~oracle.mdp.terminal].max()
        after = float(_return(oracle, table))
        note = f"J was {float(before):.4f}, C = {float(price):.1f}, max KL {float(furthest):.2g}"
        bound = float(surrogate - price * furthest)
        yield at_most("trpo", f"L - C max KL, max_kl {max_kl:g}", after, bound, note=note)


def monotonic_improvement() -> Iterator[Check]:
    """In repeated updates, each on the trajectories of the present policy, J never falls."""
    oracle = oracles.ending()
    best = dp.expected_return(oracle.mdp, dp.backward_induction(oracle.mdp, oracle.horizon, gamma=1.0).values[0])
    table = oracle.table()
    one = Method("trpo").make(table, max_kl=0.02, damping=1e-3)
    returns, largest = [float(_return(oracle, table))], 0.0
    for _ in range(30):
        here = _with_policy_of(oracle, table)
        metrics = one.update(_rollout(here))
        largest = max(largest, metrics["policy/kl"])
        returns.append(float(_return(oracle, table)))
    fall = max(before - after for before, after in pairwise(returns))
    yield at_most("trpo", "fall of J in 30 updates", 0.0, fall)
    note = f"J from {returns[0]:.3f} to {returns[-1]:.3f}; the best there is: {float(best):.3f}"
    yield at_most("trpo", "left to gain after them", 0.01, float(best) - returns[-1], note=note)
    yield at_most("trpo", "KL of each of them", 0.02, largest)


# ---------------------------------------------------------------- with and without a penalty


def kl_penalty() -> Iterator[Check]:
    """The penalty's gradient is that of the exact KL at parameters that have moved; at the old ones it is zero."""
    oracle, beta = oracles.ending(), 0.7
    method, table, moved = Method("ppo_kl"), oracle.table(), oracle.table(moved=0.5)
    there, share = moved.probabilities, _share(oracle)
    penalised: dict[str, Any] = {"kl_penalty": {"coefficient": beta, "target": None}}

    one = method.make(table, **penalised)
    batch = one.prepare(_rollout(oracle))
    exact = beta * share @ _kl(oracle.policy, there)
    yield equal("ppo_kl", "beta KL", exact, one.loss(moved, batch, None)[1]["loss/kl_penalty"])

    surrogate = dp.softmax_gradient(oracle.visits, there, oracle.solve().action_values)
    exact = surrogate - beta * share[:, None] * (there - oracle.policy)
    ours = method.ascent(table, _rollout(oracle), at=moved, **penalised)
    yield equal("ppo_kl", "grad of the penalised surrogate", exact, ours, note=f"off the behaviour policy, beta {beta}")

    for name, clip in (("penalty", None), ("clip and penalty", 0.2)):
        ours = method.ascent(table, _rollout(oracle), clip_range=clip, **penalised)
        yield equal("ppo_kl", f"grad J, {name}", oracle.gradient(), ours, note="the KL is flat where it is zero")


def far_off() -> Iterator[Check]:
    """The bare surrogate's predicted gain for a distant policy, and that policy's actual return."""
    oracle = oracles.ending()
    far = Table(oracle.logits + 20 * oracle.gradient(), oracle.guess)
    one = Method("cpi").make(oracle.table())
    ours = -one.loss(far, one.prepare(_rollout(oracle)), None)[1]["loss/policy"]
    gained = float(_return(oracle, far) - _return(oracle, oracle.table()))
    kl = float(_share(oracle) @ _kl(oracle.policy, far.probabilities))
    exact = _promise(oracle, far.probabilities)
    yield equal(
        "cpi", "surrogate, far off", exact, ours, note=f"KL {kl:.2g}: it promises that much, J gains {gained:.2f}"
    )


# ---------------------------------------------------------------- the best constant baseline


def best_baseline() -> Iterator[Check]:
    """b* compared with the minimum of the variance, a parabola in b, computed from three of its values."""
    method, oracle = Method("reinforce"), oracles.ending()
    rollout = _rollout(oracle)
    returns = reward_to_go(rollout)
    one = method.make(oracle.table(), baseline="optimal")
    b = (returns - one.prepare(rollout).advantages)[rollout.mask]

    def variance(at: float) -> float:
        return float(_variance(oracle, rollout, torch.full_like(returns, at)))

    low, middle, high = (variance(at) for at in (-1.0, 0.0, 1.0))
    lowest = 0.5 * (low - high) / (low - 2 * middle + high)
    mean = float((oracle.visits * oracle.solve().values[:-1]).sum() / oracle.mean_length)
    each = _squared_scores(oracle, rollout)
    assert rollout.weights is not None
    weights = rollout.weights[:, None] * each
    separate = float((weights * returns).sum() / weights.sum())
    note = (
        f"variance {variance(float(b[0])):.4f}; without a baseline {middle:.4f}, with the mean return "
        f"{variance(mean):.4f}, with actions taken as independent {variance(separate):.4f}"
    )
    yield equal("reinforce", "b*", torch.full_like(b, lowest), b, note=note)

    bandit = oracles.bandit(*_TWO_STATES)
    rollout = bandit.rollout()
    assert rollout.weights is not None
    squared = _squared_scores(bandit, rollout)[:, 0] * rollout.weights
    exact = (squared * rollout.rewards[:, 0]).sum() / squared.sum()
    one = method.make(bandit.table(), baseline="optimal")
    ours = rollout.rewards[:, 0] - one.prepare(rollout).advantages[:, 0]
    note = "one action an episode: E[|grad log pi|^2 Q] / E[|grad log pi|^2]"
    yield equal("reinforce", "b*, one step", exact.expand_as(ours), ours, note=note)


def best_baseline_of_a_batch() -> Iterator[Check]:
    """Estimated from the other episodes of a batch, b* leaves the gradient unbiased, over all batches of three."""
    method, oracle = Method("reinforce"), oracles.bandit(*_TWO_STATES)
    every, table = oracle.rollout(), oracle.table()
    assert every.weights is not None
    total = torch.zeros_like(oracle.policy)
    for drawn in product(range(len(every.weights)), repeat=3):
        rows = torch.tensor(drawn)
        batch = rows_of(every, rows)
        batch.weights = None
        total += every.weights[rows].prod() * method.ascent(table, batch, baseline="optimal")
    note = "from the two others: unbiased"
    yield equal("reinforce", "grad J, b* of a batch of 3", oracle.gradient(), total, note=note)


_TWO_STATES = (
    torch.tensor([[1.0, -0.5, 2.0], [0.3, 1.5, -1.0]], dtype=torch.float64),
    torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], dtype=torch.float64),
)
"""Rewards and policy of a bandit."""


# ---------------------------------------------------------------- exact quantities of a world and a policy


def _rollout(oracle: Oracle) -> Rollout:
    """All trajectories, with the exact V."""
    return oracle.rollout(oracle.solve().values)


def _step(option: str, oracle: Oracle, **settings: Any) -> tuple[Tensor, dict[str, float]]:
    """One update's change of the logits, and its metrics."""
    table = oracle.table()
    metrics = Method(option).make(table, **settings).update(_rollout(oracle))
    return (table.logits.detach() - oracle.logits).flatten(), metrics


def _share(oracle: Oracle) -> Tensor:
    """(S,): the weight of each state in a mean over actions."""
    return oracle.visits.sum(0) / oracle.mean_length


def _fisher(oracle: Oracle) -> Tensor:
    return dp.softmax_fisher(_share(oracle), oracle.policy)


def _kl(old: Tensor, new: Tensor) -> Tensor:
    """(S,)"""
    return (old * (old / new).log()).sum(-1)


def _with_policy_of(oracle: Oracle, table: Table) -> Oracle:
    """The same world with the table's policy."""
    other = copy.copy(oracle)
    other.logits, other.policy = table.logits.detach().clone(), table.probabilities
    other.visits = dp.visits(other.mdp, other.policy, other.horizon)
    return other


def _return(oracle: Oracle, table: Table) -> Tensor:
    """J of the table's policy."""
    return dp.expected_return(oracle.mdp, _with_policy_of(oracle, table).solve().values[0])


def _promise(oracle: Oracle, policy: Tensor) -> Tensor:
    """L(policy) - J: its predicted gain on the states that the oracle's own policy visits."""
    return (oracle.visits[..., None] * (policy - oracle.policy) * oracle.solve().action_values).sum()


def _scores(oracle: Oracle, rollout: Rollout) -> Tensor:
    """grad log pi of each action, (N, T, S, A); 0 on padding."""
    s = rollout.observations.argmax(-1)
    states, actions = oracle.policy.shape
    score = nn.functional.one_hot(rollout.actions, actions) - oracle.policy[s]
    placed = nn.functional.one_hot(s, states).double() * rollout.mask[..., None]
    return placed[..., None] * score[:, :, None]


def _squared_scores(oracle: Oracle, rollout: Rollout) -> Tensor:
    """(N, T)"""
    return _scores(oracle, rollout).square().sum((-2, -1))


def _variance(oracle: Oracle, rollout: Rollout, baseline: Tensor) -> Tensor:
    """Trace of the covariance of one episode's sum_t grad log pi (G_t - b_t)."""
    assert rollout.weights is not None
    credit = torch.where(rollout.mask, reward_to_go(rollout) - baseline, 0)
    each = (credit[..., None, None] * _scores(oracle, rollout)).sum(1)
    mean = torch.einsum("n,nsa->sa", rollout.weights, each)
    return rollout.weights @ (each - mean).square().sum((-2, -1))
