"""Learning-rate schedules: floats in, a float out."""


def constant(initial: float) -> float:
    """The same rate for ever."""
    return initial


def linear(initial: float, *, progress: float) -> float:
    """From `initial` to 0: initial * (1 - progress), and 0 beyond the end.

    Args:
        initial: the rate at the start.
        progress: the share of the budget spent so far, from 0 to 1.
    """
    return initial * max(0.0, 1.0 - progress)


def between(start: float, end: float, *, progress: float) -> float:
    """From `start` to `end` in a straight line, and `end` from then on.

    Args:
        progress: from 0 at the start to 1 at the end, and beyond.
    """
    return start + (end - start) * min(1.0, progress)


def robbins_monro(k: int, *, c: float, offset: float) -> float:
    """A rate whose steps forget the start and average out the noise.

        a_k = c / (k + offset)        k = 1, 2, ...

    It meets the conditions of Robbins and Monro (1951) for every c > 0 and offset > -1: sum a_k = inf, so that the
    start does not matter, and sum a_k**2 < inf, so that the noise of the steps dies out. c = 1, offset = 0 is 1 / k,
    which makes the estimate of a mean the sample mean. A larger offset delays the decay: the first rate has halved
    at k = 2 + offset.

    Args:
        k: the number of the update, from 1.
        c, offset: the scale, and the updates by which the decay is delayed.
    """
    if k < 1:
        raise ValueError(f"updates count from 1, not {k}")
    return c / (k + offset)
