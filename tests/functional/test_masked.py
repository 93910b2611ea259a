import pytest
import torch
from torch.testing import assert_close

from pgcli.functional.masked import (
    aggregation_weights,
    last_of,
    masked_mean,
    masked_std,
    masked_sum,
    masked_variance,
    row_mean,
    weighted_sum,
    whiten,
)

NAN = float("nan")
MODES = ["token_mean", "sequence_mean", "sequence_sum", "constant"]

# Two rows: three actions and one. 1 + 2 + 6 = 9 and 3; NaN on all padding.
X = torch.tensor([[1.0, 2.0, 6.0], [3.0, NAN, NAN]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True], [True, False, False]])


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_sums_and_means_leave_padding_out_even_where_it_is_nan():
    assert_close(masked_sum(X, MASK), torch.tensor(12.0, dtype=torch.float64))
    assert_close(masked_mean(X, MASK), torch.tensor(3.0, dtype=torch.float64))
    assert_close(masked_sum(X, MASK, dim=1), real(9, 3))
    assert_close(masked_mean(X, MASK, dim=1), real(3, 3))


def test_a_rows_mean_stands_on_each_of_its_places():
    x, mask = torch.tensor([[1.0, 3.0, float("nan")], [4.0, 9.0, 2.0]]), torch.tensor([[1, 1, 0], [1, 1, 1]]) > 0
    assert row_mean(x, mask).tolist() == [[2, 2, 2], [5, 5, 5]]


def test_the_standard_deviation_is_the_populations():
    # 1, 2, 6, 3 about 3: 4 + 1 + 9 + 0 = 14, over 4.
    assert_close(masked_variance(X, MASK), torch.tensor(3.5, dtype=torch.float64))
    assert_close(masked_std(X, MASK), torch.tensor(3.5**0.5, dtype=torch.float64))


def test_the_mean_of_nothing_is_zero():
    nothing = torch.zeros_like(MASK)
    assert masked_mean(X, nothing) == 0
    assert_close(masked_mean(X, MASK & torch.tensor([[True], [False]]), dim=1), real(3, 0))


def test_the_last_action_of_a_row_whatever_lies_before_it():
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 1], [1, 0, 0, 0]], dtype=torch.bool)
    assert last_of(mask).tolist() == [1, 3, 0]


def test_whitened_values_have_mean_zero_and_standard_deviation_one():
    white = whiten(X, MASK)
    # (1, 2, 6, 3) - 3 over sqrt(3.5); 0 on padding.
    assert_close(white, torch.tensor([[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]], dtype=torch.float64) / 3.5**0.5)
    assert_close(white[MASK].mean(), torch.tensor(0.0, dtype=torch.float64))
    assert_close(white[MASK].std(correction=0), torch.tensor(1.0, dtype=torch.float64))


def test_without_a_mask_whitening_is_over_everything():
    assert_close(whiten(real(1, 2, 6, 3), None), real(-2, -1, 3, 0) / 3.5**0.5)


def test_whitening_what_does_not_vary_gives_zeros():
    assert_close(whiten(real(2, 2, 2), torch.ones(3, dtype=torch.bool)), real(0, 0, 0))


def test_whitening_depends_on_nothing_but_the_taken_actions():
    doubled = torch.cat([X, torch.full_like(X, 1e6)], dim=1)
    mask = torch.cat([MASK, torch.zeros_like(MASK)], dim=1)
    assert torch.equal(whiten(doubled, mask)[:, :3], whiten(X, MASK))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token_mean", [[0.25, 0.25, 0.25], [0.25, 0, 0]]),  # four actions
        ("sequence_mean", [[1 / 6, 1 / 6, 1 / 6], [0.5, 0, 0]]),  # two rows, of three actions and of one
        ("sequence_sum", [[0.5, 0.5, 0.5], [0.5, 0, 0]]),  # two rows
        ("constant", [[0.125, 0.125, 0.125], [0.125, 0, 0]]),  # two rows, constant 4
    ],
)
def test_weights_of_each_aggregation(mode, expected):
    assert_close(aggregation_weights(MASK, mode, constant=4), torch.tensor(expected))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (
            "token_mean",
            [[0.3, 0.3, 0.3], [0.1, 0, 0]],
        ),  # 0.75 * 3 + 0.25 * 1 = 2.5 actions expected: 0.75 / 2.5, 0.25 / 2.5
        ("sequence_mean", [[0.25, 0.25, 0.25], [0.25, 0, 0]]),
        ("sequence_sum", [[0.75, 0.75, 0.75], [0.25, 0, 0]]),
        ("constant", [[0.1875, 0.1875, 0.1875], [0.0625, 0, 0]]),  # constant 4
    ],
)
def test_row_probabilities_take_the_place_of_one_over_n(mode, expected):
    weights = aggregation_weights(MASK, mode, row_weights=real(0.75, 0.25), constant=4)
    assert_close(weights, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("mode", ["token_mean", "sequence_mean"])
def test_the_weights_of_a_mean_sum_to_one(mode):
    assert_close(aggregation_weights(MASK, mode).sum(), torch.tensor(1.0))


def test_token_mean_is_the_mean_over_actions_and_sequence_mean_the_mean_of_row_means():
    # Rows 1, 2, 6 and 5: 14 / 4 = 3.5 over actions; (3 + 5) / 2 = 4 over rows.
    x = torch.tensor([[1.0, 2.0, 6.0], [5.0, NAN, NAN]])
    assert_close(weighted_sum(x, aggregation_weights(MASK, "token_mean")), torch.tensor(3.5))
    assert_close(weighted_sum(x, aggregation_weights(MASK, "sequence_mean")), torch.tensor(4.0))


@pytest.mark.parametrize("mode", MODES)
def test_padding_a_batch_by_columns_and_rows_changes_no_loss(mode):
    padded, mask = torch.full((5, 8), NAN, dtype=torch.float64), torch.zeros(5, 8, dtype=torch.bool)
    padded[:2, :3], mask[:2, :3] = X, MASK
    before = weighted_sum(X, aggregation_weights(MASK, mode, constant=4))
    after = weighted_sum(padded, aggregation_weights(mask, mode, constant=4))
    assert before.isfinite()
    assert torch.equal(before, after)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_of_nothing_but_padding_weighs_nothing(mode):
    assert torch.equal(aggregation_weights(torch.zeros_like(MASK), mode, constant=4), torch.zeros(2, 3))


def test_an_aggregation_that_cannot_be_computed_is_refused():
    with pytest.raises(ValueError, match="constant"):
        aggregation_weights(MASK, "constant")
    with pytest.raises(ValueError, match="token_sum"):
        aggregation_weights(MASK, "token_sum")


def test_nan_on_padding_reaches_neither_the_loss_nor_its_gradient():
    # 0.5 * (1 + 2 + 6 + 3) = 6; the gradient is the weights.
    x = X.clone().requires_grad_()
    loss = weighted_sum(x, aggregation_weights(MASK, "sequence_sum"))
    loss.backward()
    assert_close(loss.detach(), torch.tensor(6.0, dtype=torch.float64))
    assert_close(x.grad, torch.tensor([[0.5, 0.5, 0.5], [0.5, 0, 0]], dtype=torch.float64))


def test_nan_where_an_action_was_taken_is_not_hidden():
    assert weighted_sum(real(1, NAN), real(0.5, 0.5)).isnan()
    assert masked_mean(real(1, NAN), torch.ones(2, dtype=torch.bool)).isnan()
