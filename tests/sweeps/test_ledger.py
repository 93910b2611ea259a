import json

import pytest

from pgcli.errors import InputError
from pgcli.sweeps import ledger

from .helpers import plan


def test_a_plan_is_read_back_as_it_was_written(tmp_path):
    sweep = plan(tmp_path / "sweeps", "algo=ppo seed=0", "algo=ppo seed=1")
    read = ledger.load(sweep.path)
    assert read.trials == sweep.trials
    assert [t.run for t in read.trials] == ["runs/000_run0", "runs/001_run1"]
    assert [t.label for t in read.trials] == ["seed=0", "seed=1"]
    assert [t.status for t in read.trials] == ["planned", "planned"]


def test_a_plan_that_is_added_to_keeps_what_has_happened(tmp_path):
    sweep = plan(tmp_path, "algo=ppo seed=0")
    ledger.record(sweep, "finished", sweep.trials[0])
    ledger.extend(ledger.load(sweep.path), [ledger.Planned("more", ["algo=ppo", "seed=1"], 200)])
    read = ledger.load(sweep.path)
    assert [(t.n, t.run, t.label, t.status, t.total_steps) for t in read.trials] == [
        (0, "runs/000_run0", "seed=0", "finished", 100), (1, "runs/001_more", "seed=1", "planned", 200),
    ]  # fmt: skip


def test_the_last_event_tells_where_a_run_stands_and_one_that_was_only_started_was_interrupted(tmp_path):
    sweep = plan(tmp_path, "a=0", "a=1", "a=2", "a=3")
    finished, failed, started, _ = sweep.trials
    failed.reason, started.pid = "loss is NaN", 77
    ledger.record(sweep, "started", finished, failed, started)
    ledger.record(sweep, "finished", finished)
    ledger.record(sweep, "failed", failed)
    read = ledger.load(sweep.path)
    assert [(t.status, t.reason, t.pid) for t in read.trials] == [
        ("finished", "", None), ("failed", "loss is NaN", None), ("interrupted", "", 77), ("planned", "", None),
    ]  # fmt: skip


def test_a_torn_last_line_has_not_happened_and_does_not_spoil_the_next(tmp_path):
    sweep = plan(tmp_path, "a=0", "a=1")
    ledger.record(sweep, "finished", sweep.trials[0])
    path = sweep.path / ledger.LEDGER
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"n": 1, "event": "fini')
    assert [t.status for t in ledger.load(sweep.path).trials] == ["finished", "planned"]
    ledger.mend(sweep.path)
    assert path.read_bytes() == whole
    ledger.record(sweep, "failed", sweep.trials[1])
    assert [t.status for t in ledger.load(sweep.path).trials] == ["finished", "failed"]


@pytest.mark.parametrize(
    "line", ['{"n": 1, "eve', '{"n": 1, "event": "exploded", "reason": "", "pid": null}', "[]", "7"]
)
def test_any_other_line_that_is_no_event_is_refused_by_its_number(tmp_path, line):
    sweep = plan(tmp_path, "a=0")
    path = sweep.path / ledger.LEDGER
    path.write_text(path.read_text() + line + "\n" + path.read_text())
    with pytest.raises(InputError, match=r"ledger\.jsonl:2 is damaged"):
        ledger.load(sweep.path)


def test_an_event_of_a_run_that_was_not_planned_is_refused(tmp_path):
    sweep = plan(tmp_path, "a=0")
    sweep.trials[0].n = 5
    ledger.record(sweep, "finished", sweep.trials[0])
    with pytest.raises(InputError, match="no run 5"):
        ledger.load(sweep.path)


@pytest.mark.parametrize("run", ["../elsewhere", "/etc/run", "runs/../../x", "runs/..", "runs"])
def test_a_plan_that_points_elsewhere_is_refused(tmp_path, run):
    sweep = plan(tmp_path, "a=0")
    file = sweep.path / ledger.PLAN
    data = json.loads(file.read_text())
    data["runs"][0]["run"] = run
    file.write_text(json.dumps(data))
    with pytest.raises(InputError, match="not inside runs"):
        ledger.load(sweep.path)


def test_what_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is not a sweep directory: it has no sweep\.json"):
        ledger.load(tmp_path)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(InputError, match=r"sweep\.json is damaged"):
        ledger.load(tmp_path)
    (tmp_path / "sweep.json").write_text('{"schema": 99}')
    with pytest.raises(InputError, match="schema 99"):
        ledger.load(tmp_path)


def test_a_place_where_no_sweep_can_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot make a sweep in"):
        plan(tmp_path / "file", "a=0")


def test_labels_are_what_differs():
    runs = [["algo=ppo", "seed=0", "gamma=1"], ["algo=ppo", "seed=1", "gamma=1"], ["algo=a2c", "seed=0", "gamma=1"]]
    assert ledger.labels(runs) == ["algo=ppo seed=0", "algo=ppo seed=1", "algo=a2c seed=0"]
    assert ledger.labels([["algo=ppo", "seed=0"]]) == ["algo=ppo seed=0"]
