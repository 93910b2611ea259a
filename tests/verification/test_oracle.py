"""The enumeration: every trajectory once, with its probability, and what must not be looked at is there to be seen."""

import pytest
import torch

from pgcli.functional import dynamic_programming as dp
from pgcli.functional.dynamic_programming import MDP
from pgcli.verification import oracle as oracles
from pgcli.verification.oracle import JUNK, Oracle, each_row_its_own, reward_to_go


def d(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.fixture
def fork():
    """From 0, action 0 stays and pays 1; action 1 ends with probability 1/4 and pays 4, or else stays and pays 2."""
    transitions = torch.tensor([[[1, 0], [0.75, 0.25]], [[1, 0], [1, 0]]], dtype=torch.float64)
    rewards = torch.tensor([[[1, 0], [2, 4]], [[9, 9], [9, 9]]], dtype=torch.float64)
    oracle = Oracle(MDP(transitions, rewards, d(1, 0), torch.tensor([False, True])), 2)
    oracle.policy = torch.tensor([[0.6, 0.4], [0.5, 0.5]], dtype=torch.float64)
    return oracle


def test_the_trajectories_of_a_fork_are_these_seven(fork):
    found = fork.rollout()
    rows = {}
    for i, weight in enumerate(found.weights.tolist()):
        steps = int(found.mask[i].sum())
        assert found.mask[i, :steps].all()
        rows[tuple(found.actions[i, :steps].tolist()), tuple(found.rewards[i].tolist())] = weight
    # Two steps, each: stay 0.6 (1); go and stay 0.4 * 0.75 = 0.3 (2); go and end 0.4 * 0.25 = 0.1 (4).
    expected = {
        ((0, 0), (1, 1)): 0.36, ((0, 1), (1, 2)): 0.18, ((0, 1), (1, 4)): 0.06,
        ((1, 0), (2, 1)): 0.18, ((1, 1), (2, 2)): 0.09, ((1, 1), (2, 4)): 0.03,
        ((1,), (4, 0)): 0.1,
    }  # fmt: skip
    assert rows == pytest.approx(expected)
    assert len(found.weights) == 7


def test_the_horizon_ends_an_episode_and_a_cut_truncates_it(fork):
    whole, cut = fork.rollout(), fork.rollout(cut=1)
    assert not whole.truncated.any()
    assert torch.equal(whole.terminated.sum(1), torch.ones(7, dtype=torch.int64))
    assert torch.equal(whole.mask.sum(1), whole.terminated.long().argmax(1) + 1)
    assert cut.mask.shape == (3, 1)
    ended = cut.rewards[:, 0] == 4
    assert torch.equal(cut.terminated[:, 0], ended)
    assert torch.equal(cut.truncated[:, 0], ~ended)
    assert float(cut.weights.sum()) == pytest.approx(1)


def test_values_are_those_of_the_step_and_its_successor(fork):
    values = torch.tensor([[10, 11], [20, 21], [30, 31]], dtype=torch.float64)
    found = fork.rollout(values)
    assert torch.equal(found.values[found.mask], d(10, 20).expand(7, 2)[found.mask])
    going_on = found.mask & ~found.terminated
    assert (found.next_values[going_on] == 20).all()
    cut = fork.rollout(values, cut=1)
    assert cut.next_values[cut.truncated].tolist() == [20, 20]


def test_padding_and_what_follows_an_end_hold_junk(fork):
    found = fork.rollout()
    assert (found.values[~found.mask] == JUNK).all()
    assert (found.log_probs[~found.mask] == -JUNK).all()
    assert (found.next_values[~found.mask | found.terminated] == -JUNK).all()
    assert (found.rewards[~found.mask] == 0).all()  # as every collector leaves them


def test_the_sum_over_trajectories_is_what_the_equations_say():
    for oracle in (oracles.ending(), oracles.small(), oracles.endless()):
        found = oracle.rollout()
        assert float(found.weights.sum()) == pytest.approx(1, abs=1e-12)
        assert float((found.weights[:, None] * found.mask).sum()) == pytest.approx(float(oracle.mean_length), abs=1e-12)
        for gamma in (1.0, 0.7):
            value = dp.expected_return(oracle.mdp, oracle.solve(gamma).values[0])
            returns = reward_to_go(found, gamma)[:, 0]
            assert float((found.weights * returns).sum()) == pytest.approx(float(value), abs=1e-12)
        torch.testing.assert_close(
            oracle.expected_score(found, reward_to_go(found)), oracle.gradient(), atol=1e-12, rtol=0
        )


def test_the_worlds_are_hard_enough():
    ending = oracles.ending().rollout()
    assert len(ending.mask.sum(1).unique()) == 3  # lengths 1, 2 and 3
    assert len(ending.observations[:, 0].argmax(-1).unique()) == 2
    assert oracles.endless().rollout().mask.all()
    values = oracles.ending().solve().values
    assert (values[0] - values[1]).abs().max() > 0.1  # V depends on the step, too


def test_a_group_is_any_of_a_state_s_trajectories_with_any_other():
    oracle = oracles.small()
    single, pairs = oracle.rollout(), oracle.groups(2)
    first = single.observations[:, 0].argmax(-1)
    sizes = first.bincount()
    assert len(pairs.weights) == 2 * int((sizes**2).sum())
    assert float(pairs.weights.sum()) == pytest.approx(1, abs=1e-12)
    begun = pairs.observations[:, 0].argmax(-1).view(-1, 2)
    assert torch.equal(begun[:, 0], begun[:, 1])
    assert torch.equal(pairs.groups.view(-1, 2)[:, 0], torch.arange(len(begun)))
    # By hand, the pair of the first two trajectories, which begin in state 0: P(0) * p1/P(0) * p2/P(0) / 2.
    p0, p1, p2 = float(oracle.mdp.start[0]), *single.weights[:2].tolist()
    assert float(pairs.weights[2]) == pytest.approx(p1 * p2 / p0 / 2)


def test_each_row_has_its_own_gradient():
    oracle = oracles.small()
    found, table = oracle.rollout(), oracle.table()
    policy, leaf = each_row_its_own(table, len(found.weights))
    (rows,) = torch.autograd.grad(policy(found.observations, found.actions).log_probs.sum(), [leaf])
    for i in (0, 7):
        alone = table(found.observations[i], found.actions[i]).log_probs.sum()
        (gradient,) = torch.autograd.grad(alone, [table.logits])
        torch.testing.assert_close(rows[i], gradient)
