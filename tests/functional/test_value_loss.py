import pytest
import torch
from torch.testing import assert_close

from pgcli.functional.value_loss import explained_variance, value_clipped, value_mse


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_squared_error_has_no_half():
    values = real(1, 5).requires_grad_()
    loss = value_mse(values, real(4, 4))
    assert_close(loss, real(9, 1))
    assert_close(torch.autograd.grad(loss.sum(), values)[0], real(-6, 2))


# Old value 0, range 1: the held value is V cut to [-1, 1].
@pytest.mark.parametrize(
    ("value", "target", "loss", "slope"),
    [
        (0.5, 3.0, 6.25, -5.0),  # inside the range: the plain error
        (2.0, 3.0, 4.0, 0.0),  # left the range towards the return: held at 1, error 2, no gradient
        (2.0, -3.0, 25.0, 10.0),  # left it away from the return: the plain error, pulled back
        (-2.0, -3.0, 4.0, 0.0),
        (-2.0, 3.0, 25.0, -10.0),
    ],
)
def test_the_clipped_value_loss_is_the_larger_of_two_errors(value, target, loss, slope):
    values = real(value).requires_grad_()
    clipped = value_clipped(values, real(0), real(target), clip_range=1.0)
    assert_close(clipped, real(loss))
    assert_close(torch.autograd.grad(clipped.sum(), values)[0], real(slope))


def test_the_clipped_value_loss_holds_the_value_near_the_old_one_not_near_zero():
    # Old 10, V 13, return 15, range 1: held at 11, error 4; plain error 2.
    assert_close(value_clipped(real(13), real(10), real(15), clip_range=1.0), real(16))


def test_without_a_range_the_clipped_value_loss_is_the_squared_error():
    values, returns = real(1, -7, 3), real(2, 2, 30)
    assert_close(value_clipped(values, real(0, 0, 0), returns, clip_range=float("inf")), real(1, 81, 729))


@pytest.mark.parametrize(
    "loss", [lambda v, o, r: value_mse(v, r), lambda v, o, r: value_clipped(v, o, r, clip_range=1.0)]
)
def test_no_gradient_flows_into_returns_or_old_values(loss):
    values, old, returns = (real(x).requires_grad_() for x in (1.2, 1.0, 5.0))
    loss(values, old, returns).sum().backward()
    assert values.grad is not None
    assert old.grad is None
    assert returns.grad is None


def test_explained_variance_is_the_share_of_the_returns_variance_that_the_critic_predicts():
    # Returns 0, 2, 4, 6 about 3: variance (9 + 1 + 1 + 9) / 4 = 5. Residuals 1, -1, 1, -1: variance 1. 1 - 1/5.
    returns, everything = real(0, 2, 4, 6), torch.ones(4, dtype=torch.bool)
    most = torch.tensor(0.8, dtype=torch.float64)
    assert_close(explained_variance(returns - real(1, -1, 1, -1), returns, everything), most)
    # A constant error is no variance: 100 off everywhere still explains the same.
    assert_close(explained_variance(returns - real(1, -1, 1, -1) + 100, returns, everything), most)


def test_explained_variance_is_one_zero_and_negative_for_perfect_constant_and_opposite_critics():
    returns, everything = real(0, 2, 4, 6), torch.ones(4, dtype=torch.bool)
    assert explained_variance(returns, returns, everything) == 1
    assert explained_variance(torch.zeros(4, dtype=torch.float64), returns, everything) == 0
    # Residuals 2R: four times the variance.
    assert explained_variance(-returns, returns, everything) == -3


def test_explained_variance_leaves_padding_out_and_says_when_there_is_nothing_to_explain():
    nan = float("nan")
    mask = torch.tensor([[True, True, False], [True, True, False]])
    returns = torch.tensor([[0.0, 2.0, nan], [4.0, 6.0, 1e9]], dtype=torch.float64)
    values = torch.tensor([[-1.0, 3.0, 5.0], [3.0, 7.0, nan]], dtype=torch.float64)
    assert_close(explained_variance(values, returns, mask), torch.tensor(0.8, dtype=torch.float64))
    assert explained_variance(values, torch.ones(2, 3, dtype=torch.float64), mask).isnan()
