"""Student's t distribution without SciPy, for intervals of the mean of a few values."""

from collections.abc import Callable
from math import atan, cos, inf, pi, sin, sqrt
from statistics import NormalDist


def student_cdf(t: float, freedom: int) -> float:
    """P(T <= t), by the finite series for whole degrees of freedom: Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = atan(t / sqrt(freedom))
    term = cos(angle) if freedom % 2 else 1.0
    total = 0.0
    for k in range(2 + freedom % 2, freedom + 1, 2):
        total += term
        term *= cos(angle) ** 2 * (k - 1) / k
    central = 2 / pi * (angle + sin(angle) * total) if freedom % 2 else sin(angle) * total
    return (1 + central) / 2


def student_quantile(probability: float, freedom: int) -> float:
    """The t that is exceeded with probability 1 - `probability`, for a probability of at least one half."""
    if freedom < 1:
        return inf
    if freedom > 2_000:  # the normal quantile is right to 1e-3 there
        return NormalDist().inv_cdf(probability)
    high = 1.0
    while student_cdf(high, freedom) < probability:
        high *= 2
    return bisect(lambda t: student_cdf(t, freedom) - probability, 0.0, high)


def bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """The zero of a function that is negative at `low` and positive at `high`, to 1e-12 of the bracket."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return (low + high) / 2
