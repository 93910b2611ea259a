"""The results of a comparison, and their form in JSON."""

from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np

from pgcli.analysis.curves import Curve
from pgcli.analysis.statistics import Estimate


@dataclass(frozen=True)
class Summary:
    """A measure of a group's runs."""

    mean: Estimate
    iqm: Estimate


@dataclass(frozen=True)
class Reach:
    """When runs first reached the threshold. A run that never did counts as infinite, and so may the median be."""

    threshold: float
    reached: int
    of: int
    steps: Estimate
    """Median over all runs, and its interval."""
    seconds: Estimate


@dataclass(frozen=True, eq=False)
class Result:
    """A group on one environment, up to the common budget."""

    slug: str
    environment: str
    steps: int
    span: tuple[int, int]
    """The steps over which `area` is the mean height of the curves, the same for all groups."""
    curves: list[Curve]
    counts: np.ndarray
    """(resamples, n): how often each run is drawn; used by all intervals, and by the bands of a plot."""
    final: Summary
    best: Summary
    area: Summary
    reach: Reach | None
    """None if there is no threshold."""

    @property
    def finals(self) -> np.ndarray:
        """(n,): the last evaluation of each run."""
        return np.array([curve.final for curve in self.curves])

    @property
    def seeds(self) -> list[int]:
        return sorted(curve.seed for curve in self.curves)

    def grid(self, points: int, span: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Steps (points,), and each run's curve over them, (n, points).

        Without a span they begin where each of the runs has been evaluated, and end with the budget.
        """
        start, end = span or (min(max(curve.steps[0] for curve in self.curves), self.steps), self.steps)
        steps = np.linspace(start, end, points)
        return steps, np.stack([np.interp(steps, curve.steps, curve.values) for curve in self.curves])


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ only in seed and environment."""

    label: str
    settings: dict[str, Any]
    results: list[Result]
    compared: list[np.ndarray] = field(default_factory=list)
    """The final returns by which groups are compared, (n,) on each environment that all groups share; scaled to 0 .. 1
    if there are several."""
    overall: Summary | None = None
    """The IQM of `compared`; None if no environment is shared."""

    @property
    def name(self) -> str:
        """The name in sentences: `ppo`, not `algo=ppo`."""
        return self.label.removeprefix("algo=")

    def on(self, slug: str) -> Result | None:
        return next((result for result in self.results if result.slug == slug), None)


@dataclass(frozen=True)
class Contrast:
    """The best group compared with another."""

    better: str
    worse: str
    probability: Estimate
    p: float
    """p-value of the permutation test, times the number of pairs of groups."""
    claimed: bool


@dataclass(frozen=True, eq=False)
class Comparison:
    """The result of `pgcli compare`. `verdict`: a sentence; `commands`: what to type for a more certain one."""

    metric: str
    groups: list[Group]
    contrasts: list[Contrast]
    verdict: str
    commands: list[str]
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Everything except the curves, for JSON: an interval that is missing or infinite is null."""
        return {
            "verdict": self.verdict,
            "commands": self.commands,
            "metric": self.metric,
            "groups": [group_json(group) for group in self.groups],
            "contrasts": [
                {
                    "better": contrast.better,
                    "worse": contrast.worse,
                    "probability_of_improvement": estimate_json(contrast.probability),
                    "p_value": contrast.p,
                    "claimed": contrast.claimed,
                }
                for contrast in self.contrasts
            ],
            "warnings": self.warnings,
        }


# ---------------------------------------------------------------- as JSON


def estimate_json(estimate: Estimate) -> dict[str, float | None]:
    return {name: x if x is not None and isfinite(x) else None for name, x in estimate._asdict().items()}


def summary_json(summary: Summary) -> dict[str, Any]:
    return {"mean": estimate_json(summary.mean), "iqm": estimate_json(summary.iqm)}


def reach_json(reach: Reach | None) -> dict[str, Any] | None:
    if reach is None:
        return None
    return {
        "threshold": reach.threshold,
        "reached": reach.reached,
        "of": reach.of,
        "median_steps": estimate_json(reach.steps),
        "median_seconds": estimate_json(reach.seconds),
    }


def group_json(group: Group) -> dict[str, Any]:
    return {
        "label": group.label,
        "settings": group.settings,
        "overall": group.overall and summary_json(group.overall),
        "environments": [
            {
                "environment": result.environment,
                "seeds": result.seeds,
                "runs": [str(curve.run.path) for curve in result.curves],
                "steps": result.steps,
                "final_returns": result.finals.tolist(),
                "final_return": summary_json(result.final),
                "best_return": summary_json(result.best),
                "area_under_curve": summary_json(result.area),
                "area_span": result.span,
                "to_threshold": reach_json(result.reach),
            }
            for result in group.results
        ],
    }
