"""Against matrices that are built here, and against numbers worked out by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from pgcli.functional.distributions import Categorical, Gaussian
from pgcli.functional.trust_region import (
    assign,
    backtracking,
    conjugate_gradient,
    depends_on,
    fisher_vector_product,
    flatten,
    natural_gradient,
)


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def matrix_of(product, size):
    return torch.stack([product(row) for row in torch.eye(size, dtype=torch.float64)])


def test_flatten_and_assign_are_each_other_s_inverse():
    parameters = [real(1, 2), torch.arange(6, dtype=torch.float64).view(2, 3)]
    before = [p.clone() for p in parameters]
    vector = flatten(parameters)
    assert vector.tolist() == [1, 2, 0, 1, 2, 3, 4, 5]
    assign(parameters, 2 * vector)
    assert_close(parameters, [2 * p for p in before])


# ---------------------------------------------------------------- Fisher


def test_the_fisher_matrix_of_a_softmax_is_diag_p_minus_p_p():
    # grad log pi(a) = e_a - p, so E[(e_a - p)(e_a - p)^T] = diag(p) - p p^T.
    logits = real(0.3, -1.2, 0.5).requires_grad_()
    p = torch.softmax(logits.detach(), 0)
    kl = Categorical(logits.detach()).kl(Categorical(logits))
    found = matrix_of(fisher_vector_product(kl, [logits], damping=0.0), 3)
    assert_close(found, torch.diag(p) - torch.outer(p, p))
    assert torch.linalg.matrix_rank(found) == 2  # moving all logits alike moves nothing


def test_the_fisher_matrix_of_a_gaussian_is_one_over_the_variance_and_two():
    # In (mean, log std): E[grad grad^T] = diag(1 / std^2, 2).
    mean, log_std = real(0.7).requires_grad_(), real(math.log(0.5)).requires_grad_()
    kl = Gaussian(mean.detach(), log_std.detach()).kl(Gaussian(mean, log_std))
    assert_close(matrix_of(fisher_vector_product(kl, [mean, log_std], damping=0.0), 2), torch.diag(real(4, 2)))


def test_damping_is_added_to_the_diagonal():
    logits = real(0.3, -1.2).requires_grad_()
    kl = Categorical(logits.detach()).kl(Categorical(logits))
    plain, damped = (matrix_of(fisher_vector_product(kl, [logits], damping=d), 2) for d in (0.0, 0.25))
    assert_close(damped - plain, 0.25 * torch.eye(2, dtype=torch.float64))


def test_through_a_network_the_product_is_that_of_the_expected_outer_product_of_scores():
    # Five states, four actions, tanh in between: the matrix is summed here from the score of every action.
    w, v, x = drawn(3, 2).requires_grad_(), drawn(4, 3, seed=1).requires_grad_(), drawn(5, 2, seed=2)
    logits = torch.tanh(x @ w.T) @ v.T
    log_pi = torch.log_softmax(logits, -1)
    fisher = torch.zeros(18, 18, dtype=torch.float64)
    for s in range(5):
        for a in range(4):
            score = flatten(torch.autograd.grad(log_pi[s, a], [w, v], retain_graph=True))
            fisher += log_pi[s, a].exp().detach() / 5 * torch.outer(score, score)
    kl = Categorical(logits.detach()).kl(Categorical(logits)).mean()
    assert_close(matrix_of(fisher_vector_product(kl, [w, v], damping=0.0), 18), fisher)


def test_parameters_that_a_loss_does_not_depend_on_are_left_out():
    a, b, c = (real(1).requires_grad_() for _ in range(3))
    assert [p is q for p, q in zip(depends_on((a * c).sum(), [a, b, c]), [a, c], strict=True)] == [True, True]


# ---------------------------------------------------------------- conjugate gradient


def test_conjugate_gradient_by_hand():
    # Shewchuk 1994, section 1: A = [[3, 2], [2, 6]], b = (2, -8), solution (2, -2); two steps are exact.
    a, b = torch.tensor([[3.0, 2.0], [2.0, 6.0]], dtype=torch.float64), real(2, -8)
    found = conjugate_gradient(lambda v: a @ v, b, iterations=5, tolerance=1e-12)
    assert_close(found.x, real(2, -2))
    assert found.iterations == 2
    assert found.residual < 1e-12
    # After one: alpha = b.b / b.Ab = 68 / 332, the residual (|r| / |b|) by hand.
    once = conjugate_gradient(lambda v: a @ v, b, iterations=1, tolerance=0.0)
    alpha = 68 / 332
    assert_close(once.x, alpha * b)
    left = b - alpha * (a @ b)
    assert once.residual == pytest.approx(float(left.norm() / b.norm()))


def test_it_needs_as_many_products_as_there_are_distinct_eigenvalues():
    diagonal = real(2, 2, 2, 5, 5, 5, 5)
    found = conjugate_gradient(lambda v: diagonal * v, drawn(7), iterations=7, tolerance=1e-10)
    assert found.iterations == 2
    assert_close(found.x, drawn(7) / diagonal)


def test_nothing_is_solved_by_nothing():
    found = conjugate_gradient(lambda v: v, torch.zeros(3), iterations=5, tolerance=1e-5)
    assert found.x.tolist() == [0, 0, 0]
    assert (found.residual, found.iterations) == (0.0, 0)


# ---------------------------------------------------------------- the step


def softmax_problem(logits, values):
    objective = (torch.softmax(logits, 0) * values).sum()
    return objective, Categorical(logits.detach()).kl(Categorical(logits))


def test_the_natural_gradient_of_a_softmax_is_the_advantage():
    # grad J = p (q - J), and F has that in its range: F (q - J) = p (q - J) - p * sum p (q - J) = p (q - J).
    logits, q = real(0.3, -1.2, 0.5).requires_grad_(), real(1, 2, 4)
    p = torch.softmax(logits.detach(), 0)
    objective, kl = softmax_problem(logits, q)
    found = natural_gradient(objective, kl, [logits], damping=1e-10, iterations=20, tolerance=1e-12)
    assert_close(found.gradient, p * (q - p @ q))
    apart = found.direction - (q - p @ q)  # up to a constant, which moves no softmax
    assert_close(apart, apart.mean().expand(3), atol=1e-6, rtol=0)
    variance = p @ (q - p @ q).square()  # x^T F x
    assert found.curvature == pytest.approx(float(variance), rel=1e-6)
    assert found.length(0.02) == pytest.approx(math.sqrt(0.04 / variance), rel=1e-6)


def test_a_small_normalised_step_has_the_kl_that_it_was_given():
    logits, q = real(0.3, -1.2, 0.5).requires_grad_(), real(1, 2, 4)
    objective, kl = softmax_problem(logits, q)
    found = natural_gradient(objective, kl, [logits], damping=1e-10, iterations=20, tolerance=1e-12)
    after = Categorical(logits.detach() + found.length(1e-6) * found.direction)
    assert float(Categorical(logits.detach()).kl(after)) == pytest.approx(1e-6, rel=1e-2)


def test_where_there_is_no_gradient_there_is_no_step():
    logits = real(0.3, -1.2, 0.5).requires_grad_()
    objective, kl = softmax_problem(logits, real(2, 2, 2))
    found = natural_gradient(objective * 0, kl, [logits], damping=0.1, iterations=20, tolerance=1e-12)
    assert found.length(0.01) == 0.0
    assert found.direction.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("tolerance", "iterations"), [(0.61, 1), (0.59, 2)])
def test_conjugate_gradient_stops_at_its_share_of_the_gradient_s_length(tolerance, iterations):
    # M = diag(1, 4), b = (1, 1): alpha = 2/5 leaves r = (0.6, -0.6), which is 0.6 of b's length.
    found = conjugate_gradient(lambda v: real(1, 4) * v, real(1, 1), iterations=9, tolerance=tolerance)
    assert found.iterations == iterations


# ---------------------------------------------------------------- the line search


def path(improvements, kls):
    """at(fraction) for the fractions 1, 1/2, 1/4, ..."""
    table = {0.5**n: pair for n, pair in enumerate(zip(improvements, kls, strict=True))}
    return table.__getitem__


@pytest.mark.parametrize(
    ("improvements", "kls", "expected"),
    [
        ([0.3], [0.01], (True, 0.3, 0.01, 1)),  # on the bound is within it
        ([0.3, 0.2], [0.011, 0.009], (True, 0.2, 0.009, 2)),  # too far
        ([-0.1, 0.0, 0.05], [0.001, 0.001, 0.001], (True, 0.05, 0.001, 3)),  # no gain is not an improvement
        ([math.nan, 0.1], [0.001, math.nan], (False, 0.0, 0.0, 2)),
        ([1.0, 1.0, -1.0], [1.0, 1.0, 0.0], (False, 0.0, 0.0, 3)),
    ],
)
def test_the_first_length_that_improves_within_the_bound_is_taken(improvements, kls, expected):
    found = backtracking(path(improvements, kls), max_kl=0.01, shrink=0.5, tries=len(kls))
    assert found == expected
