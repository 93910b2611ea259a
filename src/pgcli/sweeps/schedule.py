"""Run the runs of a sweep, each in a process, a few at a time, until all have ended or a signal stops it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeAlias

from pgcli.errors import InputError
from pgcli.runs import files, lock
from pgcli.runs.reader import Run, list_checkpoints
from pgcli.sweeps import ledger
from pgcli.sweeps.ledger import Sweep, Trial

POLL_SECONDS = 0.05
LOOK_SECONDS = 1.0
"""Seconds between two checks of a killed driver's processes, which are system calls."""
SAME_FAILURES = 3
"""After this number of equal failures without a success, the rest would fail, too."""

Command: TypeAlias = Callable[[Sweep, Trial, bool], list[str]]
"""The arguments of a run's process; the flag says whether it resumes from a checkpoint."""
OnChange: TypeAlias = Callable[[Sweep], None]


@dataclass
class Child:
    """A process of this driver."""

    trial: Trial
    process: subprocess.Popen[bytes]
    log_start: int
    killed: bool = False


def run(sweep: Sweep, *, workers: int, command: Command, on_change: OnChange) -> None:
    """Complete every trial that is not finished: failed ones are tried once more, half-done ones are resumed.

    The first SIGINT or SIGTERM is passed on as SIGTERM, at which runs save a checkpoint and end; the second kills them.
    """
    waiting = sweep.having("planned", "interrupted", "failed")
    orphans = [trial for trial in waiting if trial.status == "interrupted" and _goes_on(sweep, trial)]
    queue = deque(trial for trial in waiting if trial not in orphans)
    for trial in waiting:
        # A failure before the resume has been reported; it must not count as one of this session.
        trial.status = "running" if trial in orphans else "planned" if trial.status == "failed" else trial.status
    children: list[Child] = []
    told, looked = 0, 0.0
    try:
        with _signals() as received:
            while True:
                while queue and len(children) + len(orphans) < workers and not received and not same_failure(sweep):
                    trial = queue.popleft()
                    if not _ended_unseen(sweep, trial):
                        children.append(_start(sweep, trial, command))
                if len(received) > told:
                    told += 1
                    _stop(children, orphans, signal.SIGTERM if told == 1 else signal.SIGKILL)
                    orphans = []  # they end by themselves: the next resume finds out how
                for child in [child for child in children if child.process.poll() is not None]:
                    children.remove(child)
                    _settle(sweep, child)
                if time.monotonic() - looked > LOOK_SECONDS:
                    looked = time.monotonic()
                    for trial in [trial for trial in orphans if not _goes_on(sweep, trial)]:
                        orphans.remove(trial)
                        if not _ended_unseen(sweep, trial):
                            trial.status = "interrupted"
                            queue.appendleft(trial)
                on_change(sweep)
                if not children and not orphans and (not queue or received or same_failure(sweep)):
                    break
                time.sleep(POLL_SECONDS)
    except BaseException:
        _stop(children, [], signal.SIGTERM)
        for child in children:
            child.process.wait()
        raise
    sweep.signal = received[0] if received else None
    sweep.stopped = same_failure(sweep) if queue and not received else ""


# ---------------------------------------------------------------- one run


def _start(sweep: Sweep, trial: Trial, command: Command) -> Child:
    path = sweep.run_path(trial)
    resumed = bool(list_checkpoints(path / "checkpoints"))
    if path.exists() and not resumed:
        _discard(sweep, path)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with sweep.log_path(trial).open("ab") as log:
        start = log.tell()
        # A session of its own: Ctrl-C reaches only the driver, which then signals the runs.
        process = subprocess.Popen(
            command(sweep, trial, resumed),
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
    trial.status, trial.reason, trial.pid = "running", "", process.pid
    ledger.record(sweep, "started", trial)
    return Child(trial, process, start)


def _settle(sweep: Sweep, child: Child) -> None:
    """Record how a run ended."""
    trial, code = child.trial, child.process.returncode
    word = _status(sweep.run_path(trial))
    if code == 0 and word != "interrupted":
        trial.status = "finished"
    elif child.killed or code in (0, 130, 143, -signal.SIGTERM):  # -SIGTERM: it had not begun to listen yet
        trial.status = "interrupted"
    else:
        trial.status, trial.reason = "failed", _reason(sweep.log_path(trial), child.log_start, code)
    ledger.record(sweep, trial.status, trial)


def _ended_unseen(sweep: Sweep, trial: Trial) -> bool:
    """Whether the run completed while no driver was there to record it."""
    if _status(sweep.run_path(trial)) != "completed":
        return False
    trial.status, trial.reason = "finished", ""
    ledger.record(sweep, "finished", trial)
    return True


def _status(path: Path) -> str:
    """The run's own status; empty if it was not begun, or killed before its directory was complete."""
    try:
        return Run(path).status
    except InputError:
        return ""


def _discard(sweep: Sweep, path: Path) -> None:
    """Moves a run without a checkpoint, which cannot be resumed, out of the way without deleting it."""
    folder = sweep.path / ledger.DISCARDED
    folder.mkdir(exist_ok=True)
    count = sum(1 for _ in folder.glob(f"{path.name}-*"))
    files.rename(path, folder / f"{path.name}-{count + 1}")


def _goes_on(sweep: Sweep, trial: Trial) -> bool:
    """Whether a process of a killed driver still works on the run; it is then waited for."""
    return lock.in_use(sweep.run_path(trial)) or _alive(trial)


def _alive(trial: Trial) -> bool:
    """Whether the process that was started for the run is alive. It may not hold the run's lock yet.

    Process ids are reused, so its command line must name the run.
    """
    if trial.pid is None:
        return False
    if Path("/proc/self/cmdline").exists():
        try:
            command = Path(f"/proc/{trial.pid}/cmdline").read_text(errors="replace")  # empty for a zombie
        except OSError:
            command = ""
    else:
        ps = ["ps", "-ww", "-o", "command=", "-p", str(trial.pid)]
        command = subprocess.run(ps, capture_output=True, text=True, check=False).stdout
    return Path(trial.run).name in command


def _stop(children: list[Child], orphans: list[Trial], number: int) -> None:
    for child in children:
        child.killed = number == signal.SIGKILL
        child.process.send_signal(number)  # does nothing to a process that has ended
    for trial in orphans:
        if trial.pid is not None and _alive(trial):
            os.kill(trial.pid, number)


# ---------------------------------------------------------------- failures


def _reason(log: Path, start: int, code: int) -> str:
    """Why a process failed: its last `error:` line, or else its last line, or the signal that killed it."""
    with log.open("rb") as file:
        file.seek(max(start, os.path.getsize(log) - 65536))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    if errors:
        return errors[-1]
    if code < 0:
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    return lines[-1] if lines else f"exit code {code}, and it said nothing"


def same_failure(sweep: Sweep) -> str:
    """The reason, if there were enough failures of one kind and no success; then no further run is started."""
    failed = sweep.having("failed")
    # Numbers differ between runs (seeds, steps, losses) even if the failure is the same.
    ways = {re.sub(r"\d+", "0", trial.reason) for trial in failed}
    same = len(failed) >= SAME_FAILURES and len(ways) == 1 and not sweep.having("finished")
    return failed[-1].reason if same else ""


# ---------------------------------------------------------------- signals


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The SIGINT and SIGTERM received so far: the handlers only record them."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread receives signals
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
