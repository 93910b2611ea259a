import math

import pytest

from pgcli.functional.schedules import constant, linear, robbins_monro


def test_a_constant_rate_stays():
    assert constant(3e-4) == 3e-4


def test_a_linear_rate_falls_to_zero_and_no_further():
    assert [linear(8.0, progress=p) for p in (0.0, 0.25, 0.5, 1.0, 1.5)] == [8.0, 6.0, 4.0, 0.0, 0.0]


def test_robbins_monro_with_c_one_and_no_offset_is_one_over_k():
    assert [robbins_monro(k, c=1.0, offset=0.0) for k in (1, 2, 4)] == [1.0, 0.5, 0.25]


def test_robbins_monro_starts_at_c_over_one_plus_offset_and_halves_at_two_plus_offset():
    # c = 20, offset = 9: 20/10, and 20/20 at k = 11.
    assert robbins_monro(1, c=20.0, offset=9.0) == 2.0
    assert robbins_monro(11, c=20.0, offset=9.0) == 1.0


def test_updates_count_from_one():
    with pytest.raises(ValueError, match="count from 1"):
        robbins_monro(0, c=1.0, offset=1.0)


def test_one_over_k_makes_stochastic_approximation_the_sample_mean():
    estimate = 1e6  # k = 1 forgets it
    for k, sample in enumerate([3.0, 5.0, 10.0, 6.0], start=1):
        estimate += robbins_monro(k, c=1.0, offset=0.0) * (sample - estimate)
    assert math.isclose(estimate, 6.0)
