"""A sweep directory: the plan (`sweep.json`), and the events so far (`ledger.jsonl`, append-only).

    sweeps/<id>/sweep.json      the overrides, and the runs that they expand to
                ledger.jsonl    {"n", "event", "run", "reason", "time", "pid"}: a line for each event, fsynced
                runs/<n>_...    run directories like any other
                logs/<n>.log    the run's output
                discarded/      runs that were killed before their first checkpoint

A sweep is resumed by replaying its ledger. All paths inside are relative to the sweep.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pgcli.errors import InputError
from pgcli.runs import files

SCHEMA = 1
PLAN, LEDGER, RUNS, LOGS, DISCARDED = "sweep.json", "ledger.jsonl", "runs", "logs", "discarded"

STATUS = {
    "planned": "planned",
    "started": "interrupted",  # if no later event follows, its driver was killed first
    "finished": "finished",
    "failed": "failed",
    "interrupted": "interrupted",
}
"""The last event of a run -> its status when the ledger is opened."""


@dataclass
class Trial:
    """One run of a sweep."""

    n: int
    run: str
    """The run's directory, relative to the sweep."""
    overrides: list[str]
    label: str
    """The overrides in which it differs from the others."""
    total_steps: int
    status: str = "planned"
    """`planned`, `running`, `finished`, `failed` or `interrupted`."""
    reason: str = ""
    pid: int | None = None
    """The id of the process last started for it."""


@dataclass
class Sweep:
    """A sweep directory and the status of its runs."""

    path: Path
    trials: list[Trial]
    config_dirs: list[str] = field(default_factory=list)
    trust: bool = False
    signal: int | None = None
    """The signal that stopped it early, if any."""
    stopped: str = ""
    """The failure that made it give up, because every run failed in this way."""

    def run_path(self, trial: Trial) -> Path:
        return self.path / trial.run

    def log_path(self, trial: Trial) -> Path:
        return self.path / LOGS / f"{trial.n:03d}.log"

    def having(self, *statuses: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.status in statuses]


def labels(combinations: list[list[str]]) -> list[str]:
    """Each combination without the overrides that all combinations share."""
    common = set.intersection(*map(set, combinations)) if len(combinations) > 1 else set()
    return [" ".join(o for o in overrides if o not in common) for overrides in combinations]


class Planned(NamedTuple):
    """A planned run: name, words and budget."""

    name: str
    overrides: list[str]
    total_steps: int


def create(
    sweeps_dir: Path,
    planned: list[Planned],
    *,
    overrides: Iterable[str],
    config_dirs: Iterable[str],
    trust: bool,
    version: str,
    name: str | None = None,
) -> Sweep:
    """Create the directory, with a fresh name if none is given, and plan every run in it."""
    now = datetime.now(UTC)
    path = sweeps_dir / (name or f"{now:%Y%m%d-%H%M%S}_{secrets.token_hex(2)}")
    try:
        sweeps_dir.mkdir(parents=True, exist_ok=True)
        for folder in (path, path / RUNS, path / LOGS):
            if name is None or not folder.is_dir():
                files.make_dir(folder)
    except OSError as error:
        raise InputError(f"cannot make a sweep in {sweeps_dir}: {error.strerror}") from error
    sweep = Sweep(path, [], list(config_dirs), trust)
    plan = {
        "schema": SCHEMA,
        "id": path.name,
        "created": now.isoformat(timespec="seconds"),
        "argv": sys.argv,
        "overrides": list(overrides),
        "config_dirs": sweep.config_dirs,
        "trust": trust,
        "version": version,
        "runs": [],
    }
    _write_plan(sweep, plan, planned)
    return sweep


def extend(sweep: Sweep, planned: list[Planned]) -> None:
    """Plan further runs, with the next numbers; the ledger stays."""
    if planned:
        _write_plan(sweep, json.loads((sweep.path / PLAN).read_text("utf-8")), planned)


def _write_plan(sweep: Sweep, plan: dict[str, Any], planned: list[Planned]) -> None:
    first = len(sweep.trials)
    added = [
        Trial(n, f"{RUNS}/{n:03d}_{name}", overrides, "", steps)
        for n, (name, overrides, steps) in enumerate(planned, start=first)
    ]
    sweep.trials += added
    for trial, label in zip(sweep.trials, labels([trial.overrides for trial in sweep.trials]), strict=True):
        trial.label = label
    plan["runs"] = [
        {"n": t.n, "run": t.run, "overrides": t.overrides, "label": t.label, "total_steps": t.total_steps}
        for t in sweep.trials
    ]
    files.replace(sweep.path / PLAN, (json.dumps(plan, indent=1) + "\n").encode())
    record(sweep, "planned", *added)


def newest(sweeps_dir: Path) -> Path:
    """The sweep that was begun last: names begin with the time."""
    found = sorted(path.parent for path in sweeps_dir.glob(f"*/{PLAN}"))
    if not found:
        raise InputError(f"there is no sweep in {sweeps_dir}: start one with `pgcli sweep`, or name its directory")
    return found[-1]


def load(path: Path) -> Sweep:
    """Read a sweep and replay its ledger."""
    try:
        plan = json.loads((path / PLAN).read_text("utf-8"))
        if plan["schema"] != SCHEMA:
            raise InputError(f"{path} has schema {plan['schema']}, and this pgcli reads schema {SCHEMA}")
        trials = [Trial(r["n"], r["run"], r["overrides"], r["label"], r["total_steps"]) for r in plan["runs"]]
        sweep = Sweep(path, trials, plan["config_dirs"], plan["trust"])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} is not a sweep directory: it has no {PLAN}") from error
    except OSError as error:
        raise InputError(f"cannot read {path / PLAN}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path / PLAN} is damaged: it is not the plan of a sweep") from error
    for trial in trials:
        _check_inside(path, trial)
    by_number = {trial.n: trial for trial in trials}
    for event in replay(path / LEDGER):
        if event["n"] not in by_number:
            raise InputError(f"{path / LEDGER} is damaged: {PLAN} has no run {event['n']}")
        trial = by_number[event["n"]]
        trial.status, trial.reason, trial.pid = STATUS[event["event"]], event["reason"], event["pid"]
    return sweep


def record(sweep: Sweep, event: str, *trials: Trial) -> None:
    """Append one event for each of the trials. On return they are on the disk."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    lines = [
        json.dumps({"n": t.n, "event": event, "run": t.run, "reason": t.reason, "time": now, "pid": t.pid}) + "\n"
        for t in trials
    ]
    descriptor = files.open_append(sweep.path / LEDGER)
    try:
        files.append(descriptor, "".join(lines).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mend(path: Path) -> None:
    """Remove an incomplete last line of a killed driver, so that the next event is not appended to it."""
    ledger = path / LEDGER
    if ledger.exists():
        lines, newline, torn = ledger.read_bytes().rpartition(b"\n")
        if torn:
            os.truncate(ledger, len(lines) + len(newline))


def replay(path: Path) -> list[dict[str, Any]]:
    """The events in order. An incomplete last line is ignored; another unreadable line raises InputError."""
    if not path.exists():
        return []
    events = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            event = json.loads(line)
            known = event["event"] in STATUS and event.keys() >= {"n", "reason", "pid"}
        except (ValueError, TypeError, KeyError, AttributeError):
            known = False
        if not known:
            raise InputError(f"{path}:{number} is damaged: it is not an event; remove the line to go on without it")
        events.append(event)
    return events


def _check_inside(path: Path, trial: Trial) -> None:
    """Refuses a plan that was tampered with to write outside the sweep."""
    if Path(trial.run).parts[:-1] != (RUNS,) or Path(trial.run).name in ("", ".."):
        raise InputError(f"{path / PLAN} is damaged: run {trial.n} is not inside {RUNS}/")
