"""The best of n samples: its expected value, and its divergence from the policy that was sampled."""

import math

import torch
from torch import Tensor


def best_of_n(scores: Tensor, values: Tensor, n: int) -> Tensor:
    """Expected value of the highest-scoring one of n samples, estimated from groups of K >= n samples. Unbiased.

        E = sum_i w_i value_(i),    w_i = C(K - i, n - 1) / C(K, n)

    where value_(i) belongs to the i-th highest score, and w_i is the chance that this sample is the best of n drawn
    without replacement. One group of 256 thus gives every n up to 256.

    Args:
        scores, values: (G, K), a group of samples in each row; `scores` select the best, `values` are averaged. One
            whose score is NaN could not be scored, and is never better than another.

    Returns: (G,); NaN where a sample without a value may be the best of n. Source: Nakano et al. 2021, appendix I.
    """
    size = scores.shape[1]
    if not 1 <= n <= size:
        raise ValueError(f"the best of {n} cannot be known from groups of {size}")
    order = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf).argsort(dim=1, descending=True, stable=True)
    chances = [math.comb(size - i, n - 1) / math.comb(size, n) for i in range(1, size + 1)]
    weights = torch.tensor(chances, dtype=values.dtype, device=values.device)
    return torch.where(weights > 0, weights * values.gather(1, order), 0).sum(1)


def best_of_n_kl(n: int) -> float:
    """KL(best of n || policy) in nats: log n - (n - 1) / n. Exact for a continuum of scores, otherwise an upper bound.

    Source: Stiennon et al. 2020, appendix G.3; that it is a bound: Beirami et al. 2024, theorem 1.
    """
    return math.log(n) - (n - 1) / n
