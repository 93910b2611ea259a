"""`pgcli sweep`: every combination of the overrides, each in a process."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgcli.cli._completion import complete_override

if TYPE_CHECKING:
    from rich.table import Table

    from pgcli.runs.console import Stream
    from pgcli.sweeps import Sweep, Trial
    from pgcli.sweeps.progress import Tail
    from pgcli.sweeps.schedule import OnChange

FRAME_SECONDS = 1 / 4
STYLES = {"running": "cyan", "failed": "red", "interrupted": "yellow", "finished": "green", "planned": "bright_black"}
"""Order of the statuses shown if there are more runs than rows."""
EVENTS = {"running": "started"}
"""Status -> the word printed when a run reaches it, if it is another one."""


def sweep(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="key=value; several values make several runs: algo=ppo,a2c 'seed=range(0,5)'.",
            autocompletion=complete_override,
        ),
    ] = None,
    *,
    workers: Annotated[int, typer.Option(help="Runs at a time, each with a process and a core.")] = 1,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Go on with a sweep, or the `latest`: finished runs stay, half-done ones go on, failed ones are tried "
            "once more.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object at the end, and nothing else.")] = False,
    config_dir: Annotated[list[Path] | None, typer.Option(help="A config folder of your own; may be repeated.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Import user code that a file names.")] = False,
) -> None:
    """Run every combination of the overrides, and record how each ended."""
    from pgcli.errors import InputError
    from pgcli.runs.console import Stream, is_plain
    from pgcli.sweeps import ledger, resume_sweep
    from pgcli.sweeps import sweep as start

    if resume is None and not overrides:
        raise InputError("nothing to sweep; for example: pgcli sweep algo=ppo,a2c env=cartpole 'seed=range(0,5)'")
    if resume is not None and (overrides or config_dir):
        raise InputError(f"{resume} remembers its runs: --resume takes no overrides and no --config-dir")
    if resume == Path("latest"):
        resume = ledger.newest(Path("sweeps"))
    stream = Stream(sys.stdout)
    board = Board()
    began = time.monotonic()
    if resume is not None and not as_json:
        stream.write(intention(ledger.load(resume)) + "\n")
    view = nothing() if as_json else lines(board, stream) if is_plain(sys.stdout, os.environ) else screen(board, stream)
    with view as show:
        if resume is None:
            from pgcli.experiment import check

            done = start(
                *overrides or [], workers=workers, config_dirs=config_dir or [], trust=trust,
                check=partial(check, trust=trust), on_change=show,
            )  # fmt: skip
        else:
            done = resume_sweep(resume, workers=workers, trust=trust, on_change=show)
    stream.write(
        (json.dumps(as_data(done, board), indent=1) if as_json else summary(done, time.monotonic() - began)) + "\n"
    )
    stream.flush()
    if done.signal is not None:
        raise typer.Exit(128 + done.signal)
    if done.having("planned", "interrupted", "failed"):
        raise typer.Exit(1)


# ---------------------------------------------------------------- while it runs


class Board:
    """Progress of each run, read from the end of its metrics."""

    def __init__(self) -> None:
        self.tails: dict[int, Tail] = {}
        self.told: dict[int, str] = {}

    def look(self, sweep: Sweep, trial: Trial) -> Tail:
        from pgcli.sweeps.progress import Tail

        tail = self.tails.setdefault(trial.n, Tail(sweep.run_path(trial) / "metrics.jsonl"))
        tail.look()
        return tail

    def news(self, sweep: Sweep) -> list[str]:
        """A line for each run whose status changed since the last call."""
        before = {trial.n: "" if trial.status == "running" else trial.status for trial in sweep.trials}
        self.told = before | self.told  # earlier statuses are no news; a study plans its stages one after the other
        lines = []
        for trial in sweep.trials:
            if self.told[trial.n] != trial.status:
                self.told[trial.n] = trial.status
                finished = sum(self.told[other.n] == "finished" for other in sweep.trials)
                lines.append(self.event(sweep, trial, finished=finished))
        return lines

    def event(self, sweep: Sweep, trial: Trial, *, finished: int) -> str:
        from pgcli.runs.numbers import number

        line = f"{EVENTS.get(trial.status, trial.status):<11} {trial.n:03d}  {trial.label}"
        if trial.status == "finished":
            result = self.look(sweep, trial).evaluation
            line += "" if result is None else f"  return {number(result)}"
            line += f"  ({finished} of {len(sweep.trials)})"
        return line + (f"  {trial.reason}" if trial.reason else "")

    def table(self, sweep: Sweep, width: int, height: int) -> Table:
        """The runs, the running ones first if not all fit, and the number of each status."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        from pgcli.runs.numbers import number

        rank = list(STYLES)
        shown = sorted(sweep.trials, key=lambda trial: rank.index(trial.status))[: max(height - 5, 1)]
        caption = Text(counts(sweep), no_wrap=True, overflow="ellipsis")
        wide = width >= 60
        table = Table(box=box.SIMPLE_HEAD if wide else None, pad_edge=False, caption=caption, caption_justify="left")
        table.add_column("n", no_wrap=True, min_width=3)
        table.add_column("what differs", no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column("status", no_wrap=True, min_width=11)
        table.add_column("step", justify="right", no_wrap=True, min_width=4)
        if wide:
            table.add_column("return", justify="right", no_wrap=True, min_width=8)
        for trial in sorted(shown, key=lambda trial: trial.n):
            tail = self.look(sweep, trial) if trial.status != "planned" else None
            share = f"{min(tail.step / trial.total_steps, 1):.0%}" if tail else ""
            result = number(tail.evaluation) if tail and tail.evaluation is not None else ""
            cells: list[str | Text] = [
                f"{trial.n:03d}",
                Text(trial.label),
                Text(trial.status, STYLES[trial.status]),
                share,
                result,
            ]
            table.add_row(*cells[: len(table.columns)])
        return table


def counts(sweep: Sweep) -> str:
    return " · ".join(f"{len(sweep.having(status))} {status}" for status in STYLES if sweep.having(status))


@contextmanager
def nothing() -> Iterator[OnChange | None]:
    yield None


@contextmanager
def lines(board: Board, stream: Stream) -> Iterator[OnChange | None]:
    """A line for each run that begins or ends."""

    def show(sweep: Sweep) -> None:
        for line in board.news(sweep):
            stream.write(line + "\n")
            stream.flush()

    yield show


@contextmanager
def screen(board: Board, stream: Stream) -> Iterator[OnChange | None]:
    """A table that stays in place."""
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stream, force_terminal=True, highlight=False)  # type: ignore[arg-type]
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        drawn, latest = 0.0, None

        def draw(sweep: Sweep) -> None:
            live.update(board.table(sweep, *console.size), refresh=True)

        def show(sweep: Sweep) -> None:
            nonlocal drawn, latest
            latest = sweep
            if time.monotonic() - drawn >= FRAME_SECONDS:
                drawn = time.monotonic()
                draw(sweep)

        yield show
        if latest is not None:
            draw(latest)


# ---------------------------------------------------------------- before and after


def intention(sweep: Sweep) -> str:
    """What `--resume` will do."""
    finished, failed = len(sweep.having("finished")), len(sweep.having("failed"))
    half, planned = len(sweep.having("interrupted")), len(sweep.having("planned"))
    parts = [
        (finished, "finished: not repeated"),
        (half, "half-done: go on"),
        (failed, "failed: tried once more"),
        (planned, "to go"),
    ]
    return f"{sweep.path}: " + " · ".join(f"{count} {what}" for count, what in parts if count)


def summary(sweep: Sweep, seconds: float) -> str:
    """How the sweep ended, which runs failed and why, and the next commands."""
    from pgcli.runs.numbers import duration
    from pgcli.sweeps.driver import user_code

    runs = f"{len(sweep.trials)} run{'s' if len(sweep.trials) > 1 else ''}"
    text = [f"{runs} in {duration(seconds)}: {counts(sweep)}"]
    if sweep.stopped:
        rest = len(sweep.having("planned", "interrupted"))
        text.append(f"gave up: every run failed in the same way, so {rest} more were not started: {sweep.stopped}")
    else:
        text += failures(sweep)
    text += [f"log     {sweep.log_path(trial)}" for trial in sweep.having("failed")[:1]]
    trust = " --trust" if user_code(sweep) else ""
    following = (
        [f"pgcli sweep --resume {sweep.path}{trust}"] if sweep.having("planned", "interrupted", "failed") else []
    )
    if sweep.having("finished"):
        following.insert(0 if not sweep.having("planned", "interrupted") else 1, f"pgcli compare {sweep.path}")
    text += [f"{'next' if i == 0 else '':<7} {command}" for i, command in enumerate(following)]
    return "\n".join(text)


def failures(sweep: Sweep) -> list[str]:
    """Each reason once, with the runs that failed for it."""
    by_reason: dict[str, list[Trial]] = {}
    for trial in sweep.having("failed"):
        by_reason.setdefault(trial.reason, []).append(trial)
    lines = []
    for reason, trials in by_reason.items():
        numbers = ", ".join(f"{trial.n:03d}" for trial in trials)
        label = f"  {trials[0].label}" if len(trials) == 1 else ""
        lines.append(f"failed  {numbers}{label}  {reason}")
    return lines


def as_data(sweep: Sweep, board: Board) -> dict[str, Any]:
    runs = [
        {
            "n": trial.n, "run": str(sweep.run_path(trial)), "overrides": trial.overrides, "status": trial.status,
            "reason": trial.reason or None, "eval_return": board.look(sweep, trial).evaluation,
        }
        for trial in sweep.trials
    ]  # fmt: skip
    number = {status: len(sweep.having(status)) for status in STYLES}
    return {"id": sweep.path.name, "path": str(sweep.path), **number, "gave_up": sweep.stopped or None, "runs": runs}
