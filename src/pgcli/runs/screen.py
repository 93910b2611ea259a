"""What a run shows: the metrics logged so far, as one plain line or as one screen. Nothing is written here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from rich.text import Text

from pgcli.runs.numbers import duration, number

PARTS = ("collect", "update", "evaluate", "write")
PART_KEYS = tuple(f"time/{part}" for part in PARTS)
PART_STYLES = ("cyan", "green", "yellow", "magenta")
COLUMNS = (("policy/",), ("loss/",), ("value/", "optimiser/"))
"""The screen's columns of metrics, by prefix; a narrow terminal drops them from the right."""
BESIDE = {"eval/gold": "gold", "eval/kl": "KL to reference", "eval/preference_accuracy": "preferences"}
"""Shown after an evaluation's returns, if measured: the true reward, the KL to the reference, and the share of held-out
pairs that are ranked as they are labelled."""
LABELS = {
    "policy/approx_kl": "KL",
    "policy/kl": "KL",
    "optimiser/grad_norm": "gradient norm",
    "optimiser/actor_grad_norm": "actor's gradient",
    "optimiser/critic_grad_norm": "critics' gradient",
}
COLUMN_WIDTH, GAP = 28, 3


class Glyphs(NamedTuple):
    filled: str
    rest: str
    levels: str
    """The chart's cells, from empty to full."""
    shades: str
    """One glyph for each part of the time."""
    dot: str
    ellipsis: str


UNICODE = Glyphs("━", "─", " ▁▂▃▄▅▆▇█", "█▓▒░", "·", "…")
ASCII = Glyphs("#", "-", " .:#", "#=+.", "-", "~")


def bins(values: list[float], count: int) -> list[float]:
    """Means of the values over at most `count` consecutive parts."""
    count = min(count, len(values))
    cuts = [i * len(values) // count for i in range(count + 1)] if count > 0 else []
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]


def chart(cells: list[float], height: int, levels: str) -> list[str]:
    """The values as an area one cell wide each, from the top row down."""
    low, high = min(cells), max(cells)
    full = len(levels) - 1
    # The lowest value still shows one level, so that it is not mistaken for a gap.
    heights = [1 + round((v - low) / (high - low) * (height * full - 1)) if high > low else full for v in cells]
    return ["".join(levels[min(max(h - row * full, 0), full)] for h in heights) for row in reversed(range(height))]


# ---------------------------------------------------------------- metrics logged so far


@dataclass
class Curve:
    """A series of any length, stored as at most `limit` points, each the mean of the same number of values."""

    limit: int = 1024
    points: list[float] = field(default_factory=list)
    stride: int = 1
    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total += value
        self.count += 1
        if self.count < self.stride:
            return
        self.points.append(self.total / self.count)
        self.total, self.count = 0.0, 0
        if len(self.points) == self.limit:
            self.points = [(a + b) / 2 for a, b in zip(self.points[::2], self.points[1::2], strict=True)]
            self.stride *= 2


@dataclass
class Progress:
    title: str
    total_steps: int
    unit: str
    began: float
    step: int = 0
    latest: dict[str, float] = field(default_factory=dict)
    last_return: float | None = None
    """Value in the last row in which an episode ended."""
    returns: Curve = field(default_factory=Curve)
    evaluations: Curve = field(default_factory=Curve)
    evaluated_at: int | None = None
    samples: Sequence[Mapping[str, Any]] = ()
    """Completions of the last evaluation, if the user asked for them."""
    seconds: list[float] = field(default_factory=lambda: [0.0] * len(PARTS))
    first: tuple[int, float] | None = None
    """Step and time of the first row: a resumed run does not begin at step 0."""

    def add(self, row: Mapping[str, float], now: float) -> None:
        self.step = int(row["step"])
        if self.first is None:
            self.first = (self.step, now)
        self.latest.update(row)
        value = row.get("rollout/return_mean", math.nan)
        if math.isfinite(value):
            self.returns.add(value)
            self.last_return = value
        for i, key in enumerate(PART_KEYS):
            self.seconds[i] += row.get(key, 0.0)
        if "eval/return_mean" in row:
            self.evaluations.add(row["eval/return_mean"])
            self.evaluated_at = self.step

    @property
    def share(self) -> float:
        return min(self.step / self.total_steps, 1.0) if self.total_steps else 0.0

    def seconds_left(self, now: float) -> float | None:
        if self.first is None or self.step <= self.first[0]:
            return None
        return max(self.total_steps - self.step, 0) * (now - self.first[1]) / (self.step - self.first[0])


# ---------------------------------------------------------------- one plain line


def plain_line(progress: Progress, now: float) -> str:
    latest = progress.latest
    parts = [f"step {progress.step:,}/{progress.total_steps:,} ({progress.share:.0%})"]
    if progress.last_return is not None:
        parts.append(f"return {number(progress.last_return)}")
    if progress.evaluated_at == progress.step:
        greedy = latest.get("eval/greedy_return_mean")
        parts.append(
            f"eval {number(latest['eval/return_mean'])}" + ("" if greedy is None else f" (greedy {number(greedy)})")
        )
        parts += beside(latest)
    for key, label in (("policy/entropy", "entropy"), ("policy/approx_kl", "kl"), ("loss/total", "loss")):
        if key in latest and not (key == "loss/total" and "policy/entropy" in latest):
            parts.append(f"{label} {number(latest[key])}")
    if "time/steps_per_second" in latest:
        parts.append(f"{latest['time/steps_per_second']:,.0f} {progress.unit}/s")
    parts.append(duration(now - progress.began))
    return "  ".join(parts)


def beside(latest: Mapping[str, float]) -> list[str]:
    """`gold 1.57`, if training maximises another reward, `KL to reference 3.43`, and so on."""
    shown = [
        key for key in BESIDE if key in latest and (key != "eval/gold" or latest[key] != latest["eval/return_mean"])
    ]
    return [f"{BESIDE[key]} {number(latest[key])}" for key in shown]


def sample_line(sample: Mapping[str, Any]) -> str:
    """`   0.98  kl 1.2   <prompt> | <completion>`, with line breaks in the texts escaped."""
    head = f"{number(sample['reward']):>7}"
    if "kl" in sample:
        head += f"  kl {number(sample['kl']):<5}"
    rest = "" if sample["finished"] else "   (cut)"
    return f"{head}   " + " ".join(f"{sample['prompt']} | {sample['completion']}{rest}".split())


# ---------------------------------------------------------------- one screen


def screen(progress: Progress, now: float, width: int, height: int, glyphs: Glyphs) -> Text:
    """At most 15 rows, and the samples if the user asked for them, none wider than the terminal. What does not fit is
    left out, least important first.
    """
    title = Text(progress.title.replace("·", glyphs.dot), style="bold")
    lines = [title, progress_line(progress, now, width, glyphs), Text()]
    lines += return_lines(progress, width, 4 if height >= 20 else 1, glyphs)
    lines += [*metric_lines(progress.latest, width), Text(), *time_lines(progress, width, glyphs)]
    if progress.samples and height - len(lines) > 3:
        heading = f" reward   completions of the evaluation at {progress.evaluated_at or 0:,}"
        rows = [Text(sample_line(sample)) for sample in progress.samples[: height - len(lines) - 3]]
        lines += [Text(), Text(heading, "bright_black"), *rows]
    text = Text(no_wrap=True, overflow="crop", end="")
    for i, line in enumerate(lines):
        if line.cell_len > width:
            line.truncate(width - 1)
            line.append(glyphs.ellipsis)
        text.append("\n" if i else "").append_text(line)
    return text


def progress_line(progress: Progress, now: float, width: int, glyphs: Glyphs) -> Text:
    left = progress.seconds_left(now)
    tail = f" {progress.share:4.0%}"
    if width >= 60:
        tail += f"  {progress.step:,}/{progress.total_steps:,} {progress.unit}"
    if left is not None:
        tail += f"  {duration(left)} left"
    room = max(width - len(tail), 0)
    filled = int(room * progress.share)
    return Text.assemble((glyphs.filled * filled, "green"), (glyphs.rest * (room - filled), "bright_black"), tail)


def return_lines(progress: Progress, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    """The last values, then the curve with its bounds to the left: of evaluations if no training episodes ended."""
    latest = progress.latest
    values = Text()
    if progress.last_return is not None:
        values.append("return ", "bright_black").append(f"{number(progress.last_return)}   ", "bold")
    if "eval/return_mean" in latest:
        values.append("evaluation ", "bright_black").append(number(latest["eval/return_mean"]))
        more = [f"   greedy {number(latest['eval/greedy_return_mean'])}"] if "eval/greedy_return_mean" in latest else []
        more += [f"   {text}" for text in beside(latest)]
        for text in [*more, f"   at {progress.evaluated_at:,}"]:
            if values.cell_len + len(text) <= width:
                values.append(text, "bright_black")
    cells = bins(progress.returns.points or progress.evaluations.points, width - 10)
    if not cells:
        return [values]
    rows = chart(cells, height, glyphs.levels)
    bounds = [number(max(cells)), *[""] * (height - 2), number(min(cells))] if height > 1 else [""]
    lines = [Text.assemble((f"{b:>9} ", "bright_black"), (r, "cyan")) for b, r in zip(bounds, rows, strict=True)]
    return [values, *lines, Text()]


def metric_lines(latest: Mapping[str, float], width: int) -> list[Text]:
    """Losses and other metrics in up to three columns of up to four rows."""
    columns = [[key for prefix in prefixes for key in latest if key.startswith(prefix)][:4] for prefixes in COLUMNS]
    columns = [column for column in columns if column][: max(1, (width + GAP) // (COLUMN_WIDTH + GAP))]
    lines = []
    for i in range(max((len(column) for column in columns), default=0)):
        line = Text()
        for j, column in enumerate(columns):
            line.append(" " * GAP if j else "")
            if i >= len(column):
                line.append(" " * COLUMN_WIDTH)
                continue
            label = _label(column[i])[: COLUMN_WIDTH - 9]
            value = number(latest[column[i]])
            line.append(label, "bright_black").append(f"{value:>{COLUMN_WIDTH - len(label)}}")
        lines.append(line)
    return lines


def _label(key: str) -> str:
    """`loss/policy` -> `policy loss`; `value/explained_variance` -> `explained variance`."""
    group, name = key.split("/", 1)
    return LABELS.get(key, name.replace("_", " ") + (" loss" if group == "loss" else ""))


def time_lines(progress: Progress, width: int, glyphs: Glyphs) -> list[Text]:
    """Steps per second, and where the time went: a bar and its legend, shades and colours saying the same."""
    rate = progress.latest.get("time/steps_per_second")
    head = "" if rate is None else f"{rate:,.0f} {progress.unit}/s   "
    total = sum(progress.seconds)
    if total <= 0:
        return [Text(head)]
    room = width - len(head)
    ends = [round(room * sum(progress.seconds[: i + 1]) / total) for i in range(len(PARTS))]
    bar, legend = Text(head), Text()
    for i, part in enumerate(PARTS):
        bar.append(glyphs.shades[i] * (ends[i] - (ends[i - 1] if i else 0)), PART_STYLES[i])
        entry = f"{glyphs.shades[i]} {part} {progress.seconds[i] / total:.0%}"
        if legend.cell_len + len(entry) <= width:
            legend.append(entry, PART_STYLES[i]).append("   ")
    return [bar, legend]
