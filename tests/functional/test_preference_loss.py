"""Each loss at numbers that can be worked out by hand: log 2, log 3 and log 4 make sigmoids of 2/3, 3/4 and 4/5."""

import math

import pytest
import torch
from torch.testing import assert_close

from pgcli.functional.masked import masked_mean, masked_sum
from pgcli.functional.preference_loss import (
    apo_down,
    apo_zero,
    bradley_terry,
    correctness,
    dpo,
    ipo,
    kto,
    kto_reference_point,
    odds_ratio,
    simpo,
)

LOG2, LOG3, LOG4 = math.log(2), math.log(3), math.log(4)


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def slopes(function, *arguments):
    """d sum(function) / d each argument."""
    leaves = [a.clone().requires_grad_() for a in arguments]
    return torch.autograd.grad(function(*leaves).sum(), leaves)


# ---------------------------------------------------------------- reward models


def test_bradley_terry_is_the_log_loss_of_the_winner():
    # sigmoid(log 3) = 3/4;  sigmoid(-log 3) = 1/4;  sigmoid(0) = 1/2
    assert_close(bradley_terry(real(LOG3 + 5, 0, 2), real(5, LOG3, 2)), real(-math.log(3 / 4), LOG4, LOG2))


def test_a_margin_is_what_the_difference_must_exceed():
    # log 3 + log 4 - log 4 = log 3; and one margin a pair
    assert_close(bradley_terry(real(LOG3 + LOG4), real(0), margin=LOG4), real(-math.log(3 / 4)))
    assert_close(bradley_terry(real(1, 1), real(0, 0), margin=real(1, 1 + LOG3)), real(LOG2, LOG4))


def test_centring_pulls_the_sum_and_not_the_difference():
    # 0.1 * (3 + 1)^2 = 1.6 on top; its gradient, 2 * 0.1 * 4 = 0.8, is the same for both
    plain, centred = (bradley_terry(real(3), real(1), centring=c) for c in (0.0, 0.1))
    assert_close(centred - plain, real(1.6))
    plain, centred = (slopes(lambda a, b, c=c: bradley_terry(a, b, centring=c), real(3), real(1)) for c in (0.0, 0.1))
    assert_close(centred[0] - plain[0], real(0.8))
    assert_close(centred[1] - plain[1], real(0.8))


def test_the_members_of_an_ensemble_are_scored_side_by_side():
    scores = real(LOG3, 0, 0, LOG3).view(2, 2)
    assert_close(
        bradley_terry(scores, torch.zeros_like(scores)), real(-math.log(0.75), LOG2, LOG2, -math.log(0.75)).view(2, 2)
    )


def test_correctness_is_the_cross_entropy_of_a_sigmoid():
    assert_close(correctness(real(LOG3, LOG3, 0), real(1, 0, 1)), real(-math.log(3 / 4), LOG4, LOG2))
    assert correctness(torch.tensor([200.0, -200.0]), torch.tensor([0.0, 1.0])).tolist() == [200, 200]


# ---------------------------------------------------------------- direct preference optimisation


def test_dpo_by_hand():
    # beta 1/2, log-ratios log 9 and 0: h = log 3, L = -log 3/4; swapped: log 4
    chosen, rejected = real(2 * LOG3, 0), real(0, 2 * LOG3)
    assert_close(dpo(chosen, rejected, beta=0.5), real(-math.log(3 / 4), LOG4))


def test_dpo_s_gradient_weights_a_pair_by_how_wrong_its_order_is():
    # dL/d chosen = -beta sigmoid(-h) (Rafailov et al. 2023, eq. 8): h = log 3 -> -1/2 * 1/4
    up, down = slopes(lambda a, b: dpo(a, b, beta=0.5), real(2 * LOG3), real(0))
    assert_close(up, real(-0.125))
    assert_close(down, real(0.125))


def test_conservative_dpo_mixes_both_labels_and_has_its_minimum_at_the_labels_log_odds():
    # 0.75 * -log 3/4 + 0.25 * log 4 at h = log 3, where the smoothing of 1/4 has its minimum: gradient 0
    found = dpo(real(LOG3), real(0), beta=1.0, label_smoothing=0.25)
    assert_close(found, real(-0.75 * math.log(0.75) + 0.25 * LOG4))
    assert_close(slopes(lambda a: dpo(a, real(0), beta=1.0, label_smoothing=0.25), real(LOG3))[0], real(0.0))


def test_ipo_by_hand_and_its_minimum_is_finite():
    # beta 1/4: the target is 2.  (3 - 0 - 2)^2 = 1, (0 - 3 - 2)^2 = 25
    assert_close(ipo(real(3, 0, 2), real(0, 3, 0), beta=0.25), real(1, 25, 0))


def test_ipo_of_summed_and_of_averaged_log_ratios_are_two_different_losses():
    # A pair of 2 and 4 tokens, each log-ratio 1 and 0.5: sums 2 and 2, averages 1 and 1/2. beta 1/2: the target is 1.
    log_ratios = real(1, 1, 0, 0, 0.5, 0.5, 0.5, 0.5).view(2, 4)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    summed, averaged = masked_sum(log_ratios, mask, dim=1), masked_mean(log_ratios, mask, dim=1)
    assert_close(ipo(summed[:1], summed[1:], beta=0.5), real(1.0))
    assert_close(ipo(averaged[:1], averaged[1:], beta=0.5), real(0.25))


def test_simpo_by_hand():
    # beta 2, gamma 1: 2 * (-1/2 + 3/2) - 1 = 1 ... with averages -1/2 and -1/2 - (1 + log 3)/2: h = log 3
    assert_close(simpo(real(-0.5), real(-0.5 - (1 + LOG3) / 2), beta=2.0, gamma=1.0), real(-math.log(3 / 4)))


def test_the_odds_ratio_by_hand():
    # p = 3/4 and 1/2: odds 3 and 1, so L = -log sigmoid(log 3); and the other way round
    likely, even = real(math.log(0.75)), real(math.log(0.5))
    assert_close(odds_ratio(likely, even), real(-math.log(3 / 4)))
    assert_close(odds_ratio(even, likely), real(LOG4))


def test_the_odds_of_certainty_are_not_infinite():
    certain = torch.zeros(1, requires_grad=True)
    loss = odds_ratio(certain, torch.tensor([-1.0]))
    loss.sum().backward()
    assert loss.isfinite()
    assert certain.grad.isfinite()


def test_the_two_anchored_losses_by_hand():
    # beta 1: sigmoid(log 3) = 3/4, sigmoid(-log 4) = 1/5
    chosen, rejected = real(LOG3), real(-LOG4)
    assert_close(apo_zero(chosen, rejected, beta=1.0), real(1 - 3 / 4 + 1 / 5))
    assert_close(apo_down(chosen, rejected, beta=1.0), real(3 / 4 + 1 - 12 / 13))


def test_apo_zero_pushes_the_preferred_one_up_and_apo_down_pushes_it_down():
    # at zero: sigmoid' = 1/4.  zero: -1/4, +1/4;  down: 1/4 - 1/4 = 0 and +1/4; and below the tie the sign shows
    assert_close(torch.cat(slopes(lambda a, b: apo_zero(a, b, beta=1.0), real(0), real(0))), real(-0.25, 0.25))
    assert_close(torch.cat(slopes(lambda a, b: apo_down(a, b, beta=1.0), real(0), real(0))), real(0, 0.25))
    up, _ = slopes(lambda a, b: apo_down(a, b, beta=1.0), real(0), real(-3))
    assert up > 0


# ---------------------------------------------------------------- KTO


def test_kto_by_hand():
    # beta 1, z = log 2. desirable, log-ratio log 6: gain log 3 -> 1 - 3/4.  undesirable, log-ratio log 8: log 4 -> 4/5
    found = kto(real(math.log(6), math.log(8)), torch.tensor([True, False]), real(LOG2), beta=1.0)
    assert_close(found, real(1 / 4, 4 / 5))


def test_kto_weighs_desirable_and_undesirable_ones():
    found = kto(
        real(LOG3, LOG4), torch.tensor([True, False]), real(0.0),
        beta=1.0, desirable_weight=2.0, undesirable_weight=0.5,
    )  # fmt: skip
    assert_close(found, real(2 / 4, 0.5 * 4 / 5))


def test_kto_pushes_a_desirable_one_up_and_an_undesirable_one_down():
    # sigmoid' at gain 0 is 1/4
    slope = slopes(lambda x: kto(x, torch.tensor([True, False]), real(1.0), beta=1.0), real(1, 1))[0]
    assert_close(slope, real(-0.25, 0.25))


def test_ktos_reference_point_is_the_mean_clamped_once_and_has_no_gradient():
    # The mean of -3 and 1 is below zero, so 0: clamping each first would give 1/2. The mean of 3 and 1 is 2.
    assert_close(kto_reference_point(real(-3, 1)), torch.tensor(0.0, dtype=torch.float64))
    assert_close(kto_reference_point(real(3, 1)), torch.tensor(2.0, dtype=torch.float64))
    assert not kto_reference_point(real(3, 1).requires_grad_()).requires_grad


# ---------------------------------------------------------------- identities


@pytest.mark.parametrize("loss", [dpo, apo_zero, apo_down, ipo])
def test_a_policy_that_is_the_reference_has_a_loss_that_depends_on_nothing(loss):
    # All log-ratios are 0: log 2, 1, 1, (1 / 2 beta)^2 = 25 at beta 0.1
    expected = {dpo: LOG2, apo_zero: 1.0, apo_down: 1.0, ipo: 25.0}[loss]
    assert_close(loss(real(0, 0), real(0, 0), beta=0.1), real(expected, expected))


def test_simpo_with_a_uniform_reference_and_no_margin_is_length_normalised_dpo():
    # A uniform reference over V tokens has the average log-prob -log V in both: it cancels.
    chosen, rejected, uniform = real(-1.0, -0.3), real(-2.0, -0.1), -math.log(7)
    assert_close(simpo(chosen, rejected, beta=2.0, gamma=0.0), dpo(chosen - uniform, rejected - uniform, beta=2.0))
