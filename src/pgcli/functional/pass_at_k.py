"""How often one of k attempts succeeds."""

import torch
from torch import Tensor


def pass_at_k(successes: Tensor, attempts: int, k: int) -> Tensor:
    """The probability that at least one of k attempts at a problem succeeds, estimated from n >= k attempts.

        1 - C(n - c, k) / C(n, k)  =  1 - prod_{i = n-c+1}^{n} (1 - k / i)

    which is unbiased: the share of subsets of k attempts with a success. 1 - (1 - c/n)^k is biased: too low.

    Args:
        successes: (N,), c, how many of the n attempts at each problem succeeded.
        attempts: n.

    Returns: (N,) float64. Source: Chen et al. 2021, eq. 1.
    """
    i = torch.arange(1, attempts + 1, dtype=torch.float64)
    factors = torch.where(i > attempts - successes[:, None], 1 - k / i, 1.0)
    # Where n - c < k every subset has a success; the product has the factor i = k, which is 0.
    return 1 - factors.prod(dim=1)
