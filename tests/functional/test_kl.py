import math

import pytest
import torch
from torch.testing import assert_close

from pgcli.functional.kl import adapted_coefficient, k1, k2, k3, k3_corrected, proportional_coefficient

# Two distributions that differ by a lot, and not symmetrically.
POLICY = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REFERENCE = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
OLD = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
# KL(policy || reference) = 0.5 log 5 + 0.3 log 1 + 0.2 log(1/3) = 0.585; the other way it is 0.498.
KL = 0.5 * math.log(5) - 0.2 * math.log(3)


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def softmax_gradient(function):
    """The gradient with respect to the policy's logits of sum over all actions of `function(log_probs)`."""
    logits = POLICY.log().requires_grad_()
    return torch.autograd.grad(function(torch.log_softmax(logits, 0)).sum(), logits)[0]


def gradient_of_the_divergence():
    # d/dz_a of KL(pi || ref) with pi = softmax(z): pi_a (log(pi_a / ref_a) - KL).
    return POLICY * ((POLICY / REFERENCE).log() - KL)


def test_each_estimate_of_a_single_action():
    # pi = 0.5, ref = 0.25, log-ratio log 2:  k1 = log 2, k2 = (log 2)^2 / 2, k3 = 1/2 - 1 + log 2
    new, reference = real(0.5).log(), real(0.25).log()
    assert_close(k1(new, reference), real(math.log(2)))
    assert_close(k2(new, reference), real(math.log(2) ** 2 / 2))
    assert_close(k3(new, reference), real(math.log(2) - 0.5))
    assert_close(k3_corrected(new, reference, real(0.1).log()), real(5 * (math.log(2) - 0.5)))


@pytest.mark.parametrize("estimator", [k1, k3])
def test_k1_and_k3_expect_the_divergence_of_the_policy_from_the_reference(estimator):
    assert_close((POLICY * estimator(POLICY.log(), REFERENCE.log())).sum(), scalar(KL))


def test_k2_expects_half_the_second_moment_of_the_log_ratio_which_is_not_the_divergence():
    # (0.5 (log 5)^2 + 0.2 (log 3)^2) / 2 = 0.768...
    value = (POLICY * k2(POLICY.log(), REFERENCE.log())).sum()
    assert_close(value, scalar((0.5 * math.log(5) ** 2 + 0.2 * math.log(3) ** 2) / 2))
    assert abs(value - KL) > 0.1


def test_k3_corrected_expects_the_divergence_under_another_policys_samples():
    assert_close((OLD * k3_corrected(POLICY.log(), REFERENCE.log(), OLD.log())).sum(), scalar(KL))


def test_k2_and_k3_are_never_negative_and_zero_only_at_the_reference():
    ratios = torch.linspace(-50, 50, 101, dtype=torch.float64)
    for estimator in (k2, k3):
        values = estimator(ratios, torch.zeros_like(ratios))
        assert (values[ratios != 0] > 0).all()
        assert values[ratios == 0] == 0


def test_in_the_loss_k1_has_no_expected_gradient():
    slope = softmax_gradient(lambda new: POLICY * k1(new, REFERENCE.log()))
    assert_close(slope, real(0, 0, 0))


def test_in_the_loss_k2_has_the_gradient_of_the_divergence():
    slope = softmax_gradient(lambda new: POLICY * k2(new, REFERENCE.log()))
    assert_close(slope, gradient_of_the_divergence())


def test_in_the_loss_k3_has_the_gradient_of_the_opposite_divergence():
    # d/dz_a of KL(ref || pi) = pi_a - ref_a: (0.4, 0, -0.4). Nothing like the true one, even in direction.
    slope = softmax_gradient(lambda new: POLICY * k3(new, REFERENCE.log()))
    assert_close(slope, POLICY - REFERENCE)
    assert torch.cosine_similarity(slope, gradient_of_the_divergence(), dim=0) < 0.99


@pytest.mark.parametrize("old", [POLICY, OLD], ids=["on-policy", "off-policy"])
def test_in_the_loss_k3_corrected_has_the_gradient_of_the_divergence_on_and_off_policy(old):
    slope = softmax_gradient(lambda new: old * k3_corrected(new, REFERENCE.log(), old.log()))
    assert_close(slope, gradient_of_the_divergence())


def test_as_a_reward_k1_has_the_gradient_of_the_divergence():
    def surrogate(new):
        return POLICY * k1(new, REFERENCE.log()).detach() * new

    assert_close(softmax_gradient(surrogate), gradient_of_the_divergence())


def test_k3_corrected_takes_no_gradient_through_the_old_policy():
    # Given the policy's own log-probs as the old ones, the ratio is 1 and still has its gradient.
    slope = softmax_gradient(lambda new: POLICY * k3_corrected(new, REFERENCE.log(), new))
    assert_close(slope, gradient_of_the_divergence())


def test_k2_of_a_sequences_summed_log_ratio_has_the_gradient_of_the_sequences_divergence():
    # Two independent actions from the same softmax: KL of the pair = 2 KL, and so its gradient.
    def loss(new):
        pairs = new[:, None] + new[None, :]
        reference = REFERENCE.log()[:, None] + REFERENCE.log()[None, :]
        return POLICY[:, None] * POLICY[None, :] * k2(pairs, reference)

    assert_close(softmax_gradient(loss), 2 * gradient_of_the_divergence())


def test_an_absurd_log_ratio_does_not_overflow_in_single_precision():
    new = torch.tensor([-1000.0, 0.0]).requires_grad_()
    values = k3(new, torch.tensor([0.0, -1000.0]))
    values.sum().backward()
    # Beyond 20 the first counts as exp(20) - 1 - 20; the second is exp(-1000) - 1 + 1000.
    assert_close(values.detach(), torch.tensor([math.exp(20) - 21, 999.0]))
    assert_close(new.grad, torch.tensor([0.0, 1.0]))
    assert k3_corrected(torch.tensor(0.0), torch.tensor(-1.0), torch.tensor(-1000.0)).isfinite()


@pytest.mark.parametrize(
    ("kl", "expected"), [(0.031, 6.0), (0.029, 3.0), (0.02, 3.0), (0.0134, 3.0), (0.0132, 1.5), (0.0, 1.5)]
)
def test_the_price_of_kl_doubles_above_and_halves_below_the_target(kl, expected):
    # target 0.02: nothing changes between 0.02 / 1.5 = 0.01333 and 0.03.
    assert adapted_coefficient(3.0, kl, target=0.02) == expected


@pytest.mark.parametrize(
    ("kl", "expected"), [(6.0, 0.5), (6.6, 0.505), (60.0, 0.51), (5.4, 0.495), (0.0, 0.49), (-3.0, 0.49)]
)
def test_the_proportional_controller_moves_the_price_by_at_most_a_fifth_of_its_gain(kl, expected):
    # target 6, gain 0.1: errors 0, 0.1, 9 (held at 0.2), -0.1, -1 and -1.5 (held at -0.2).
    assert proportional_coefficient(0.5, kl, target=6.0, gain=0.1) == pytest.approx(expected)
