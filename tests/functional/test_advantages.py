import pytest
import torch
from torch.testing import assert_close

from pgcli.functional.advantages import (
    batch_standardise,
    best_of_each_group,
    gae,
    group_centre,
    group_relative,
    group_standardise,
    leave_one_out,
    silent_groups,
)
from pgcli.functional.returns import discounted_returns

GAMMA, LAM = 0.9, 0.8


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def flags(*values):
    return torch.tensor([values])


def a_batch():
    """(4, 9): episodes that terminate, that are truncated, and that are still open at the end of the segment."""
    generator = torch.Generator().manual_seed(0)
    rewards, values, next_values = torch.randn(3, 4, 9, generator=generator, dtype=torch.float64)
    ends = torch.rand(2, 4, 9, generator=generator) < 0.2
    terminated, truncated = ends[0], ends[1] & ~ends[0]
    assert terminated.any()
    assert truncated.any()
    return rewards, values, next_values, terminated, truncated


def test_gae_bootstraps_a_truncated_episode_but_not_a_terminated_one():
    # Two steps, gamma 1/2, lam 1/2, V = 2 everywhere.
    # Ends by truncation:  delta_1 = 1 + 0.5*2 - 2 = 0,   delta_0 = 1 + 0.5*2 - 2 = 0          -> A = (0, 0)
    # Ends by termination: delta_1 = 1 + 0     - 2 = -1,  A_0 = 0 + 0.5*0.5*(-1) = -0.25       -> A = (-0.25, -1)
    r, v = row(1, 1), row(2, 2)
    cut = gae(r, v, v, flags(False, False), flags(False, True), gamma=0.5, lam=0.5)
    ended = gae(r, v, v, flags(False, True), flags(False, True), gamma=0.5, lam=0.5)
    assert_close(cut, row(0, 0))
    assert_close(ended, row(-0.25, -1))


@pytest.mark.parametrize("terminated", [False, True])
def test_gae_lets_no_reward_cross_the_end_of_an_episode(terminated):
    # V = 0: what follows the end is worth 100, and nothing of it may reach the two steps before.
    zero = row(0, 0, 0)
    end = flags(False, True, False)
    advantages = gae(row(0, 0, 100), zero, zero, end & terminated, end, gamma=0.5, lam=0.5)
    assert torch.equal(advantages, row(0, 0, 100))


def test_gae_bootstraps_a_segment_that_ends_within_an_episode():
    # delta = 1 + 0.5 * 6 - 2 = 2
    advantages = gae(row(1), row(2), row(6), flags(False), flags(False), gamma=0.5, lam=0.5)
    assert_close(advantages, row(2))


def test_gae_of_three_steps():
    # gamma 1/2, lam 1/2, V(s) = 4, 8, 2, then terminated.
    # delta_2 = 3 - 2 = 1;  delta_1 = 1 + 0.5*2 - 8 = -6;  delta_0 = 2 + 0.5*8 - 4 = 2
    # A_2 = 1;  A_1 = -6 + 1/4 = -5.75;  A_0 = 2 - 5.75/4 = 0.5625
    end = flags(False, False, True)
    advantages = gae(row(2, 1, 3), row(4, 8, 2), row(8, 2, 77), end, end, gamma=0.5, lam=0.5)
    assert_close(advantages, row(0.5625, -5.75, 1))


def test_gae_passes_what_nobody_chose_as_if_it_took_no_time():
    # Two actions with a reply of two tokens between them; gamma 1/2, lam 1/2, V = 3 and, behind the reply, 4.
    # delta_3 = 2 - 4 = -2;  delta_0 = 1 + 0.5*4 - 3 = 0;  A_0 = 0 + 1/4 * (-2) = -0.5, as if they stood side by side.
    mask, end = flags(True, False, False, True), flags(False, False, False, True)
    advantages = gae(
        row(1, 100, 100, 2), row(3, 50, 4, 4), row(4, 50, 7, 77), end, end, gamma=0.5, lam=0.5, mask=mask
    )  # fmt: skip
    assert_close(advantages, row(-0.5, -2, -2, -2))


def test_gae_ignores_whatever_stands_for_the_successor_of_a_terminated_state():
    end = flags(True)
    assert_close(gae(row(1), row(2), row(float("nan")), end, end, gamma=0.5, lam=0.5), row(-1))


def test_gae_with_lam_zero_is_the_td_error():
    rewards, values, next_values, terminated, truncated = a_batch()
    td = torch.where(terminated, rewards, rewards + GAMMA * next_values) - values
    assert_close(gae(rewards, values, next_values, terminated, terminated | truncated, gamma=GAMMA, lam=0.0), td)


def test_gae_with_lam_one_is_the_return_minus_the_value():
    # Within an episode the successor is the next state; where one is cut, the bootstrap joins the last reward.
    rewards, values, next_values, terminated, truncated = a_batch()
    done = terminated | truncated
    within = ~done[:, :-1]
    next_values[:, :-1][within] = values[:, 1:][within]
    cut = truncated.clone()
    cut[:, -1] |= ~terminated[:, -1]
    returns = discounted_returns(rewards + GAMMA * next_values * cut, done, gamma=GAMMA)
    assert_close(gae(rewards, values, next_values, terminated, done, gamma=GAMMA, lam=1.0), returns - values)


def test_bootstrapping_a_truncated_episode_is_adding_the_final_value_to_its_last_reward():
    # What Stable-Baselines3 does: reward += gamma * V(final observation), then treat the limit as an end.
    rewards, values, next_values, terminated, truncated = a_batch()
    done = terminated | truncated
    augmented = rewards + GAMMA * next_values * truncated
    expected = torch.zeros_like(rewards)
    for n in range(4):
        running = 0.0
        for t in reversed(range(9)):
            alive = 0.0 if done[n, t] else 1.0
            delta = augmented[n, t] + GAMMA * alive * next_values[n, t] - values[n, t]
            running = delta + GAMMA * LAM * alive * running
            expected[n, t] = running
    assert_close(gae(rewards, values, next_values, terminated, done, gamma=GAMMA, lam=LAM), expected)


def test_gae_of_a_padded_row_is_that_of_the_row():
    r, v, end = row(2, 1, 3), row(4, 8, 2), flags(False, False, True)
    padded = [torch.cat([x, row(50, 50)], dim=1) for x in (r, v, v)]
    longer = torch.cat([end, flags(False, False)], dim=1)
    alone = gae(r, v, v, end, end, gamma=0.5, lam=0.5)
    assert torch.equal(gae(*padded, longer, longer, gamma=0.5, lam=0.5)[:, :3], alone)


# Group 7 holds returns 1, 2, 6 (mean 3), group -2 holds 10 and 20 (mean 15): shuffled, of different sizes.
RETURNS = real(10, 1, 6, 20, 2)
GROUPS = torch.tensor([-2, 7, 7, -2, 7])


def test_leave_one_out_subtracts_the_mean_of_the_others():
    # 10 - 20, 1 - (6 + 2)/2, 6 - (1 + 2)/2, 20 - 10, 2 - (1 + 6)/2
    assert_close(leave_one_out(RETURNS, GROUPS), real(-10, -3, 4.5, 10, -1.5))


def test_leave_one_out_is_the_centred_return_times_k_over_k_minus_one():
    k = real(2, 3, 3, 2, 3)
    means = real(15, 3, 3, 15, 3)
    assert_close(leave_one_out(RETURNS, GROUPS), k / (k - 1) * (RETURNS - means))


def test_leave_one_out_keeps_double_precision():
    # K / (K - 1) = 4/3 in float32 is off by 4e-8.
    advantages = leave_one_out(real(3, 0, 0, 0), torch.zeros(4, dtype=torch.int64))
    assert_close(advantages, real(3, -1, -1, -1), rtol=0, atol=1e-14)


def test_leave_one_out_has_no_others_in_a_group_of_one():
    with pytest.raises(ValueError, match="at least two"):
        leave_one_out(real(1, 2, 3), torch.tensor([0, 0, 1]))


def test_group_centre_subtracts_the_mean_of_the_group():
    assert_close(group_centre(RETURNS, GROUPS), real(-5, -2, 3, 5, -1))


def test_group_standardise_divides_by_the_populations_deviation():
    # Group 7: (4 + 9 + 1) / 3 = 14/3. Group -2: (25 + 25) / 2 = 25.
    s = (14 / 3) ** 0.5
    assert_close(group_standardise(RETURNS, GROUPS, eps=0.0), real(-1, -2 / s, 3 / s, 1, -1 / s))


def test_group_standardise_adds_eps_to_the_deviation():
    # Mean 1, deviation 1: -1 / (1 + 1) and 1 / (1 + 1).
    assert_close(group_standardise(real(0, 2), torch.tensor([3, 3]), eps=1.0), real(-0.5, 0.5))


def test_a_reward_of_zero_or_one_is_standardised_by_its_bernoulli_deviation():
    # One success in four: mean 1/4, std sqrt(3)/4, so 3/sqrt(3) for the success and -1/sqrt(3) for the others.
    advantages = group_standardise(real(0, 1, 0, 0), torch.zeros(4, dtype=torch.int64), eps=0.0)
    assert_close(advantages, real(-1, 3, -1, -1) / 3**0.5)


@pytest.mark.parametrize("value", [0.1, 1e4 + 0.1])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_equal_returns_give_exactly_no_advantage_in_single_precision(value, size):
    # 0.1 is no binary fraction: a mean that is off by one rounding, over an equally tiny deviation, would be order 1.
    returns, groups = torch.full((size,), value), torch.zeros(size, dtype=torch.int64)
    assert torch.equal(group_standardise(returns, groups, eps=1e-8), torch.zeros(size))
    assert torch.equal(group_centre(returns, groups), torch.zeros(size))


@pytest.mark.parametrize("estimator", [leave_one_out, group_centre, lambda r, g: group_standardise(r, g, 1e-6)])
def test_the_order_of_rows_does_not_matter_to_a_group(estimator):
    order = torch.tensor([3, 1, 4, 0, 2])
    assert_close(estimator(RETURNS[order], GROUPS[order]), estimator(RETURNS, GROUPS)[order])


def test_the_baseline_of_leave_one_out_leaves_the_policy_gradient_unbiased():
    # A bandit with two arms, p(1) = 0.3 = sigmoid(z), reward 5 or 1; score d log pi / dz = a - 0.3.
    # d E[r] / dz = 0.3 * 0.7 * (5 - 1) = 0.84. All pairs of pulls, each with its probability:
    p, reward = real(0.7, 0.3), real(1, 5)
    expected = 0.0
    for a in (0, 1):
        for b in (0, 1):
            arms = torch.tensor([a, b])
            advantages = leave_one_out(reward[arms], torch.tensor([0, 0]))
            expected += p[a] * p[b] * (advantages * (arms - 0.3)).mean()
    assert_close(expected, torch.tensor(0.84, dtype=torch.float64))


def test_batch_standardise_centres_by_group_and_scales_by_the_batch():
    # Means 2 and 6; all four returns: mean 4, squares 9, 1, 1, 9 -> deviation sqrt 5.
    found = batch_standardise(real(1, 3, 5, 7), torch.tensor([0, 0, 1, 1]), 0.0)
    assert_close(found, real(-1, 1, -1, 1) / 5**0.5)
    assert_close(batch_standardise(real(3, 3), torch.tensor([0, 1]), 0.5), real(0, 0))


def test_group_relative_divides_by_the_mean_of_the_group():
    # Group 0: mean 1/4, so (1 - 1/4) / (1/4) = 3 and -1. Group 1 has no success, group 2 nothing else.
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    assert_close(group_relative(real(1, 0, 0, 0, 0, 0, 1, 1), groups), real(3, -1, -1, -1, 0, 0, 0, 0))


def test_silent_groups_are_those_of_one_return():
    returns, groups = real(1, 0.1, 0, 0.1, 0.1), torch.tensor([5, 2, 5, 2, 2])
    assert silent_groups(returns, groups).tolist() == [True, False]


def test_the_best_of_each_group_is_one_even_where_several_are_as_good():
    # Groups 7 and 3, interleaved: 2 beats 1 in the one, and the first of two 5s is taken in the other.
    returns, groups = torch.tensor([1.0, 5.0, 2.0, 5.0, -1.0]), torch.tensor([7, 3, 7, 3, 7])
    assert best_of_each_group(returns, groups).tolist() == [False, True, True, False, False]


def test_the_best_of_a_group_may_be_bad():
    assert best_of_each_group(torch.tensor([-3.0, -2.0, 9.0]), torch.tensor([0, 0, 1])).tolist() == [False, True, True]
