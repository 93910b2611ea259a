import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pgcli.errors import InputError, RunError
from pgcli.runs import Run, files, lock
from pgcli.runs.writer import RunWriter


def owner(run):
    return run / ".lock" / "owner.json"


def change(run, **fields):
    owner(run).write_text(json.dumps(json.loads(owner(run).read_text()) | fields))


def test_a_run_in_use_is_refused_by_its_owner(new_run):
    run = new_run()
    with pytest.raises(
        InputError, match=f"in use by process {os.getpid()}: wait until it ends, or stop it with `kill "
    ):
        RunWriter.reopen(run.path)
    assert Run(run.path).status == "running"
    assert sorted(path.name for path in run.path.glob(".*")) == [".lock"]
    run.close()
    RunWriter.reopen(run.path).close()


def test_a_run_in_use_by_another_process_is_refused(new_run):
    run = new_run()
    script = "import sys; from pgcli.runs import lock; from pathlib import Path; lock.acquire(Path(sys.argv[1]))"
    answer = subprocess.run([sys.executable, "-c", script, run.path], capture_output=True, text=True, check=False)
    assert f"InputError: {run.path} is in use by process {os.getpid()}" in answer.stderr


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    script = (
        "import sys, os; from pgcli.runs import lock; from pathlib import Path\n"
        "lock.acquire(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    assert lock.in_use(tmp_path)
    with pytest.raises(InputError, match=f"process {child.pid}"):
        lock.acquire(tmp_path)
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, but its parent has not asked: a zombie
    assert not lock.in_use(tmp_path)
    lock.acquire(tmp_path)
    assert json.loads(owner(tmp_path).read_text())["pid"] == os.getpid()
    child.communicate()


@pytest.mark.parametrize("fields", [{"started": "1"}, {"boot": "another"}, {"pid": 2**22 + 1}])
def test_a_lock_whose_number_now_belongs_to_another_process_is_stale(tmp_path, fields):
    lock.acquire(tmp_path)
    change(tmp_path, **fields)
    assert not lock.in_use(tmp_path)
    lock.acquire(tmp_path)
    assert lock.in_use(tmp_path)
    lock.release(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_another_machine_is_respected_and_the_way_out_is_named(tmp_path):
    lock.acquire(tmp_path)
    change(tmp_path, host="elsewhere", pid=2**22 + 1, boot="another")
    assert lock.in_use(tmp_path)
    with pytest.raises(
        InputError, match=r"on elsewhere, which cannot be asked from here; if it has ended, remove .*\.lock"
    ):
        lock.acquire(tmp_path)


def test_a_copy_of_a_run_in_use_is_nobodys_and_a_renamed_one_is_its_owners_still(new_run, tmp_path):
    run = new_run()
    copy = Path(shutil.copytree(run.path, tmp_path / "copy"))
    assert (Run(run.path).status, Run(copy).status) == ("running", "died")
    RunWriter.reopen(copy).close()
    assert Run(run.path).status == "running"
    renamed = run.path.rename(tmp_path / "renamed")
    assert Run(renamed).status == "running"
    with pytest.raises(InputError, match="in use by process"):
        RunWriter.reopen(renamed)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"pid": 1}'])
def test_a_lock_that_a_power_cut_left_unreadable_is_stale(tmp_path, text):
    lock.acquire(tmp_path)
    owner(tmp_path).write_text(text)
    lock.acquire(tmp_path)
    assert json.loads(owner(tmp_path).read_text())["pid"] == os.getpid()


def test_a_lock_that_was_taken_over_while_we_looked_is_given_back(tmp_path, monkeypatch):
    lock.acquire(tmp_path)
    ours = owner(tmp_path).read_text()
    change(tmp_path, started="1")
    real = files.rename

    def another_is_faster(old, new):
        if old.name == ".lock":
            owner(tmp_path).write_text(ours)
        real(old, new)

    monkeypatch.setattr(files, "rename", another_is_faster)
    with pytest.raises(InputError, match="in use by process"):
        lock.acquire(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert lock.in_use(tmp_path)


def test_of_many_processes_that_want_a_stale_lock_one_gets_it(tmp_path):
    lock.acquire(tmp_path)
    change(tmp_path, started="1")
    begin, begin_now = os.pipe()
    end, end_now = os.pipe()
    for _ in range(12):
        if os.fork() == 0:
            os.close(end_now)
            os.read(begin, 1)
            try:
                lock.acquire(tmp_path)
            except InputError:
                os._exit(2)
            except BaseException:
                os._exit(3)
            os.read(end, 1)  # the winner holds it until all others have been refused
            os._exit(0)
    os.write(begin_now, b"x" * 12)
    refused = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(11)]
    os.close(end_now)
    assert refused == [2] * 11
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0


def test_a_run_that_was_moved_while_it_was_written_ends_with_the_reason(new_run, state_at, tmp_path):
    run = new_run()
    run.path.rename(tmp_path / "moved")
    with pytest.raises(RunError, match=r"No such file or directory$"):
        run.save(1, state_at(1))
    run.finish("failed", "its folder is gone")  # does not raise, which would hide why it failed
    assert [path.name for path in (tmp_path / "moved").glob(".*")] == [".lock"]


def test_an_attempt_that_the_winner_sweeps_away_is_refused_like_any_other(tmp_path, monkeypatch):
    real = files.fsync

    def another_is_faster(path):
        monkeypatch.setattr(files, "fsync", real)
        lock.acquire(tmp_path)
        files.sweep(tmp_path)
        real(path)

    monkeypatch.setattr(files, "fsync", another_is_faster)
    with pytest.raises(InputError, match="in use by process"):
        lock.acquire(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_sweep_does_not_fail_on_what_others_remove_by_themselves(tmp_path, monkeypatch):
    (tmp_path / ".tmp-a").mkdir()
    real = files.remove

    def another_is_faster(path):
        real(path)
        raise FileNotFoundError(path)

    monkeypatch.setattr(files, "remove", another_is_faster)
    files.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_locked_when_it_is_made(new_run):
    assert lock.in_use(new_run().path)
