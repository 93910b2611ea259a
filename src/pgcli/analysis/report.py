"""A comparison as a table: on a terminal, as Markdown, as CSV."""

import csv
import io
from collections.abc import Callable
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from pgcli.analysis.results import Comparison, Group, Result
from pgcli.analysis.statistics import Estimate
from pgcli.analysis.verdict import decimals_for

if TYPE_CHECKING:
    from rich.table import Table

BARS = "▁▂▃▄▅▆▇█"
CURVE_POINTS = 16
AREA = "the mean height of the curve where all runs have been evaluated, from the latest first evaluation on"

Row = tuple[Group, Result]
Cell = list[str]
"""The lines of a table cell."""


def rows(comparison: Comparison) -> list[Row]:
    return [(group, result) for group in comparison.groups for result in group.results]


def columns(comparison: Comparison) -> list[tuple[str, int, list[Cell]]]:
    """(heading, rank, cells) of each column, in the order shown; without room the highest ranks are dropped first."""
    everything = rows(comparison)
    slugs = {result.slug for _, result in everything}
    several = len(slugs) > 1
    words = {"return_mean": "return", "greedy_return_mean": "greedy"}
    last = comparison.metric.rpartition("/")[2]
    word = words.get(last, last)

    def who(group: Group, result: Result) -> Cell:
        where = [result.environment] if several else []
        seeds = f"{len(result.curves)} seed{'s' if len(result.curves) > 1 else ''}"
        return [group.label, *where, f"{seeds}, {short(result.steps)} steps"]

    def estimates(pick: Callable[[Result], Estimate]) -> list[Cell]:
        found = [(result.slug, pick(result)) for _, result in everything]
        numbers = [(slug, x) for slug, estimate in found for x in estimate if x is not None]
        # Two environments have no common scale.
        places = {slug: decimals_for([x for where, x in numbers if where == slug]) for slug, _ in found}
        return [cell(estimate, f"{{:,.{places[slug]}f}}".format) for slug, estimate in found]

    def reached(pick: Callable[[Result], Estimate | None]) -> list[Cell]:
        return [cell(estimate, short) if (estimate := pick(result)) else ["-"] for _, result in everything]

    table: list[tuple[str, int, list[Cell]]] = [
        ("group", 0, [who(*row) for row in everything]),
        (f"final {word}\nIQM", 1, estimates(lambda result: result.final.iqm)),
        (f"final {word}\nmean", 3, estimates(lambda result: result.final.mean)),
        (f"best {word}\nIQM", 6, estimates(lambda result: result.best.iqm)),
        ("area\nIQM", 4, estimates(lambda result: result.area.iqm)),
    ]
    goals = {result.reach.threshold for _, result in everything if result.reach}
    if goals:
        goal = f"{goals.pop():g}" if len(goals) == 1 else "threshold"
        counts = [[f"{r.reach.reached} of {r.reach.of}"] if r.reach else ["-"] for _, r in everything]
        steps = reached(lambda result: result.reach.steps if result.reach else None)
        table += [
            (f"steps to\n{goal}", 2, [[*a, *b] for a, b in zip(steps, counts, strict=True)]),
            (f"seconds to\n{goal}", 5, reached(lambda result: result.reach.seconds if result.reach else None)),
        ]
    heights = {slug: height_range([row for row in everything if row[1].slug == slug]) for slug in slugs}
    return [
        *table,
        (
            "mean curve",
            7,
            [
                [sparkline(result.grid(CURVE_POINTS, result.span)[1].mean(axis=0), *heights[result.slug])]
                for _, result in everything
            ],
        ),
    ]


def cell(estimate: Estimate, spell: Callable[[float], str]) -> Cell:
    """The value, and the interval below it."""
    value, low, high = (None if x is None else spell(x) if isfinite(x) else "never" for x in estimate)
    return [value or "", f"[{low}, {high}]" if low is not None else "-"]


def short(x: float) -> str:
    """A count in three digits: `41.2k`, `300k`, `1.25M`, `8.8`."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:.3g}{unit}"
    return f"{x:.3g}"


def height_range(everything: list[Row]) -> tuple[float, float]:
    curves = [result.grid(CURVE_POINTS, result.span)[1].mean(axis=0) for _, result in everything]
    return float(min(map(np.min, curves))), float(max(map(np.max, curves)))


def sparkline(heights: np.ndarray, low: float, high: float) -> str:
    """One bar for each height, on a scale that all rows of its environment share."""
    levels = (heights - low) / ((high - low) or 1.0) * (len(BARS) - 1)
    return "".join(BARS[round(level)] for level in levels)


# ---------------------------------------------------------------- as a table


def fitting(comparison: Comparison, width: int) -> list[tuple[str, list[Cell]]]:
    """The columns that fit: by rank, until the next would not."""
    everything = columns(comparison)
    room, kept = width + 2, set()
    for heading, rank, cells in sorted(everything, key=lambda column: column[1]):
        wide = 2 + max(len(line) for lines in [heading.split("\n"), *cells] for line in lines)
        if rank and wide > room:
            break
        room -= wide
        kept.add(rank)
    return [(heading, cells) for heading, rank, cells in everything if rank in kept]


def as_table(comparison: Comparison, width: int) -> "Table":
    """The table for a terminal of `width` characters. Numbers in brackets are 95% intervals; area is `AREA`."""
    from rich import box
    from rich.table import Table

    shown = fitting(comparison, width)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, (heading, _) in enumerate(shown):
        table.add_column(heading, justify="right" if i else "left", no_wrap=i > 0, overflow="fold")
    for cells in zip(*(cells for _, cells in shown), strict=True):
        table.add_row(*("\n".join(lines) for lines in cells))
    return table


def as_markdown(comparison: Comparison) -> str:
    """All columns, the verdict and the warnings."""
    everything = columns(comparison)
    lines = [f"**{comparison.verdict}**", ""]
    lines.append("| " + " | ".join(heading.replace("\n", " ") for heading, _, _ in everything) + " |")
    lines.append("|" + " --- |" + " ---: |" * (len(everything) - 1))
    for cells in zip(*(cells for _, _, cells in everything), strict=True):
        lines.append("| " + " | ".join(" ".join(parts).replace("|", "\\|") for parts in cells) + " |")
    lines += ["", f"In brackets: 95% intervals. Area: {AREA}."]
    return "\n".join(lines + [f"- {warning}" for warning in comparison.warnings])


def as_csv(comparison: Comparison) -> str:
    """One row per group and environment; a missing interval is empty, an infinite time `inf`."""
    table = []
    for group, result in rows(comparison):
        row: dict[str, object] = {"group": group.label, "environment": result.environment}
        row |= {"seeds": len(result.curves), "steps": result.steps}
        for name, summary in (("final", result.final), ("best", result.best), ("area", result.area)):
            row |= flat(f"{name}_iqm", summary.iqm) | flat(f"{name}_mean", summary.mean)
        if reach := result.reach:
            row |= {"threshold": reach.threshold, "reached": reach.reached}
            row |= flat("median_steps_to_threshold", reach.steps) | flat("median_seconds_to_threshold", reach.seconds)
        table.append(row)
    text = io.StringIO()
    names = dict.fromkeys(name for row in table for name in row)
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def flat(name: str, estimate: Estimate) -> dict[str, object]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
