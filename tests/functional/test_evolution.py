"""Numbers derived by hand."""

import itertools

import pytest
import torch

from pgcli.functional.evolution import (
    antithetic,
    centred_ranks,
    diameter,
    es_gradient,
    initial_simplex,
    shrunk,
    simplex_coefficients,
    through_centroid,
    tournament_selection,
    truncation_selection,
    uniform_crossover,
)


def vector(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_ranks_run_from_minus_a_half_to_a_half():
    torch.testing.assert_close(centred_ranks(vector(10, -3, 7, 500, 8)), vector(0.25, -0.5, -0.25, 0.5, 0))


def test_equals_share_the_mean_of_their_ranks():
    # Ranks 0, 1, 2, 3 over K - 1 = 3: the two in the middle share (1 + 2) / 2 = 1.5, which is the centre.
    torch.testing.assert_close(centred_ranks(vector(5, 1, 5, 9)), vector(0, -0.5, 0, 0.5))
    # Three best: (1 + 2 + 3) / 3 = 2 -> 2/3 - 1/2.
    torch.testing.assert_close(centred_ranks(vector(4, 4, 0, 4)), vector(1 / 6, 1 / 6, -0.5, 1 / 6))
    assert centred_ranks(vector(7, 7, 7)).tolist() == [0, 0, 0]
    assert centred_ranks(vector(7)).tolist() == [0]


def test_ranks_follow_their_candidates_whatever_the_order():
    for order in itertools.permutations(range(4)):
        ranks = centred_ranks(vector(3, 1, 1, 8)[list(order)])
        torch.testing.assert_close(ranks, vector(1 / 6, -1 / 3, -1 / 3, 0.5)[list(order)])


def test_candidates_come_in_mirrored_pairs():
    found = antithetic(vector(1, 2), torch.tensor([[1.0, 0], [-2, 3]], dtype=torch.float64), 0.5)
    assert found.tolist() == [[1.5, 2], [0, 3.5], [0.5, 2], [2, 0.5]]


def test_the_gradient_adds_each_pair_s_difference_along_its_noise():
    # Pairs (F+, F-): (5, 1) along (1, 0) and (2, 8) along (-2, 3). K = 4, sigma = 1/2:
    # ((5 - 1) (1, 0) + (2 - 8) (-2, 3)) / (4 / 2) = ((4, 0) + (12, -18)) / 2 = (8, -9)
    noise = torch.tensor([[1.0, 0], [-2, 3]], dtype=torch.float64)
    assert es_gradient(vector(5, 2, 1, 8), noise, 0.5).tolist() == [8, -9]
    assert es_gradient(vector(5, 2, 1, 8) + 100, noise, 0.5).tolist() == [8, -9]


def test_on_a_linear_function_one_pair_along_each_axis_is_exact():
    # F = 3 x - y: noise sqrt(2) e_i has E eps eps^T = 1 over the two pairs, so the estimate is (3, -1) for any sigma.
    noise = torch.eye(2, dtype=torch.float64) * 2**0.5
    for sigma in (0.1, 3.0):
        fitness = antithetic(vector(4, 5), noise, sigma) @ vector(3, -1)
        torch.testing.assert_close(es_gradient(fitness, noise, sigma), vector(3, -1))


def test_truncation_keeps_the_best_in_order_and_the_earlier_of_equals():
    assert truncation_selection(vector(3, 9, 9, -1, 4), 3).tolist() == [1, 2, 4]
    assert truncation_selection(vector(2, 2, 2), 2).tolist() == [0, 1]


def test_a_tournament_is_won_by_its_best_entrant():
    entrants = torch.tensor([[0, 3], [3, 1], [2, 2], [0, 1]])
    assert tournament_selection(vector(3, 9, 0, 3), entrants).tolist() == [0, 1, 2, 1]
    assert tournament_selection(vector(3, 9, 0, 3), torch.tensor([[3, 0]])).tolist() == [3]


def test_crossover_takes_each_parameter_from_one_parent():
    mixed = uniform_crossover(vector(1, 2, 3)[None], vector(-1, -2, -3)[None], torch.tensor([[True, False, True]]))
    assert mixed.tolist() == [[1, -2, 3]]


def test_the_simplex_moves_along_the_line_through_its_centroid():
    # Best (0, 0), then (2, 0); worst (0, 4). Centroid of the first two: (1, 0); c - worst = (1, -4).
    simplex = torch.tensor([[0.0, 0], [2, 0], [0, 4]], dtype=torch.float64)
    assert through_centroid(simplex, 1).tolist() == [2, -4]
    assert through_centroid(simplex, 2).tolist() == [3, -8]
    assert through_centroid(simplex, 0.5).tolist() == [1.5, -2]
    assert through_centroid(simplex, -0.5).tolist() == [0.5, 2]
    assert shrunk(simplex, 0.5).tolist() == [[1, 0], [0, 2]]
    assert diameter(simplex) == 4


def test_shrinking_leaves_the_best_where_it_is():
    simplex = torch.tensor([[1.0, 1], [3, 1], [1, -3]], dtype=torch.float64)
    assert shrunk(simplex, 0.25).tolist() == [[1.5, 1], [1, 0]]


def test_the_first_simplex_has_one_step_along_each_axis():
    assert initial_simplex(vector(1, 2), vector(0.5, -1)).tolist() == [[1, 2], [1.5, 2], [1, 1]]


@pytest.mark.parametrize("n", [1, 2, 10, 50])
def test_the_standard_coefficients_are_the_same_for_any_number_of_parameters(n):
    assert simplex_coefficients(n, adaptive=False) == (1, 2, 0.5, 0.5)


def test_the_adaptive_coefficients_grow_gentler():
    assert simplex_coefficients(10, adaptive=True) == pytest.approx((1, 1.2, 0.7, 0.9))
    assert simplex_coefficients(2, adaptive=True) == simplex_coefficients(1, adaptive=True) == (1, 2, 0.5, 0.5)
