"""Searches without a gradient: the estimate of evolution strategies, and invariances of the others.

    J_sigma(theta) = E[ F(theta + sigma eps) ]                                         eps standard normal

has a gradient whether F has one or not. For sines, quadratics and steps it is known in closed form, and the expectation
of the estimate is an integral over eps that quadrature gives to the last digit: Gauss-Hermite nodes where F is smooth,
Gauss-Legendre nodes between the jumps where it is not. The estimate itself is the algorithm's own `gradient`.

Of any other option that searches, with whatever distribution, only this can be said: it must climb.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pgcli.algorithms.es import ES
from pgcli.algorithms.ga import GA
from pgcli.algorithms.nelder_mead import NelderMead
from pgcli.experiment.config import compose
from pgcli.functional.evolution import antithetic
from pgcli.types import Acting, Fitness
from pgcli.verification.check import Check, at_most, equal, of_each
from pgcli.verification.method import Method

BUILT_IN = ("es", "ga", "nelder_mead")
SIGMA = 0.4
Function = Callable[[Tensor], Tensor]
"""(K, P) -> (K,)"""


def checks(only: Collection[str] = ()) -> Iterator[Check]:
    if not only or set(BUILT_IN) & set(only):
        yield from _smoothed_gradient()
        yield from _step_function()
        yield from _several_pairs()
        yield from _invariances()
        yield from _simplex_moves()
    yield from of_each(only, Method, _topics, what="its search")


def _topics(method: Method) -> Iterator[Callable[[Method], Iterator[Check]]]:
    if method.option not in BUILT_IN and isinstance(method.role, Acting):
        yield a_bowl


def a_bowl(method: Method) -> Iterator[Check]:
    """F = -|x|^2 from (0.6, -0.8), at distance 1, with the method's own settings."""
    generations = 300
    point = _Point([0.6, -0.8])
    search = method.algorithm(point, method.config, total_steps=generations, seed=0)
    for _ in range(generations):
        search.update(_told(-search.behaviour().candidates.double().square().sum(1)))
    left = float(torch.linalg.vector_norm(point.parameter.detach()))
    yield at_most(
        method.option, "distance to the top of a bowl", 0.5, left, note=f"was 1, {generations} generations ago"
    )


# ---------------------------------------------------------------- evolution strategies


def _smoothed_gradient() -> Iterator[Check]:
    """Sine, quadratic and cubic of two parameters."""
    theta = torch.tensor([0.3, -0.7], dtype=torch.float64)
    w = torch.tensor([1.1, -0.6], dtype=torch.float64)
    A = torch.tensor([[2.0, 0.5], [0.5, -1.0]], dtype=torch.float64)
    es = _es("returns")
    exact: dict[str, tuple[Function, Tensor]] = {
        # E sin(w x) = sin(w theta) exp(-sigma^2 |w|^2 / 2)
        "F = sin(w x)": (lambda x: torch.sin(x @ w), torch.cos(theta @ w) * math.exp(-(SIGMA**2) * w @ w / 2) * w),
        # E x^T A x = theta^T A theta + sigma^2 tr A: smoothing a quadratic changes no gradient
        "F = x^T A x": (lambda x: ((x @ A) * x).sum(1), 2 * A @ theta),
        # E (w x)^3 = (w theta)^3 + 3 sigma^2 |w|^2 w theta
        "F = (w x)^3": (lambda x: (x @ w) ** 3, 3 * ((theta @ w) ** 2 + SIGMA**2 * w @ w) * w),
    }
    nodes, weights = _hermite(2)
    for name, (function, gradient) in exact.items():
        ours = _expected(es, function, theta, nodes, weights)
        yield equal("es", f"E[g], {name}", gradient, ours, note="exact: grad J_sigma")
        shifted = _expected(es, _raised(function), theta, nodes, weights)
        yield equal("es", f"E[g] after + 1000, {name}", gradient, shifted)


def _raised(function: Function) -> Function:
    return lambda x: function(x) + 1000


def _step_function() -> Iterator[Check]:
    """F = 1 if theta > 0, else 0, like a greedy policy's return: grad F is 0, grad J_sigma = phi(t) / sigma."""
    theta = torch.tensor([0.3], dtype=torch.float64)
    jump = float(theta) / SIGMA
    exact = math.exp(-(jump**2) / 2) / math.sqrt(2 * math.pi) / SIGMA
    points, parts = np.polynomial.legendre.leggauss(60)
    pieces = list(pairwise([-12.0, -jump, jump, 12.0]))
    nodes = torch.cat([(b - a) / 2 * torch.as_tensor(points) + (a + b) / 2 for a, b in pieces])
    lengths = torch.cat([(b - a) / 2 * torch.as_tensor(parts) for a, b in pieces])
    weights = lengths * torch.exp(-(nodes**2) / 2) / math.sqrt(2 * math.pi)
    ours = _expected(_es("returns", 1), lambda x: (x[:, 0] > 0).double(), theta, nodes[:, None], weights)
    yield equal("es", "E[g], F a step", theta.new_tensor([exact]), ours, note="F's own gradient is 0 or missing")


def _several_pairs() -> Iterator[Check]:
    """The estimate of several pairs is the mean of their single estimates."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((5, 2), generator=generator, dtype=torch.float64)
    returns = torch.randn(10, generator=generator, dtype=torch.float64)
    alone = [_es("returns").gradient(returns[[i, 5 + i]], noise[i : i + 1]) for i in range(5)]
    ours = _es("returns").gradient(returns, noise)
    yield equal("es", "g of 5 pairs = mean of their g", torch.stack(alone).mean(0), ours)


def _expected(es: ES, function: Function, theta: Tensor, nodes: Tensor, weights: Tensor) -> Tensor:
    """E[g] over eps, one antithetic pair at each node: nodes (M, P), weights (M,)."""
    each = [es.gradient(function(antithetic(theta, eps[None], SIGMA)), eps[None]) for eps in nodes]
    return weights @ torch.stack(each)


def _hermite(dimensions: int) -> tuple[Tensor, Tensor]:
    """Nodes (M, P) and weights (M,) of the expectation under a standard normal."""
    points, parts = np.polynomial.hermite_e.hermegauss(24)
    line, share = torch.as_tensor(points), torch.as_tensor(parts / parts.sum())
    nodes = torch.cartesian_prod(*[line] * dimensions)
    return nodes, torch.cartesian_prod(*[share] * dimensions).prod(1)


# ---------------------------------------------------------------- methods that depend on the order only


RETURNS = (3.0, -1.0, 4.0, 1.0, 5.0, -9.0, 2.0, 6.0)
INCREASING: dict[str, Function] = {
    "10 F - 7": lambda x: 10 * x - 7,
    "exp F": torch.exp,
    "arctan F": torch.arctan,
}


def _invariances() -> Iterator[Check]:
    returns = torch.tensor(RETURNS, dtype=torch.float64)
    noise = torch.randn((4, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ranked = _es("centred_ranks").gradient(returns, noise)
    for name, change in INCREASING.items():
        yield equal(
            "es", f"g of ranks, F -> {name}", ranked, _es("centred_ranks").gradient(change(returns), noise),
            note="no gradient of a fixed function: only invariance",
        )  # fmt: skip
    for selection in ("truncation", "tournament"):
        parents = _next_generation(selection, returns)
        for name, change in INCREASING.items():
            ours = _next_generation(selection, change(returns))
            yield equal("ga", f"{selection}, F -> {name}", parents, ours)
    candidates = _ga("truncation").behaviour().candidates
    kept = _next_generation("truncation", returns)[:2]
    yield equal("ga", "elites are the best, unchanged", candidates[[7, 4]], kept)


def _next_generation(selection: str, returns: Tensor) -> Tensor:
    """(K, P), with the same random numbers each time."""
    ga = _ga(selection)
    ga.update(_told(returns))
    return ga.behaviour().candidates


# ---------------------------------------------------------------- the simplex on a quadratic


def _simplex_moves() -> Iterator[Check]:
    """F = -(x^2 + y^2) from the vertices (3, 3), (4, 3), (3, 4): each move computed by hand.

    The losses are 18, 25, 25. Reflect (3, 4) through (3.5, 3): (4, 2), loss 20, taken. Then (4, 3) is the worst;
    reflect it through (3.5, 2.5): (3, 2), loss 13, better than all: expand to (2.5, 1.5), loss 8.5, taken. Then (4, 2)
    is the worst, c = (2.75, 2.25): reflect to (1.5, 2.5), 8.5, not below the best but below 18: taken, after its equal.
    """
    config = _config("nelder_mead", "algo.size=1", "algo.tolerance=0", "algo.adaptive=false")
    search = NelderMead(_Point([3.0, 3.0]), config, total_steps=1, seed=0)
    search.asked = torch.tensor([[3.0, 3], [4, 3], [3, 4]], dtype=torch.float64)
    expected = [[4.0, 2.0], [3.0, 2.0], [2.5, 1.5], [1.5, 2.5]]
    asked = []
    for _ in range(len(expected) + 1):
        asked.append(search.behaviour().candidates.double())
        search.update(_told(-(asked[-1] ** 2).sum(1)))
    yield equal("nelder_mead", "points asked for on a bowl", torch.tensor(expected), torch.cat(asked[1:]))
    left = torch.tensor([[2.5, 1.5], [1.5, 2.5], [3, 3]])
    yield equal("nelder_mead", "simplex that they leave", left, search.simplex)


# ---------------------------------------------------------------- parts


class _Point(nn.Module):
    """A policy of parameters alone."""

    def __init__(self, start: list[float]) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.tensor(start, dtype=torch.float64))


@cache
def _config(algo: str, *words: str) -> Any:
    return compose([f"algo={algo}", "tuned=none", *words]).algo


def _es(utilities: str, parameters: int = 2) -> ES:
    config = _config("es", f"algo.utilities={utilities}", f"algo.noise_std={SIGMA}")
    return ES(_Point([0.0] * parameters), config, total_steps=1, seed=0)


def _ga(selection: str) -> GA:
    config = _config("ga", f"algo.selection={selection}", f"algo.population={len(RETURNS)}", "algo.elites=2")
    return GA(_Point([0.0, 1.0]), config, total_steps=1, seed=0)


def _told(returns: Tensor) -> Fitness:
    return Fitness(returns.double(), steps=1, episodes=[])
