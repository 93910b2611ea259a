"""Search without a gradient: evolution strategies, genetic algorithms, the simplex of Nelder and Mead.

A candidate is a vector of parameters, (P,); its fitness is a number, the larger the better.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# ---------------------------------------------------------------- evolution strategies


def centred_ranks(fitness: Tensor) -> Tensor:
    """Ranks from -1/2 (worst) to 1/2 (best); candidates of one fitness share the mean of their ranks.

        u_i = (#{j: F_j < F_i} + (#{j: F_j = F_i} - 1) / 2) / (K - 1) - 1/2

    They sum to zero, and no increasing function of the fitness changes them. A single candidate has rank 0.

    Args:
        fitness: (K,).

    Returns: (K,). Source: Wierstra et al. 2014, section 3.1 (fitness shaping), as in Salimans et al. 2017, section 2;
        there, equal candidates are ranked in the order in which they stand.
    """
    count = len(fitness)
    if count == 1:
        return torch.zeros_like(fitness)
    _, which, sizes = torch.unique(fitness, return_inverse=True, return_counts=True)
    below = sizes.cumsum(0) - sizes
    ranks = (below + (sizes - 1) / 2).to(fitness.dtype)[which]
    return ranks / (count - 1) - 0.5


def antithetic(centre: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """The candidates of mirrored sampling: centre + sigma * noise, then centre - sigma * noise.

    Args:
        centre: (P,). noise: (K / 2, P), standard normal.

    Returns: (K, P). Source: Brockhoff et al. 2010, section 2.
    """
    return torch.cat([centre.add(noise, alpha=sigma), centre.sub(noise, alpha=sigma)])


def es_gradient(utilities: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """The gradient of the smoothed objective, estimated from antithetic pairs.

        J_sigma(theta) = E_eps[ F(theta + sigma eps) ],   eps standard normal
        g = 1 / (K sigma) sum_i (F(theta + sigma eps_i) - F(theta - sigma eps_i)) eps_i        i = 1 .. K / 2

    With F itself as the utility it is unbiased for grad J_sigma, whether F has a gradient or not. A pair shares its
    noise, so that a constant added to F cancels exactly, and a quadratic F adds no variance by its curvature.

    Args:
        utilities: (K,), in the order of `antithetic`. noise: (K / 2, P).

    Returns: (P,). Source: Salimans et al. 2017, algorithm 1 and section 2.
    """
    plus, minus = utilities.chunk(2)
    return (plus - minus) @ noise / (len(utilities) * sigma)


# ---------------------------------------------------------------- genetic algorithms


def truncation_selection(fitness: Tensor, count: int) -> Tensor:
    """The `count` best, best first; among equals the earlier one first.

    Args:
        fitness: (K,).

    Returns: (count,) int64. Source: Such et al. 2017, algorithm 1.
    """
    return torch.argsort(fitness, descending=True, stable=True)[:count]


def tournament_selection(fitness: Tensor, entrants: Tensor) -> Tensor:
    """The winner of each tournament; among equals the first entrant.

    Args:
        fitness: (K,). entrants: (M, size) int64, candidates drawn at random.

    Returns: (M,) int64. Source: Goldberg and Deb 1991, section 4.
    """
    first = fitness[entrants].argmax(1, keepdim=True)
    return entrants.gather(1, first).squeeze(1)


def uniform_crossover(first: Tensor, second: Tensor, from_first: Tensor) -> Tensor:
    """Takes each parameter from one parent or from the other.

    Args:
        first, second: (M, P). from_first: (M, P) bool.

    Returns: (M, P). Source: Syswerda 1989.
    """
    return torch.where(from_first, first, second)


# ---------------------------------------------------------------- the simplex


class Coefficients(NamedTuple):
    """How far each move of the simplex goes."""

    reflection: float
    expansion: float
    contraction: float
    shrinkage: float


def simplex_coefficients(parameters: int, *, adaptive: bool) -> Coefficients:
    """The standard coefficients, or those that grow gentler with the number of parameters.

        standard   1, 2,       1/2,            1/2          Lagarias et al. 1998, eq. 2.1
        adaptive   1, 1 + 2/n, 3/4 - 1/(2n),   1 - 1/n      Gao and Han 2012, eq. 4.1

    They are the same for n = 2; for n = 1, where the adaptive shrinkage would be 0, the standard ones are taken.
    """
    n = max(parameters, 2) if adaptive else 2
    return Coefficients(1.0, 1 + 2 / n, 0.75 - 1 / (2 * n), 1 - 1 / n)


def initial_simplex(best: Tensor, offsets: Tensor) -> Tensor:
    """A vertex, and one further vertex along each axis.

    Args:
        best, offsets: (P,).

    Returns: (P + 1, P). Source: Spendley et al. 1962; Nelder and Mead 1965, section 2.
    """
    return torch.cat([best[None], best + torch.diag(offsets)])


def through_centroid(simplex: Tensor, distance: float) -> Tensor:
    """The point on the line from the worst vertex through the centroid of the others.

        x = c + distance * (c - x_worst)

    distance = rho reflects, rho * chi expands, rho * gamma contracts outside, -gamma contracts inside.

    Args:
        simplex: (P + 1, P), best first, worst last.

    Returns: (P,). Source: Lagarias et al. 1998, eq. 2.4 to 2.7.
    """
    centroid = simplex[:-1].mean(0)
    return centroid + distance * (centroid - simplex[-1])


def shrunk(simplex: Tensor, shrinkage: float) -> Tensor:
    """Every vertex but the best, drawn towards it: x_1 + sigma (x_i - x_1).

    Args:
        simplex: (P + 1, P), best first.

    Returns: (P, P). Source: Lagarias et al. 1998, section 2, step 5.
    """
    best = simplex[0]
    return best + shrinkage * (simplex[1:] - best)


def diameter(simplex: Tensor) -> Tensor:
    """The largest distance of a vertex from the first, in the maximum norm.

    Args:
        simplex: (P + 1, P).
    """
    return (simplex[1:] - simplex[0]).abs().max()
