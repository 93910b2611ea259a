"""Numbers derived by hand, tables that are in every textbook, and how often an interval holds the truth."""

from itertools import combinations, product
from math import inf, sqrt

import numpy as np
import pytest

from pgcli.analysis import statistics as stats

ONCE = np.ones((1, 8), dtype=int)


def array(*values):
    return np.array(values, dtype=float)


def generator():
    return np.random.default_rng(0)


# ---------------------------------------------------------------- the statistics themselves


def test_the_interquartile_mean_drops_a_quarter_at_each_end():
    # Of 1..8 the two lowest and the two highest go: (3 + 4 + 5 + 6) / 4. In any order.
    assert stats.interquartile_mean(ONCE, [array(8, 1, 7, 2, 6, 3, 5, 4)])[0] == 4.5
    # Of five, floor(5 / 4) = 1 at each end: (1 + 2 + 3) / 3. Of three, none: (0 + 1 + 5) / 3.
    assert stats.interquartile_mean(ONCE[:, :5], [array(0, 1, 2, 3, 100)])[0] == 2
    assert stats.interquartile_mean(ONCE[:, :3], [array(0, 1, 5)])[0] == 2


def test_the_interquartile_mean_of_a_resample_is_that_of_the_runs_drawn():
    # 20 20 30 40 -> (20 + 30) / 2;  10 10 10 10 -> 10;  10 40 40 40 -> 40;  drawn from 40 20 10 30, unsorted.
    counts = np.array([[1, 2, 0, 1], [0, 0, 4, 0], [3, 0, 1, 0]])
    np.testing.assert_array_equal(stats.interquartile_mean(counts, [array(40, 20, 10, 30)]), [25, 10, 40])


def test_the_interquartile_mean_pools_strata_and_the_mean_weighs_them_alike():
    strata = [array(0, 2), array(10)]
    assert stats.mean(ONCE[:, :3], strata)[0] == 5.5  # (1 + 10) / 2
    assert stats.interquartile_mean(ONCE[:, :4], [array(0, 8), array(2, 4)])[0] == 3  # of 0 2 4 8


def test_a_median_counts_runs_that_never_arrived():
    assert stats.median(ONCE[:, :3], [array(inf, 1, 2)])[0] == 2
    assert stats.median(ONCE[:, :4], [array(inf, 5, 1, 3)])[0] == 4
    assert stats.median(ONCE[:, :3], [array(inf, 1, inf)])[0] == inf
    assert stats.median(np.array([[0, 2, 1]]), [array(inf, 1, 2)])[0] == 1  # 1 1 2


def test_resamples_draw_each_stratum_as_often_as_it_has_runs():
    counts = stats.resample([2, 3], generator())
    assert counts.shape == (5000, 5)
    assert (counts[:, :2].sum(axis=1) == 2).all()
    assert (counts[:, 2:].sum(axis=1) == 3).all()
    # Two runs: (2, 0), (1, 1), (0, 2) with chances 1/4, 1/2, 1/4. Four standard deviations of 5,000 draws: 0.028.
    assert abs((counts[:, 0] == 1).mean() - 0.5) < 0.028


# ---------------------------------------------------------------- intervals


def test_the_interval_of_a_mean_of_five_holds_the_truth_nine_times_in_ten():
    # Plain percentiles hold it 83 times in a hundred, these 92; the standard error of 600 trials is 0.011.
    source = generator()
    hits = 0
    for _ in range(600):
        values = source.normal(size=5)
        samples = stats.mean(stats.resample([5], source, resamples=1000), [values])
        low, high = stats.percentile_interval(samples, 5)
        hits += low <= 0 <= high
    assert 0.88 < hits / 600 < 0.96


def test_the_interval_of_three_values_is_their_range():
    estimate = stats.estimate(stats.mean, [array(1, 2, 6)], stats.resample([3], generator()))
    assert estimate == (3, 1, 6)


def test_an_interval_may_reach_to_never():
    values = array(1, 2, 3, inf, inf)
    estimate = stats.estimate(stats.median, [values], stats.resample([5], generator()))
    assert estimate.value == 3
    assert estimate.high == inf


def test_without_an_interval_there_is_only_the_value():
    assert stats.estimate(stats.mean, [array(1, 3)], stats.resample([2], generator()), interval=False) == (
        2,
        None,
        None,
    )


# ---------------------------------------------------------------- the probability of improvement


def test_the_probability_of_improvement_counts_pairs_and_half_of_ties():
    # 3 against 1, 3, 4: 1 + 1/2 + 0. 5 against them: 3. Of six pairs: 4.5 / 6.
    pair = (array(3, 5), array(1, 3, 4))
    assert stats.probability_of_improvement([pair]) == 0.75
    # A second environment where it never wins: the average of 0.75 and 0, though it has but one pair.
    assert stats.probability_of_improvement([pair, (array(1), array(2))]) == 0.375


def test_the_improvement_interval_of_one_pair_is_wilsons():
    # One win in one trial: (1 - p)^2 = z^2 p (1 - p), so p = 1 / (1 + z^2) with z^2 = 3.841459.
    low, high = stats.improvement_interval(1.0, [(1, 1)])
    assert low == pytest.approx(1 / 4.841459, abs=1e-6)
    assert high == pytest.approx(1)


def test_the_improvement_interval_excludes_one_half_where_the_rank_test_does():
    # At p = 1/2 the variance is the rank sum's under no difference, (n + m + 1) / (12 n m): 11 / 300 for n = m = 5.
    edge = 0.5 + 1.959964 * sqrt(11 / 300)
    assert stats.improvement_interval(edge, [(5, 5)])[0] == pytest.approx(0.5, abs=1e-6)
    # Two environments: half the variance.
    edge = 0.5 + 1.959964 * sqrt(11 / 300 / 2)
    assert stats.improvement_interval(edge, [(5, 5), (5, 5)])[0] == pytest.approx(0.5, abs=1e-6)


def test_the_improvement_interval_is_the_same_seen_from_the_other_side():
    low, high = stats.improvement_interval(0.8, [(4, 7)])
    assert stats.improvement_interval(0.2, [(7, 4)]) == pytest.approx((1 - high, 1 - low))


def test_the_improvement_interval_holds_the_truth_where_groups_hardly_overlap():
    # P(N(2, 1) > N(0, 1)) = Phi(sqrt 2) = 0.92135. A bootstrap's percentiles hold it 60 times in a hundred.
    source = generator()
    hits = 0
    for _ in range(600):
        pair = (source.normal(2, 1, 5), source.normal(0, 1, 5))
        low, high = stats.improvement_interval(stats.probability_of_improvement([pair]), [(5, 5)])
        hits += low <= 0.92135 <= high
    assert 0.92 < hits / 600 < 0.985


# ---------------------------------------------------------------- permutations


def test_permutation_p_of_groups_that_overlap_nowhere():
    # Two of the C(n + m, n) relabellings are as extreme: the one seen, and its mirror image. 2/6, 2/20, 2/70.
    for n, expected in ((2, 2 / 6), (3, 2 / 20), (4, 2 / 70)):
        low = np.arange(n, dtype=float)
        assert stats.permutation_p([(low + n, low)], generator()) == pytest.approx(expected)
        assert stats.smallest_p([(n, n)]) == pytest.approx(expected)


def test_permutation_p_with_ties():
    # Ranks of 1 2 2 3 are 1, 2.5, 2.5, 4. (2, 3) has 6.5; so have two of six relabellings; two have 3.5, its mirror.
    assert stats.permutation_p([(array(2, 3), array(1, 2))], generator()) == pytest.approx(4 / 6)
    assert stats.permutation_p([(array(1, 1), array(1, 1))], generator()) == 1


def test_permutation_p_of_two_environments_multiplies_their_relabellings():
    # Each separated: 2 of 6 x 6 relabellings, and no sample is needed to know it.
    pairs = [(array(3, 4), array(1, 2)), (array(30, 40), array(10, 20))]
    assert stats.permutation_p(pairs, generator()) == stats.smallest_p([(2, 2), (2, 2)]) == pytest.approx(2 / 36)


def test_permutation_p_of_a_sample_is_that_of_all_relabellings():
    # Two environments, 10 x 6 relabellings, each by loops over its pairs of runs.
    pairs = [(array(1, 3, 4), array(2, 0)), (array(5, 8), array(6, 7))]

    def in_errors(groups):
        distance, variance = 0.0, 0.0
        for x, y in groups:
            p = [np.mean([(a > b) + (a == b) / 2 for b in y]) for a in x]
            q = [np.mean([(b > a) + (a == b) / 2 for a in x]) for b in y]
            distance += np.mean(p) - 0.5
            variance += np.var(p, ddof=1) / len(x) + np.var(q, ddof=1) / len(y)
        return abs(distance) / max(variance, 1e-20) ** 0.5

    def relabelled(x, y):
        pooled = [*x, *y]
        for chosen in combinations(range(len(pooled)), len(x)):
            rest = [i for i in range(len(pooled)) if i not in chosen]
            yield [pooled[i] for i in chosen], [pooled[i] for i in rest]

    all_of_them = [in_errors(groups) for groups in product(*(relabelled(*pair) for pair in pairs))]
    assert len(all_of_them) == 60
    expected = np.mean(np.array(all_of_them) >= in_errors(pairs) - 1e-9)
    # Four standard deviations of 20,000 draws are at most 0.0142.
    assert abs(stats.permutation_p(pairs, generator()) - expected) < 0.0142
    first = [pairs[0]]
    expected = np.mean([in_errors([pair]) >= in_errors(first) - 1e-9 for pair in relabelled(*first[0])])
    assert stats.permutation_p(first, generator()) == pytest.approx(expected)


def test_permutation_p_takes_no_difference_of_spread_for_one_of_rank():
    # Twelve steady runs, three of four others below them: if above and below are equally likely, so are 3, 4, 0 and 1
    # in 10 of 16 cases. Mann and Whitney's test takes all 16 runs for exchangeable: its p is 13 / 1820.
    assert stats.permutation_p([(np.full(12, 400.0), array(300, 300, 300, 500))], generator()) > 0.2
    # The rule: 20 steady runs and 5 that are above or below with a chance of one half: 36 in a hundred by ranks alone.
    source, claims = generator(), 0
    for _ in range(60):
        pair = (np.full(20, 400.0), np.where(source.random(5) < 0.5, 300.0, 500.0))
        claims += stats.permutation_p([pair], source) < 0.05
    assert claims / 60 < 0.15


def test_without_overlap_there_is_no_error_to_divide_by():
    # Three environments, two won and one lost without overlap: nearer to one half than three won.
    won, lost = (array(3, 4), array(1, 2)), (array(1, 2), array(3, 4))
    labels = [np.array([[1.0, 1, 0, 0]])] * 3

    def distance(*pairs):
        return stats.improvement_in_errors([np.concatenate(pair) for pair in pairs], labels)[0]

    assert distance(won, won, won) > distance(won, won, lost) > 0 > distance(won, lost, lost)
    assert stats.improvement_in_errors([array(5, 5, 5, 5)], labels[:1])[0] == 0


# ---------------------------------------------------------------- what N seeds can show


def test_students_quantiles_are_those_of_the_tables():
    for freedom, expected in ((1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (18, 2.101), (60, 2.000)):
        assert stats.student_quantile(0.975, freedom) == pytest.approx(expected, abs=5e-4)
    assert stats.student_quantile(0.995, 5) == pytest.approx(4.032, abs=5e-4)
    assert stats.student_quantile(0.975, 5000) == pytest.approx(1.960, abs=1e-3)


def test_the_seeds_needed_are_cohens_for_ranks():
    # Cohen 1988, table 2.4.1, power 0.80, two-sided 0.05: for d = 0.5, 0.8, 1.0 and 1.2 the t test needs 64, 26, 17 and
    # 12 per group; ranks need pi / 3 = 1.047 times as many, rounded up. Spread 10 here.
    assert [stats.seeds_needed(margin, 10.0) for margin in (5, 8, 10, 12)] == [67, 27, 18, 13]


def test_the_detectable_difference_is_what_the_seeds_needed_detect():
    # 18 seeds each detect one spread, 17 do not; it scales with the spread.
    assert stats.detectable_difference(1.0, [(18, 18)]) < 1 < stats.detectable_difference(1.0, [(17, 17)])
    assert stats.detectable_difference(30.0, [(17, 17)]) == pytest.approx(
        30 * stats.detectable_difference(1.0, [(17, 17)])
    )


@pytest.mark.parametrize("n", [4, 7])
def test_a_detectable_difference_is_detected_four_times_out_of_five(n):
    # Four standard deviations of 400 trials are 0.08. The t test's difference is found 64 times in a hundred with four.
    source, difference, found = generator(), stats.detectable_difference(1.0, [(n, n)]), 0
    for _ in range(400):
        pair = (source.normal(difference, 1, n), source.normal(0, 1, n))
        found += stats.permutation_p([pair], source) < 0.05
    assert 0.72 < found / 400 < 0.88


def test_a_p_is_a_multiple_of_the_smallest():
    # 2/70: 1 of the 1.75 that fit below 0.05. 2/252: 6 of 6.3. 2/120 is 0.05 / 3, and so not below it.
    assert stats.attainable([(4, 4)], 0.05) == pytest.approx(2 / 70)
    assert stats.attainable([(5, 5)], 0.05) == pytest.approx(12 / 252)
    assert stats.attainable([(100, 100)], 0.05) == 0.05
    assert not stats.can_show([(3, 7)], 0.05 / 3)
    assert stats.can_show([(3, 7)], 0.051 / 3)


def test_a_margin_far_below_the_spread_is_answered_at_once():
    # 2 (z_0.975 + z_0.8)^2 pi / 3 = 16.4386 times the squared ratio; C(2n, n) has ten million digits.
    assert stats.seeds_needed(0.1, 100.0) == pytest.approx(16.4386e6, rel=1e-4)


def test_four_environments_show_half_the_average_difference():
    # The average of four independent differences has a quarter of the variance; with 100 seeds t hardly matters.
    one, four = (stats.detectable_difference(1.0, [(100, 100)] * k) for k in (1, 4))
    assert four == pytest.approx(one / 2, rel=5e-3)


def test_three_seeds_can_show_nothing_and_four_can():
    assert [stats.can_show([(n, n)]) for n in (2, 3, 4)] == [False, False, True]
    assert stats.seeds_needed(inf, 1.0) == 4
    # On two environments three seeds reach p = 2/400; two are too few for an interval, whatever p is.
    # Five against three: 2 / C(8, 3) = 2/56.
    assert stats.can_show([(5, 3)])
    assert [stats.can_show([(n, n)] * 2) for n in (2, 3)] == [False, True]


def test_the_spread_is_pooled_within_groups():
    # Sums of squares 2 and 8, one degree of freedom each: sqrt(10 / 2). How far apart the groups are has no part in it.
    assert stats.pooled_spread([(array(0, 2), array(10, 14))]) == pytest.approx(sqrt(5))
    assert stats.pooled_spread([(array(1), array(2))]) is None
