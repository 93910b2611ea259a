"""Learning curves with their uncertainty. The one module that imports matplotlib, and only when it draws."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pgcli.analysis import statistics
from pgcli.analysis.results import Comparison, Result
from pgcli.errors import InputError

POINTS = 200
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which colour-blind readers can distinguish; further lines differ in style."""
STYLES = ("-", "--", ":", "-.")
REPEATABLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "pgcli"}
"""Text stays text in the SVG, and the same curves give the same file."""


@dataclass(frozen=True)
class Panel:
    title: str
    lines: list[tuple[str, Result]]
    levels: list[tuple[str, float]] = field(default_factory=list)
    """Horizontal lines beside the curves: a threshold (without a name), a published number."""


def plot(comparison: Comparison, file: Path | str) -> None:
    """Draw the curves into a PNG or SVG: one panel per environment, a line and a band per group."""
    panels: dict[str, Panel] = {}
    for group in comparison.groups:
        for result in group.results:
            panel = panels.setdefault(result.slug, Panel(result.environment, []))
            panel.lines.append((group.label, result))
            if result.reach and not panel.levels:
                panel.levels.append(("", result.reach.threshold))
    draw(list(panels.values()), AXES.get(comparison.metric, comparison.metric), Path(file))


def draw(panels: list[Panel], heights: str, file: Path) -> None:
    """Draw panels into a PNG or SVG. heights: the label of the vertical axis."""
    if file.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"`{file}`: a plot is a .png or .svg file")
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(1.5 + 5.5 * columns, 0.5 + 3.9 * rows), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # no window, no global state
    places = figure.subplots(rows, columns, squeeze=False).flat
    colours: dict[str, int] = {}  # a method has one colour in all panels
    for panel, place in zip(panels, places, strict=False):
        for label, result in panel.lines:
            i = colours.setdefault(label, len(colours))
            colour, style = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
            n = len(result.curves)
            steps, mean, low, high = band(result)
            marker = "o" if steps[0] == steps[-1] else ""  # one evaluation, at the end, is no line to be seen
            name = f"{label} ({n} seed{'s'[: n - 1]})"
            place.plot(steps, mean, style, color=colour, linewidth=1.8, marker=marker, label=name)
            place.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        for i, (label, height) in enumerate(panel.levels):
            dashes = (0, (4 - 2 * (i % 2), 4))
            place.axhline(height, color="0.5", linewidth=0.8, linestyle=dashes, label=label or None)
        place.set_title(panel.title)
        place.set_xlabel("steps")
        place.set_ylabel(heights)
        place.xaxis.set_major_formatter(EngFormatter(sep=""))
        place.set_xlim(left=0)
        _plain(place)
        place.legend(frameon=False, fontsize="small", loc="best", title=legend_title(panel), title_fontsize="small")
    for place in places:  # unused ones
        place.set_visible(False)
    try:
        with rc_context(REPEATABLE):
            figure.savefig(file, metadata={"Date": None} if file.suffix.lower() == ".svg" else None)
    except OSError as error:
        raise InputError(f"cannot write `{file}`: {error.strerror}") from error


COVERAGE = {3: 75, 4: 86}
"""Seeds -> percentage of intervals that hold the mean, of normal returns. From five seeds on it is above 90."""


def legend_title(panel: Panel) -> str:
    """What is drawn, and how far the bands can be trusted: as far as that of the fewest seeds."""
    fewest = min((n for _, result in panel.lines if (n := len(result.curves)) >= statistics.FEWEST), default=None)
    if fewest is None:
        return "mean"
    few = f" (about {COVERAGE[fewest]}% with {fewest} seeds)" if fewest in COVERAGE else ""
    return f"mean, 95% band{few}"


@dataclass(frozen=True, eq=False)
class Scatter:
    """Paths of points: (name, (E, 2)) each, in the order in which they were reached."""

    heights: str
    widths: str
    paths: list[tuple[str, np.ndarray]]


def draw_planes(panels: list[Scatter], file: Path, *, legend: str = "mean over seeds") -> None:
    """Draw metrics against another metric, one panel each; a path ends at its filled marker."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 5.5 * len(panels), 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for panel, place in zip(panels, figure.subplots(1, len(panels), squeeze=False).flat, strict=True):
        for i, (label, path) in enumerate(panel.paths):
            colour, style = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
            place.plot(*path.T, style, color=colour, marker="o", markersize=3, markerfacecolor="white", label=label)
            place.plot(*path[-1:].T, color=colour, marker="o", markersize=5)
        place.set_xlabel(panel.widths)
        place.set_ylabel(panel.heights)
        _plain(place)
        place.legend(frameon=False, fontsize="small", loc="best", title=legend, title_fontsize="small")
    try:
        with rc_context(REPEATABLE):
            figure.savefig(file, metadata={"Date": None} if file.suffix.lower() == ".svg" else None)
    except OSError as error:
        raise InputError(f"cannot write `{file}`: {error.strerror}") from error


def _plain(place: Any) -> None:
    place.set_axisbelow(True)
    place.grid(color="0.9", linewidth=0.6)
    place.spines[["top", "right"]].set_visible(False)


AXES = {"eval/return_mean": "evaluation return", "eval/greedy_return_mean": "evaluation return, greedy policy"}


def band(result: Result) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps, mean, and the pointwise 95% interval of the mean over seeds; (points,) each. No band below three seeds."""
    steps, curves = result.grid(POINTS)
    mean = curves.mean(axis=0)
    if len(curves) < statistics.FEWEST:
        return steps, mean, mean, mean
    resampled = result.counts @ curves / len(curves)  # (resamples, points)
    low, high = statistics.percentile_interval(resampled, len(curves))
    return steps, mean, low, high
