"""The results of a study: our runs, measured, beside published numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from pgcli.analysis.comparison import GREEDY_RETURN, RETURN, measure
from pgcli.analysis.curves import Curve, read_curve
from pgcli.analysis.results import Result
from pgcli.analysis.statistics import Estimate, Moments, mean_interval
from pgcli.runs import Run
from pgcli.seeding import numpy_generator
from pgcli.studies.definition import Cell, Published, Study, sample_deviation
from pgcli.studies.verdict import Judgement, beside_published, beside_reference, moments
from pgcli.sweeps import Sweep, Trial

if TYPE_CHECKING:
    from pgcli.experiment.best_of import Point

Points: TypeAlias = "list[Point]"
POINTS = 100
"""Points of a curve of training returns."""


@dataclass(frozen=True)
class Line:
    """A line of the table: our runs of one cell, beside one published number, the reference, or nothing."""

    cell: Cell
    values: np.ndarray
    """(n,), the measure of each run, by seed."""
    beside: str
    """The source's title, or the reference's name; empty if there is none."""
    theirs: Moments | None
    judgement: Judgement | None
    published: Published | None = None
    """The published number as it was printed, if `theirs` is one."""

    @property
    def ours(self) -> Estimate:
        return mean_interval(moments(self.values))


@dataclass(frozen=True, eq=False)
class Reproduction:
    """The state of a study, as `pgcli reproduce` prints it."""

    name: str
    title: str
    study: Study
    fraction: float
    seeds: int
    sweep: Sweep
    cells: list[Cell]
    """The requested cells."""
    lines: list[Line]
    results: list[tuple[Cell, Result]]
    """The curves of each cell that has runs."""
    seconds: float
    """Seconds of the median run."""
    missing: list[str] = field(default_factory=list)
    """A sentence for each cell with missing runs."""
    best: dict[str, list[Points]] = field(default_factory=dict)
    """Reward model -> the best of n by it, for each seed; if the study has `best_of`."""

    @property
    def path(self) -> Path:
        return self.sweep.path

    @property
    def finished(self) -> bool:
        return not self.sweep.having("planned", "interrupted", "failed", "running")


def conclude(
    name: str, title: str, study: Study, *, fraction: float, seeds: int, sweep: Sweep, cells: list[Cell]
) -> Reproduction:
    """The results of a sweep; its first `seeds` runs are those of the first cell, and so on."""
    curves, missing, seconds = [], [], []
    unknown = f"{study.measure} was never logged" if "/" in study.measure else "no episode ended"
    unknown += " in a run, or not to a finite number"
    for i, cell in enumerate(cells):
        trials = sweep.trials[i * seeds : (i + 1) * seeds]
        found = [curve for trial in trials if (curve := _curve(study, sweep, trial)) is not None]
        if len(found) < len(trials):
            missing.append(f"{cell.method} on {cell.environment}: {_why(trials) or unknown}")
        curves.append((cell, found))
        seconds += [float(curve.run.info["summary"]["seconds"]) for curve in found]
    results = [
        (cell, measure(found, None, numpy_generator(0, "study", cell.environment, cell.method)))
        for cell, found in curves
        if found
    ]
    values = [(cell, _values(study, result)) for cell, result in results]
    median = float(np.median(seconds)) if seconds else 0.0
    return Reproduction(
        name, title, study, fraction, seeds, sweep, cells, _lines(study, values), results, median, missing
    )


def _why(trials: list[Trial]) -> str:
    """Why runs have no result."""
    failed = [trial for trial in trials if trial.status == "failed"]
    open_ = sum(trial.status not in ("finished", "failed") for trial in trials)
    parts = [f"{len(failed)} of {len(trials)} runs failed ({failed[0].reason})"] if failed else []
    return "; ".join(parts + ([f"{open_} of {len(trials)} runs have not finished"] if open_ else []))


def _curve(study: Study, sweep: Sweep, trial: Trial) -> Curve | None:
    """One run's curve of the study's measure; None without a result, or with one that is not a finite number."""
    if trial.status != "finished":
        return None
    run = Run(sweep.run_path(trial))
    key = study.measure if "/" in study.measure else GREEDY_RETURN if study.measure == "greedy_return" else RETURN
    curve = read_curve(run, key)
    if curve is not None and study.measure == "training_return":
        curve = _training_curve(curve, run, study.window)
    return curve if curve is not None and np.isfinite(curve.values).all() else None


def _training_curve(curve: Curve, run: Run, window: int) -> Curve | None:
    """The mean of the last `window` training episodes, at regular steps; the last point is that of the whole run."""
    episodes = run.episodes()
    if not len(episodes.get("r", [])):
        return None
    end = max(curve.budget, int(episodes["step"][-1]))
    grid = np.linspace(end / POINTS, end, POINTS).astype(np.int64)
    ended = np.searchsorted(episodes["step"], grid, side="right")
    grid, ended = grid[ended > 0], ended[ended > 0]
    sums = np.concatenate([[0.0], np.cumsum(episodes["r"])])
    first = np.maximum(ended - window, 0)
    return replace(
        curve, steps=grid, values=(sums[ended] - sums[first]) / (ended - first), seconds=np.full(len(grid), np.nan)
    )


def _values(study: Study, result: Result) -> np.ndarray:
    if study.measure == "learning":
        return np.array([curve.area(0, result.steps) for curve in result.curves])
    return result.finals


def _lines(study: Study, values: list[tuple[Cell, np.ndarray]]) -> list[Line]:
    lines = []
    references = {cell.environment: own for cell, own in values if cell.method == study.reference}
    comparisons = sum(cell.method != study.reference and cell.environment in references for cell, _ in values)
    for cell, own in values:
        for published in cell.published:
            source = study.sources[published.source]
            theirs = Moments(published.mean, sample_deviation(published, source), source.seeds)
            lines.append(Line(cell, own, source.title, theirs, beside_published(own, theirs), published))
        reference = references.get(cell.environment)
        if reference is not None and study.reference is not None and cell.method != study.reference:
            judgement = beside_reference(own, reference, comparisons)
            lines.append(Line(cell, own, study.reference, moments(reference), judgement))
        elif not cell.published:
            lines.append(Line(cell, own, "", None, None))
    return lines
