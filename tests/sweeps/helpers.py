"""Sweeps of stand-ins: what a run does is an override."""

import json
import subprocess
import sys
import time
from pathlib import Path

from pgcli.sweeps import ledger

FAKE = Path(__file__).with_name("fake.py")


def fake_command(sweep, trial, resumed):
    verb = "resume" if resumed else "train"
    return [sys.executable, "-S", "-E", str(FAKE), verb, str(sweep.run_path(trial)), *trial.overrides]


def plan(folder, *combinations):
    """A new sweep; each combination is a text such as `do=ok seed=1`."""
    planned = [ledger.Planned(f"run{n}", text.split(), 100) for n, text in enumerate(combinations)]
    return ledger.create(folder, planned, overrides=["all"], config_dirs=[], trust=False, version="0")


def events(sweep):
    """(n, event) in the order of the ledger, without those of planning."""
    told = ledger.replay(sweep.path / ledger.LEDGER)
    return [(event["n"], event["event"]) for event in told if event["event"] != "planned"]


def calls(sweep):
    """What was started: `train 0`, `resume 1`, ..., sorted."""
    lines = (sweep.path / "calls.txt").read_text().splitlines()
    return sorted(f"{line.split()[0]} {int(line.split()[1][:3])}" for line in lines)


def statuses(sweep):
    return [trial.status for trial in ledger.load(sweep.path).trials]


def start_driver(sweep, workers=2):
    """A driver in a process of its own, which prints the signal that ended it."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from helpers import fake_command\n"
        "from pgcli.sweeps import resume_sweep\n"
        "print(resume_sweep(sys.argv[2], workers=int(sys.argv[3]), command=fake_command).signal)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(FAKE.parent), str(sweep.path), str(workers)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def waiting(sweep, *numbers):
    """Whether these runs have written their checkpoint and now wait to be told."""
    return all(json.loads(read(path)) for n in numbers for path in [sweep.run_path(sweep.trials[n]) / "run.json"])


def read(path):
    return (path.read_text() if path.exists() else "") or "null"
