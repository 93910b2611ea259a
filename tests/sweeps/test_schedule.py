import errno
import os
import signal
import subprocess

import pytest

from pgcli.errors import InputError, RunError
from pgcli.runs import files, lock
from pgcli.sweeps import ledger, resume_sweep, schedule

from .helpers import calls, events, fake_command, plan, start_driver, statuses, wait_until, waiting


def run(sweep, workers=2, on_change=lambda sweep: None):
    schedule.run(sweep, workers=workers, command=fake_command, on_change=on_change)
    return sweep


# ---------------------------------------------------------------- scheduling


def test_every_run_is_run_once_and_never_more_at_a_time_than_workers(tmp_path):
    sweep = plan(tmp_path, *(f"do=wait seed={n}" for n in range(5)))
    busy = []

    def look(sweep):
        busy.append(len(sweep.having("running")))
        if busy[-1] == 2 or len(busy) > 1000:  # they wait for one another, however slowly each starts
            (sweep.path / "go").touch()

    run(sweep, workers=2, on_change=look)
    assert calls(sweep) == [f"train {n}" for n in range(5)]
    assert statuses(sweep) == ["finished"] * 5
    assert max(busy) == 2
    assert sweep.signal is None


def test_a_run_gets_one_thread_and_a_log(tmp_path):
    sweep = plan(tmp_path, "a=0")
    shell = ["sh", "-c", "echo threads $OMP_NUM_THREADS; echo complaint >&2"]
    schedule.run(sweep, workers=1, command=lambda *_: shell, on_change=lambda sweep: None)
    assert sweep.log_path(sweep.trials[0]).read_text() == "threads 1\ncomplaint\n"


def test_a_failing_run_stops_no_other_and_its_reason_is_its_last_error_line(tmp_path):
    sweep = run(plan(tmp_path, "do=fail why=NaN", "do=ok", "do=crash", "do=ok seed=1"))
    assert statuses(sweep) == ["failed", "finished", "failed", "finished"]
    assert sweep.trials[0].reason.startswith("NaN at step")
    assert sweep.trials[2].reason == "Segmentation fault"
    assert ledger.load(sweep.path).trials[0].reason == sweep.trials[0].reason


def test_a_run_that_was_killed_is_told_by_its_signal(tmp_path):
    sweep = run(plan(tmp_path, "do=vanish"))
    assert sweep.trials[0].reason == "killed by SIGKILL (out of memory?)"


def test_three_failures_of_one_kind_and_no_success_end_the_sweep(tmp_path):
    sweep = run(plan(tmp_path, *(f"do=fail seed={n}" for n in range(6))), workers=1)
    # The step in the message differs from run to run; the failure is the same.
    assert statuses(sweep) == ["failed"] * 3 + ["planned"] * 3
    assert sweep.stopped.startswith("no reason at step")


def test_failures_of_different_kinds_do_not_end_it(tmp_path):
    sweep = run(
        plan(tmp_path, "do=fail why=a", "do=fail why=a seed=1", "do=fail why=b", "do=fail why=a seed=2"), workers=1
    )
    assert statuses(sweep) == ["failed"] * 4
    assert sweep.stopped == ""


def test_a_success_shows_that_the_failures_are_not_common_to_all(tmp_path):
    sweep = run(plan(tmp_path, "do=ok", *(f"do=fail seed={n}" for n in range(4))), workers=1)
    assert statuses(sweep) == ["finished"] + ["failed"] * 4


def test_a_driver_that_cannot_go_on_stops_its_runs(tmp_path):
    sweep = plan(tmp_path, "do=wait")

    def stumble(sweep):
        if waiting(sweep, 0):
            raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"No space left on device; go on with: pgcli sweep --resume"):
        resume_sweep(sweep.path, command=fake_command, on_change=stumble)
    assert not schedule._alive(ledger.load(sweep.path).trials[0])
    assert not lock.in_use(sweep.path)


# ---------------------------------------------------------------- resume


def test_resume_repeats_nothing_that_is_finished_and_tries_a_failed_run_once_more(tmp_path):
    sweep = run(plan(tmp_path, "do=ok", "do=fail", "do=ok seed=1"))
    resumed = resume_sweep(sweep.path, workers=2, command=fake_command)
    assert calls(sweep) == ["train 0", "train 1", "train 1", "train 2"]
    assert [t.status for t in resumed.trials] == ["finished", "failed", "finished"]


def test_an_error_of_an_earlier_attempt_is_not_the_reason_of_this_one(tmp_path):
    sweep = plan(tmp_path, "do=crash")
    sweep.log_path(sweep.trials[0]).write_text("error: of an earlier attempt\n")
    assert run(sweep).trials[0].reason == "Segmentation fault"


def test_a_run_that_died_before_its_first_checkpoint_is_begun_again_and_what_it_left_is_kept(tmp_path):
    sweep = run(plan(tmp_path, "do=vanish"))
    resume_sweep(sweep.path, command=fake_command)
    assert calls(sweep) == ["train 0", "train 0"]
    assert statuses(sweep) == ["finished"]
    assert [path.name for path in (sweep.path / "discarded").iterdir()] == ["000_run0-1"]


def test_a_run_that_says_it_was_interrupted_is_not_taken_for_finished(tmp_path):
    sweep = run(plan(tmp_path, "do=half"))
    assert statuses(sweep) == ["interrupted"]
    resume_sweep(sweep.path, command=fake_command)
    assert statuses(sweep) == ["finished"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_runs_checkpoint_and_resume_goes_on_from_there(tmp_path, number):
    sweep = plan(tmp_path, "do=wait", "do=wait seed=1", "do=ok")
    driver = start_driver(sweep)
    wait_until(lambda: waiting(sweep, 0, 1))
    os.killpg(driver.pid, number)  # as a terminal does: the runs must not be in the driver's group
    assert driver.communicate(timeout=20)[0] == f"{int(number)}\n"
    assert statuses(sweep) == ["interrupted", "interrupted", "planned"]

    resumed = resume_sweep(sweep.path, workers=2, command=fake_command)
    assert [t.status for t in resumed.trials] == ["finished"] * 3
    assert calls(sweep) == ["resume 0", "resume 1", "train 0", "train 1", "train 2"]


def test_a_second_signal_kills_runs_that_do_not_listen(tmp_path):
    sweep = plan(tmp_path, "do=deaf")
    driver = start_driver(sweep)
    wait_until(lambda: waiting(sweep, 0))
    driver.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        driver.wait(0.3)
    driver.send_signal(signal.SIGINT)
    assert driver.communicate(timeout=20)[0] == "2\n"
    assert statuses(sweep) == ["interrupted"]


def test_runs_that_outlive_a_killed_driver_are_waited_for_and_not_started_twice(tmp_path):
    sweep = plan(tmp_path, "do=wait", "do=wait seed=1", "do=ok")
    driver = start_driver(sweep)
    wait_until(lambda: waiting(sweep, 0, 1))
    driver.kill()
    driver.communicate()

    seen = []

    def watch(now):
        seen.append([t.status for t in now.trials])
        if len(seen) == 5:
            (sweep.path / "go").touch()  # lets the two end well

    resumed = resume_sweep(sweep.path, workers=2, command=fake_command, on_change=watch)
    # Both workers' places are theirs until they end.
    assert seen[0] == ["running", "running", "planned"]
    assert [t.status for t in resumed.trials] == ["finished"] * 3
    assert not any("interrupted" in now for now in seen)
    assert calls(sweep) == ["train 0", "train 1", "train 2"]
    assert events(sweep)[:2] == [(0, "started"), (1, "started")]


def test_runs_that_died_with_their_driver_go_on_from_their_checkpoint(tmp_path):
    sweep = plan(tmp_path, "do=wait", "do=ok")
    driver = start_driver(sweep, workers=1)
    wait_until(lambda: waiting(sweep, 0))
    driver.kill()
    driver.communicate()
    os.kill(ledger.load(sweep.path).trials[0].pid, signal.SIGKILL)

    resumed = resume_sweep(sweep.path, workers=2, command=fake_command)
    assert [t.status for t in resumed.trials] == ["finished"] * 2
    assert calls(sweep) == ["resume 0", "train 0", "train 1"]


def test_a_run_that_ended_well_after_its_driver_was_killed_is_not_repeated(tmp_path):
    sweep = plan(tmp_path, "do=wait")
    driver = start_driver(sweep)
    wait_until(lambda: waiting(sweep, 0))
    driver.kill()
    driver.communicate()
    (sweep.path / "go").touch()
    wait_until(lambda: not schedule._goes_on(sweep, ledger.load(sweep.path).trials[0]))

    resume_sweep(sweep.path, command=fake_command)
    assert events(sweep) == [(0, "started"), (0, "finished")]
    assert calls(sweep) == ["train 0"]


def test_another_process_with_the_number_of_a_dead_run_is_not_taken_for_it(tmp_path):
    sweep = plan(tmp_path, "do=ok")
    sweep.trials[0].pid = os.getpid()
    ledger.record(sweep, "started", sweep.trials[0])
    resume_sweep(sweep.path, command=fake_command)
    assert statuses(sweep) == ["finished"]


def test_two_drivers_do_not_share_a_sweep(tmp_path):
    sweep = plan(tmp_path, "do=wait")
    driver = start_driver(sweep)
    wait_until(lambda: waiting(sweep, 0))
    with pytest.raises(InputError, match=f"in use by process {driver.pid}"):
        resume_sweep(sweep.path, command=fake_command)
    (sweep.path / "go").touch()
    driver.communicate(timeout=20)


def test_a_sweep_on_a_disk_that_cannot_be_written_is_refused_in_a_line(tmp_path, monkeypatch):
    sweep = plan(tmp_path, "do=ok")
    monkeypatch.setattr(files, "make_dir", read_only)
    with pytest.raises(InputError, match=f"cannot write to {sweep.path}: Read-only file system"):
        resume_sweep(sweep.path, command=fake_command)


def read_only(path):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


def test_a_file_that_names_user_code_is_not_obeyed_without_trust(tmp_path):
    sweep = plan(tmp_path, "do=ok env=my_package:MyEnv-v0")
    with pytest.raises(InputError, match=r"env=my_package:MyEnv-v0: pass --trust"):
        resume_sweep(sweep.path, command=fake_command)
    resume_sweep(sweep.path, command=fake_command, trust=True)
    assert statuses(sweep) == ["finished"]
