"""A study's results as a table on a terminal, as Markdown, as JSON and as learning curves."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pgcli.analysis.comparison import compare
from pgcli.analysis.plots import Panel, Scatter, draw, draw_planes
from pgcli.analysis.report import as_markdown
from pgcli.analysis.results import estimate_json
from pgcli.analysis.statistics import Estimate, mean_interval
from pgcli.analysis.verdict import decimals_for, with_interval
from pgcli.errors import InputError
from pgcli.runs import Run, files
from pgcli.runs.provenance import machine, versions
from pgcli.studies import definition
from pgcli.studies.definition import SOURCES, Cell, Plane
from pgcli.studies.outcome import Line, Reproduction
from pgcli.studies.verdict import moments

if TYPE_CHECKING:
    from rich.table import Table

MEASURES = {
    "training_return": "training return, mean of the last {window} episodes",
    "evaluation_return": "evaluation return at the end",
    "greedy_return": "evaluation return of the greedy policy at the end",
    "learning": "evaluation return, mean over all of training",
}
VERDICTS = (
    "Verdicts: **reproduced** where the 95% interval of our mean lies within a margin around theirs, 5% of it or their "
    "standard deviation between seeds, the larger; else **better** or **worse** where Welch's 95% interval of the "
    "difference excludes 0; else **unclear**. A number published without spread or number of seeds is taken as exact. "
    "Theirs: as published, with the 95% interval that their seeds give. No interval knows of a failure that no seed "
    "has shown."
)
BESIDE = (
    "Each method is compared with `{reference}` on the same environment: **same** where Welch's interval of the "
    "difference lies within 5% of the reference, else **better** or **worse** where it excludes 0, else **unclear**; "
    "95% over all comparisons together (Bonferroni)."
)


def what(found: Reproduction) -> str:
    """The measure, in words."""
    measure = found.study.measure
    return MEASURES.get(measure, f"{measure} at the end").format(window=found.study.window)


def scaled(found: Reproduction) -> str:
    """A caveat if the budgets are not the study's; empty if they are."""
    if found.fraction == 1:
        return ""
    return (
        f"budgets were scaled to {found.fraction:g} of the study's: "
        "the verdicts are on these short runs, not on the published budget"
    )


# ---------------------------------------------------------------- the table


def columns(found: Reproduction) -> list[tuple[str, list[str]]]:
    """(heading, cells) of each column."""
    lines = found.lines
    places = {
        env: decimals_for([x for line in lines if line.cell.environment == env for x in line.ours if x is not None])
        for env in {line.cell.environment for line in lines}
    }

    def spell(line: Line, estimate: Estimate) -> str:
        return with_interval([estimate], decimals=places[line.cell.environment])[0]

    def theirs(line: Line) -> str:
        if line.theirs is None:
            return "-"
        value, bracket, interval = spell(line, mean_interval(line.theirs)).partition(" [")
        if line.published is not None:
            deviation = line.published.deviation
            value = f"{line.published.mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")
        return value + bracket + interval

    table = [
        ("environment", [line.cell.environment for line in lines]),
        ("method", [line.cell.method for line in lines]),
        ("ours", [spell(line, line.ours) for line in lines]),
        ("seeds", [str(len(line.values)) for line in lines]),
    ]
    for key in found.study.columns:
        column = [last_values(line.cell, found, key) for line in lines]
        spread = decimals_for([float(value) for values in column for value in values])
        table.append((key, [_spell_values(values, spread) for values in column]))
    if any(line.theirs for line in lines):
        table += [
            ("beside", [line.beside or "-" for line in lines]),
            ("theirs", [theirs(line) for line in lines]),
            ("difference", [spell(line, line.judgement.difference) if line.judgement else "-" for line in lines]),
            ("verdict", [line.judgement.verdict if line.judgement else "-" for line in lines]),
        ]
    return table


def last_values(cell: Cell, found: Reproduction, key: str) -> np.ndarray:
    """(n,): the last value of a metric in each run of a cell; runs that never logged it are left out."""
    result = next(result for own, result in found.results if own == cell)
    points = [curve.run.points(key)[1] for curve in result.curves]
    return np.array([values[-1] for values in points if values])


def _spell_values(values: np.ndarray, decimals: int) -> str:
    return with_interval([mean_interval(moments(values))], decimals=decimals)[0] if len(values) else "-"


FOLDED = {"environment": 16, "method": 20, "beside": 12}
"""Columns that may be folded, and the widths below which they are unreadable."""


def fitting(found: Reproduction, width: int) -> list[tuple[str, list[str]]]:
    """The columns for a terminal of `width` characters: further metrics are dropped first, then the least important."""
    table = columns(found)
    if len({line.cell.method for line in found.lines}) == 1:
        table = [column for column in table if column[0] != "method"]
    expendable = ["theirs", "beside", "difference", *reversed(found.study.columns)]

    def needed() -> int:
        total = -2
        for heading, cells in table:
            wide = max(len(part) for cell in [heading, *cells] for part in cell.split(" ["))
            total += 2 + min(wide, FOLDED.get(heading, wide))
        return total

    while expendable and needed() > width:
        gone = expendable.pop()
        table = [column for column in table if column[0] != gone]
    return table


def as_table(found: Reproduction, width: int) -> Table:
    """The table for a terminal of `width` characters. In brackets: 95% intervals."""
    from rich import box
    from rich.table import Table

    shown = fitting(found, width)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading, _ in shown:
        left = heading in (*FOLDED, "verdict")
        table.add_column(heading, justify="left" if left else "right", no_wrap=heading not in FOLDED, overflow="fold")
    for cells in zip(*(cells for _, cells in shown), strict=True):
        table.add_row(*(cell.replace(" [", "\n[") for cell in cells))
    return table


def markdown(found: Reproduction) -> str:
    """The whole report."""
    study, shown = found.study, columns(found)
    lines = [f"# {found.name}", "", found.title, "", f"*{study.question}*", "", f"`{command(found)}`", ""]
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines += [
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()['cpu']}, one thread a run, the median run {found.seconds:,.0f} s; "
        f"{made}.",
        "",
    ]
    if scaled(found):
        lines += [f"**Mind: {scaled(found)}.**", ""]
    lines += [f"Compared: {what(found)}. In brackets: 95% intervals of the mean over seeds.", ""]
    lines.append("| " + " | ".join(heading for heading, _ in shown) + " |")
    lines.append("|" + "".join(" --- |" if i < 2 else " ---: |" for i in range(len(shown))))
    lines += ["| " + " | ".join(cells) + " |" for cells in zip(*(cells for _, cells in shown), strict=True)]
    lines.append("")
    if any(line.cell.published for line in found.lines):
        lines += [VERDICTS, ""]
    if study.reference:
        lines += [BESIDE.format(reference=study.reference), ""]
    lines += [f"- {source.title}: {source.link}" for source in study.sources.values() if source.link]
    lines += [f"- {note}" for note in [*study.notes, *found.missing, *not_run(found)]]
    lines += ["", f"![learning curves]({found.name}.svg)"]
    lines += ["", f"![{plane_title(study.plane)}]({found.name}_plane.svg)"] if study.plane else []
    lines += best_lines(found)
    lines += ["", "## By seed", ""]
    lines += ["| environment | method | steps | by seed |", "| --- | --- | ---: | --- |"]
    lines += [
        f"| {cell.environment} | {cell.method} | {result.steps:,} | {seeds} |"
        for (cell, result), seeds in zip(found.results, by_seed(found), strict=True)
    ]
    if not (study.reference or study.stages) and len({cell.method for cell, _ in found.results}) > 1:
        lines += ["", *comparisons(found)]
    lines += ["", "## The runs", "", "The command above is these sweeps, with their runs in one folder:", "", "```"]
    return "\n".join([*lines, *sweeps(found), "```", ""])


def not_run(found: Reproduction) -> list[str]:
    """The study's environments that were not requested."""
    left = [env for env in dict.fromkeys(cell.env for cell in definition.cells(found.study)) if env not in asked(found)]
    return [f"Not run: {', '.join(left)}."] if left else []


def asked(found: Reproduction) -> list[str]:
    return list(dict.fromkeys(cell.env for cell in found.cells))


def by_seed(found: Reproduction) -> list[str]:
    texts = []
    for cell, _ in found.results:
        values = next(line.values for line in found.lines if line.cell == cell)
        texts.append(" ".join(f"{value:.4g}" for value in values))
    return texts


def comparisons(found: Reproduction) -> list[str]:
    """The result of `pgcli compare` for the methods on each environment."""
    lines = []
    for environment in dict.fromkeys(cell.environment for cell, _ in found.results):
        own = [result for cell, result in found.results if cell.environment == environment]
        if len(own) > 1:
            paths = [curve.run.path for result in own for curve in result.curves]
            lines += [
                f"## The methods on {environment}",
                "",
                as_markdown(compare(paths, greedy=found.study.measure == "greedy_return")),
                "",
            ]
    return lines


def command(found: Reproduction) -> str:
    words = ["pgcli", "reproduce", found.name]
    words += [f"--fraction={found.fraction:g}"] if found.fraction != 1 else []
    words += [f"--seeds={found.seeds}"] if found.seeds != found.study.seeds else []
    words += [f"--only={env}" for env in asked(found)] if not_run(found) else []
    return " ".join(words)


def sweeps(found: Reproduction) -> list[str]:
    """A `pgcli sweep` command for each stage and each cell. The runs of a stage are given by seed."""
    study = found.study
    lines = [
        shlex.join(["pgcli", "sweep", *_named(own), f"seed=range(0,{found.seeds})"]) for own in study.stages.values()
    ]
    for cell in found.cells:
        total = max(1, round(cell.total_steps * found.fraction))
        words = [*cell.words, f"total_steps={total}", f"eval.every={max(1, total // study.evaluations)}"]
        lines.append(shlex.join(["pgcli", "sweep", *_named(words), f"seed=range(0,{found.seeds})"]))
    return lines


def _named(words: Iterable[str]) -> list[str]:
    pairs = [word.partition("=") for word in words]
    return [f"{key}=<{value} of the same seed>" if key in SOURCES else f"{key}={value}" for key, _, value in pairs]


# ---------------------------------------------------------------- files and JSON


def make(folder: Path) -> None:
    """Make the folder of a report. Raises InputError if that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write the report to {folder}: {error.strerror or error}") from error


def write(found: Reproduction, folder: Path) -> None:
    """Write `<name>.md` and `<name>.svg`, if there are results."""
    if not found.results:
        return
    make(folder)
    try:
        files.replace(folder / f"{found.name}.md", markdown(found).encode())
    except OSError as error:
        raise InputError(f"cannot write the report to {folder}: {error.strerror or error}") from error
    panels: dict[str, Panel] = {}
    for cell, result in found.results:
        panel = panels.setdefault(cell.environment, Panel(cell.environment, []))
        panel.lines.append((cell.method, result))
    for line in found.lines:
        if line.cell.published and line.theirs:
            panels[line.cell.environment].levels.append((line.beside, line.theirs.mean))
    draw(list(panels.values()), what(found), folder / f"{found.name}.svg")
    if found.study.plane:
        draw_planes(planes(found, found.study.plane), folder / f"{found.name}_plane.svg")


def best_lines(found: Reproduction) -> list[str]:
    """The best of n, as a table; empty if the study has no `best_of`."""
    if not found.best:
        return []
    lines = ["", "## The best of n", "", "| reward model | n | KL, at most | reward | gold |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for reward, seeds in found.best.items():
        for points in zip(*seeds, strict=True):
            cells = [
                with_interval([mean_interval(moments(np.array(x)))], decimals=2)[0]
                for x in ([p.reward for p in points], [p.gold for p in points])
            ]
            lines.append(f"| {reward} | {points[0].n} | {points[0].kl:.2f} | {' | '.join(cells)} |")
    return lines


def plane_title(plane: Plane) -> str:
    return f"{', '.join(plane.y)} against {'the square root of ' if plane.root else ''}{plane.x}"


def planes(found: Reproduction, plane: Plane) -> list[Scatter]:
    """A panel for each metric: each method's path, the mean over its seeds at each evaluation."""
    panels = []
    for key in plane.y:
        paths = []
        for cell, result in found.results:
            runs = [_path(curve.run, plane, key) for curve in result.curves]
            length = min(len(run) for run in runs)
            if length:
                paths.append((cell.method, np.mean([run[:length] for run in runs], axis=0)))
        of_gold = key.endswith("/gold")
        for reward, seeds in found.best.items():
            values = [[(p.kl, p.gold if of_gold else p.reward) for p in points] for points in seeds]
            path = np.mean(values, axis=0)
            path[:, 0] = np.sqrt(path[:, 0]) if plane.root else path[:, 0]
            paths.append((f"best of n, {reward}", path))
        panels.append(Scatter(key, f"{'√ ' if plane.root else ''}{plane.x}", paths))
    return panels


def _path(run: Run, plane: Plane, key: str) -> np.ndarray:
    """(E, 2): both metrics in each row that has both."""
    rows = [row for row in run.rows(key) if plane.x in row]
    x = np.array([row[plane.x] for row in rows], dtype=np.float64)
    if plane.root:
        x = np.sqrt(np.maximum(x, 0))
    return np.stack([x, np.array([row[key] for row in rows], dtype=np.float64)], axis=1)


def as_data(found: Reproduction) -> dict[str, Any]:
    """The results as data that JSON can hold."""
    return {
        "study": found.name,
        "question": found.study.question,
        "fraction": found.fraction,
        "published_budget": found.fraction == 1,
        "measure": what(found),
        "finished": found.finished,
        "path": str(found.path),
        "lines": [
            {
                "environment": line.cell.environment,
                "method": line.cell.method,
                "overrides": line.cell.words,
                "values": line.values.tolist(),
                "ours": estimate_json(line.ours),
                "beside": line.beside or None,
                "theirs": estimate_json(mean_interval(line.theirs)) if line.theirs else None,
                "difference": estimate_json(line.judgement.difference) if line.judgement else None,
                "verdict": line.judgement.verdict if line.judgement else None,
            }
            for line in found.lines
        ],
        "missing": found.missing,
    }
