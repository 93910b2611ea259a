import csv
import json
import math
import os
import re
import shutil
import threading

import numpy as np
import pytest
import torch

from pgcli.errors import InputError, RunError
from pgcli.runs import Run, checkpoint, files
from pgcli.runs.writer import RunWriter, slugify
from pgcli.types import Episode


def equal(a, b):
    return (
        a["policy"].keys() == b["policy"].keys()
        and all(torch.equal(a["policy"][name], b["policy"][name]) for name in a["policy"])
        and a["collector"]["steps"] == b["collector"]["steps"]
        and np.array_equal(a["collector"]["seeds"], b["collector"]["seeds"])
    )


def logged(path):
    return [row["step"] for row in Run(path).rows()]


# ---------------------------------------------------------------- creating


def test_a_new_run_says_what_it_is(new_run):
    run = new_run(slug="CartPole-v1", overrides=["algo=ppo", "algo.gamma=0.9"])
    assert re.fullmatch(r"\d{8}-\d{6}_ppo_cartpole-v1_s0_[0-9a-f]{6}", run.path.name)
    read = Run(run.path)
    assert (read.status, read.seed, read.slug, read.steps) == ("running", 0, "CartPole-v1", 0)
    assert read.info["schema"] == 1
    assert read.info["id"] == run.path.name
    assert read.info["choices"]["algo"] == "ppo"
    assert read.info["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert read.config["checkpoint"] == {"every": 100, "keep": 3}
    assert (run.path / "overrides.txt").read_text() == "algo=ppo\nalgo.gamma=0.9\n"
    assert read.rows() == []
    assert read.checkpoints() == []


def test_nothing_in_a_run_names_the_folder_that_holds_it(new_run, tmp_path, state_at):
    run = new_run()
    run.log(1, 1, {"loss/policy": 1.0})
    run.save(1, state_at(1))
    run.event("hello")
    run.finish("completed", summary={"return": 1.0})
    for path in run.path.rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()


def test_a_run_survives_a_move(new_run, tmp_path, state_at):
    run = new_run()
    run.log(1, 1, {"loss/policy": 1.0})
    run.save(1, state_at(1))
    run.finish("interrupted")
    moved = tmp_path / "else where" / "renamed"
    moved.parent.mkdir()
    shutil.move(run.path, moved)
    again = RunWriter.reopen(moved)
    assert equal(again.load().state, state_at(1))
    again.rewind(1)
    again.log(2, 2, {"loss/policy": 2.0})
    again.finish("completed")
    assert logged(moved) == [1, 2]


def test_runs_that_begin_in_the_same_moment_do_not_collide(new_run, monkeypatch):
    # Sixteen threads, and random suffixes that repeat: 000000 until it is taken, then 000001, ...
    counts = iter(range(100_000))
    monkeypatch.setattr("pgcli.runs.writer.secrets.token_hex", lambda n: f"{next(counts) // 16:06x}")
    made, threads = [], []
    for _ in range(16):
        threads.append(threading.Thread(target=lambda: made.append(new_run())))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len({run.path for run in made}) == 16
    assert all(Run(run.path).status == "running" for run in made)


def test_a_run_can_be_made_under_a_given_name_but_not_over_another(new_run, tmp_path):
    run = new_run(path=tmp_path / "sweep" / "ppo-0")
    assert (run.path, Run(run.path).id) == (tmp_path / "sweep" / "ppo-0", "ppo-0")
    with pytest.raises(InputError, match=r"ppo-0 exists already: .* `pgcli resume "):
        new_run(path=run.path)
    assert Run(run.path).status == "running"
    (tmp_path / "notes.md").write_text("mine")
    with pytest.raises(InputError, match=r"notes.md is a file: name a folder"):
        new_run(path=tmp_path / "notes.md")
    with pytest.raises(
        InputError, match=r"cannot write to .*notes.md/ppo-0: .*; choose another folder with --run-dir$"
    ):
        new_run(path=tmp_path / "notes.md" / "ppo-0")
    with pytest.raises(InputError, match=r"sweep exists already: name another$"):
        new_run(path=tmp_path / "sweep")


def test_a_run_names_its_parent_by_a_relative_path(new_run, tmp_path):
    parent = new_run()
    child = new_run(path=tmp_path / "sweep" / "child", parent=parent.path)
    assert Run(parent.path).info["parent"] is None
    assert Run(child.path).info["parent"] == f"../../runs/{parent.path.name}"


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("CartPole-v1", "cartpole-v1"),
        ("my_package:MyEnv-v0", "my_package-myenv-v0"),
        ("../../etc/passwd", "etc-passwd"),
        ("é ü", "unnamed"),
        ("", "unnamed"),
        ("x" * 300, "x" * 40),
        ("a b\n.c", "a-b-c"),
    ],
)
def test_a_name_becomes_a_safe_part_of_a_file_name(name, slug):
    assert slugify(name) == slug


def test_a_root_that_is_a_file_is_refused(new_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file: .*; choose another folder with runs_dir="):
        new_run(runs_dir=tmp_path / "file")


def test_a_root_that_cannot_be_written_is_refused_with_nothing_left_behind(new_run, tmp_path, monkeypatch):
    def refuse(path, *data):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "make_dir", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        new_run()
    monkeypatch.undo()
    monkeypatch.setattr(files, "write", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        new_run()
    monkeypatch.undo()
    real = files.write
    monkeypatch.setattr(
        files, "write", lambda path, data: refuse(path) if path.name == "episodes.csv" else real(path, data)
    )
    with pytest.raises(InputError, match="Permission denied"):
        new_run()
    assert list((tmp_path / "runs").iterdir()) == []


# ---------------------------------------------------------------- rows


def test_numbers_that_json_lacks_survive_and_every_row_is_valid_json(new_run):
    run = new_run()
    values = {
        "loss/policy": math.nan,
        "loss/value": math.inf,
        "loss/total": -math.inf,
        "a": 0.1,
        "b": 3,
        "c": np.float32(0.5),
    }
    run.log(5, 1, values)

    def refuse(word):
        raise AssertionError(word)

    row = json.loads((run.path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert list(row)[:3] == ["step", "update", "wall"]
    assert (row["loss/policy"], row["loss/value"], row["loss/total"]) == ("NaN", "Infinity", "-Infinity")
    (read,) = Run(run.path).rows()
    assert math.isnan(read["loss/policy"])
    assert (read["loss/value"], read["loss/total"]) == (math.inf, -math.inf)
    assert (read["a"], read["b"], read["c"], read["step"], read["update"]) == (0.1, 3, 0.5, 5, 1)
    steps, series = Run(run.path).series("loss/policy")
    assert (steps.tolist(), np.isnan(series).tolist()) == ([5], [True])


def test_a_row_is_on_the_disk_before_the_next_statement(new_run):
    run = new_run()
    for step in range(3):
        run.log(step, step, {"x": 1.0})
        assert logged(run.path) == list(range(step + 1))


def test_episodes_are_in_the_layout_of_monitor(new_run):
    run = new_run()
    run.episodes(128, [Episode(10.0, 10, 77), Episode(np.float64(-1.5), 3, 78)])
    run.episodes(256, [])
    run.episodes(256, [Episode(math.nan, 1, 79)])
    with (run.path / "episodes.csv").open() as file:
        header = json.loads(file.readline().removeprefix("#"))
        rows = list(csv.DictReader(file))
    assert header.keys() == {"t_start", "env_id"}
    assert header["env_id"] == "CartPole-v1"
    assert [(row["r"], row["l"], row["step"], row["seed"]) for row in rows] == [
        ("10.0", "10", "128", "77"),
        ("-1.5", "3", "128", "78"),
        ("nan", "1", "256", "79"),
    ]
    columns = Run(run.path).episodes()
    assert list(columns) == ["r", "l", "t", "step", "seed"]
    assert columns["seed"].tolist() == [77, 78, 79]
    assert columns["r"][:2].tolist() == [10.0, -1.5]


def sample(completion, reward=1.0):
    return {
        "prompt": "2 1 =",
        "completion": completion,
        "finished": True,
        "reward": reward,
        "components": {"gold": 0.5},
    }


def test_samples_are_rows_of_their_step_and_go_back_with_the_metrics(new_run, state_at):
    run = new_run()
    run.samples(0, [])
    assert not (run.path / "samples.jsonl").exists(), "in control there are none"
    for step in (100, 200, 300):
        run.log(step, step, {"x": 1.0})
        run.samples(step, [sample(f"<{step}> ü"), sample("b", math.inf)])
        run.save(step, state_at(step))
    assert [(s["step"], s["completion"], s["reward"]) for s in Run(run.path).samples()][2:4] == [
        (200, "<200> ü", 1.0),
        (200, "b", math.inf),
    ]
    with (run.path / "samples.jsonl").open("a") as file:
        file.write('{"step": 300, "torn')
    run.rewind(200)
    run.samples(300, [sample("again")])
    assert [s["step"] for s in Run(run.path).samples()] == [100, 100, 200, 200, 300]
    assert (run.path / "samples.discarded.jsonl").read_text().count("\n") == 2
    fork = new_run(parent=run.path)
    fork.inherit(run.path)
    assert len(Run(fork.path).samples()) == 5


def test_the_log_has_a_time_on_each_line(new_run):
    run = new_run()
    run.event("checkpoint at 100")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ checkpoint at 100\n", (run.path / "log.txt").read_text())


# ---------------------------------------------------------------- ending


def test_a_finished_run_says_how_it_ended_and_is_free(new_run):
    run = new_run()
    run.log(640, 5, {"x": 1.0})
    run.finish("failed", "NaN in the value loss", {"return": math.nan})
    read = Run(run.path)
    assert (read.status, read.info["reason"], read.steps) == ("failed", "NaN in the value loss", 640)
    assert math.isnan(read.info["summary"]["return"])
    assert "NaN," not in (run.path / "run.json").read_text().replace('"NaN"', "")
    run.close()
    RunWriter.reopen(run.path).close()


def test_a_disk_that_is_full_to_the_end_does_not_hide_why_a_run_failed(new_run, monkeypatch):
    run = new_run()

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    run.finish("failed", "No space left on device")
    assert Run(run.path).status == "died"


@pytest.mark.parametrize("operation", ["make_dir", "write", "fsync", "rename"])
def test_a_full_disk_is_one_line_and_the_old_checkpoint_stays(new_run, state_at, monkeypatch, operation):
    run = new_run()
    run.save(100, state_at(100))
    line = r"^cannot write to \S+: No space left on device; its last good checkpoint is kept$"

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, operation, full)
        with pytest.raises(RunError, match=line):
            run.save(200, state_at(200))
        patch.setattr(files, "append", full)
        with pytest.raises(RunError, match=line):
            run.log(200, 2, {"x": 1.0})
    assert equal(run.load().state, state_at(100))
    run.save(200, state_at(200))
    assert equal(run.load().state, state_at(200))


# ---------------------------------------------------------------- resuming


def test_after_a_rewind_every_step_is_there_once_and_none_is_lost(new_run, state_at):
    run = new_run()
    for step in (100, 200, 300):
        run.log(step, step // 100, {"x": 1.0 * step})
        run.episodes(step, [Episode(1.0, 1, step)])
        if step < 300:
            run.save(step, state_at(step))
    run.close()
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 400, "upd')  # torn by a kill
    with (run.path / "episodes.csv").open("a") as file:
        file.write("1.0,1,0.1,100")  # torn: it looks like step 100, but has no end

    again = RunWriter.reopen(run.path)
    again.rewind(again.load().step)
    for step in (300, 400):
        again.log(step, step // 100, {"x": 2.0 * step})
        again.episodes(step, [Episode(1.0, 1, step)])
    assert [(row["step"], row["x"]) for row in Run(run.path).rows()] == [(100, 100), (200, 200), (300, 600), (400, 800)]
    assert Run(run.path).episodes()["step"].tolist() == [100, 200, 300, 400]
    discarded = [json.loads(line) for line in (run.path / "metrics.discarded.jsonl").read_text().splitlines()]
    assert [(row["step"], row["x"]) for row in discarded] == [(300, 300)]
    assert (run.path / "episodes.discarded.csv").read_text().splitlines()[1] == "r,l,t,step,seed"
    assert (run.path / "episodes.discarded.csv").read_text().splitlines()[2].endswith(",300,300")


def test_rows_written_before_and_after_a_rewind_are_in_the_same_file(new_run):
    run = new_run()
    run.log(1, 1, {})
    run.log(2, 2, {})
    run.rewind(1)
    run.log(2, 2, {})
    run.log(3, 3, {})
    assert logged(run.path) == [1, 2, 3]


def test_the_clock_of_a_run_stands_still_while_it_lies_dead(new_run, state_at, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("pgcli.runs.writer.time.monotonic", lambda: now)
    run = new_run()
    now += 5
    run.log(1, 1, {})
    run.save(1, state_at(1))
    now += 2
    run.log(2, 2, {})  # these two seconds are repeated
    run.close()
    now += 3600
    again = RunWriter.reopen(run.path)
    again.rewind(again.load().step)
    now += 3
    again.log(2, 2, {})
    assert [row["wall"] for row in Run(run.path).rows()] == [5, 8]


def test_a_resumed_run_is_running_again_and_ends_anew(new_run, state_at):
    run = new_run()
    run.log(10, 1, {})
    run.save(10, state_at(10))
    run.finish("interrupted", "SIGTERM")
    again = RunWriter.reopen(run.path)
    assert Run(run.path).status == "interrupted"  # until it really goes on
    again.rewind(again.load().step)
    assert Run(run.path).status == "running"
    assert (Run(run.path).info["reason"], Run(run.path).info["ended"]) == (None, None)
    again.finish("completed")
    assert (Run(run.path).status, Run(run.path).steps) == ("completed", 10)


def test_damage_is_warned_about_set_aside_and_written_anew(new_run, state_at):
    run = new_run()
    for step in (100, 200):
        run.save(step, state_at(step))
    run.close()
    broken = run.path / "checkpoints" / "step-000000200"
    (broken / "model.safetensors").write_bytes(b"")
    again = RunWriter.reopen(run.path)
    loaded = again.load()
    assert loaded.step == 100
    assert "step-000000200" in loaded.warnings[0]
    again.rewind(loaded.step)
    again.save(200, state_at(200))
    assert equal(again.load().state, state_at(200))
    assert again.load().warnings == []
    assert (broken.parent / "discarded-step-000000200" / "model.safetensors").read_bytes() == b""


@pytest.mark.parametrize("lost", ["metrics.jsonl", "episodes.csv"])
def test_a_run_that_has_lost_its_rows_is_refused_and_stays_what_it_was(new_run, state_at, lost):
    run = new_run()
    run.save(10, state_at(10))
    run.finish("completed", None, {})
    (run.path / lost).unlink()
    with pytest.raises(InputError, match=f"has lost its {lost}"):
        RunWriter.reopen(run.path)
    assert Run(run.path).status == "completed"


def test_a_run_that_has_lost_the_head_of_its_episodes_is_refused_and_a_fork_has_a_new_one(new_run, state_at):
    run = new_run()
    run.save(10, state_at(10))
    run.close()
    (run.path / "episodes.csv").write_bytes(b"")
    with pytest.raises(InputError, match=r"lost the head of its episodes\.csv: pgcli resume .* --fork begins another"):
        RunWriter.reopen(run.path)
    fork = new_run(seed=1)
    fork.inherit(run.path)
    fork.episodes(20, [Episode(1.0, 1, 20)])
    assert Run(fork.path).episodes()["step"].tolist() == [20]


def test_rows_that_were_lost_before_the_checkpoint_are_told(new_run, state_at):
    run = new_run()
    for step in (10, 20, 30):
        run.log(step, step, {})
        run.save(step, state_at(step))
    run.close()
    metrics = run.path / "metrics.jsonl"
    rows = metrics.read_bytes()
    again = RunWriter.reopen(run.path)
    assert again.rewind(30) == []
    metrics.write_bytes(rows[: len(rows) // 2])
    assert again.rewind(30) == [f"{metrics} has lost its rows of the steps 10 to 30"]


def test_a_run_without_an_intact_checkpoint_is_refused_and_let_go(new_run, state_at):
    run = new_run()
    run.save(0, state_at(0))
    run.close()
    (run.path / "checkpoints" / "step-000000000" / "MANIFEST.json").unlink()
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    for _ in range(2):  # the second time it is not in use
        with pytest.raises(InputError, match="no checkpoint to go on from"):
            RunWriter.reopen(run.path).load()
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_run_of_another_schema_is_refused(new_run):
    run = new_run()
    run.close()
    run.update_info(schema=2)
    with pytest.raises(InputError, match="has schema 2, and this pgcli reads schema 1"):
        RunWriter.reopen(run.path)


def test_the_newest_and_the_best_checkpoints_are_kept(new_run, state_at):
    run = new_run()
    for step in range(7):
        run.save(step, state_at(step), best=step == 2)
    assert [path.name[-1] for path in Run(run.path).checkpoints()] == ["2", "4", "5", "6"]


# ---------------------------------------------------------------- killed at each operation


def count_until_it_lives(dies_at, prepare, work, check, *, torn):
    n, deaths = 1, 0
    while True:
        path = prepare(n)
        killed = dies_at(n, lambda arm, path=path: work(path, arm), torn=torn)
        check(path)
        if not killed:
            return deaths
        n, deaths = n + 1, deaths + 1


@pytest.fixture
def template(new_run, state_at):
    run = new_run()
    for step in (0, 100):
        run.log(step, step // 100, {"x": 1.0})
        run.save(step, state_at(step))
    run.close()
    return run.path


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("step", [200, 100])  # a new checkpoint, and one in place of an old one
def test_a_kill_at_any_operation_of_a_save_leaves_the_old_state_or_the_new(
    template, tmp_path, state_at, dies_at, step, torn
):
    found = []
    new = state_at(999)

    def prepare(n):
        return shutil.copytree(template, tmp_path / f"{step}-{torn}-{n}")

    def work(path, arm):
        run = RunWriter.reopen(path)
        run.rewind(run.load().step)
        run.keep = 1  # so that it also removes the old ones
        arm()
        run.log(200, 2, {"x": 2.0})
        run.save(step, new)

    def check(path):
        run = RunWriter.reopen(path)
        loaded = run.load()
        assert loaded.warnings == []
        is_new = equal(loaded.state, new)
        assert is_new or equal(loaded.state, state_at(100))
        assert loaded.step == (step if is_new else 100)
        run.rewind(loaded.step)
        run.log(loaded.step + 100, 3, {"x": 3.0})
        assert logged(path)[:2] == [0, 100]
        assert len(set(logged(path))) == len(logged(path))
        assert not list(path.rglob(".tmp-*")) + list(path.rglob(".replaced-*"))
        found.append(is_new)
        for name in Run(path).checkpoints():
            checkpoint.read(name)  # whole, or not under this name
        run.close()

    deaths = count_until_it_lives(dies_at, prepare, work, check, torn=torn)
    assert deaths >= 1 + 2 + (1 + 4 * 2 + 1) + (1 + 1)  # a row; its fsync; folder, four files, folder; rename, fsync
    assert found[0] is False
    assert found[-1] is True
    assert found == sorted(found)  # once new, never old again


@pytest.mark.parametrize("torn", [False, True])
def test_a_kill_at_any_operation_of_a_resume_loses_no_row(template, tmp_path, dies_at, torn):
    with (template / "metrics.jsonl").open("a") as file:
        file.write('{"step": 150, "update": 2, "wall": 1.0}\n')
    with (template / "episodes.csv").open("a") as file:
        file.write("1.0,1,0.5,50,5\n1.0,1,0.5,150,6\n")
    (template / "checkpoints" / "step-000000150").mkdir()  # damaged

    def prepare(n):
        return shutil.copytree(template, tmp_path / f"{torn}-{n}")

    def work(path, arm):
        arm()
        run = RunWriter.reopen(path)
        run.rewind(run.load().step)
        run.close()

    def check(path):
        run = RunWriter.reopen(path)
        assert run.load().step == 100
        run.rewind(100)
        run.close()
        assert not list(path.rglob(".tmp-*"))
        assert logged(path) == [0, 100]
        assert Run(path).episodes()["step"].tolist() == [50]
        assert '"step": 150' in (path / "metrics.discarded.jsonl").read_text()
        assert ",150,6" in (path / "episodes.discarded.csv").read_text()

    assert count_until_it_lives(dies_at, prepare, work, check, torn=torn) >= 20


def test_a_kill_while_a_run_is_made_leaves_a_run_or_nothing_that_looks_like_one(tmp_path, new_run, dies_at):
    n = 1
    while dies_at(n, lambda arm: (arm(), new_run(runs_dir=tmp_path / str(n)))):  # noqa: B023
        for folder in (tmp_path / str(n)).glob("*"):
            if (folder / "run.json").exists():
                assert Run(folder).status == "died"
                assert Run(folder).config["algo"] == {"gamma": 0.99}
        n += 1
    assert n > 10


def test_a_process_that_is_killed_leaves_all_its_rows(tmp_path, new_run, dies_at):
    def work(arm):
        run = new_run(runs_dir=tmp_path / "killed")
        for step in range(50):
            run.log(step, step, {"x": 1.0})
        arm()
        run.event("the end")

    assert dies_at(1, work)
    (path,) = (tmp_path / "killed").iterdir()
    assert logged(path) == list(range(50))
    assert Run(path).status == "died"
    assert Run(path).steps == 49


def test_rows_are_on_the_disk_before_the_checkpoint_that_follows_them(new_run, state_at, monkeypatch):
    run = new_run()
    done = []
    monkeypatch.setattr(files, "fsync", lambda path: done.append(path.name))
    run.save(1, state_at(1))
    assert done[:3] == ["metrics.jsonl", "episodes.csv", "model.safetensors"]


def test_a_row_does_not_wait_for_the_disk(new_run, monkeypatch):
    run = new_run()
    monkeypatch.setattr(os, "fsync", lambda descriptor: pytest.fail("a row waited"))
    run.log(1, 1, {"x": 1.0})
    run.episodes(1, [Episode(1.0, 1, 1)])
    run.event("x")
