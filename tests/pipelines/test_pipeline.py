import errno
import json
import math
import os
import shutil
from types import SimpleNamespace

import pytest
import torch

from pgcli.cli import main
from pgcli.errors import InputError
from pgcli.experiment import best_of
from pgcli.pipelines import pipeline, report
from pgcli.pipelines.driver import load
from pgcli.runs import Run, checkpoint, files, lock
from pgcli.types import Rollout


@pytest.fixture
def run(conf, tmp_path):
    def call(name="small", *overrides, **settings):
        new = {} if (tmp_path / str(name)).exists() else {"config_dirs": [conf]}
        return pipeline(name, *overrides, pipelines_dir=tmp_path / "pipelines", **new, **settings)

    return call


def weights(done, stage):
    return checkpoint.load_newest(done.run_path(stage) / "checkpoints").state["policy"]


def same(one, other):
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


def test_stages_build_on_one_another_and_the_report_compares_what_they_write(run):
    done = run("small", "paid.total_steps=400", "seed=1")
    assert done.finished
    taught, paid = (done.runs()[name] for name in ("taught", "paid"))
    assert (taught.status, paid.status, taught.seed, paid.seed) == ("completed", "completed", 1, 1)
    assert paid.config["init"] == str(taught.path)
    assert (paid.config["total_steps"], taught.config["total_steps"]) == (400, 600)
    found = report.make(done)
    assert [stage["stage"] for stage in found["stages"]] == ["taught", "paid"]
    rows = {row["policy"]: row for row in found["policies"]}
    assert list(rows) == ["taught", "paid", "best of 2 of taught", "best of 4 of taught"]
    assert rows["taught"]["kl"] == 0 < rows["paid"]["kl"]
    assert "win_rate" not in rows["taught"]
    low, high = rows["paid"]["win_rate_interval"]
    assert 0 <= low <= rows["paid"]["win_rate"] <= high <= 1
    assert [row["n"] for row in found["policies"]] == [1, 1, 2, 4]
    assert len(found["texts"]) == 2
    assert list(found["texts"][0]["completions"]) == ["taught", "paid"]
    assert json.loads((done.path / "report.json").read_text())["policies"] == found["policies"]
    text = (done.path / "report.md").read_text()
    assert "| best of 4 of taught |" in text
    assert (done.path / found["plot"]).read_text().startswith("<?xml")
    assert "pgcli pipeline small paid.total_steps=400 seed=1" in text


def test_a_finished_stage_is_not_repeated_and_one_that_died_goes_on_to_the_same_end(run, tmp_path):
    straight = run()
    told = []

    def copy(name):
        folder = tmp_path / "pipelines" / name
        shutil.copytree(straight.path, folder)
        return folder

    between, inside, before = copy("between"), copy("inside"), copy("before")
    shutil.rmtree(between / "paid")
    (before / "paid" / "run.json").unlink()  # killed while its folder was being made
    for later in Run(inside / "paid").checkpoints()[2:]:
        shutil.rmtree(later)
    info = json.loads((inside / "paid" / "run.json").read_text())
    (inside / "paid" / "run.json").write_text(json.dumps(info | {"status": "running", "ended": None, "summary": {}}))
    ended = Run(between / "taught").info["ended"]
    for folder in (between, inside, before):
        done = run(folder, on_stage=lambda *stage: told.append(stage))
        assert done.finished
        assert same(weights(done, "paid"), weights(straight, "paid"))
    assert told == [(0, "taught", True), (1, "paid", False)] * 3
    assert Run(between / "taught").info["ended"] == ended
    assert len(list((before / "discarded").glob("paid-*"))) == 1
    assert "resumed at step" in (inside / "paid" / "log.txt").read_text()


def test_resume_finds_the_newest_with_the_same_words(run):
    run("small", "seed=1", "paid.total_steps=100")
    other = run("small", "seed=2", "paid.total_steps=100")
    again = run("small", "seed=2", "paid.total_steps=100", resume=True)
    assert again.path == other.path
    with pytest.raises(
        InputError, match=r"there is no `small seed=3` in .* begin one with pgcli pipeline small seed=3"
    ):
        run("small", "seed=3", resume=True)
    with pytest.raises(InputError, match="remembers its stages: it takes no overrides"):
        pipeline(other.path, "seed=3")
    shutil.rmtree(other.path / "paid")
    lock.acquire(other.path)
    with pytest.raises(InputError, match="is in use by process"):
        pipeline(other.path)
    lock.release(other.path)


def test_a_file_of_one_s_own_is_named_by_its_path(conf, tmp_path):
    file = conf / "pipeline" / "small.yaml"
    words = ("taught.total_steps=100", "paid.total_steps=100")
    done = pipeline(file, *words, pipelines_dir=tmp_path / "own")
    assert done.finished
    assert (done.name, done.title) == ("small", "Sorting in small")
    assert pipeline(file, *words, pipelines_dir=tmp_path / "own", resume=True).path == done.path
    assert report.make(done)["command"].startswith(f"pgcli pipeline {file} taught")
    elsewhere = tmp_path / "small.yaml"
    elsewhere.write_text(file.read_text())
    with pytest.raises(InputError, match=r"there is no `.*small\.yaml"):
        pipeline(elsewhere, *words, pipelines_dir=tmp_path / "own", resume=True)
    file.write_text(file.read_text().replace("algo.num_groups=4", "algo.num_groups=2"))
    with pytest.raises(InputError, match=r"small\.yaml has changed since .*goes on with pgcli pipeline .*own"):
        pipeline(file, *words, pipelines_dir=tmp_path / "own", resume=True)
    with pytest.raises(InputError, match=r"none\.yaml cannot be read: No such file or directory"):
        pipeline("none.yaml", pipelines_dir=tmp_path / "own")


def test_a_policy_of_another_task_s_tokens_is_not_compared(conf, tmp_path):
    file = conf / "pipeline" / "small.yaml"
    told = "words: [algo=sft, env=story, tuned=none, policy=nano, total_steps=600, eval.episodes=4]"
    text = file.read_text().replace("baseline: taught", "baseline: told")
    file.write_text(text.replace("stages:\n", f"stages:\n  - name: told\n    {told}\n"))
    words = ("taught.total_steps=100", "paid.total_steps=100")
    done = pipeline(file, *words, pipelines_dir=tmp_path / "own")
    assert done.finished
    found = report.make(done)
    assert [row["policy"] for row in found["policies"]] == ["taught", "paid"]
    assert [row["stage"] for row in found["stages"]] == ["told", "taught", "paid"]
    file.write_text(file.read_text().replace("best_of: [2, 4]", "best_of: [0]"))
    with pytest.raises(InputError, match=r"best_of"):
        pipeline(file, *words, pipelines_dir=tmp_path / "own")


def test_a_pipeline_on_a_disk_that_cannot_be_written_is_refused_in_a_line(run, monkeypatch):
    done = run("small", "paid.total_steps=100")

    def read_only(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(files, "make_dir", read_only)
    with pytest.raises(InputError, match=f"cannot write to {done.path}: Read-only file system"):
        pipeline(done.path)


def test_a_stage_that_fails_says_which_and_what_to_type(run, conf):
    (conf / "pipeline" / "bad.yaml").write_text("stages: [{name: a, words: [algo=grpo, env=sort, policy=mlp]}]")
    with pytest.raises(InputError, match=r"(?s)^stage a: .*next   pgcli pipeline ") as refused:
        run("bad")
    assert str(refused.value).count("\n") == 1


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"stages": [{"name": "../x", "words": ["a=b"]}]}, "is damaged"),
        ({"stages": 3}, "is damaged"),
        ({"schema": 9}, "has schema 9"),
    ],
)
def test_a_plan_that_was_tampered_with_is_refused(tmp_path, change, line):
    plan = {
        "schema": 1, "name": "n", "title": "t", "overrides": [], "config_dirs": [], "report": {},
        "stages": [{"name": "a", "words": ["algo=sft"]}],
    }  # fmt: skip
    (tmp_path / "pipeline.json").write_text(json.dumps(plan))
    assert list(load(tmp_path).words) == ["a"]
    (tmp_path / "pipeline.json").write_text(json.dumps(plan | change))
    with pytest.raises(InputError, match=line):
        load(tmp_path)


def test_the_command_prints_tables_or_one_object(conf, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["pipeline", "small", "paid.total_steps=100", "--config-dir", str(conf)]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0
    with pytest.raises(SystemExit):
        main(["pipeline", found["path"]])
    out = capsys.readouterr().out
    assert out.startswith("stage 1, taught: finished before\nstage 2, paid: finished before\n")
    assert all(text in out for text in ("best of 4 of taught", "taught  ", "next   pgcli sample"))
    with pytest.raises(SystemExit):
        main(["list", "pipelines", "--config-dir", str(conf)])
    assert "Sorting in small" in capsys.readouterr().out


# ---------------------------------------------------------------- rows of the report


def played(**aux):
    """Completions, a token each, of which this is known."""
    rows = len(next(iter(aux.values())))
    mask = torch.ones(rows, 1, dtype=torch.bool)
    given = {name: torch.tensor(values) for name, values in aux.items()}
    return Rollout(*[torch.zeros(rows, 1)] * 3, mask, ~mask, mask, aux=given)


def test_the_best_of_n_is_chosen_by_what_is_paid_and_judged_by_what_is_true():
    # Two prompts, two completions each. Paid: the second of the first prompt, the first of the second; gold differs.
    first = played(reward=[1.0, 5.0], proxy=[1.0, 5.0], gold=[0.75, 0.0])
    second = played(reward=[2.0, 4.0], proxy=[2.0, 4.0], gold=[0.25, 1.0])
    turns = iter([first, second])
    player = SimpleNamespace(play=lambda policy, seeds, generator, *, held_out: next(turns) if held_out else None)
    wanted = SimpleNamespace(report=SimpleNamespace(best_of=[1, 2], baseline="a"))
    baseline = SimpleNamespace(config=SimpleNamespace(seed=0), policy=None)
    standard = played(reward=[0.0, 0.0], gold=[0.5, 0.5])
    one, two = report._best_of(wanted, player, baseline, [1, 2], standard)
    # Of one: all four, whose proxies average 3 and gold 1/2; of two: 2 and 5, with gold 1/4 and 0. Gold would choose
    # 3/4 and 1.
    assert (one["proxy"], one["gold"], one["kl"], one["win_rate"]) == (3, 0.5, 0, 0.5)
    assert (two["proxy"], two["gold"], two["win_rate"]) == (3.5, 0.125, 0)
    assert two["kl"] == pytest.approx(math.log(2) - 0.5)
    assert (one["n"], two["n"], two["policy"]) == (1, 2, "best of 2 of a")


def test_over_optimisation_by_the_best_of_n_is_measured_in_gold(monkeypatch):
    # The same prompts, one after the other, each with its two completions.
    groups = [played(reward=[1.0, 2.0], gold=[0.75, 0.25]), played(reward=[5.0, 4.0], gold=[0.0, 1.0])]
    asked = []

    def play(policy, seeds, generator, *, held_out):
        asked.append((seeds, held_out))
        return groups[len(asked) - 1]

    parts = SimpleNamespace(evaluator=SimpleNamespace(play=play), policy=None, close=lambda: None)
    monkeypatch.setattr(best_of, "build", lambda settings, given: parts)
    monkeypatch.setattr(best_of, "sources", lambda settings: None)
    one, two = best_of.best_of(SimpleNamespace(seed=0), largest=2, prompts=2)
    assert one == (1, 0, 3, 0.5)
    assert two == (2, pytest.approx(math.log(2) - 0.5), 3.5, 0.125)
    assert [len(seeds) == 2 and seeds[0] == seeds[1] and held_out for seeds, held_out in asked] == [True, True]


def test_wins_are_counted_where_both_sides_could_be_scored():
    # A win, a loss, a win, a tie; what one side could not be scored on is left out. Wins 1, 0, 1, 1/2: mean 0.625,
    # deviation sqrt(0.6875 / 3) = 0.478714; t(3, 97.5 %) = 3.1824; half = 3.1824 * 0.478714 / 2 = 0.7617.
    nan = math.nan
    found = report._wins(torch.tensor([2.0, -0.5, nan, 1.0, nan, 0.0]))
    assert found["win_rate"] == 0.625
    assert found["win_rate_interval"] == [0.0, 1.0]
    # Three wins and a loss in each of four: 0.75, deviation sqrt(16 * 3/16 / 15) = 0.447214, t(15) = 2.1314: 0.2383.
    found = report._wins(torch.tensor([1.0, 1.0, 1.0, -1.0, nan] * 4))
    assert found["win_rate"] == 0.75
    assert found["win_rate_interval"] == pytest.approx([0.5117, 0.9883], abs=1e-4)
