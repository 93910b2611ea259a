import torch
from torch.testing import assert_close

from pgcli.functional.returns import discounted_returns, trajectory_returns


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def flags(*values):
    return torch.tensor([values])


def test_rewards_to_go_are_discounted_and_stop_at_the_end_of_an_episode():
    # gamma 1/2; the second action ends an episode.
    # G_3 = 8, G_2 = 4 + 8/2 = 8 | G_1 = 2, G_0 = 1 + 2/2 = 2
    returns = discounted_returns(row(1, 2, 4, 8), flags(False, True, False, False), gamma=0.5)
    assert_close(returns, row(2, 2, 8, 8))


def test_rows_do_not_see_one_another():
    rewards = torch.tensor([[0.0, 1.0], [0.0, 3.0]], dtype=torch.float64)
    returns = discounted_returns(rewards, torch.tensor([[False, True], [True, True]]), gamma=0.9)
    assert_close(returns, torch.tensor([[0.9, 1.0], [0.0, 3.0]], dtype=torch.float64))


def test_a_discount_keeps_its_double_precision():
    # 0.99 in float32 is off by 1e-8; float64's default tolerance is 1e-7, so ask for equality.
    assert torch.equal(discounted_returns(row(0, 1), flags(False, True), gamma=0.99), row(0.99, 1))


def test_a_trajectorys_return_is_discounted_from_its_start_and_shared_by_its_actions():
    # 1 + 2/2 + 4/4 = 3, and 2 + 6/2 = 5: the padding's 100 counts nothing.
    rewards = torch.tensor([[1.0, 2.0, 4.0], [2.0, 6.0, 100.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    returns = trajectory_returns(rewards, mask, gamma=0.5)
    assert_close(returns, torch.tensor([[3.0] * 3, [5.0] * 3], dtype=torch.float64))


def test_a_trajectorys_return_is_its_first_reward_to_go():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([1, 2, 4, 6, 7])
    mask = torch.arange(7) < lengths[:, None]
    done = torch.arange(7) == lengths[:, None] - 1
    first = discounted_returns(rewards, done, gamma=0.9)[:, 0]
    assert_close(trajectory_returns(rewards, mask, gamma=0.9)[:, 0], first)


def test_what_the_policy_did_not_choose_takes_no_time():
    # The second column is a task's reply: from the first action the reward of 4 is one step away, and gamma is 1/2.
    chosen, done = flags(True, False, True), flags(False, False, True)
    assert_close(discounted_returns(row(1, 0, 4), done, gamma=0.5, mask=chosen)[:, [0, 2]], row(3, 4))
    assert_close(trajectory_returns(row(1, 0, 4), chosen, gamma=0.5), row(3, 3, 3))


def test_nan_on_padding_does_not_reach_a_trajectorys_return():
    returns = trajectory_returns(row(1, 2, float("nan")), flags(True, True, False), gamma=1.0)
    assert_close(returns, row(3, 3, 3))
