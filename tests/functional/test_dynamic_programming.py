"""Numbers from the book and by hand, and the identities that tie the pieces together."""

import math

import pytest
import torch

from pgcli.functional import dynamic_programming as dp
from pgcli.functional.dynamic_programming import MDP


def d(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


@pytest.fixture
def fork():
    """State 0: action 0 stays and pays 1; action 1 goes on to state 1, or ends in 2 and pays 4, at even odds.
    State 1: both actions end and pay 2. State 2 is terminal, and its rows are noise that must not matter.
    """
    transitions = torch.tensor(
        [[[1, 0, 0], [0, 0.5, 0.5]], [[0, 0, 1], [0, 0, 1]], [[0.3, 0.3, 0.4], [9, 9, 9]]], dtype=torch.float64
    )
    rewards = torch.tensor(
        [[[1, 7, 7], [7, 0, 4]], [[7, 7, 2], [7, 7, 2]], [[5, 5, 5], [5, 5, 5]]], dtype=torch.float64
    )
    return MDP(transitions, rewards, d(1, 0, 0), torch.tensor([False, False, True]))


@pytest.fixture
def arbitrary():
    """Five states, three actions, nothing special about them but that the last one is terminal."""
    generator = torch.Generator().manual_seed(0)
    transitions = torch.rand((5, 3, 5), dtype=torch.float64, generator=generator)
    rewards = torch.randn((5, 3, 5), dtype=torch.float64, generator=generator)
    start = d(0.5, 0.2, 0.3, 0, 0)
    return MDP(transitions / transitions.sum(-1, keepdim=True), rewards, start, torch.arange(5) == 4)


@pytest.fixture
def logits():
    return torch.randn((5, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(1))


EVEN = torch.full((3, 2), 0.5, dtype=torch.float64)


def test_a_backup_looks_one_step_ahead_and_not_behind_the_end(fork):
    # q(0, stay) = 1 + v(0)/2 = 6. q(0, go) = 1/2 * 4 + 1/2 * (0 + v(1)/2) = 2 + 1/2 * 10 = 7. State 1: 2. Terminal: 0.
    values = d(10, 20, 1000)
    q = dp.lookahead(fork, values, gamma=0.5)
    close(q, torch.stack([d(6, 7), d(2, 2), d(0, 0)]))
    close(dp.expectation_backup(fork, EVEN, values, gamma=0.5), d(6.5, 2, 0))
    close(dp.optimality_backup(fork, values, gamma=0.5), d(7, 2, 0))


def test_a_policy_is_worth_what_its_equation_says(fork):
    # v(1) = 2, v(0) = 1/2 (1 + g v(0)) + 1/2 (2 + g/2 * 2), g = 1/2: v(0) (1 - 1/4) = 1/2 + 5/4 -> 7/3.
    values = dp.policy_evaluation(fork, EVEN, gamma=0.5)
    close(values, d(7 / 3, 2, 0))
    close(dp.expectation_backup(fork, EVEN, values, gamma=0.5), values)
    # Undiscounted: half of 1 + v(0), half of 2 + 1: v(0) = 4.
    close(dp.policy_evaluation(fork, EVEN, gamma=1.0), d(4, 2, 0))
    close(dp.expected_return(fork, values), d(7 / 3)[0])


def test_the_random_walk_of_the_book():
    # Sutton & Barto 2018, figure 4.1: 4 x 4 cells, two terminal corners, reward -1, even odds of four moves.
    states, terminal = 16, torch.tensor([s in (0, 15) for s in range(16)])
    transitions = torch.zeros((states, 4, states), dtype=torch.float64)
    for s in range(states):
        y, x = divmod(s, 4)
        for a, (dy, dx) in enumerate([(-1, 0), (0, 1), (1, 0), (0, -1)]):
            inside = 0 <= y + dy < 4 and 0 <= x + dx < 4
            transitions[s, a, 4 * (y + dy) + x + dx if inside else s] = 1
    start = (~terminal).double() / 14
    walk = MDP(transitions, torch.full_like(transitions, -1), start, terminal)
    even = torch.full((16, 4), 0.25, dtype=torch.float64)
    known = d(0, -14, -20, -22, -14, -18, -20, -20, -20, -20, -18, -14, -22, -20, -14, 0)
    close(dp.policy_evaluation(walk, even, gamma=1.0), known)
    one_sweep = dp.expectation_backup(walk, even, torch.zeros(16, dtype=torch.float64), gamma=1.0)
    close(one_sweep, -(~terminal).double())  # k = 1 of the figure
    close(dp.value_iteration(walk, gamma=1.0).values, d(0, -1, -2, -3, -1, -2, -3, -2, -2, -3, -2, -1, -3, -2, -1, 0))


def test_the_best_policy_stays_where_patience_pays(fork):
    # Staying for ever is worth 1/(1-g), going 2 + g. They cross where g + g^2 = 1: g = 0.618...
    for gamma, best in ((0.6, 1), (0.65, 0)):
        for solution in (dp.policy_iteration(fork, gamma=gamma), dp.value_iteration(fork, gamma=gamma)):
            assert solution.policy[0].argmax() == best
            close(solution.values, d(1 / (1 - gamma) if best == 0 else 2 + gamma, 2, 0))


def test_policy_iteration_and_value_iteration_find_the_same(arbitrary):
    by_policy, by_value = dp.policy_iteration(arbitrary, gamma=0.9), dp.value_iteration(arbitrary, gamma=0.9)
    close(by_policy.values, by_value.values)
    assert torch.equal(by_policy.policy, by_value.policy)
    close(dp.optimality_backup(arbitrary, by_policy.values, gamma=0.9), by_policy.values)


def test_among_equally_good_actions_the_incumbent_stays():
    q = torch.stack([d(1, 1), d(0, 1)])
    assert dp.greedy(q).argmax(-1).tolist() == [0, 1]
    assert dp.greedy(q, torch.stack([d(0, 1), d(1, 0)])).argmax(-1).tolist() == [1, 1]


def test_backward_induction_counts_the_steps_to_go(fork):
    # One to go: v(0) = 1/2 * 1 + 1/2 * 2 = 3/2, v(1) = 2. Two to go: 1/2 (1 + 3/2) + 1/2 (2 + 1/2 * 2) = 11/4.
    found = dp.backward_induction(fork, 2, gamma=1.0, policy=EVEN)
    close(found.values, torch.stack([d(11 / 4, 2, 0), d(3 / 2, 2, 0), d(0, 0, 0)]))
    close(found.action_values[0, 0], d(5 / 2, 3))
    # The best: with one step to go 2 (go), with two 3 either way, with three 1 + 3 = 4 (stay).
    best = dp.backward_induction(fork, 3, gamma=1.0)
    close(best.values[:, 0], d(4, 3, 2, 0))
    assert best.action_values[0, 0].argmax() == 0


def test_a_long_horizon_is_none(arbitrary, logits):
    policy = logits.softmax(-1)
    found = dp.backward_induction(arbitrary, 400, gamma=0.9, policy=policy)
    close(found.values[0], dp.policy_evaluation(arbitrary, policy, gamma=0.9))
    discounts = 0.9 ** torch.arange(400, dtype=torch.float64)
    seen = (discounts[:, None] * dp.visits(arbitrary, policy, 400)).sum(0)
    close(seen[:4], dp.discounted_visits(arbitrary, policy, gamma=0.9)[:4])


def test_visits_follow_the_chain_and_leave_it_at_the_end(fork):
    # From 0: half stay, a quarter goes on to 1, a quarter ends. Then: 1/4 and 1/8; state 1 always ends.
    close(dp.visits(fork, EVEN, 3), torch.stack([d(1, 0, 0), d(0.5, 0.25, 0), d(0.25, 0.125, 0)]))
    # d(0) = 1 + g/2 d(0), d(1) = g/4 d(0): at g = 1, 2 and 1/2.
    close(dp.discounted_visits(fork, EVEN, gamma=1.0), d(2, 0.5, 0))
    close(dp.discounted_visits(fork, EVEN, gamma=0.5), d(4 / 3, 1 / 6, 0))


def test_what_is_visited_times_what_it_pays_is_the_return(arbitrary, logits):
    policy = logits.softmax(-1)
    paid = (policy * arbitrary.expected_rewards).sum(-1)
    seen = dp.discounted_visits(arbitrary, policy, gamma=0.9)
    close(seen @ paid, dp.expected_return(arbitrary, dp.policy_evaluation(arbitrary, policy, gamma=0.9)))


def test_the_policy_gradient_theorem_is_the_derivative_through_the_equations(arbitrary, logits):
    logits = logits.requires_grad_()
    policy = logits.softmax(-1)
    values = dp.policy_evaluation(arbitrary, policy, gamma=0.9)
    (exact,) = torch.autograd.grad(dp.expected_return(arbitrary, values), logits)
    policy, values = policy.detach(), values.detach()
    q, seen = dp.lookahead(arbitrary, values, gamma=0.9), dp.discounted_visits(arbitrary, policy, gamma=0.9)
    close(dp.softmax_gradient(seen, policy, q), exact)
    shifted = q + torch.arange(5, dtype=torch.float64)[:, None]  # a baseline changes nothing
    close(dp.softmax_gradient(seen, policy, shifted), exact)


def test_the_theorem_holds_with_a_finite_horizon_too(arbitrary, logits):
    logits = logits.requires_grad_()
    values = dp.backward_induction(arbitrary, 4, gamma=0.8, policy=logits.softmax(-1)).values
    (exact,) = torch.autograd.grad(dp.expected_return(arbitrary, values[0]), logits)
    policy = logits.detach().softmax(-1)
    q = dp.backward_induction(arbitrary, 4, gamma=0.8, policy=policy).action_values
    discounts = 0.8 ** torch.arange(4, dtype=torch.float64)[:, None]
    close(dp.softmax_gradient(discounts * dp.visits(arbitrary, policy, 4), policy, q), exact)


def test_the_gradient_of_two_actions_by_hand(fork):
    # One state visited once, pi = (1/2, 1/2), q = (3, 1): pi (q - v) = (1/2, -1/2); twice as often, twice as much.
    policy, q = torch.stack([d(0.5, 0.5)]), torch.stack([d(3, 1)])
    close(dp.softmax_gradient(d(1), policy, q), torch.stack([d(0.5, -0.5)]))
    close(dp.softmax_gradient(torch.stack([d(1), d(1)]), policy, torch.stack([q, q])), torch.stack([d(1, -1)]))


def test_the_fisher_information_is_the_curvature_of_the_divergence(arbitrary, logits):
    policy, seen = logits.softmax(-1), dp.discounted_visits(arbitrary, logits.softmax(-1), gamma=0.9)

    def divergence(moved):
        log_ratio = torch.log_softmax(logits, -1) - torch.log_softmax(moved.view(5, 3), -1)
        return (seen[:, None] * policy * log_ratio).sum()

    hessian = torch.autograd.functional.hessian(divergence, logits.flatten())
    fisher = dp.softmax_fisher(seen, policy)
    close(fisher, hessian)
    for s in range(5):  # a shift of the logits of one state
        shift = torch.zeros((5, 3), dtype=torch.float64)
        shift[s] = 1
        close(fisher @ shift.flatten(), torch.zeros(15, dtype=torch.float64))


def test_the_fisher_information_of_a_coin():
    # pi = (p, 1-p): p (1-p) [[1, -1], [-1, 1]], times the visits.
    p = 1 / (1 + math.e)
    block = 3 * p * (1 - p) * torch.tensor([[1, -1], [-1, 1]], dtype=torch.float64)
    close(dp.softmax_fisher(d(3), torch.stack([d(p, 1 - p)])), block)
