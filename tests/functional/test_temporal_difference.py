import pytest
import torch

from pgcli.functional.schedules import between
from pgcli.functional.temporal_difference import (
    bellman_target,
    epsilon_greedy,
    follow,
    huber,
    select,
    soft_value,
    squared,
    temperature_loss,
    visit_step_sizes,
)


def test_a_target_bootstraps_unless_the_task_ended():
    # 1 + 0.5 * 8 = 5; 1 alone behind a terminal state, whatever is said of its value.
    targets = bellman_target(torch.tensor([1.0, 1.0]), torch.tensor([8.0, 8.0]), torch.tensor([False, True]), gamma=0.5)
    assert targets.tolist() == [5, 1]


def test_epsilon_is_spread_over_all_actions_and_the_rest_over_the_best():
    values = torch.tensor([[1.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0], [-1.0, -2.0, -3.0, -4.0]])
    expected = [[0.05, 0.45, 0.05, 0.45], [0.25] * 4, [0.85, 0.05, 0.05, 0.05]]
    torch.testing.assert_close(epsilon_greedy(values, 0.2), torch.tensor(expected))
    torch.testing.assert_close(epsilon_greedy(values, 1.0), torch.full((3, 4), 0.25))


def test_each_row_gives_the_value_of_its_own_action():
    assert select(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0])).tolist() == [2, 3]


def test_huber_is_a_parabola_near_zero_and_a_line_beyond():
    errors = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0], requires_grad=True)
    loss = huber(errors)
    assert loss.tolist() == [2.5, 0.5, 0.125, 0, 0.125, 0.5, 2.5]
    [gradient] = torch.autograd.grad(loss.sum(), errors)
    assert gradient.tolist() == [-1, -1, -0.5, 0, 0.5, 1, 1]
    wide = torch.tensor([3.0], requires_grad=True)
    assert huber(wide, threshold=2.0).item() == 4  # 2 * (3 - 1)
    assert torch.autograd.grad(huber(wide, threshold=2.0), wide)[0].item() == 2


def test_the_gradient_of_the_squared_error_is_the_error():
    errors = torch.tensor([-3.0, 0.5], requires_grad=True)
    assert torch.autograd.grad(squared(errors).sum(), errors)[0].tolist() == [-3, 0.5]


def test_the_lowest_critic_counts_less_the_price_of_certainty():
    values = torch.tensor([[1.0, 5.0], [3.0, 2.0]])
    soft = soft_value(values, torch.tensor([-1.0, 2.0]), torch.tensor(0.5))
    assert soft.tolist() == [1 + 0.5, 2 - 1]


def test_the_temperature_falls_while_there_is_too_much_entropy():
    # log-probs -3 and -1: the entropy is 2. Slope by log alpha: 2 - target.
    for target, slope in ((0.5, 1.5), (3.0, -1.0)):
        log_alpha = torch.tensor(0.3, requires_grad=True)
        temperature_loss(log_alpha, torch.tensor([-3.0, -1.0]), target).mean().backward()
        assert log_alpha.grad == pytest.approx(slope)


def test_a_target_network_follows_by_tau():
    target, online = torch.tensor([0.0, 4.0]), torch.tensor([8.0, 0.0])
    follow(target, online, tau=0.25)
    assert target.tolist() == [2, 3]
    follow(target, online, tau=1.0)
    assert target.tolist() == online.tolist()


def test_each_state_and_action_has_a_schedule_of_its_own():
    # c / (k + offset): with 1 and 0 the first visit counts fully, and the estimate is the mean of its targets.
    visits = torch.tensor([1.0, 2.0, 4.0])
    assert visit_step_sizes(visits, c=1.0, offset=0.0).tolist() == [1, 0.5, 0.25]
    assert visit_step_sizes(visits, c=4.0, offset=4.0).tolist() == pytest.approx([0.8, 2 / 3, 0.5])


def test_a_straight_line_stays_at_its_end():
    assert [between(1.0, 0.2, progress=p) for p in (0, 0.5, 1, 7)] == pytest.approx([1, 0.6, 0.2, 0.2])
