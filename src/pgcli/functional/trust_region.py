"""Steps whose length is measured between policies, not parameters: natural gradients and trust regions.

Parameters are a list of tensors or one flat vector of all of them, (P,); no matrix is ever built.

    F = E_s[ Hessian of KL(pi_old(. | s) || pi(. | s)) ] at pi = pi_old = E[ grad log pi (grad log pi)^T ]     Fisher
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""v -> M v, (P,) -> (P,), of a matrix M that is never built."""


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """One vector of all elements, (P,), in order."""
    return torch.cat([x.reshape(-1) for x in tensors])


@torch.no_grad()
def assign(parameters: Sequence[Tensor], vector: Tensor) -> None:
    """Write (P,) back into the parameters, in place."""
    for p, piece in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True):
        p.copy_(piece.view_as(p))


def depends_on(x: Tensor, parameters: Iterable[Tensor]) -> list[Tensor]:
    """The parameters that the scalar `x` depends on: a policy's loss does not depend on its critic's."""
    parameters = list(parameters)
    gradients = torch.autograd.grad(x, parameters, retain_graph=True, allow_unused=True)
    return [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


def fisher_vector_product(kl: Tensor, parameters: Sequence[Tensor], *, damping: float) -> Product:
    """v -> (F + damping I) v by double backward: differentiate the KL once, then its product with v once more.

        F v = grad( (grad KL)^T v )

    A Fisher matrix need not have an inverse (a softmax's has none: adding a constant to all logits moves nothing);
    `damping` > 0 gives it one.

    Args:
        kl: a scalar, the mean of KL(pi_old || pi) over states, taken at pi = pi_old, exact and twice differentiable.
        parameters: those that `kl` depends on.
        damping: added to the diagonal.

    Source: Pearlmutter 1994; Schulman et al. 2015, appendix C.1.
    """
    slope = flatten(torch.autograd.grad(kl, parameters, create_graph=True))

    def product(v: Tensor) -> Tensor:
        curved = torch.autograd.grad(slope @ v, parameters, retain_graph=True)
        return flatten(curved) + damping * v

    return product


class Solution(NamedTuple):
    """x: (P,). residual: |M x - b| / |b|, of the equations solved. iterations: products spent on it."""

    x: Tensor
    residual: float
    iterations: int


def conjugate_gradient(product: Product, b: Tensor, *, iterations: int, tolerance: float) -> Solution:
    """Solve M x = b for a symmetric positive definite M that is given only by its products.

        alpha = r^T r / p^T M p        x += alpha p      r -= alpha M p
        beta  = r'^T r' / r^T r        p  = r' + beta p

    In exact arithmetic, exact after as many iterations as M has distinct eigenvalues; close much earlier.

    Args:
        product: v -> M v.
        b: (P,).
        iterations: the largest number of products.
        tolerance: stops when |r| <= tolerance |b|.

    Source: Hestenes and Stiefel 1952; Nocedal and Wright 2006, algorithm 5.2.
    """
    x, r, p = torch.zeros_like(b), b.clone(), b.clone()
    squared = r @ r
    enough = tolerance**2 * squared
    done = 0
    while done < iterations and squared > enough:
        curved = product(p)
        alpha = squared / (p @ curved)
        x, r = x + alpha * p, r - alpha * curved
        before, squared = squared, r @ r
        p = r + squared / before * p
        done += 1
    size = torch.linalg.vector_norm(b)
    return Solution(x, float(squared.sqrt() / size) if size > 0 else 0.0, done)


class NaturalGradient(NamedTuple):
    """The direction of a step, without its length. (P,) over the parameters that the policy's distribution depends on.

    gradient: g, of the objective. direction: x, about (F + damping I)^-1 g. curvature: x^T (F + damping I) x > 0.
    """

    gradient: Tensor
    direction: Tensor
    curvature: float
    residual: float
    iterations: int

    def length(self, max_kl: float) -> float:
        """How many times the direction reaches `max_kl` in the damped model of the KL, d^T (F + damping I) d / 2.

            sqrt(2 max_kl / x^T (F + damping I) x)          a little less than the KL itself would allow

        Source: Schulman et al. 2015, appendix C; Rajeswaran et al. 2017, eq. 5. Zero if the gradient is zero.
        """
        return math.sqrt(2 * max_kl / self.curvature) if self.curvature > 0 else 0.0


def natural_gradient(
    objective: Tensor, kl: Tensor, parameters: Sequence[Tensor], *, damping: float, iterations: int, tolerance: float
) -> NaturalGradient:
    """The direction of most gain per KL: steepest ascent if distance is measured by F.

        x = (F + damping I)^-1 grad objective

    Without damping, the policy's change does not depend on its parametrisation.

    Args:
        objective, kl: scalars at pi = pi_old, from one evaluation of the policy.
        parameters: those that both depend on.
        damping, iterations, tolerance: of `fisher_vector_product` and `conjugate_gradient`.

    Source: Kakade 2001; Amari 1998.
    """
    gradient = flatten(torch.autograd.grad(objective, parameters, retain_graph=True))
    product = fisher_vector_product(kl, parameters, damping=damping)
    solution = conjugate_gradient(product, gradient, iterations=iterations, tolerance=tolerance)
    # One product more, rather than x^T g: the two are equal only up to rounding.
    curvature = float(solution.x @ product(solution.x))
    return NaturalGradient(gradient, solution.x, curvature, solution.residual, solution.iterations)


class Search(NamedTuple):
    """improvement, kl: of the step that was accepted, 0 if none was. tries: the number of fractions evaluated."""

    accepted: bool
    improvement: float
    kl: float
    tries: int


def backtracking(at: Callable[[float], tuple[float, float]], *, max_kl: float, shrink: float, tries: int) -> Search:
    """The first of the fractions 1, shrink, shrink**2, ... of a step that improves and stays within `max_kl`.

        accept where  improvement(fraction) > 0  and  kl(fraction) <= max_kl

    NaN is not accepted.

    Args:
        at: moves to a fraction of the step and returns (improvement, kl) there: the true ones, not those of the models
            from which the step was computed.
        max_kl, shrink, tries: the bound, the factor between two tries, and the largest number of tries.

    Source: Schulman et al. 2015, appendix C.
    """
    for n in range(tries):
        improvement, kl = at(shrink**n)
        if improvement > 0 and kl <= max_kl:
            return Search(True, improvement, kl, n + 1)
    return Search(False, 0.0, 0.0, tries)
