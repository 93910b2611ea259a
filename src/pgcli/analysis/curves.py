"""From run directories to evaluation curves, and measures of one curve."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from pgcli.errors import InputError
from pgcli.runs import Run


@dataclass(frozen=True, eq=False)
class Curve:
    """One run in a comparison. steps, values, seconds: (E,), one entry per evaluation, steps increasing."""

    run: Run
    seed: int
    slug: str
    algorithm: str
    budget: int
    """The steps that it used of its budget: `total_steps`, or the steps at which it stopped early by itself."""
    stopped: bool
    """Whether it ended before its budget because an evaluation reached `stop_at`."""
    steps: np.ndarray
    values: np.ndarray
    seconds: np.ndarray

    @property
    def name(self) -> str:
        return self.run.path.name

    @property
    def final(self) -> float:
        return float(self.values[-1])

    @property
    def best(self) -> float:
        return float(self.values.max())

    def area(self, start: int, end: int) -> float:
        """The mean height over steps start .. end: trapezoids, level where there is no evaluation before or after."""
        within = self.steps[(self.steps > start) & (self.steps < end)]
        grid = np.concatenate([[start], within, [end]])
        heights = np.interp(grid, self.steps, self.values)
        if start == end:
            return float(heights[0])
        return float((np.diff(grid) * (heights[1:] + heights[:-1]) / 2).sum() / (end - start))

    def reached(self, threshold: float) -> tuple[float, float]:
        """Steps and seconds at the first evaluation that reaches the threshold; infinite if none does."""
        hits = np.flatnonzero(self.values >= threshold)
        return (float(self.steps[hits[0]]), float(self.seconds[hits[0]])) if len(hits) else (inf, inf)

    def cut(self, budget: int) -> "Curve":
        """The evaluations within a common budget. A run with exactly this budget keeps the one after its last batch."""
        if self.budget <= budget:
            return self
        keep = self.steps <= budget
        return replace(
            self, budget=budget, steps=self.steps[keep], values=self.values[keep], seconds=self.seconds[keep]
        )


def find_runs(paths: Iterable[os.PathLike[str] | str]) -> tuple[list[Run], list[str]]:
    """The runs under the paths, each once: run directories, and folders (a sweep) with runs up to two levels down.

    Also a sentence for each unreadable run in a folder; an unreadable run that is named itself raises InputError.
    """
    found: dict[Path, Run] = {}
    warnings = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise InputError(f"`{path}` is not a directory; compare takes run directories and sweep directories")
        if (path / "run.json").exists():
            found.setdefault(path.resolve(), Run(path))
            continue
        files = sorted([*path.glob("*/run.json"), *path.glob("*/*/run.json")])
        if not files:
            raise InputError(f"`{path}` is no run directory (it has no run.json), and there is none in it")
        for file in files:
            try:
                found.setdefault(file.parent.resolve(), Run(file.parent))
            except InputError as error:
                warnings.append(f"left out: {error}")
    if not found:
        raise InputError(warnings[0] if warnings else "compare needs at least one run directory or sweep directory")
    return list(found.values()), warnings


def read_curve(run: Run, key: str) -> Curve | None:
    """The curve of one metric; None if the run never logged it."""
    rows = run.rows(key)
    if not rows:
        return None
    config, reached = run.config, int(run.info.get("steps") or rows[-1]["step"])
    total = int(config["total_steps"])
    stopped = config.get("stop_at") is not None and reached < total
    return Curve(
        run=run,
        seed=run.seed,
        slug=run.slug,
        algorithm=run.choices["algo"],
        budget=total if stopped else min(reached, total),
        stopped=stopped,
        steps=np.array([row["step"] for row in rows], dtype=np.int64),
        values=np.array([row[key] for row in rows], dtype=np.float64),
        seconds=np.array([row.get("wall", np.nan) for row in rows], dtype=np.float64),
    )


def load(paths: Iterable[os.PathLike[str] | str], key: str) -> tuple[list[Curve], list[str]]:
    """The curves that may be compared, and a sentence about each run that may not."""
    runs, warnings = find_runs(paths)
    curves = []
    diverged = any(run.status == "failed" for run in runs)
    for run in runs:
        if run.status != "completed":
            reason = f" ({run.info['reason']})" if run.info.get("reason") else ""
            warnings.append(f"left out: {run.path.name} is {run.status}{reason}")
            continue
        try:
            curve = read_curve(run, key)
        except InputError as error:
            warnings.append(f"left out: {error}")
            continue
        if curve is None:
            warnings.append(f"left out: {run.path.name} has no evaluation ({key} was never logged)")
        elif not np.isfinite(curve.values).all():
            warnings.append(f"left out: {run.path.name} has an evaluation that is not a finite number")
            diverged = True
        else:
            curves.append(curve)
    if diverged:
        warnings.append("a run that failed because it diverged is a bad result: leaving it out flatters its group")
    return drop_duplicates(curves, warnings), warnings


def drop_duplicates(curves: list[Curve], warnings: list[str]) -> list[Curve]:
    """Keeps the newest of the runs that share seed and settings: a copy, counted twice, would narrow the intervals."""
    newest: dict[tuple[Any, ...], Curve] = {}
    for curve in sorted(curves, key=lambda curve: str(curve.run.info.get("created", ""))):
        settings = bearing(curve.run.config) | {key: curve.run.config.get(key) for key in SOURCES}
        same = (curve.algorithm, curve.slug, curve.seed, json.dumps(settings, sort_keys=True, default=str))
        if same in newest:
            warnings.append(
                f"left out: {newest[same].name} has the seed and the settings of {curve.name}, which is newer"
            )
        newest[same] = curve
    return list(newest.values())


# ---------------------------------------------------------------- settings that bear on what is learned

SILENT = ("seed", "runs_dir", "log_every", "checkpoint", "device", "eval", "tuned")
"""Settings, or whole sections, that do not distinguish groups: they change where a run writes, how fast it is or how it
is measured, but not what it learns. `tuned` is represented by the settings that it made."""


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}. Lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


SOURCES = ("init", "reference", "reward")
"""Settings that name another run."""


def bearing(config: dict[str, Any]) -> dict[str, Any]:
    """Flat settings that affect learning, beside the others. For `init`, `reference` and `reward`, since each seed may
    have its own, the settings with which that run was trained; if it is gone, the path of a `reward`, and that the
    others were given.
    """
    flat = flatten({key: value for key, value in config.items() if key not in SILENT})
    without = idle(flat)
    flat = {key: value for key, value in flat.items() if key not in without}
    named = {key: flat[key] for key in SOURCES if flat.get(key) is not None}
    return flat | {key: identity(path) or (path if key == "reward" else "given") for key, path in named.items()}


def idle(flat: dict[str, Any]) -> set[str]:
    """Settings that the others leave without effect, such as a discount that comes with the algorithm."""
    found: set[str] = set()
    if not flat.get("env.normalise.rewards"):
        found.add("env.normalise.gamma")
        if not flat.get("env.normalise.observations"):
            found.add("env.normalise.clip")
    if flat.get("algo.schedule", "robbins_monro") != "robbins_monro":
        found |= {"algo.schedule_c", "algo.schedule_offset"}
    return found


def identity(path: str) -> str | None:
    """The identity of a run, regardless of its seed: its algorithm and a digest of its settings; None if it is gone."""
    try:
        run = Run(path)
        settings = json.dumps(bearing(run.config), sort_keys=True, default=str)
    except InputError:
        return None
    return f"{run.choices['algo']}:{hashlib.blake2b(settings.encode(), digest_size=2).hexdigest()}"
