"""`pgcli reproduce` from end to end, on budgets of a few hundred steps."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from pgcli import Run, reproduce
from pgcli.cli import main
from pgcli.errors import InputError
from pgcli.runs import lock
from pgcli.studies import definition, report
from pgcli.studies.outcome import POINTS

TINY = {
    "question": "Does it run?",
    "measure": "training_return",
    "window": 5,
    "seeds": 3,
    "total_steps": 512,
    "evaluations": 2,
    "common": ["algo=ppo", "tuned=none", "algo.num_envs=4", "algo.num_steps=32", "eval.episodes=2"],
    "rows": [
        {
            "words": ["env=cartpole"],
            "published": [{"source": "a", "mean": 20.0, "deviation": 1.0}, {"source": "b", "mean": 1000.0}],
        }
    ],
    "sources": {"a": {"title": "Theirs", "seeds": 3, "deviation": "population"}, "b": {"title": "Bare"}},
    "notes": ["mind this"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A config folder with a tiny study; we are in its parent."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "conf", "tiny", TINY)
    return tmp_path / "conf"


def write(folder, name, study):
    (folder / "experiment").mkdir(parents=True, exist_ok=True)
    (folder / "experiment" / f"{name}.yaml").write_text(f"# The {name} one.\n{yaml.safe_dump(study, sort_keys=False)}")


def run(*words):
    with pytest.raises(SystemExit) as ending:
        main(["reproduce", *words])
    return ending.value.code


def test_a_study_from_end_to_end(folder, capsys):
    assert run("tiny", "--config-dir", "conf", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["finished"]
    assert found["published_budget"]
    assert [(line["environment"], line["method"], line["beside"]) for line in found["lines"]] == [
        ("cartpole", "ppo", "Theirs"), ("cartpole", "ppo", "Bare"),
    ]  # fmt: skip
    assert found["lines"][1]["verdict"] == "worse"  # 512 steps are no 1000
    # The measure by another way: the last five rows of each run's episodes.csv.
    files = [next((folder.parent / "studies" / "tiny" / "runs").glob(f"{n:03d}_*/episodes.csv")) for n in range(3)]
    returns = [[float(row.split(",")[0]) for row in file.read_text().splitlines()[2:]] for file in files]
    np.testing.assert_allclose(found["lines"][0]["values"], [np.mean(own[-5:]) for own in returns])
    text = (folder.parent / "studies" / "tiny" / "tiny.md").read_text()
    assert "The tiny one." in text
    assert "pgcli sweep algo=ppo" in text
    assert "- mind this" in text
    assert "20.00 ± 1.00" in text
    assert "scaled" not in text
    assert "Not run" not in text
    assert "<svg" in (folder.parent / "studies" / "tiny" / "tiny.svg").read_text()

    # Again: nothing is run, the same is printed.
    before = (folder.parent / "studies" / "tiny" / "ledger.jsonl").read_bytes()
    assert run("tiny", "--config-dir", "conf", "--json") == 0
    assert json.loads(capsys.readouterr().out)["lines"] == found["lines"]
    assert (folder.parent / "studies" / "tiny" / "ledger.jsonl").read_bytes() == before


def test_more_seeds_add_to_a_study_and_a_fraction_is_one_of_its_own(folder, capsys):
    first = reproduce("tiny", seeds=1, only=["cartpole"], fraction=0.5, config_dirs=[folder])
    assert [line.judgement.verdict for line in first.lines] == ["unclear", "unclear"]  # one seed says nothing
    more = reproduce("tiny", seeds=2, only=["cartpole"], fraction=0.5, config_dirs=[folder])
    assert more.path.name == "tiny_0.5"
    curve = more.results[0][1].curves[0]
    episodes = Run(curve.run.path).episodes()
    assert len(curve.steps) <= POINTS
    for step, value in zip(curve.steps, curve.values, strict=True):
        assert value == pytest.approx(episodes["r"][episodes["step"] <= step][-5:].mean())
    assert curve.final == pytest.approx(episodes["r"][-5:].mean())
    assert [trial.n for trial in more.sweep.trials] == [0, 1]
    assert more.lines[0].values[0] == first.lines[0].values[0]
    assert Run(more.sweep.run_path(more.sweep.trials[0])).config["total_steps"] == 256
    assert "not on the published budget" in report.markdown(more)
    assert run("tiny", "--fraction=0.5", "--seeds=2", "--only=cartpole", "--config-dir=conf") == 0
    assert "note: budgets were scaled to 0.5 of the study's" in capsys.readouterr().out


def test_a_killed_study_goes_on_with_the_same_command(folder):
    words = [sys.executable, "-m", "pgcli", "reproduce", "tiny", "--config-dir", "conf", "--seeds=2"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True)
    ledger = folder.parent / "studies" / "tiny" / "ledger.jsonl"
    deadline = time.monotonic() + 60
    while not (ledger.exists() and '"finished"' in ledger.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = reproduce("tiny", seeds=2, config_dirs=[folder])
    assert done.finished
    events = [(event["n"], event["event"]) for event in map(json.loads, ledger.read_text().splitlines())]
    assert [n for n, event in events if event == "finished"] == [0, 1]  # the first was not repeated


def test_of_two_that_begin_at_once_the_second_does_not_touch_the_plan(folder):
    """The first one has the folder, and has not yet written its plan."""
    path = folder.parent / "studies" / "tiny"
    path.mkdir(parents=True)
    lock.acquire(path)
    with pytest.raises(InputError, match="in use by process"):
        reproduce("tiny", config_dirs=[folder])
    assert [entry.name for entry in path.iterdir()] == [".lock"]


def test_methods_are_compared_with_the_reference(folder):
    rows = [{"words": ["algo.epochs=1,2", "env=cartpole"]}]
    study = TINY | {"measure": "learning", "rows": rows, "sources": {}, "reference": "epochs=1"}
    write(folder, "inside", study)
    done = reproduce("inside", seeds=1, config_dirs=[folder])
    assert [(line.cell.method, line.beside) for line in done.lines] == [("epochs=1", ""), ("epochs=2", "epochs=1")]
    assert done.lines[1].theirs.mean == pytest.approx(done.lines[0].values.mean())
    run = Run(done.sweep.run_path(done.sweep.trials[0]))
    steps, values = run.series("eval/return_mean")
    assert list(steps) == [256, 512]
    # Level before the first evaluation, straight to the second.
    assert done.lines[0].values[0] == pytest.approx(0.5 * values[0] + 0.5 * values.mean())
    assert "compared with `epochs=1`" in report.markdown(done)


def test_each_seed_builds_on_its_own_stages(folder):
    common = [*TINY["common"], "env=cartpole"]
    study = TINY | {
        "stages": {"first": [*common, "total_steps=256"], "second": [*common, "init=first", "total_steps=512"]},
        "rows": [{"words": ["algo.epochs=1", "init=first,second", "env=cartpole"]}],
        "measure": "greedy_return", "sources": {}, "seeds": 2,
    }  # fmt: skip
    write(folder, "staged", study)
    done = reproduce("staged", config_dirs=[folder])
    assert done.finished
    assert [cell.method for cell in done.cells] == ["epochs=1 init=first", "epochs=1 init=second"]
    inits = [Run(Run(done.sweep.run_path(trial)).config["init"]) for trial in done.sweep.trials]
    assert [(init.seed, init.steps) for init in inits] == [(0, 256), (1, 256), (0, 512), (1, 512)]
    assert Run(inits[3].config["init"]).path == inits[1].path
    text = report.markdown(done)
    assert "pgcli sweep algo=ppo tuned=none algo.num_envs=4" in text
    assert "'init=<first of the same seed>'" in text


def test_any_metric_is_a_measure_and_others_are_beside_it(folder):
    rows = [{"words": ["algo.epochs=1,2", "env=cartpole"]}]
    plane = {"x": "policy/approx_kl", "y": ["eval/return_mean"], "root": True}
    changes = {"rows": rows, "measure": "eval/length_mean", "columns": ["policy/entropy"], "plane": plane}
    write(folder, "measured", TINY | changes | {"sources": {}, "seeds": 1})
    done = reproduce("measured", config_dirs=[folder])
    run = Run(done.sweep.run_path(done.sweep.trials[1]))
    assert done.lines[1].values == pytest.approx([run.points("eval/length_mean")[1][-1]])
    heading, cells = report.columns(done)[-1]
    assert heading == "policy/entropy"
    assert float(cells[1]) == pytest.approx(run.points("policy/entropy")[1][-1], rel=0.01)
    (panel,) = report.planes(done, done.study.plane)
    name, path = panel.paths[1]
    evaluated = run.rows("eval/return_mean")
    assert name == "epochs=2"
    assert path[:, 0] == pytest.approx([row["policy/approx_kl"] ** 0.5 for row in evaluated])
    assert path[:, 1] == pytest.approx([row["eval/return_mean"] for row in evaluated])
    assert (done.path / "measured_plane.svg").is_file()


def test_a_run_whose_value_is_not_finite_is_left_out_and_said(folder):
    write(folder, "lost", TINY | {"measure": "evaluation_return", "sources": {}, "rows": [{"words": ["env=cartpole"]}]})
    first = reproduce("lost", seeds=2, config_dirs=[folder])
    file = Run(first.sweep.run_path(first.sweep.trials[1])).path / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(f"{json.dumps(row | {'eval/return_mean': 'NaN'})}\n" for row in rows))
    lost = reproduce("lost", seeds=2, config_dirs=[folder])
    assert lost.lines[0].values.tolist() == first.lines[0].values[:1].tolist()
    (missing,) = lost.missing
    assert missing == "ppo on cartpole: no episode ended in a run, or not to a finite number"


def test_the_listing(folder, capsys):
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == set(definition.names())
    assert all(line.endswith(".") for line in lines)
    assert run("--config-dir", "conf") == 0
    assert "tiny" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clasic_ppo"], "error: no study is called `clasic_ppo`; did you mean `classic_ppo`?"),
        (
            ["classic_ppo", "--fraction", "0"],
            "error: --fraction is a share of the budget, above 0 and at most 1, not 0",
        ),
        (["classic_ppo", "--fraction", "1.5"], "error: --fraction is a share of the budget, above 0"),
        (["classic_ppo", "--seeds", "0"], "error: --seeds must be 1 or more, not 0"),
        (["classic_ppo", "--workers", "0"], "error: --workers must be 1 or more, not 0"),
        (
            ["classic_ppo", "--only", "cartpol"],
            "error: this study has no environment `cartpol`; did you mean `cartpole`?",
        ),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_refused_before_a_run_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report").touch()
    assert run("classic_ppo", "--out", "report") == 2
    assert capsys.readouterr().err == "error: cannot write the report to report: File exists\n"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_missing_extra_names_its_install_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(definition, "MODULES", {"mujoco": "a_module_that_is_not_there"})
    assert run("mujoco_ppo") == 2
    assert capsys.readouterr().err == (
        "error: mujoco_ppo needs a package that is not installed: run pip install 'gymnasium[mujoco]'\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_method_that_is_not_there_is_refused_before_anything_is_written(folder, tmp_path):
    write(folder, "odd", TINY | {"rows": [*TINY["rows"], {"words": ["algo=pppo", "env=cartpole"]}]})
    with pytest.raises(InputError, match=r"no algo is called `pppo`; did you mean `algo=ppo`"):
        reproduce("odd", config_dirs=[folder])
    assert not (tmp_path / "studies").exists()


def test_a_failed_run_is_named_and_the_exit_code_says_so(folder, capsys):
    # A reward of 1e30 is finite; the square of its error is not.
    rows = [TINY["rows"][0], {"words": ["env=cartpole", "env.normalise.reward_shift=1e30"]}]
    write(folder, "half", TINY | {"rows": rows})
    assert run("half", "--config-dir", "conf", "--seeds=1") == 1
    out = capsys.readouterr().out
    assert "ppo on cartpole reward_shift=1e30: 1 of 1 runs failed (update 1: loss/value = inf" in " ".join(out.split())
    assert "loss/value = inf" in out
    assert "Theirs" in out  # what there is, is told


def test_the_best_of_n_beside_the_runs(folder):
    study = {
        "question": "Does it?", "measure": "eval/gold", "seeds": 1, "total_steps": 40, "evaluations": 1,
        "stages": {
            "sft": ["algo=sft", "env=story", "tuned=none", "total_steps=200", "algo.num_demonstrations=8"],
            "rm": ["algo=reward_model", "env=story", "init=sft", "env.pairs=8", "total_steps=100", "algo.num_pairs=4"],
        },
        "common": ["algo=rloo", "env=story", "init=sft", "reward=rm", "tuned=none", "algo.kl.measure=true",
                   "algo.num_groups=2", "algo.group_size=2", "eval.episodes=4", "policy=nano"],
        "best_of": {"words": ["algo=rloo", "env=story", "init=sft"], "rewards": ["rm"], "largest": 4, "prompts": 3},
        "plane": {"x": "eval/kl", "y": ["eval/gold", "eval/proxy"], "root": True},
        "rows": [{"words": ["algo.kl.coefficient=0"]}],
    }  # fmt: skip
    nano = {name: [*words, "policy=nano"] for name, words in study["stages"].items()}
    best = study["best_of"] | {"words": [*study["best_of"]["words"], "policy=nano"]}
    write(folder, "best", study | {"stages": nano, "best_of": best})
    done = reproduce("best", config_dirs=[folder])
    (points,) = done.best["rm"]
    assert [point.n for point in points] == [1, 2, 4]
    assert [point.kl for point in points] == pytest.approx([0, 0.1931, 0.6363], abs=1e-4)  # log n - (n - 1) / n
    assert points[0].reward < points[1].reward < points[2].reward
    gold, proxy = report.planes(done, done.study.plane)
    assert gold.paths[-1][0] == "best of n, rm"
    assert gold.paths[-1][1][:, 1] == pytest.approx([point.gold for point in points])
    assert proxy.paths[-1][1][:, 1] == pytest.approx([point.reward for point in points])
    assert "| rm | 4 | 0.64 |" in report.markdown(done)
    (file,) = done.path.glob("best_of_4_rm_s0.json")
    before = file.stat().st_mtime_ns
    assert reproduce("best", config_dirs=[folder]).best == done.best
    assert file.stat().st_mtime_ns == before, "what has been computed is kept"
