"""Worker processes as a user meets them: they go when the main process goes, however it went."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pgcli.collectors.asynchronous import GradientCollector
from pgcli.errors import InputError
from pgcli.experiment import loop
from pgcli.experiment.build import build
from pgcli.experiment.config import compose
from pgcli.experiment.session import resume, train
from pgcli.runs import Run

from .conftest import MLP, TINY, assert_same_end


def children(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_worker(pid):
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


@pytest.fixture
def training(tmp_path):
    """A run with two workers, under way."""
    words = ["train", "algo=a3c", "algo.num_workers=2", "policy.hidden=[8]", "checkpoint.every=500", "--run-dir", "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pgcli", *words, "-q"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: len(list(tmp_path.glob("run/checkpoints/step-*"))) > 1)
    yield process, Run(tmp_path / "run"), [pid for pid in children(process.pid) if is_worker(pid)]
    process.kill()
    process.wait()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_go_with_the_main_process(training, how):
    process, run, workers = training
    assert len(workers) == 2
    process.send_signal(how)
    process.wait(timeout=60)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert process.returncode == (-9 if how == signal.SIGKILL else 130)
    assert Run(run.path).status == ("died" if how == signal.SIGKILL else "interrupted")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_reaches_the_workers_too_stops_the_run_while_they_start(tmp_path, how):
    words = ["train", "algo=a3c", "algo.num_workers=2", "policy.hidden=[8]", "--run-dir", "run", "-q"]
    command = [sys.executable, "-m", "pgcli", *words]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: sum(map(is_worker, children(process.pid))) == 2)
    os.killpg(process.pid, how)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 128 + how
    assert Run(tmp_path / "run").status == "interrupted"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_a_worker_that_is_killed_fails_the_run_in_one_line_that_names_it(training):
    process, run, workers = training
    os.kill(workers[1], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"(process {workers[1]}) has died: killed by SIGKILL" in err
    assert "Traceback" not in err
    assert Run(run.path).status == "failed"
    assert run.checkpoints()


def test_a_killed_run_with_one_worker_is_resumed_to_the_same_bytes(tmp_path):
    words = ["algo=a3c", "algo.num_workers=1", "algo.num_envs=4", MLP, "total_steps=4000", *TINY, "checkpoint.keep=1"]

    def start(folder):
        command = [sys.executable, "-m", "pgcli", "train", *words, "--run-dir", str(folder), "-q"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert start(straight).wait() == 0
    process = start(killed)
    wait_for(lambda: any(path.name > "step-000000000" for path in killed.glob("checkpoints/step-*")))
    process.kill()
    process.wait()
    assert Run(killed).status == "died"
    resume(killed, quiet=True)
    assert_same_end(killed, straight)


def test_the_seconds_in_which_workers_start_are_not_booked_as_collecting(tmp_path, monkeypatch):
    began, booked = [], loop.Clock.__call__
    monkeypatch.setattr(loop.Clock, "__call__", lambda clock, part: began.append(part) or booked(clock, part))
    before = GradientCollector._start
    monkeypatch.setattr(GradientCollector, "_start", lambda *given: began.append("start") or before(*given))
    train("algo=a3c", "algo.num_workers=1", MLP, "total_steps=50", *TINY, run_dir=tmp_path / "run", quiet=True)
    assert began[:2] == ["start", "collect"]
    assert began.count("start") == 1


@pytest.mark.parametrize(("name", "workers"), [("observations", 2), ("observations", 1), ("rewards", 2)])
def test_statistics_that_workers_cannot_share_are_refused(name, workers):
    words = ["algo=a3c", f"algo.num_workers={workers}", f"env.normalise.{name}=true"]
    with pytest.raises(InputError, match=rf"env\.normalise\.{name}.*algo=a2c"):
        build(compose(words))


def test_rewards_of_a_single_worker_are_normalised(tmp_path):
    def first_value_loss(name, *words):
        run = train(
            "algo=a3c", "algo.num_workers=1", "algo.num_envs=4", MLP, "total_steps=400", *TINY, "log_every=1", *words,
            run_dir=tmp_path / name, quiet=True,
        )  # fmt: skip
        return run.rows()[-1]["loss/value"]

    # CartPole's returns grow to ten and more; divided by their running deviation they are near one.
    plain, normalised = first_value_loss("plain"), first_value_loss("normalised", "env.normalise.rewards=true")
    assert normalised < plain / 3
