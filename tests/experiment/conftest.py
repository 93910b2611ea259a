"""Commands as real processes, and what must be the same however often a run was killed."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from pgcli.runs import Run

HERE = Path(__file__).parent
TINY = ("tuned=none", "log_every=1", "eval.episodes=2", "eval.every=700", "checkpoint.every=300")
MLP = "policy.hidden=[8]"
TRANSFORMER = ("policy.width=8", "policy.heads=2", "policy.layers=1", "policy.hidden=8")


@pytest.fixture(autouse=True)
def forked_workers(monkeypatch):
    """A worker process of this one starts in no time, instead of importing everything afresh."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: fork)


class Ended(NamedTuple):
    code: int
    """The exit status; minus the signal's number for a process that a signal ended."""
    out: str
    err: str


class Process:
    """A command that the driver has started."""

    def __init__(self, driver, pid, out, err):
        self.driver, self.pid, self.out, self.err = driver, pid, out, err

    def kill(self, number=signal.SIGKILL):
        os.kill(self.pid, number)  # it stays a zombie until `wait`, so that the number is nobody else's

    def wait(self):
        status = self.driver.ask(do="wait", pid=self.pid)
        return Ended(os.waitstatus_to_exitcode(status), self.out.read_text(), self.err.read_text())


class Driver:
    def __init__(self, folder):
        self.folder, self.started = folder, 0
        path = os.pathsep.join([str(HERE / "toys"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        self.environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PGCLI_DEBUG": "0"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, HERE / "driver.py"], env=self.environment, **pipes)

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, *words, folder=None, **mischief):
        """`pgcli WORDS`, begun in `folder`."""
        self.started += 1
        out, err = (self.folder / f"{self.started}.{name}" for name in ("out", "err"))
        out.touch(), err.touch()
        pid = self.ask(
            do="start", words=[str(w) for w in words], folder=str(folder or self.folder), out=str(out), err=str(err),
            mischief=mischief,
        )  # fmt: skip
        return Process(self, pid, out, err)

    def run(self, *words, folder=None, **mischief):
        return self.start(*words, folder=folder, **mischief).wait()


@pytest.fixture(scope="session")
def pgcli(tmp_path_factory):
    """pgcli.run("train", "algo=ppo") -> Ended: a process of its own for each command."""
    driver = Driver(tmp_path_factory.mktemp("driver"))
    yield driver
    driver.process.stdin.close()
    driver.process.wait(timeout=10)


@pytest.fixture
def _no_power_cut(monkeypatch):
    """What the kernel has survives a kill, so no test waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def lines_of_metrics(path):
    """The rows as they are written, without what a clock says."""
    rows = [json.loads(line) for line in (Path(path) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "wall" and not k.startswith("time/")} for row in rows]


def lines_of_episodes(path):
    """Return, length, step and seed of each, in order."""
    rows = [line.split(",") for line in (Path(path) / "episodes.csv").read_text().splitlines()[2:]]
    return [(r, length, step, seed) for r, length, _, step, seed in rows]


def assert_same_end(run, straight, *, rows=True):
    """The last checkpoint has the same bytes, and every step is told once and in the same way."""
    run, straight = Run(run), Run(straight)
    newest, reference = run.checkpoints()[-1], straight.checkpoints()[-1]
    assert newest.name == reference.name
    for name in ("model.safetensors", "state.safetensors"):
        assert (newest / name).read_bytes() == (reference / name).read_bytes(), name
    assert memory_of(newest) == memory_of(reference)
    steps = [row["step"] for row in lines_of_metrics(run.path)]
    assert steps == sorted(set(steps))
    if rows:
        assert lines_of_metrics(run.path) == lines_of_metrics(straight.path)
        assert run.samples() == straight.samples()
    assert lines_of_episodes(run.path) == lines_of_episodes(straight.path)
    assert run.info["steps"] == straight.info["steps"]
    assert run.status == straight.status == "completed"


def memory_of(path):
    """The segments that a checkpoint names, with their bytes."""
    named = json.loads((path / "MANIFEST.json").read_text()).get("memory", {})
    return {name: (path.parent / "memory" / name).read_bytes() for name in named}


def killed_copy(run, target, *, after):
    """What `run` would have left behind, killed two and a half rows after its checkpoint number `after`."""
    shutil.copytree(run, target)
    checkpoints = Run(target).checkpoints()
    for later in checkpoints[after + 1 :]:
        shutil.rmtree(later)
    step = int(checkpoints[after].name.removeprefix("step-"))
    _tear(target / "metrics.jsonl", lambda line: json.loads(line)["step"] > step, header=0)
    _tear(target / "episodes.csv", lambda line: int(line.split(",")[3]) > step, header=2)
    if (target / "samples.jsonl").exists():
        _tear(target / "samples.jsonl", lambda line: json.loads(line)["step"] > step, header=0)
    info = json.loads((target / "run.json").read_text())
    info |= {"status": "running", "ended": None, "steps": 0, "summary": {}}
    (target / "run.json").write_text(json.dumps(info))
    return target


def _tear(path, is_later, *, header):
    lines = path.read_text().splitlines(keepends=True)
    later = [n for n, line in enumerate(lines) if n >= header and is_later(line)][:3]
    if later:
        path.write_text("".join(lines[: later[-1]]) + lines[later[-1]][: len(lines[later[-1]]) // 2])
