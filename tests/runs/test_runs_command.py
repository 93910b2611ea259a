import json

import pytest
import typer
from typer.testing import CliRunner

from pgcli.cli.runs import runs


@pytest.fixture
def call():
    app = typer.Typer()
    app.command()(runs)
    return lambda *arguments: CliRunner().invoke(app, [str(part) for part in arguments], catch_exceptions=False)


def test_runs_are_listed_with_their_last_evaluation(new_run, call):
    run = new_run(seed=7)
    run.log(100, 1, {"eval/return_mean": 20.0})
    run.log(2000, 2, {"eval/return_mean": 475.25})
    run.log(3000, 3, {})
    run.finish("completed")
    answer = call("--runs-dir", run.path.parent)
    assert answer.exit_code == 0
    cells = next(line for line in answer.stdout.splitlines() if run.path.name in line).split()
    assert cells[:7] == [run.path.name, "completed", "ppo", "cartpole", "7", "3,000", "475.2"]


@pytest.mark.parametrize(("value", "spelled"), [(0.893, "0.893"), (-0.04, "-0.04"), (-1110.4, "-1,110")])
def test_a_narrow_terminal_loses_columns_but_breaks_no_row(new_run, call, monkeypatch, value, spelled):
    run = new_run()
    run.log(2000, 1, {"eval/return_mean": value})
    run.finish("completed")
    monkeypatch.setenv("COLUMNS", "80")
    lines = call("--runs-dir", run.path.parent).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = (line.split() for line in lines[3:] if line.strip())
    assert (row[0], row[1], row[-3:-1]) == (run.path.name, "completed", [spelled, "0"])  # the age is `0 s`


def test_json_has_every_run_and_is_json(new_run, call):
    run = new_run()
    run.log(100, 1, {"eval/return_mean": float("nan")})
    new_run(runs_dir=run.path.parent, seed=1)
    found = json.loads(call("--runs-dir", run.path.parent, "--json").stdout, parse_constant=pytest.fail)
    assert [(row["seed"], row["status"], row["eval_return"]) for row in found] == [
        (0, "running", "NaN"),
        (1, "running", None),
    ]


def test_a_damaged_run_is_a_warning(new_run, call):
    run = new_run()
    (run.path / "run.json").write_text("{")
    answer = call("--runs-dir", run.path.parent)
    assert answer.exit_code == 0
    assert "warning: " in answer.stderr
    assert "is damaged" in answer.stderr


def test_damaged_metrics_are_a_warning_and_hide_no_other_run(new_run, call):
    run, other = new_run(), new_run(seed=1)
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(bytes(512) + b"\n")  # as a power cut leaves them
    answer = call("--runs-dir", run.path.parent, "--json")
    assert answer.exit_code == 0
    assert f"warning: {run.path / 'metrics.jsonl'} is damaged" in answer.stderr
    assert [row["path"] for row in json.loads(answer.stdout)] == [str(other.path)]


def test_no_runs_say_what_to_do_next(tmp_path, call):
    assert "pgcli train algo=ppo env=cartpole" in call("--runs-dir", tmp_path).stdout
    assert json.loads(call("--runs-dir", tmp_path, "--json").stdout) == []
