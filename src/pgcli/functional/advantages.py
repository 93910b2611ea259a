"""How much better an action was than expected: by a critic (GAE), or by the other episodes of its group."""

from typing import NamedTuple

import torch
from torch import Tensor

from pgcli.functional.returns import reverse_recurrence


def gae(
    rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, done: Tensor, *, gamma: float, lam: float,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Generalised advantage estimates.

        delta_t = r_t + gamma * (1 - terminated_t) * V(s'_t) - V(s_t)
        A_t     = delta_t + gamma * lam * (1 - done_t) * A_{t+1}

    `lam` = 0 gives the TD error (low variance, biased by V); `lam` = 1 gives return minus V (unbiased, high variance).

    Args:
        rewards, values, terminated, done: (N, T). `done` = terminated or truncated. Finite on padding.
        next_values: (N, T), V of the true successor, so that a truncated episode is bootstrapped and a terminated one
            is not.
        mask: (N, T) bool, 1 where the policy chose the action; None: everywhere. Tokens in the middle of an episode
        that
            the policy did not choose (a task's reply) take no time: A_t = A_{t+1} there, and `next_values` is the value
            after them.

    Returns: (N, T). Source: Schulman et al. 2016, eq. 16.
    """
    # A terminated state has no successor, and `next_values` may hold anything there.
    deltas = rewards + gamma * next_values.masked_fill(terminated, 0) - values
    decay: float | Tensor = gamma * lam
    if mask is not None:
        deltas, decay = deltas.masked_fill(~mask, 0), torch.ones_like(deltas).masked_fill(mask, decay)
    return reverse_recurrence(deltas, done, decay=decay)


class Grouped(NamedTuple):
    """deviations: (N,), return minus the mean of its group. members: (N,) int64, 0 .. G-1. sizes: (G,) int64."""

    deviations: Tensor
    members: Tensor
    sizes: Tensor


def _group(returns: Tensor, groups: Tensor) -> Grouped:
    ids, members, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    # Measured from the group's smallest, so that equal returns deviate by exactly zero: the standard deviation
    # would otherwise blow their rounding errors up to advantages.
    smallest = returns.new_zeros(len(ids)).scatter_reduce(0, members, returns, "amin", include_self=False)
    above = returns - smallest[members]
    means = returns.new_zeros(len(ids)).index_add(0, members, above) / sizes
    return Grouped(above - means[members], members, sizes)


def leave_one_out(returns: Tensor, groups: Tensor) -> Tensor:
    """RLOO: each episode's return minus the mean return of the *other* episodes of its group.

        A_i = R_i - 1/(K-1) * sum_{j != i} R_j = K/(K-1) * (R_i - mean(R))

    The baseline does not depend on the episode's own actions, so the policy gradient stays unbiased.

    Args:
        returns: (N,), one per episode.
        groups: (N,) int64, equal for episodes with the same initial state; any order, any sizes K.

    Returns: (N,). Source: Kool et al. 2019; Ahmadian et al. 2024. Raises ValueError if a group has one episode only.
    """
    deviations, members, sizes = _group(returns, groups)
    if bool((sizes < 2).any()):
        raise ValueError("leave-one-out needs at least two episodes in each group")
    k = sizes.to(returns.dtype)
    return deviations * (k / (k - 1))[members]


def group_centre(returns: Tensor, groups: Tensor) -> Tensor:
    """Dr. GRPO: each episode's return minus the mean of its group.

        A_i = R_i - mean(R) = (K-1)/K * leave-one-out

    A positive multiple of the unbiased estimate where all groups have one size. A group of one gets 0.

    Args:
        returns: (N,), one per episode.
        groups: (N,) int64, equal for episodes with the same initial state; any order, any sizes K.

    Returns: (N,). Source: Liu et al. 2025.
    """
    return _group(returns, groups).deviations


def group_standardise(returns: Tensor, groups: Tensor, eps: float) -> Tensor:
    """GRPO: each episode's return, centred and divided by the standard deviation of its group.

        A_i = (R_i - mean(R)) / (std(R) + eps)

    The division weights a group by 1 / std, so this is not the gradient of the expected return: initial states that
    nearly always or nearly never succeed count more (Liu et al. 2025).

    `std` is the population's (divided by K). The paper does not say which; this one gives a group advantages of mean
    square 1 whatever its size, is sqrt(p (1 - p)) for a reward of 0 or 1, and is 0 rather than NaN for a group of one.
    The sample's (divided by K-1), torch's default and common elsewhere, makes every advantage smaller by sqrt((K-1)/K).

    Args:
        returns: (N,), one per episode.
        groups: (N,) int64, equal for episodes with the same initial state; any order, any sizes K.
        eps: keeps a group of equal returns, whose advantages are 0, from dividing by zero.

    Returns: (N,). Source: Shao et al. 2024, section 4.1.2, the advantages of eq. 3.
    """
    deviations, members, sizes = _group(returns, groups)
    variances = returns.new_zeros(len(sizes)).index_add(0, members, deviations.square()) / sizes
    return deviations / (variances.sqrt() + eps)[members]


def batch_standardise(returns: Tensor, groups: Tensor, eps: float) -> Tensor:
    """Each episode's return less the mean of its group, divided by the standard deviation of the whole batch's returns.

        A_i = (R_i - mean(R of its group)) / (std(R of the batch) + eps)

    One scale for all groups: the direction is that of `group_centre`, and the size no longer depends on the reward's
    unit. `std` is the population's.

    Args:
        returns: (N,), one per episode.
        groups: (N,) int64, equal for episodes with the same initial state; any order, any sizes K.
        eps: keeps a batch of equal returns, whose advantages are 0, from dividing by zero.

    Returns: (N,). Source: Liu et al. 2025 ("Tricks or traps?"), section 4.
    """
    return _group(returns, groups).deviations / (returns.std(correction=0) + eps)


def group_relative(returns: Tensor, groups: Tensor) -> Tensor:
    """MaxRL: each episode's return, centred and divided by the mean of its group, for rewards of 0 or 1.

        A_i = (R_i - mean(R)) / mean(R)     0 where mean(R) is 0

    With it the policy gradient is that of, for groups of K and p the probability of success,

        sum_{k=1}^{K-1} 1/k * pass@k,    pass@k = 1 - (1 - p)^k

    the first terms of log p, whose gradient weights a hard problem by 1/p: from the return at K = 2 to the likelihood
    of success as K grows. (The mean that is subtracted costs the term k = K.)

    Args:
        returns: (N,), one per episode, not negative.
        groups: (N,) int64, equal for episodes with the same initial state; any order, any sizes K.

    Returns: (N,). Source: Tajwar et al. 2026, with its control variate; the objective by enumeration in the tests.
    """
    deviations, members, sizes = _group(returns, groups)
    means = returns.new_zeros(len(sizes)).index_add(0, members, returns) / sizes
    return torch.where(means > 0, 1 / means, 0)[members] * deviations


def silent_groups(returns: Tensor, groups: Tensor) -> Tensor:
    """Groups whose episodes all have the same return, so that their centred advantages are zero.

    Args:
        returns, groups: (N,).

    Returns: (G,) bool, in the order of the groups' numbers.
    """
    deviations, members, sizes = _group(returns, groups)
    return returns.new_zeros(len(sizes)).index_add(0, members, deviations.abs()) == 0


def variance_minimising_baseline(products: Tensor, squares: Tensor, probabilities: Tensor | None = None) -> Tensor:
    """The constant b that removes most variance from the policy gradient, estimated from the *other* episodes.

        an episode's gradient       Z - b S,   S = sum_t grad log pi(a_t | s_t),   Z = sum_t grad log pi(a_t | s_t) G_t
        trace of its covariance     E|Z - b S|^2 - |E Z|^2                         since E[S] = 0
        least at                    b* = E[Z . S] / E[|S|^2]
        leave-one-out               b_i = sum_{j != i} Z_j . S_j / sum_{j != i} |S_j|^2

    With one action per episode, or one return for all its actions, Z = G S and b* = E[|S|^2 G] / E[|S|^2]: the mean
    return, weighted by the squared score. For episodes of several actions, weighting each action's return by its own
    squared score leaves out the inner products between them, and does not give the minimum.

    An estimate that contained the episode's own score and return would bias the gradient, by O(1 / N).

    Args:
        products, squares: (N,), Z_i . S_i and |S_i|^2.
        probabilities: (N,) of the rows if they enumerate all episodes: the expectations are then exact, and no episode
        is
            left out.

    Returns: (N,), 0 where the others have no score. Source: Greensmith, Bartlett and Baxter 2004, section 4; Peters and
    Schaal 2008, section 3.2 (one for each parameter there).
    """
    if probabilities is not None:
        others, weight = (probabilities @ products).expand_as(products), (probabilities @ squares).expand_as(squares)
    else:
        others, weight = products.sum() - products, squares.sum() - squares
    return torch.where(weight > 0, others / weight, 0)


def best_of_each_group(returns: Tensor, groups: Tensor) -> Tensor:
    """(N,) bool: in each group the episode with the highest return, the first one if several have it.

    Args:
        returns, groups: (N,), as above.

    Returns: (N,). Source: Dong et al. 2023, algorithm 1.
    """
    _, members = torch.unique(groups, return_inverse=True)
    best = torch.full((int(members.max()) + 1,), -torch.inf, dtype=returns.dtype, device=returns.device)
    best = best.scatter_reduce(0, members, returns, "amax")
    rows = torch.arange(len(returns), device=returns.device)
    first = torch.full_like(best, len(returns), dtype=torch.int64)
    first = first.scatter_reduce(0, members, rows.where(returns == best[members], len(returns)), "amin")
    return rows == first[members]
