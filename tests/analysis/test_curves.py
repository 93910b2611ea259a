"""What is read from a run directory, and what is measured on one curve."""

from math import inf

import pytest

from pgcli.analysis.curves import bearing, find_runs, identity, load
from pgcli.errors import InputError

KEY = "eval/return_mean"


@pytest.fixture
def curve(write_run):
    def make(returns, **settings):
        curves, warnings = load([write_run("ppo", 0, returns, **settings)], KEY)
        assert not warnings
        return curves[0]

    return make


def test_the_area_is_the_mean_height_between_two_steps(curve):
    # 0 at step 100, 20 at step 200, 20 at 300. From 150 to 300: trapezoids of 50 x 15 and 100 x 20.
    rising = curve([0.0, 20.0, 20.0])
    assert rising.area(150, 300) == pytest.approx((750 + 2000) / 150)
    assert rising.area(150, 150) == 10


def test_the_area_is_level_where_there_is_no_evaluation(curve):
    # From 0: 2 over 100 steps, then from 2 to 10 over 100, then 10 over 200.
    assert curve([2.0, 10.0]).area(0, 400) == (200 + 600 + 2000) / 400


def test_best_final_and_the_first_evaluation_that_reaches_a_threshold(curve):
    learned = curve([1.0, 5.0, 9.0, 5.0], wall=2.0)
    assert (learned.final, learned.best) == (5, 9)
    assert learned.reached(5) == (200, 4)  # the second evaluation, two seconds each
    assert learned.reached(9.5) == (inf, inf)


def test_a_cut_keeps_evaluations_within_the_budget_and_leaves_a_fitting_run_alone(curve):
    long = curve([1.0, 2.0, 3.0, 4.0])
    assert long.cut(250).steps.tolist() == [100, 200]
    assert long.cut(250).budget == 250
    # Its last batch ended at 400, beyond the 390 that it was given: within its budget all the same.
    overshot = curve([1.0, 2.0, 3.0, 4.0], config={"total_steps": 390}, folder="other")
    assert overshot.budget == 390
    assert overshot.cut(390).steps.tolist() == [100, 200, 300, 400]


def test_a_run_that_stopped_on_success_used_up_its_budget(curve):
    stopped = curve([1.0, 490.0], config={"stop_at": 475, "total_steps": 1000})
    assert (stopped.stopped, stopped.budget) == (True, 1000)


def test_a_run_that_ended_short_had_the_budget_that_it_reached(curve):
    short = curve([1.0, 490.0], config={"total_steps": 1000})
    assert (short.stopped, short.budget) == (False, 200)


def test_runs_are_found_in_a_sweep_and_counted_once(write_run, tmp_path):
    paths = [write_run("ppo", seed, [1.0], folder="sweeps/x/runs") for seed in range(3)]
    found, warnings = find_runs([tmp_path / "sweeps" / "x", paths[1], tmp_path / "sweeps" / "x" / "runs"])
    assert sorted(run.seed for run in found) == [0, 1, 2]
    assert not warnings


def test_a_damaged_run_in_a_sweep_is_named_and_one_that_was_named_is_refused(write_run, tmp_path):
    good, bad = write_run("ppo", 0, [1.0]), write_run("ppo", 1, [1.0])
    (bad / "run.json").write_text("{")
    found, warnings = find_runs([tmp_path / "runs"])
    assert [run.path for run in found] == [good]
    assert bad.name in warnings[0]
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        find_runs([bad])


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_what_is_no_run_is_refused_by_name(tmp_path, path):
    with pytest.raises(InputError, match=r"is not a directory|no run directory"):
        find_runs([tmp_path / path])


@pytest.mark.parametrize("status", ["failed", "interrupted", "running"])
def test_an_unfinished_run_is_left_out_and_named(write_run, status):
    good = write_run("ppo", 0, [1.0])
    bad = write_run("ppo", 1, [1.0], status=status, reason="NaN in the value loss")
    curves, warnings = load([good, bad], KEY)
    assert [curve.seed for curve in curves] == [0]
    word = "died" if status == "running" else status  # nobody holds its lock
    assert warnings[0] == f"left out: {bad.name} is {word} (NaN in the value loss)"
    assert ("flatters" in warnings[-1]) == (status == "failed")


def test_runs_without_evaluation_or_with_nan_in_it_are_left_out_and_named(write_run):
    none, nan = write_run("ppo", 0, []), write_run("ppo", 1, [1.0, "NaN"][:1])
    text = (nan / "metrics.jsonl").read_text().replace('"eval/return_mean": 1.0', '"eval/return_mean": "NaN"')
    (nan / "metrics.jsonl").write_text(text)
    curves, warnings = load([none, nan], KEY)
    assert not curves
    assert none.name in warnings[0]
    assert "no evaluation" in warnings[0]
    assert nan.name in warnings[1]
    assert "finite" in warnings[1]
    assert "flatters its group" in warnings[2]


def test_of_two_runs_with_one_seed_the_newer_counts(write_run):
    old = write_run("ppo", 0, [1.0], created="2026-01-01T00:00:00+00:00")
    new = write_run("ppo", 0, [2.0], created="2026-01-02T00:00:00+00:00", name="_again")
    curves, warnings = load([new, old], KEY)
    assert [curve.final for curve in curves] == [2]
    assert warnings == [f"left out: {old.name} has the seed and the settings of {new.name}, which is newer"]


def test_one_seed_under_two_settings_is_no_duplicate(write_run):
    paths = [write_run("ppo", 0, [1.0], config={"algo.learning_rate": lr}, name=f"_{lr}") for lr in (1e-3, 1e-4)]
    curves, warnings = load(paths, KEY)
    assert len(curves) == 2
    assert not warnings


@pytest.mark.parametrize("key", ["init", "reference", "reward"])
def test_one_seed_on_two_other_runs_is_no_duplicate(write_run, key):
    others = [write_run("a2c", seed, [1.0], folder="others") for seed in range(2)]
    paths = [write_run("ppo", 0, [1.0], config={key: str(other)}, name=f"_{i}") for i, other in enumerate(others)]
    curves, warnings = load(paths, KEY)
    assert len(curves) == 2
    assert not warnings


@pytest.mark.parametrize(("key", "absent"), [("init", "given"), ("reference", "given"), ("reward", "nowhere")])
def test_other_runs_that_differ_in_their_seed_alone_are_one_and_others_are_not(write_run, key, absent):
    others = [
        write_run("ppo", seed, [1.0], name="rm", config={"env.pairs": pairs, "init": f"sft{seed}"}, folder=f"m{pairs}")
        for seed, pairs in ((0, 200), (1, 200), (0, 2000))
    ]
    found = [
        bearing(load([write_run("a2c", 0, [1.0], name=str(i), config={key: str(path)})], KEY)[0][0].run.config)
        for i, path in enumerate([*others, "nowhere"])
    ]
    assert found[0][key] == found[1][key] != found[2][key]
    assert found[0][key].startswith("ppo:")
    assert found[3][key] == absent
    assert identity("nowhere") is None
