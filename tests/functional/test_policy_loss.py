import math

import pytest
import torch
from torch.testing import assert_close

from pgcli.functional.masked import aggregation_weights, weighted_sum
from pgcli.functional.policy_loss import (
    clipped_surrogate,
    clipped_weight,
    gated_surrogate,
    policy_gradient,
    ratio_statistics,
    surrogate,
)

INF = math.inf


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def gradient(function, log_probs):
    """d sum(function) / d log_probs, per action."""
    x = log_probs.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def test_the_policy_gradient_loss_is_minus_advantage_times_log_prob():
    log_probs, advantages = real(-1, -2, -3), real(2, 0, -0.5)
    assert_close(policy_gradient(log_probs, advantages), real(2, 0, -1.5))
    assert_close(gradient(lambda x: policy_gradient(x, advantages), log_probs), real(-2, 0, 0.5))


def test_with_advantage_one_it_is_the_cross_entropy():
    logits = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.5, 3.0]], dtype=torch.float64)
    actions = torch.tensor([2, 0])
    log_probs = torch.log_softmax(logits, -1)[torch.arange(2), actions]
    expected = torch.nn.functional.cross_entropy(logits, actions, reduction="none")
    assert_close(policy_gradient(log_probs, torch.ones(2, dtype=torch.float64)), expected)


# low 0.2, high 0.4. The range is [0.8, 1.4]; d(rho A) / d log pi = rho A.
CORNERS = [
    # rho, A, objective, gradient
    (1.0, 3.0, 3.0, 3.0),
    (1.2, 2.0, 2.4, 2.4),  # inside
    (0.9, -2.0, -1.8, -1.8),  # inside
    (2.0, 3.0, 4.2, 0.0),  # A > 0, above: clipped at 1.4
    (0.5, 3.0, 1.5, 1.5),  # A > 0, below: pulled back
    (2.0, -3.0, -6.0, -6.0),  # A < 0, above: pulled back
    (0.5, -3.0, -2.4, 0.0),  # A < 0, below: clipped at 0.8
]


@pytest.mark.parametrize(("ratio", "advantage", "objective", "slope"), CORNERS)
def test_the_clipped_surrogate_in_its_range_and_in_its_four_corners(ratio, advantage, objective, slope):
    old = real(-1.5)
    log_probs, advantages = old + math.log(ratio), real(advantage)
    assert_close(clipped_surrogate(log_probs, old, advantages, low=0.2, high=0.4), real(objective))
    assert_close(gradient(lambda x: clipped_surrogate(x, old, advantages, low=0.2, high=0.4), log_probs), real(slope))


def test_at_ratio_one_the_clipped_surrogate_has_the_policy_gradient():
    log_probs, advantages = real(-0.1, -2, -0.7), real(1.5, -2, 0)
    loss = gradient(lambda x: policy_gradient(x, advantages), log_probs)
    objective = gradient(lambda x: clipped_surrogate(x, log_probs, advantages, low=0.2, high=0.2), log_probs)
    assert torch.equal(-loss, objective)


def test_without_bounds_the_clipped_surrogate_is_the_ratio_times_the_advantage():
    log_probs, old, advantages = real(-0.1, -2, -0.7), real(-3, -0.1, -0.7), real(1.5, -2, 1)
    expected = real(1.5 * math.exp(2.9), -2 * math.exp(-1.9), 1)
    assert_close(clipped_surrogate(log_probs, old, advantages, low=INF, high=INF), expected)
    assert_close(surrogate(log_probs, old, advantages), expected)


def test_at_ratio_one_the_surrogate_has_the_policy_gradient_and_farther_off_ratio_times_it():
    log_probs, advantages = real(-0.1, -2, -0.7), real(1.5, -2, 0)
    loss = gradient(lambda x: policy_gradient(x, advantages), log_probs)
    assert torch.equal(gradient(lambda x: surrogate(x, log_probs, advantages), log_probs), -loss)
    away = gradient(lambda x: surrogate(x, log_probs - math.log(3), advantages), log_probs)  # rho = 3
    assert_close(away, -3 * loss)


@pytest.mark.parametrize(
    "objective",
    [
        lambda new, old, adv: policy_gradient(new, adv),
        lambda new, old, adv: clipped_surrogate(new, old, adv, low=0.2, high=0.2),
        lambda new, old, adv: clipped_surrogate(new, old, adv, low=0.2, high=0.2, dual=3.0),
        lambda new, old, adv: clipped_weight(new, old, adv, low=0.2, high=0.2),
        lambda new, old, adv: gated_surrogate(new, old, adv, positive=1.0, negative=1.05),
        surrogate,
    ],
)
def test_no_gradient_flows_into_advantages_or_old_log_probs(objective):
    new, old, advantages = (real(x).requires_grad_() for x in (-1, -1, 2))
    objective(new, old, advantages).sum().backward()
    assert new.grad is not None
    assert old.grad is None
    assert advantages.grad is None


def test_ratio_statistics_are_means_with_the_actions_weights():
    # rho = 2, 1.3, 1, 0.5 in the range [0.8, 1.4], weighted 0.1, 0.2, 0.3, 0.4; the fifth has weight 0 and holds NaN.
    log_ratios, weights = real(2, 1.3, 1, 0.5, math.nan).log(), real(0.1, 0.2, 0.3, 0.4, 0)
    found = ratio_statistics(log_ratios, weights, low=0.2, high=0.4)
    k3 = [1 - math.log(2), 0.3 - math.log(1.3), 0, -0.5 + math.log(2)]
    assert found.approx_kl == pytest.approx(0.1 * k3[0] + 0.2 * k3[1] + 0.4 * k3[3])
    assert found.clipped_high == pytest.approx(0.1)
    assert found.clipped_low == pytest.approx(0.4)
    assert found.smallest == pytest.approx(0.5)
    assert found.largest == pytest.approx(2.0)
    # mean 0.2 + 0.26 + 0.3 + 0.2 = 0.96, square 0.4 + 0.338 + 0.3 + 0.1 = 1.138
    assert found.effective == pytest.approx(0.96**2 / 1.138)
    scaled = ratio_statistics(log_ratios, 7 * weights, low=0.2, high=0.4)  # as in a minibatch
    assert scaled == pytest.approx(found)


@pytest.mark.parametrize(("ratios", "extremes"), [((2.0, 1.5), (1.5, 2.0)), ((0.25, 0.5), (0.25, 0.5))])
def test_padding_has_no_ratio_that_could_be_the_smallest_or_the_largest(ratios, extremes):
    # All real ratios lie on one side of 1, which is what a log-ratio of 0 on padding would be.
    found = ratio_statistics(real(*ratios, 1, 9).log(), real(0.5, 0.5, 0, 0), low=0.2, high=0.2)
    assert (found.smallest, found.largest) == pytest.approx(extremes)


def test_on_policy_all_samples_are_effective_and_nothing_is_clipped():
    found = ratio_statistics(torch.zeros(2, 3), torch.full((2, 3), 1 / 6), low=0.2, high=0.2)
    assert tuple(found) == pytest.approx((0, 0, 0, 1, 1, 1))


def test_a_few_heavy_weights_leave_few_effective_samples():
    # Ratios 3, 0, 0: one of three samples is worth anything.
    found = ratio_statistics(real(3, 0, 0).log(), real(1, 1, 1) / 3, low=0.2, high=0.2)
    assert found.effective == pytest.approx(1 / 3)


def test_approx_kl_is_the_divergence_of_the_old_policy_from_the_new():
    # Samples of old = (0.8, 0.2); new = (0.5, 0.5).
    # KL(old || new) = 0.8 log 1.6 + 0.2 log 0.4, whereas KL(new || old) = 0.5 log 0.625 + 0.5 log 2.5.
    old, new = real(0.8, 0.2), real(0.5, 0.5)
    statistics = ratio_statistics((new / old).log(), old, low=0.2, high=0.2)
    assert statistics.approx_kl == pytest.approx(0.8 * math.log(1.6) + 0.2 * math.log(0.4))


def test_statistics_do_not_overflow():
    statistics = ratio_statistics(torch.tensor([500.0, -500.0]).requires_grad_(), torch.ones(2), low=0.2, high=0.2)
    assert all(map(math.isfinite, statistics))


def test_where_every_ratio_is_zero_there_is_no_effective_share():
    found = ratio_statistics(torch.tensor([-500.0, -500.0]), torch.ones(2), low=0.2, high=0.2)
    assert (found.smallest, found.largest, found.clipped_low) == (0, 0, 1)
    assert math.isnan(found.effective)


# c = 3; low 0.2, high 0.4. Only the corner that has no bound gets one: A < 0, rho > 1 + high.
DUAL = [
    # rho, A, objective, gradient
    (5.0, -2.0, -6.0, 0.0),  # beyond c: held at 3 * -2
    (2.5, -2.0, -5.0, -5.0),  # before c: pulled back as ever
    (0.5, -2.0, -1.6, 0.0),  # below: clipped as ever
    (5.0, 2.0, 2.8, 0.0),  # A > 0: clipped at 1.4, as ever
    (0.5, 2.0, 1.0, 1.0),
]


@pytest.mark.parametrize(("ratio", "advantage", "objective", "slope"), DUAL)
def test_a_dual_clip_bounds_what_a_negative_advantage_costs(ratio, advantage, objective, slope):
    old = real(-4)

    def dual(x):
        return clipped_surrogate(x, old, real(advantage), low=0.2, high=0.4, dual=3.0)

    assert_close(dual(old + math.log(ratio)), real(objective))
    assert_close(gradient(dual, old + math.log(ratio)), real(slope))


# low 0.2, high 0.4: the weight is held in [0.8, 1.4], on both sides of 0 alike, and the gradient is weight * A.
WEIGHTS = [(2.0, 3.0, 4.2), (0.5, 3.0, 2.4), (2.0, -3.0, -4.2), (0.5, -3.0, -2.4), (1.2, 2.0, 2.4), (1.0, -1.0, -1.0)]


@pytest.mark.parametrize(("ratio", "advantage", "slope"), WEIGHTS)
def test_a_clipped_weight_bounds_a_gradient_and_takes_none_away(ratio, advantage, slope):
    old = real(-1.5)
    log_probs = old + math.log(ratio)

    def weighted(x):
        return clipped_weight(x, old, real(advantage), low=0.2, high=0.4)

    assert_close(weighted(log_probs), slope * log_probs)
    assert_close(gradient(weighted, log_probs), real(slope))


def test_a_low_of_one_leaves_no_lower_bound_on_the_weight():
    old = real(-1.5)
    assert_close(
        gradient(lambda x: clipped_weight(x, old, real(2), low=1.0, high=4.0), old + math.log(0.01)), real(0.02)
    )


def test_the_gate_is_open_at_ratio_one_and_closes_on_both_sides():
    # tau 2 where A > 0, 4 where A < 0. At rho = 1.5: sigmoid(1) = 0.731059, sigmoid(2) = 0.880797.
    old, half = real(-1.5), math.log(1.5)

    def gated(advantage):
        return lambda x: gated_surrogate(x, old, real(advantage), positive=2.0, negative=4.0)

    for advantage in (3.0, -3.0):
        assert_close(gradient(gated(advantage), old), real(advantage))
    assert_close(gated(3.0)(old + half), real(3 * 2 * 0.7310585786))
    assert_close(gated(-3.0)(old + half), real(-3 * 0.8807970780))
    # d/d log pi: 4 p (1 - p) rho A = 4 * 0.196612 * 1.5 * 3 and 4 * 0.104994 * 1.5 * -3
    assert_close(gradient(gated(3.0), old + half), real(4 * 0.1966119332 * 1.5 * 3))
    assert_close(gradient(gated(-3.0), old + half), real(4 * 0.1049935854 * 1.5 * -3))
    # Farther off it fades, however far: at rho = 21, p (1 - p) < 1e-16.
    assert abs(gradient(gated(3.0), old + math.log(21.0)).item()) < 1e-14


@pytest.mark.parametrize("mode", ["token_mean", "sequence_mean", "sequence_sum", "constant"])
def test_nan_log_probs_on_padding_change_neither_the_loss_nor_the_gradient(mode):
    def loss_and_gradient(new, old, advantages, mask):
        x = new.clone().requires_grad_()
        weights = aggregation_weights(mask, mode, constant=4)
        loss = -weighted_sum(clipped_surrogate(x, old, advantages, low=0.2, high=0.2), weights)
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    new, old = torch.log(torch.tensor([[[0.5, 0.4], [0.9, 0.3]], [[0.6, 0.4], [0.2, 0.3]]], dtype=torch.float64))
    advantages = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    mask = torch.ones(2, 2, dtype=torch.bool)

    def padded(x, value):
        return torch.nn.functional.pad(x, (0, 2, 0, 1), value=value)

    loss, slope = loss_and_gradient(new, old, advantages, mask)
    nan = float("nan")
    longer = loss_and_gradient(padded(new, nan), padded(old, nan), padded(advantages, 0.0), padded(mask, False))
    assert loss.isfinite()
    assert torch.equal(longer[0], loss)
    assert torch.equal(longer[1][:2, :2], slope)
