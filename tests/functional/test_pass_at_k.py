from itertools import combinations

import pytest
import torch

from pgcli.functional.pass_at_k import pass_at_k


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_it_is_the_share_of_subsets_with_a_success(k):
    attempts = 5
    for successes in range(attempts + 1):
        outcomes = [n < successes for n in range(attempts)]
        subsets = list(combinations(outcomes, k))
        share = sum(any(subset) for subset in subsets) / len(subsets)
        assert pass_at_k(torch.tensor([successes]), attempts, k).item() == pytest.approx(share, abs=1e-15)


def test_numbers_by_hand():
    # n = 4, c = 1: k = 1: 1/4; k = 2: 1 - C(3,2)/C(4,2) = 1 - 3/6; k = 4: a subset is all of them.
    c = torch.tensor([1])
    assert [pass_at_k(c, 4, k).item() for k in (1, 2, 4)] == pytest.approx([0.25, 0.5, 1.0])


def test_it_is_unbiased():
    # Successes of n = 6 attempts that succeed with p = 0.3 are binomial; the estimate's mean is 1 - 0.7^k.
    n, p = 6, 0.3
    c = torch.arange(n + 1)
    log_chance = torch.distributions.Binomial(n, torch.tensor(p, dtype=torch.float64)).log_prob(c.double())
    for k in (1, 2, 4, 6):
        assert (log_chance.exp() * pass_at_k(c, n, k)).sum().item() == pytest.approx(1 - 0.7**k, abs=1e-12)
