"""Each verdict from numbers that can be checked by hand."""

import numpy as np
import pytest

from pgcli.analysis.statistics import Moments, mean_interval, welch_interval
from pgcli.studies.definition import Published, Source, sample_deviation
from pgcli.studies.verdict import beside_published, beside_reference

T4, T2 = 2.776445, 4.302653  # the 97.5% quantiles of Student's t with 4 and with 2 degrees of freedom, from a table


def test_the_interval_of_a_mean_is_students():
    # 1 2 3 4 5: mean 3, s^2 = 10 / 4, standard error sqrt(2.5 / 5) = sqrt(1/2).
    found = mean_interval(Moments(3.0, 2.5**0.5, 5))
    half = T4 * 0.5**0.5
    np.testing.assert_allclose((found.value, found.low, found.high), (3, 3 - half, 3 + half), rtol=1e-6)
    assert mean_interval(Moments(3.0)).low is None
    assert mean_interval(Moments(3.0, 1.0)).low is None  # a spread of we do not know how many


def test_welchs_interval_weighs_both_variances():
    # s^2/n = 1 and 1 with five runs each: nu = (1 + 1)^2 / (1/4 + 1/4) = 8, t = 2.306004, half width t sqrt(2).
    found = welch_interval(Moments(10.0, 5**0.5, 5), Moments(4.0, 5**0.5, 5))
    half = 2.306004 * 2**0.5
    np.testing.assert_allclose((found.value, found.low, found.high), (6, 6 - half, 6 + half), rtol=1e-6)
    # Unequal: v = 1 (n = 5) and 9 (n = 3): nu = 100 / (1/4 + 81/2) = 2.45, rounded down to 2.
    found = welch_interval(Moments(10.0, 5**0.5, 5), Moments(4.0, 27**0.5, 3))
    half = T2 * 10**0.5
    np.testing.assert_allclose((found.low, found.high), (6 - half, 6 + half), rtol=1e-6)


def test_welchs_interval_takes_what_has_no_spread_as_exact():
    # Ours alone: 1 2 3 4 5 beside a bare 1.
    found = welch_interval(Moments(3.0, 2.5**0.5, 5), Moments(1.0))
    half = T4 * 0.5**0.5
    np.testing.assert_allclose((found.low, found.high), (2 - half, 2 + half), rtol=1e-5)
    assert welch_interval(Moments(-200.0, 0.0, 5), Moments(-200.0, 0.0, 3)) == (0, 0, 0)


def test_a_population_deviation_becomes_a_samples():
    # 0, 0, 3: mean 1, population variance (1 + 1 + 4) / 3 = 2, sample variance 6 / 2 = 3.
    published = Published(source="x", mean=1.0, deviation=2**0.5)
    by_n = Source(title="x", seeds=3, deviation="population")
    assert sample_deviation(published, by_n) == pytest.approx(3**0.5)
    assert sample_deviation(published, Source(title="x", seeds=3)) == pytest.approx(2**0.5)
    assert sample_deviation(published, Source(title="x", deviation="population")) == pytest.approx(2**0.5)


def test_reproduced_is_within_the_margin_and_known_to_be():
    # Ours 98 .. 102: mean 100, standard error sqrt(1/2), interval 98.04 .. 101.96, within 5% of 100.
    ours = np.array([98.0, 99, 100, 101, 102])
    assert beside_published(ours, Moments(100.0)).verdict == "reproduced"
    # 96.9 is 3.1 below: our upper end is 5.06 above it, 5% of it are 4.85, so not near; our lower end is above it.
    assert beside_published(ours, Moments(96.9)).verdict == "better"
    # Just as far away, but their own runs are 6 apart: that is the margin.
    assert beside_published(ours, Moments(96.9, 6.0, 3)).verdict == "reproduced"


@pytest.mark.parametrize(("shift", "verdict"), [(30.0, "better"), (-30.0, "worse")])
def test_better_and_worse_are_where_welchs_interval_excludes_zero(shift, verdict):
    # v = 1/2 (n = 5) and 3 (n = 3): nu = 12.25 / (0.25/4 + 9/2) = 2.68, so 2; half width 4.30 sqrt(3.5) = 8.05 < 30.
    found = beside_published(np.array([98.0, 99, 100, 101, 102]) + shift, Moments(100.0, 3.0, 3))
    assert found.verdict == verdict
    half = T2 * 3.5**0.5
    np.testing.assert_allclose(found.difference, (shift, shift - half, shift + half), rtol=1e-6)


def test_negative_returns_have_a_margin_too():
    assert beside_published(np.array([-82.0, -81, -80, -79, -78]), Moments(-80.0)).verdict == "reproduced"
    assert beside_published(np.array([-102.0, -101, -100, -99, -98]), Moments(-80.0)).verdict == "worse"


def test_unclear_is_too_wide_to_tell():
    # 0 .. 200: mean 100, standard error 79.06 / sqrt(5) = 35.4: 100 - 98 .. 100 + 98.
    assert beside_published(np.array([0.0, 50, 100, 150, 200]), Moments(110.0)).verdict == "unclear"
    # No difference can be shown beside three runs that are 50 apart (half width over 100), nor is 130 near to 60.
    assert beside_published(np.array([128.0, 129, 130, 131, 132]), Moments(60.0, 50.0, 3)).verdict == "unclear"


def test_fewer_than_three_seeds_are_unclear():
    found = beside_published(np.array([100.0, 100.0]), Moments(100.0, 1.0, 3))
    assert found == ("unclear", (0.0, None, None))
    assert beside_published(np.array([100.0]), Moments(90.0)).verdict == "unclear"


def test_all_alike_is_reproduced():
    assert beside_published(np.full(5, -200.0), Moments(-200.0, 0.0, 3)).verdict == "reproduced"


def test_beside_a_reference_the_interval_of_the_difference_must_be_near():
    ours = np.array([98.0, 99, 100, 101, 102])
    assert beside_reference(ours, ours, 1).verdict == "same"
    # The reference's own spread counts: 100 +- 98 is no yardstick.
    assert beside_reference(ours, np.array([0.0, 50, 100, 150, 200]), 1).verdict == "unclear"


def test_many_comparisons_need_more_evidence():
    # Difference 10; v = 10 each (s^2 = 50, n = 5): nu = 8, sqrt(20) = 4.47; t = 2.306 alone, 3.833 at 99.5%.
    base = np.array([-10.0, -5, 0, 5, 10]) * (50 / 62.5) ** 0.5
    assert np.var(base, ddof=1) == pytest.approx(50)
    low, high = base + 100, base + 111
    assert beside_reference(high, low, 1).verdict == "better"  # 11 > 2.306 * 4.47 = 10.3
    found = beside_reference(high, low, 10)
    assert found.verdict == "unclear"
    np.testing.assert_allclose(found.difference.low, 11 - 3.832519 * 20**0.5, rtol=1e-5)
