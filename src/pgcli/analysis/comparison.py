"""Compare runs: which group is better, how certain that is, and how many seeds would decide it.

A winner is named only if all of this holds; else the verdict says which difference these seeds could have shown:
- each group has at least three seeds on each environment;
- the 95% interval of the probability of improvement excludes one half;
- a permutation test of the same statistic, in units of its standard error, gives p < 0.05. With few seeds the interval
  alone is overconfident: three runs that all beat three others exclude one half, though shuffled labels do that one
  time in ten.
With more than two groups the best (highest average probability of improvement) is compared with each of the others;
because it was selected after seeing all of them, each p is multiplied by the number of all pairs (Bonferroni).

False winners, simulated: among two to ten groups alike in every way, with 3 to 10 seeds, at most 5 in a hundred
comparisons name one (normal returns; returns in two modes; capped at 500). Where two groups win equally often but one
varies far more, 2 to 7 do with five or ten seeds each, and 14 with four variable runs, which may all fall on one side.
Each look at more seeds is another chance: after a look at 5 seeds and one at 10 it is 8 in a hundred, after 5, 10, 15
and 20 it is 13; ask for the seeds that a `margin` needs before the first. The winner is who wins more often: one that
fails rarely but badly may win with the lower mean.

Returns without a common unit (a judge's scores beside the task's reward, a judge's accuracy beside either) are not
ranked: what is compared is then the task's own reward, if every run logged it, else nothing.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import numpy as np

from pgcli.analysis import statistics
from pgcli.analysis.curves import Curve, load
from pgcli.analysis.grouping import apart, confounded, group_curves, labels
from pgcli.analysis.results import Comparison, Contrast, Group, Reach, Result, Summary
from pgcli.analysis.statistics import CONFIDENCE, FEWEST, Estimate, Pair
from pgcli.analysis.verdict import conclude, listed, some
from pgcli.errors import InputError
from pgcli.seeding import numpy_generator

RETURN = "eval/return_mean"
GREEDY_RETURN = "eval/greedy_return_mean"
NAMES = {RETURN: "return", GREEDY_RETURN: "greedy return"}
GOLD = "eval/gold"
SHARED = (GOLD, "eval/exact_match", "eval/win_rate")
"""Metrics that have one unit whoever pays the runs, the best first."""
CHOSEN = re.compile(r" \(auto\b.*\)$")
"""How a device came to be chosen, at the end of its name."""


def compare(
    paths: Iterable[os.PathLike[str] | str] | os.PathLike[str] | str,
    *,
    threshold: float | None = None,
    margin: float | None = None,
    greedy: bool = False,
    metric: str | None = None,
    seed: int = 0,
) -> Comparison:
    """Group the runs under `paths` by the settings that differ; tell which group is better and how certain that is.

    Args:
        paths: run directories, and folders with runs in them, such as a sweep's; or a single one.
        threshold: value to reach; the environment's `solved_at` if None.
        margin: difference of final returns worth detecting; the verdict then gives the number of seeds it needs. With
            several environments, on the common scale: a share of the range of all runs.
        greedy: evaluations of the greedy policy instead of the stochastic one.
        metric: any key of the evaluations instead of the return. More is better. If None, and the returns have no
            common unit, the task's own reward, or no verdict.
        seed: seed of the bootstrap and the permutation test.
    """
    if greedy and metric is not None:
        raise InputError("give either --greedy or --metric, not both")
    if margin is not None and not margin > 0:
        raise InputError(f"--margin must be a positive difference, not {margin:g}")
    key = metric or (GREEDY_RETURN if greedy else RETURN)
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    curves, warnings = load(paths, key)
    units = apart(curves)
    verdictless = ""
    if units and metric is not None:
        warnings += [units] if re.search("return|reward|proxy", key) else []
    elif units and not greedy and logged(curves, GOLD):
        key = GOLD
        curves, warnings = load(paths, key)
        warnings.append(f"{units}; compared is {key}, the task's own reward")
    elif units:
        verdictless = f"No verdict: {units}; {remedy(curves)}."
    warnings += outdated(curves, key) if key not in (RETURN, GREEDY_RETURN) else []
    curves = common_budget(curves, warnings)
    if not curves:
        raise InputError(f"nothing to compare; {'; '.join(warnings)}")

    spans = {slug: evaluated([curve for curve in curves if curve.slug == slug]) for slug in {c.slug for c in curves}}
    grouped = group_curves(curves)
    groups = []
    for label, (settings, members) in zip(labels([settings for settings, _ in grouped]), grouped, strict=True):
        results = []
        for slug in dict.fromkeys(curve.slug for curve in members):
            own = sorted((curve for curve in members if curve.slug == slug), key=lambda curve: curve.seed)
            goal = threshold
            if threshold is None and key in (RETURN, GREEDY_RETURN):
                goal = own[0].run.config["env"].get("solved_at")
            results.append(measure(own, goal, numpy_generator(seed, "compare", label, slug), spans[slug]))
        groups.append(Group(label, settings, results))

    warnings += irregularities(groups)
    if key in (RETURN, GREEDY_RETURN) and not units:
        warnings += judged(curves)
    if key == RETURN:
        warnings += unlike_policies(groups)
    shared = [result.slug for result in groups[0].results if all(group.on(result.slug) for group in groups)]
    if margin is not None and margin >= 1 and len(shared) > 1:
        raise InputError(
            f"--margin={margin:g}: on {len(shared)} environments a difference is a share of the range of all runs, "
            "below 1"
        )
    if shared:
        groups = comparable(groups, shared, seed)
    contrasts = contrast(groups, seed) if shared and not verdictless else []
    if contrasts:  # the best first, then the closest to it
        ranks = [contrasts[0].better, *(found.worse for found in contrasts)]
        groups.sort(key=lambda group: ranks.index(group.label))
    measured = f"final {NAMES.get(key, key)}"
    withheld: tuple[str, list[str]] = (verdictless, [])
    verdict, commands = withheld if verdictless else conclude(groups, contrasts, shared, margin, measured, paths)
    return Comparison(key, groups, contrasts, verdict, commands, warnings)


# ---------------------------------------------------------------- one group on one environment


def common_budget(curves: list[Curve], warnings: list[str]) -> list[Curve]:
    """The curves up to the smallest budget of an environment's runs; a warning if that cuts any."""
    kept: list[Curve] = []
    for slug in dict.fromkeys(curve.slug for curve in curves):
        own = [curve for curve in curves if curve.slug == slug]
        least = min(curve.budget for curve in own)
        longer = [curve for curve in own if curve.budget > least]
        if longer:
            shortest = [curve.name for curve in own if curve.budget == least]
            warnings.append(
                f"unequal budgets on {slug}: {listed(some(shortest))} had {least:,} steps, "
                f"{listed(some([curve.name for curve in longer]))} had more; all are compared within {least:,}"
            )
        within = []
        for curve in (curve.cut(least) for curve in own):
            if len(curve.steps):
                within.append(curve)
            else:
                warnings.append(f"left out: {curve.name} has no evaluation within {least:,} steps")
        warnings += beyond(within, least)
        kept += within
    return kept


SLIGHTLY = 1.05
"""Share of the budget up to which a run may end beyond it, with its last batch, without a word."""


def beyond(curves: list[Curve], budget: int) -> list[str]:
    """A warning if runs end far beyond their budget, because a batch of theirs is large beside it."""
    late = [curve for curve in curves if curve.steps[-1] > SLIGHTLY * budget]
    if not late:
        return []
    ends = [int(curve.steps[-1]) for curve in late]
    reached = f"{min(ends):,}" + (f" to {max(ends):,}" if len(late) > 1 else "")
    return [
        f"{listed(some([curve.name for curve in late]))} ended with the batch that passed {budget:,} steps: what is "
        f"compared of them was reached at {reached}"
    ]


def evaluated(curves: list[Curve]) -> tuple[int, int]:
    """The steps over which all runs of an environment are known: the latest first to the earliest last evaluation.

    Of a run that stopped early the last one stands for the rest. What lies outside would be a matter of how often a run
    was evaluated, not of what it learned.
    """
    end = min([curve.budget if curve.stopped else min(int(curve.steps[-1]), curve.budget) for curve in curves])
    return min(max(int(curve.steps[0]) for curve in curves), end), end


def measure(
    curves: list[Curve], threshold: float | None, generator: np.random.Generator, span: tuple[int, int] | None = None
) -> Result:
    """All measures of a group's runs on one environment. span: that of `evaluated`, if there are other groups."""
    counts = statistics.resample([len(curves)], generator)
    interval = len(curves) >= FEWEST
    start, end = span or evaluated(curves)

    def summary(values: list[float]) -> Summary:
        return summarise([np.array(values)], counts, interval)

    def reach(goal: float) -> Reach:
        steps, seconds = np.array([curve.reached(goal) for curve in curves]).T
        medians = [statistics.estimate(statistics.median, [x], counts, interval=interval) for x in (steps, seconds)]
        return Reach(goal, int(np.isfinite(steps).sum()), len(curves), *medians)

    environment = curves[0].run.config["env"]
    return Result(
        slug=curves[0].slug,
        environment=environment.get("id") or environment["name"],
        steps=curves[0].budget,
        span=(start, end),
        curves=curves,
        counts=counts,
        final=summary([curve.final for curve in curves]),
        best=summary([curve.best for curve in curves]),
        area=summary([curve.area(start, end) for curve in curves]),
        reach=None if threshold is None else reach(threshold),
    )


def summarise(strata: list[np.ndarray], counts: np.ndarray, interval: bool) -> Summary:
    return Summary(
        mean=statistics.estimate(statistics.mean, strata, counts, interval=interval),
        iqm=statistics.estimate(statistics.interquartile_mean, strata, counts, interval=interval),
    )


# ---------------------------------------------------------------- several environments, several groups


def scaled_finals(groups: list[Group], slug: str) -> list[np.ndarray]:
    """Each group's final returns on a scale from the lowest (0) to the highest (1) of any run on this environment.

    Returns of two environments have no common unit; this gives them one without external reference values.
    """
    finals = [result.finals for group in groups if (result := group.on(slug))]
    low, high = min(values.min() for values in finals), max(values.max() for values in finals)
    return [(values - low) / ((high - low) or 1.0) for values in finals]


def comparable(groups: list[Group], shared: list[str], seed: int) -> list[Group]:
    """The groups with the values that are compared: final returns on shared environments, scaled if several."""
    done = []
    for i, group in enumerate(groups):
        results = [result for result in group.results if result.slug in shared]
        if len(shared) == 1:
            done.append(replace(group, compared=[results[0].finals], overall=results[0].final))
            continue
        compared = [scaled_finals(groups, slug)[i] for slug in shared]
        sizes = [len(values) for values in compared]
        counts = statistics.resample(sizes, numpy_generator(seed, "compare", group.label))
        done.append(replace(group, compared=compared, overall=summarise(compared, counts, min(sizes) >= FEWEST)))
    return done


def contrast(groups: list[Group], seed: int) -> list[Contrast]:
    """The best group against each of the others, the closest first: by probability, then by IQM if it ties."""

    def pairs(first: Group, second: Group) -> list[Pair]:
        return list(zip(first.compared, second.compared, strict=True))

    def standing(group: Group) -> float:
        return sum(statistics.probability_of_improvement(pairs(group, other)) for other in groups)

    def height(group: Group) -> float:
        return group.overall.iqm.value if group.overall else 0.0

    best = max(groups, key=standing)
    comparisons = len(groups) * (len(groups) - 1) // 2
    contrasts = []
    for other in sorted(groups, key=height, reverse=True):
        if other is best:
            continue
        both = pairs(best, other)
        sizes = [(len(x), len(y)) for x, y in both]
        value = statistics.probability_of_improvement(both)
        low, high = statistics.improvement_interval(value, sizes)
        generator = numpy_generator(seed, "compare", best.label, other.label)
        p = min(1.0, comparisons * statistics.permutation_p(both, generator))
        enough = min(map(min, sizes)) >= FEWEST
        claimed = enough and low > 0.5 and p < statistics.SIGNIFICANCE
        probability = Estimate(value, low, high) if enough else Estimate(value)
        contrasts.append(Contrast(best.label, other.label, probability, p, claimed))
    return sorted(contrasts, key=lambda contrast: contrast.probability.value)


# ---------------------------------------------------------------- warnings


def irregularities(groups: list[Group]) -> list[str]:
    """A sentence about each reason why the groups are less comparable than they look."""
    warnings = []
    everything = [(group, result) for group in groups for result in group.results]
    curves = [curve for _, result in everything for curve in result.curves]

    slugs = dict.fromkeys(result.slug for _, result in everything)
    for slug in slugs:
        own = [(group, result) for group, result in everything if result.slug == slug]
        if absent := [group.name for group in groups if not group.on(slug)]:
            warnings.append(f"no run on {slug}: {listed(some(absent))}; groups are compared on what they share")
        seeds = set().union(*(result.seeds for _, result in own))
        for group, result in own:
            if missing := sorted(seeds - set(result.seeds)):
                warnings.append(f"seeds missing on {slug}: {group.name} has no run with {ranges(missing)}")
    smallest = min(len(result.curves) for _, result in everything)
    if smallest < FEWEST:
        warnings.append(f"fewer than {FEWEST} seeds give no interval, and no winner")
    elif smallest < 5:
        warnings.append(f"{smallest} seeds are few: a 95% interval of a mean then covers it less often, 75% with three")

    warnings += alike(groups)
    if stopped := [curve.name for curve in curves if curve.stopped]:
        warnings.append(
            f"stopped early, on reaching stop_at: {listed(some(stopped))}; the last evaluation stands for the rest and "
            "was picked for being high: compare steps to threshold rather than final returns"
        )
    for key in ("every", "episodes"):
        values = {curve.run.config.get("eval", {}).get(key) for curve in curves}
        if len(values) > 1:
            warnings.append(f"evaluated differently: eval.{key} is {', '.join(sorted(map(str, values)))}")
    devices = {CHOSEN.sub("", str(curve.run.info.get("device"))) for curve in curves}
    if len(devices) > 1:
        warnings.append(f"seconds do not compare: runs were on {'; '.join(sorted(devices))}")
    named = {name for group in groups for name in group.settings}
    members = [(group.name, [curve for result in group.results for curve in result.curves]) for group in groups]
    return warnings + confounded(members, named)


def alike(groups: list[Group]) -> list[str]:
    """What intervals of no width do not say: of n runs that ended alike, another may differ.

    If a share q of runs differs, n in a row do not with chance (1 - q)^n; that is below 0.05 above q = 1 - 0.05^(1/n).
    """
    found: dict[tuple[str, int], list[str]] = {}
    for group in groups:
        for result in group.results:
            if (n := len(result.finals)) >= FEWEST and np.ptp(result.finals) == 0:
                found.setdefault((result.environment, n), []).append(group.name)
    return [
        f"all {n} runs of {listed(some(names))} on {environment} ended alike, so that their intervals have no width; "
        f"up to {1 - (1 - CONFIDENCE) ** (1 / n):.0%} of further runs may end otherwise (95%)"
        for (environment, n), names in found.items()
    ]


def outdated(curves: list[Curve], key: str) -> list[str]:
    """What is to be said of a metric that the last evaluation lacks, as one of wrong answers does if all were right."""
    late = [curve.name for curve in curves if (steps := curve.run.points(RETURN)[0]) and steps[-1] > curve.steps[-1]]
    return [f"no {key} in the last evaluation of {listed(some(late))}: an earlier one stands for it"] if late else []


def judged(curves: list[Curve]) -> list[str]:
    """What is to be said of returns that a trained model has given, where the task's own reward is known as well."""
    if not all(curve.run.config.get("reward") for curve in curves) or not logged(curves, GOLD):
        return []
    return [f"these returns are a reward model's scores; the task's own reward: --metric {GOLD}"]


def unlike_policies(groups: list[Group]) -> list[str]:
    """What is to be said if some groups were evaluated greedily and others by sampling actions: noise costs return."""
    sampling = [group.name for group in groups if not is_deterministic(group)]
    greedy = [group.name for group in groups if group.name not in sampling]
    if not greedy or not sampling:
        return []
    return [
        f"greedy policies beside sampling ones: the evaluated policy of {listed(some(greedy))} is deterministic, that "
        f"of {listed(some(sampling))} samples; both greedy: --metric {GREEDY_RETURN}"
    ]


def is_deterministic(group: Group) -> bool:
    """Whether each evaluation's return is the greedy policy's, to the last digit. (Texts are always sampled, however
    often nobody's are rewarded.)
    """
    runs = [curve.run for result in group.results for curve in result.curves]
    if any(run.info.get("unit") == "tokens" for run in runs):
        return False
    return all(row[RETURN] == row.get(GREEDY_RETURN) for run in runs for row in run.rows(RETURN))


def logged(curves: list[Curve], key: str) -> bool:
    return all(curve.run.rows(key) for curve in curves)


def remedy(curves: list[Curve]) -> str:
    """What to compare instead of returns without a common unit."""
    if useful := next((key for key in SHARED if logged(curves, key)), None):
        return f"compare with --metric {useful}"
    return "they share no --metric of success: compare the runs of each unit by themselves"


def ranges(seeds: list[int]) -> str:
    """`seed 3, 5-7`: whole numbers, runs of three or more shortened."""
    cuts = [0, *(i for i, (a, b) in enumerate(pairwise(seeds), 1) if b != a + 1), len(seeds)]
    parts = [seeds[a:b] for a, b in pairwise(cuts)]
    words = [f"{part[0]}-{part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in parts]
    return f"seed{'s' if len(seeds) > 1 else ''} " + ", ".join(words)
