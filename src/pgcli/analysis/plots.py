"""Learning curves with their uncertainty. The one module that imports matplotlib, and only when it draws."""

from pathlib import Path

import numpy as np

from pgcli.analysis import statistics
from pgcli.analysis.results import Comparison, Result
from pgcli.errors import InputError

POINTS = 200
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind readers can tell apart; beyond them, line styles."""
STYLES = ("-", "--", ":", "-.")


def plot(comparison: Comparison, file: Path | str) -> None:
    """Draw the curves into a PNG or SVG: a panel for each environment, a line and a 95% band for each group."""
    file = Path(file)
    if file.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"`{file}`: a plot is a .png or .svg file")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    slugs = list(dict.fromkeys(result.slug for group in comparison.groups for result in group.results))
    columns = min(len(slugs), 3)
    lines = -(-len(slugs) // columns)
    figure = Figure(figsize=(1.5 + 5.5 * columns, 0.5 + 3.9 * lines), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # no window, no global state
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for slug, panel in zip(slugs, panels, strict=False):
        for i, group in enumerate(comparison.groups):
            result = group.on(slug)
            if result is None:
                continue
            colour, style = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
            n = len(result.curves)
            steps, mean, low, high = band(result)
            panel.plot(steps, mean, style, color=colour, linewidth=1.8, label=f"{group.label} ({n} seed{'s'[: n - 1]})")
            panel.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
            panel.set_title(result.environment)
            if result.reach:
                panel.axhline(result.reach.threshold, color="0.5", linewidth=0.8, linestyle=(0, (4, 4)))
        panel.set_xlabel("steps")
        panel.set_ylabel(AXES.get(comparison.metric, comparison.metric))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.set_xlim(left=0)
        panel.set_axisbelow(True)
        panel.grid(color="0.9", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize="small", loc="best", title="mean, 95% band", title_fontsize="small")
    for panel in panels:  # those left over
        panel.set_visible(False)
    try:
        figure.savefig(file)
    except OSError as error:
        raise InputError(f"cannot write `{file}`: {error.strerror}") from error


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
