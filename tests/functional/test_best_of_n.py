import itertools
import math

import pytest
import torch

from pgcli.functional.best_of_n import best_of_n, best_of_n_kl


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_it_is_the_mean_over_all_ways_to_draw_n(n):
    scores = torch.tensor([[0.3, -1.0, 2.0, 0.7, 0.1], [5.0, 4.0, 3.0, 2.0, 1.0]])
    values = torch.tensor([[1.0, 2.0, -3.0, 4.0, 0.5], [0.0, 1.0, 0.0, 0.0, 8.0]])
    expected = []
    for s, v in zip(scores.tolist(), values.tolist(), strict=True):
        draws = list(itertools.combinations(range(5), n))
        expected.append(sum(v[max(draw, key=lambda i: s[i])] for draw in draws) / len(draws))
    torch.testing.assert_close(best_of_n(scores, values, n), torch.tensor(expected))


def test_what_could_not_be_scored_is_never_the_best():
    # Of 1, NaN, 2: two drawn are (1, NaN), (1, 2) or (NaN, 2), whose best are 1, 2 and 2.
    scores = torch.tensor([[1.0, math.nan, 2.0]])
    torch.testing.assert_close(best_of_n(scores, scores, 2), torch.tensor([5 / 3]))
    assert best_of_n(scores, scores, 1).isnan().all()  # the only one drawn may be the one without a score


def test_more_than_there_are_cannot_be_known():
    with pytest.raises(ValueError, match="groups of 3"):
        best_of_n(torch.zeros(1, 3), torch.zeros(1, 3), 4)


def test_its_divergence_on_a_fine_grid():
    # m equally likely samples: the best of n is the k-th with probability (k/m)^n - ((k-1)/m)^n.
    m, n = 20_000, 4
    p = [(k / m) ** n - ((k - 1) / m) ** n for k in range(1, m + 1)]
    assert best_of_n_kl(n) == pytest.approx(sum(q * math.log(q * m) for q in p), abs=1e-3)
    assert best_of_n_kl(1) == 0
