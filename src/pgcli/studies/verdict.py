"""When is a published number reproduced?

    d       our mean minus theirs, with its 95% interval by Welch's t (their +- and number of seeds give their share)
    margin  5% of their mean, or their standard deviation between seeds if that is larger: a smaller difference
            is no larger than between two of their own runs

    reproduced   the 95% interval of *our* mean lies within the margin around theirs: near enough, and we know it
    better       else, if the interval of d lies above 0
    worse        else, if it lies below 0
    unclear      else: no difference was shown, and one larger than the margin is not excluded. More seeds would help

A number that was published without a spread, or without its number of seeds, has no interval: it is taken as exact.
Fewer than three seeds of ours are unclear. Beside a reference of our own the margin is 5% alone, `same` stands for
`reproduced` and asks it of the interval of d, and each interval is widened for the number of comparisons (Bonferroni).

Student's intervals know nothing of a failure that no seed has shown. Simulated where nothing differs: beside three
seeds of theirs, `better` or `worse` in at most 7 of a hundred studies, whatever the returns; beside an exact number in
5 if returns are normal, but in 52, 34 and 11 (three, five and ten seeds) if one run in five is far off, and in 72, 59
and 35 if one in ten fails.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from pgcli.analysis.statistics import CONFIDENCE, FEWEST, Estimate, Moments, welch_interval

MARGIN = 0.05
Verdict: TypeAlias = Literal["reproduced", "same", "better", "worse", "unclear"]


class Judgement(NamedTuple):
    verdict: Verdict
    difference: Estimate
    """Our mean minus theirs."""


def moments(values: np.ndarray) -> Moments:
    """Moments of our runs, (n,)."""
    return Moments(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None, len(values))


def beside_published(ours: np.ndarray, theirs: Moments) -> Judgement:
    """Our runs, (n,), beside a published number."""
    mine = moments(ours)
    if len(ours) < FEWEST:
        return Judgement("unclear", Estimate(mine.mean - theirs.mean))
    difference = welch_interval(mine, theirs)
    # With few published runs the interval of d may be wider than any margin: nearness is required of our mean.
    nearness = welch_interval(mine, Moments(theirs.mean))
    return _judge(difference, nearness, max(MARGIN * abs(theirs.mean), theirs.deviation or 0.0), "reproduced")


def beside_reference(ours: np.ndarray, reference: np.ndarray, comparisons: int) -> Judgement:
    """Our runs beside other runs of ours: (n,), (m,). comparisons: how many are made in the same study."""
    mine, theirs = moments(ours), moments(reference)
    if min(len(ours), len(reference)) < FEWEST:
        return Judgement("unclear", Estimate(mine.mean - theirs.mean))
    difference = welch_interval(mine, theirs, 1 - (1 - CONFIDENCE) / comparisons)
    return _judge(difference, difference, MARGIN * abs(theirs.mean), "same")


def _judge(difference: Estimate, nearness: Estimate, margin: float, near: Verdict) -> Judgement:
    """nearness: the interval of the difference that must lie within the margin."""
    verdict: Verdict = "unclear"
    if -margin <= _known(nearness.low) and _known(nearness.high) <= margin:
        verdict = near
    elif _known(difference.low) > 0:
        verdict = "better"
    elif _known(difference.high) < 0:
        verdict = "worse"
    return Judgement(verdict, difference)


def _known(bound: float | None) -> float:
    assert bound is not None, "an interval, not a number alone"
    return bound
