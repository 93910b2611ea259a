"""What goes wrong gets one clear line and an exit code: 2 where nothing was begun, 1 where a run failed."""

import hashlib
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from pgcli import train
from pgcli.algorithms.ppo import PPO as ProximalPolicy
from pgcli.runs import Run, lock

from .conftest import MLP, TINY, assert_same_end, killed_copy

PPO = (*TINY, "algo=ppo", "algo.num_envs=4", "algo.num_steps=32", MLP, "total_steps=1500", "checkpoint.keep=100")
WHOLE = (*TINY, "algo=reinforce", "algo.num_episodes=4", MLP, "total_steps=1500", "checkpoint.keep=100")


@pytest.fixture(scope="module")
def straight(pgcli, tmp_path_factory):
    folder = tmp_path_factory.mktemp("failures") / "straight"
    assert pgcli.run("train", *PPO, "--run-dir", folder, "-q").code == 0
    return folder


@pytest.fixture
def killed(straight, tmp_path):
    """Killed after its third checkpoint, of step 640; the one before it is of step 384."""
    return killed_copy(straight, tmp_path / "killed", after=2)


def assert_refused(ended, *words):
    """Exit code 2 and one line."""
    assert ended.code == 2, ended.err
    assert ended.out == ""
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("error: ")
    for word in words:
        assert word in ended.err


def assert_failed(ended, folder, *words):
    """Exit code 1, one line and where the run is; status `failed`, and all checkpoints finite and readable."""
    assert ended.code == 1, ended.err
    line, where = ended.err.splitlines()
    assert line.startswith("error: ")
    assert where.startswith(f"run    {folder}")
    for word in words:
        assert word in line
    run = Run(folder)
    assert run.status == "failed"
    assert run.info["reason"] in line
    assert run.checkpoints()
    for path in run.checkpoints():
        for file in ("model.safetensors", "state.safetensors"):
            assert all(torch.isfinite(x.double()).all() for x in load_file(path / file).values())


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---------------------------------------------------------------- checkpoints that were damaged


@pytest.mark.parametrize("file", ["model.safetensors", "state.safetensors", "state.json", "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["truncated", "altered", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(pgcli, straight, killed, file, damage):
    newest = Run(killed).checkpoints()[-1]
    spoil(newest / file, damage)
    ended = pgcli.run("resume", killed, "-q")
    assert ended.code == 0
    assert ended.err.count("\n") == 1
    assert ended.err.startswith(f"warning: {newest}")
    assert file in ended.err
    assert str(newest) in (killed / "log.txt").read_text()
    assert "resumed at step 384" in (killed / "log.txt").read_text()
    assert_same_end(killed, straight)


def test_metrics_that_were_cut_short_are_told_and_the_weights_end_the_same(pgcli, straight, killed):
    (killed / "metrics.jsonl").write_text("")
    ended = pgcli.run("resume", killed, "-q")
    assert ended.code == 0
    assert ended.err == f"warning: {killed / 'metrics.jsonl'} has lost its rows of the steps 0 to 640\n"
    assert file_of_weights(killed) == file_of_weights(straight)


def file_of_weights(run):
    return (Run(run).checkpoints()[-1] / "model.safetensors").read_bytes()


def test_without_a_valid_checkpoint_there_is_no_silent_fresh_start(pgcli, killed):
    for path in Run(killed).checkpoints():
        spoil(path / "model.safetensors", "altered")
    before = contents(killed)
    assert_refused(pgcli.run("resume", killed), "no checkpoint to go on from", "step-000000640", "step-000000000")
    assert contents(killed) == before


def test_a_checkpoint_of_another_schema_is_refused(pgcli, killed):
    manifest = Run(killed).checkpoints()[-1] / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace('"schema": 1', '"schema": 2'))
    before = contents(killed)
    assert_refused(pgcli.run("resume", killed), "step-000000640", "schema 2")
    assert contents(killed) == before


def test_a_malicious_checkpoint_executes_nothing(pgcli, tmp_path, straight, killed):
    newest = Run(killed).checkpoints()[-1]
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    manifest = json.loads((newest / "MANIFEST.json").read_text())
    for file in ("model.safetensors", "state.safetensors", "state.json"):
        (newest / file).write_bytes(bomb)
        manifest["files"][file] = {"size": len(bomb), "sha256": hashlib.sha256(bomb).hexdigest()}
    (newest / "MANIFEST.json").write_text(json.dumps(manifest))
    ended = pgcli.run("resume", killed, "-q")
    assert ended.err.startswith(f"warning: {newest}: its contents make no sense")
    assert_same_end(killed, straight)
    assert not (tmp_path / "exploded").exists()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def spoil(file, damage):
    data = file.read_bytes()
    middle = len(data) // 2
    match damage:
        case "truncated":
            file.write_bytes(data[:middle])
        case "altered":
            file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        case "gone":
            file.unlink()


# ---------------------------------------------------------------- runs that cannot be gone on with


def test_a_run_in_use_is_refused_with_the_number_of_its_process(pgcli, killed):
    lock.acquire(killed)
    before = contents(killed)
    assert_refused(pgcli.run("resume", killed), f"in use by process {os.getpid()}")
    assert contents(killed) == before


def test_a_completed_run_is_refused(pgcli, straight):
    assert_refused(pgcli.run("resume", straight), "has all its 1,500 steps", "total_steps=")


@pytest.mark.parametrize("words", [("resume",), ("train", "init=")])
def test_what_is_no_run_is_refused(pgcli, tmp_path, words):
    for thing in (tmp_path, tmp_path / "missing", __file__):
        command = [*words[:-1], f"{words[-1]}{thing}"] if words[-1] == "init=" else [*words, thing]
        assert_refused(pgcli.run(*command, folder=tmp_path), str(thing))
    assert not (tmp_path / "runs").exists()


def test_weights_that_do_not_fit_are_refused(pgcli, tmp_path, straight):
    ended = pgcli.run("train", *PPO, "policy.hidden=[9]", f"init={straight}", folder=tmp_path)
    assert_refused(ended, f"init={straight}", "does not fit")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("root", ["file", "/proc"])
def test_a_root_that_cannot_be_written_is_refused(pgcli, tmp_path, root):
    (tmp_path / "file").write_text("")
    ended = pgcli.run("train", *PPO, f"runs_dir={root}", folder=tmp_path)
    assert_refused(ended, f"cannot write to {root}", "runs_dir=")


def test_a_run_that_names_user_code_is_resumed_only_with_trust(pgcli, tmp_path):
    folder = tmp_path / "run"
    toy = (*PPO, "env=toy_environments:Toy-v0", "--run-dir", folder, "-q")
    assert pgcli.run("train", *toy, signal_in={"signal": "SIGTERM", "part": "update", "nth": 4}).code == 143
    assert_refused(pgcli.run("resume", folder), "toy_environments:Toy-v0", "--trust")
    assert pgcli.run("resume", folder, "--trust", "-q").code == 0


# ---------------------------------------------------------------- failures while running


def test_a_full_disk_leaves_a_run_that_goes_on_when_there_is_space_again(pgcli, tmp_path, straight):
    folder = tmp_path / "run"
    ended = pgcli.run("train", *PPO, "--run-dir", folder, full_disk_at_checkpoint=4)
    assert_failed(ended, folder, "No space left on device", str(folder))
    assert [path.name for path in Run(folder).checkpoints()] == ["step-000000000", "step-000000384", "step-000000640"]
    assert pgcli.run("resume", folder, "-q").code == 0
    assert_same_end(folder, straight)


def test_a_limit_on_the_size_of_files_is_one_clear_line_too(pgcli, tmp_path, straight):
    folder = tmp_path / "run"
    largest = max(file.stat().st_size for file in straight.glob("checkpoints/*/*"))
    assert largest + 200 < (straight / "metrics.jsonl").stat().st_size  # which reaches the limit first, within a row
    ended = pgcli.run("train", *PPO, "--run-dir", folder, limit_file_size=largest + 200)
    assert_failed(ended, folder, "File too large")
    assert not (folder / "metrics.jsonl").read_bytes().endswith(b"\n")
    assert pgcli.run("resume", folder, "-q").code == 0
    assert_same_end(folder, straight)


def test_an_observation_that_is_not_a_number_is_named(pgcli, tmp_path):
    folder = tmp_path / "run"
    ended = pgcli.run("train", *PPO, "env=toy_environments:NaN-v0", "--run-dir", folder)
    assert_failed(
        ended, folder, "toy_environments:NaN-v0", "nan at `observation[0]`", "environment 0, seed ", "step 10"
    )


def test_an_environment_that_raises_is_named_with_the_place_and_the_action(pgcli, tmp_path):
    folder = tmp_path / "run"
    ended = pgcli.run("train", *PPO, "env=toy_environments:Raises-v0", "--run-dir", folder)
    assert_failed(
        ended, folder, "toy_environments:Raises-v0", "environment 0", "seed ", "step 11", "action ",
        "RuntimeError: the motor is on fire",
    )  # fmt: skip


def test_a_loss_that_is_not_finite_is_named_and_nothing_of_it_is_saved(pgcli, tmp_path):
    folder = tmp_path / "run"
    overflow = ("env=pendulum", "algo=reinforce", "algo.num_episodes=2", "env.max_episode_steps=50")
    ended = pgcli.run(
        "train", *TINY, MLP, *overflow, "algo.learning_rate=10", "algo.value_coefficient=1e37", "total_steps=3000",
        "checkpoint.every=1", "checkpoint.keep=100", "--run-dir", folder,
    )  # fmt: skip
    assert_failed(ended, folder, "update ", "loss/", "stopped before the optimiser step")


def test_debug_shows_the_traceback(pgcli, tmp_path):
    ended = pgcli.run("train", *PPO, "env=toy_environments:Raises-v0", "--run-dir", tmp_path / "run", "--debug")
    assert ended.code == 1
    assert "Traceback" in ended.err


# ---------------------------------------------------------------- an environment that does not repeat itself


@pytest.mark.parametrize("algo", [PPO, WHOLE], ids=["open episodes", "none open"])
def test_an_environment_that_is_no_function_of_seed_and_actions_withdraws_the_promise(pgcli, tmp_path, algo):
    folder = tmp_path / "run"
    clock = (*algo, "env=toy_environments:Clock-v0", "--run-dir", folder, "-q")
    assert pgcli.run("train", *clock, signal_in={"signal": "SIGTERM", "part": "update", "nth": 4}).code == 143
    assert Run(folder).info["exact_resume"] is True  # nothing is known yet
    ended = pgcli.run("resume", folder, "--trust", "-q")
    assert ended.code == 0
    reason = "toy_environments:Clock-v0 is not a function of (seed, actions)"
    assert reason in ended.err
    assert reason in (folder / "log.txt").read_text()
    assert reason in Run(folder).info["exact_resume"]


# ---------------------------------------------------------------- nobody listens


def test_a_closed_pipe_does_not_end_the_run(pgcli, tmp_path, straight):
    folder = tmp_path / "run"
    words = " ".join(f"'{word}'" for word in (sys.executable, "-m", "pgcli", "train", *PPO, "--run-dir", folder))
    shell = ["bash", "-c", f"{words} | head -1; echo ${{PIPESTATUS[0]}}"]
    ended = subprocess.run(shell, check=False, env=pgcli.environment, capture_output=True, text=True, timeout=60)
    assert ended.stderr == ""
    title, code = ended.stdout.splitlines()
    assert title == "ppo on CartPole-v1, seed 0"
    assert code == "0"
    assert_same_end(folder, straight)


def test_a_run_that_fails_or_is_interrupted_says_so_though_nobody_reads_its_output(pgcli, tmp_path):
    words, unread = (*PPO, "env=toy_environments:NaN-v0"), {"break_output": None}
    ended = pgcli.run("train", *words, "--run-dir", tmp_path / "failed", **unread)
    assert_failed(ended, tmp_path / "failed", "NaN-v0")

    stop = {"signal": "SIGINT", "part": "update", "nth": 1}
    ended = pgcli.run("train", *words, "--run-dir", tmp_path / "interrupted", signal_in=stop, **unread)
    assert (ended.code, ended.err) == (130, "")


def test_a_run_without_texts_says_so_when_asked_to_show_some(pgcli, tmp_path):
    ended = pgcli.run("train", *PPO, "total_steps=128", "--run-dir", tmp_path / "run", "--samples", "-q")
    assert (ended.code, ended.err) == (0, "warning: --samples shows completions, and env=cartpole has no texts\n")


def test_an_error_of_user_code_says_which_run_it_ended(tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(ProximalPolicy, "update", broken)
    with pytest.raises(ZeroDivisionError) as failure:
        train("algo=ppo", "env=cartpole", run_dir=tmp_path / "run", quiet=True)
    assert failure.value.__notes__ == [f"run    {tmp_path / 'run'} (failed)"]
    assert Run(tmp_path / "run").status == "failed"
