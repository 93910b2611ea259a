import math

import pytest
import torch
from torch.testing import assert_close

from pgcli.functional.masked import aggregation_weights, weighted_sum
from pgcli.functional.policy_loss import (
    clipped_surrogate,
    policy_gradient,
    ratio_statistics,
    surrogate,
)

INF = math.inf


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


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
        surrogate,
    ],
)
def test_no_gradient_flows_into_advantages_or_old_log_probs(objective):
    new, old, advantages = (real(x).requires_grad_() for x in (-1, -1, 2))
    objective(new, old, advantages).sum().backward()
    assert new.grad is not None
    assert old.grad is None
    assert advantages.grad is None


def test_ratio_statistics_are_k3_and_whether_the_ratio_is_out_of_range():
    # rho = 2, 1.3, 1, 0.5 in the range [0.8, 1.4].
    old = real(-3, -3, -3, -3)
    statistics = ratio_statistics(old + real(2, 1.3, 1, 0.5).log(), old, low=0.2, high=0.4)
    assert_close(statistics.clip_fraction, real(1, 0, 0, 1))
    assert_close(statistics.approx_kl, real(1 - math.log(2), 0.3 - math.log(1.3), 0, -0.5 + math.log(2)))


def test_approx_kl_is_the_divergence_of_the_old_policy_from_the_new():
    # Samples of old = (0.8, 0.2); new = (0.5, 0.5).
    # KL(old || new) = 0.8 log 1.6 + 0.2 log 0.4, whereas KL(new || old) = 0.5 log 0.625 + 0.5 log 2.5.
    old, new = real(0.8, 0.2), real(0.5, 0.5)
    statistics = ratio_statistics(new.log(), old.log(), low=0.2, high=0.2)
    expected = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)
    assert_close((old * statistics.approx_kl).sum(), torch.tensor(expected, dtype=torch.float64))


def test_statistics_have_no_gradient():
    statistics = ratio_statistics(real(-1).requires_grad_(), real(-2), low=0.2, high=0.2)
    assert not statistics.approx_kl.requires_grad
    assert not statistics.clip_fraction.requires_grad


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
