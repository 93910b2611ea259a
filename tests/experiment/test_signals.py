"""SIGTERM and Ctrl-C: the update is finished, a checkpoint written, the run marked, and nothing is lost by it."""

import json
import os
import signal
import subprocess
import sys

import pytest

from pgcli.experiment.signals import stop_requests
from pgcli.runs import Run

from .conftest import MLP, TINY, assert_same_end, lines_of_metrics
from .test_kill import wait_until

PPO = (*TINY, "algo=ppo", "algo.num_envs=4", "algo.num_steps=32", MLP, "total_steps=1500")
MOMENTS = {"begin": "SIGINT", "collect": "SIGTERM", "update": "SIGINT", "evaluate": "SIGTERM", "write": "SIGINT"}


@pytest.fixture(scope="module")
def straight(pgcli, tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals") / "straight"
    assert pgcli.run("train", *PPO, "--run-dir", folder, "-q").code == 0
    return folder


@pytest.mark.parametrize(("part", "name"), MOMENTS.items())
def test_a_signal_ends_a_run_after_its_update_with_a_checkpoint(pgcli, tmp_path, straight, part, name):
    folder = tmp_path / "run"
    nth = 1 if part == "evaluate" else 4
    number = getattr(signal, name)
    ended = pgcli.run("train", *PPO, "--run-dir", folder, signal_in={"signal": name, "part": part, "nth": nth})
    assert (ended.code, ended.err) == (128 + number, "")
    *_, outcome, where, following = ended.out.splitlines()
    assert outcome.startswith("interrupted ppo on CartPole-v1 after ")
    assert where.endswith(str(folder))
    assert following == f"next   pgcli resume {folder}"

    run = Run(folder)
    assert run.status == "interrupted"
    assert run.info["reason"] == name
    expected = {"begin": 1, "collect": 4, "update": 4, "evaluate": 7, "write": 5}[part]  # updates of 128 steps
    last = lines_of_metrics(folder)[-1]
    assert (last["update"], last["step"]) == (expected, 128 * expected)
    assert run.checkpoints()[-1].name == f"step-{128 * expected:09d}"
    assert run.info["steps"] == 128 * expected

    assert pgcli.run("resume", folder, "-q").code == 0
    assert_same_end(folder, straight)
    assert "signal" not in Run(folder).info["summary"]


def test_a_resumed_run_can_be_interrupted_again(pgcli, tmp_path, straight):
    folder = tmp_path / "run"
    stop = {"signal": "SIGTERM", "part": "update", "nth": 2}
    assert pgcli.run("train", *PPO, "--run-dir", folder, "-q", signal_in=stop).code == 143
    assert pgcli.run("resume", folder, "-q", signal_in=stop).code == 143
    assert Run(folder).info["steps"] == 4 * 128
    assert pgcli.run("resume", folder, "-q").code == 0
    assert_same_end(folder, straight)


def test_a_signal_in_the_last_update_changes_nothing(pgcli, tmp_path, straight):
    folder = tmp_path / "run"
    stop = {"signal": "SIGTERM", "part": "update", "nth": 12}
    assert pgcli.run("train", *PPO, "--run-dir", folder, "-q", signal_in=stop).code == 0
    assert_same_end(folder, straight)


def test_a_second_signal_ends_the_process_at_once_and_the_run_can_be_resumed(pgcli, tmp_path, straight):
    folder = tmp_path / "run"
    stop = {"signal": "SIGINT", "part": "update", "nth": 6, "times": 2}
    assert pgcli.run("train", *PPO, "--run-dir", folder, "-q", signal_in=stop).code == -signal.SIGINT
    assert Run(folder).status == "died"
    assert pgcli.run("resume", folder, "-q").code == 0
    assert_same_end(folder, straight)


def test_ctrl_c_while_nothing_is_written_yet_exits_with_130_and_no_traceback(pgcli, tmp_path):
    ended = pgcli.run("train", *PPO, "--run-dir", tmp_path / "run", signal_in={"signal": "SIGINT", "part": "build"})
    assert ended.code == 130
    assert "Traceback" not in ended.err
    assert not (tmp_path / "run").exists()


def test_the_command_itself_answers_a_signal_from_outside(pgcli, tmp_path):
    folder = tmp_path / "run"
    words = [sys.executable, "-m", "pgcli", "train", *PPO, "total_steps=100_000_000", "--run-dir", folder, "--json"]
    process = subprocess.Popen(words, env=pgcli.environment, stdout=subprocess.PIPE, text=True)
    metrics = folder / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text(), process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    answer = json.loads(out)
    assert (answer["status"], answer["signal"]) == ("interrupted", signal.SIGTERM)
    assert answer["steps"] == Run(folder).rows()[-1]["step"]


@pytest.fixture
def hang_up():
    """What SIGHUP does before; as it was afterwards."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_closes_asks_a_run_to_stop(hang_up):
    hang_up(signal.SIG_DFL)
    with stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal == signal.SIGHUP
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_a_run_that_was_started_to_outlive_its_terminal_does(hang_up):
    hang_up(signal.SIG_IGN)
    with stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested
