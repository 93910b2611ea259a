import json
import subprocess
import sys

import numpy as np
import pytest

from pgcli.cli import main
from pgcli.errors import InputError
from pgcli.runs import Run, find_run, list_runs
from pgcli.runs.reader import scan_runs


@pytest.fixture
def three(new_run):
    made = []
    for seed in range(3):
        run = new_run(seed=seed)
        run.log(100 * (seed + 1), 1, {"eval/return_mean": float(seed)})
        run.finish("completed")
        made.append(run.path)
    return made


def test_reading_runs_imports_neither_torch_nor_numpy(three):
    script = (
        "import sys; from pgcli.runs import list_runs; run = list_runs(sys.argv[1])[0]\n"
        "run.rows(), run.status, run.steps, run.config\n"
        "assert not {'torch', 'numpy', 'gymnasium', 'hydra'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script, three[0].parent], check=True)


def test_runs_are_listed_in_the_order_in_which_they_began(three):
    assert [run.path for run in list_runs(three[0].parent)] == three
    assert [run.seed for run in list_runs(three[0].parent)] == [0, 1, 2]


def test_a_run_is_found_by_path_by_id_and_as_the_latest(three, monkeypatch):
    runs_dir = three[0].parent
    assert find_run(str(three[1]), runs_dir).seed == 1
    assert find_run(three[1].name, runs_dir).seed == 1
    assert find_run("latest", runs_dir).seed == 2
    monkeypatch.chdir(runs_dir.parent)
    assert find_run("latest").seed == 2


@pytest.mark.parametrize("text", ["nothing", "latest", "."])
def test_what_is_not_a_run_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"is not a run directory: it has no run\.json|there is no run in runs"):
        find_run(text)


def test_a_file_is_not_a_run(three):
    with pytest.raises(InputError, match="is not a run directory"):
        Run(three[0] / "run.json")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema": 1}', "\xff", "[" * 100_000])
def test_a_damaged_run_json_is_refused_and_hides_no_other_run(three, text):
    (three[0] / "run.json").write_text(text, "latin-1")
    with pytest.raises(InputError, match=str(three[0])):
        Run(three[0])
    runs, problems = scan_runs(three[0].parent)
    assert [run.path for run in runs] == three[1:]
    assert len(problems) == 1
    assert str(three[0]) in problems[0]


def test_a_torn_last_row_is_not_there_yet(three):
    with (three[0] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 200, "update": 2, "wall": 1')
    run = Run(three[0])
    assert [row["step"] for row in run.rows()] == [100]
    assert run.series("eval/return_mean")[0].tolist() == [100]


def test_a_damaged_row_is_named(three):
    with (three[0] / "metrics.jsonl").open("a") as file:
        file.write("\0\0\0\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl is damaged"):
        Run(three[0]).rows()


def test_a_series_has_only_the_rows_that_have_the_key(new_run):
    run = new_run()
    run.log(1, 1, {"loss/policy": 1.0})
    run.log(2, 2, {"loss/policy": 2.0, "eval/return_mean": 5.0})
    run.log(3, 3, {"eval/return_mean_of_another": 9.0, "loss/policy": 3.0})
    steps, values = Run(run.path).series("eval/return_mean")
    assert (steps.dtype, values.dtype) == (np.int64, np.float64)
    assert (steps.tolist(), values.tolist()) == ([2], [5.0])
    assert Run(run.path).series("loss/policy")[1].tolist() == [1, 2, 3]
    assert Run(run.path).series("no/such")[0].tolist() == []


def test_a_run_that_was_killed_reads_as_died(new_run):
    run = new_run()
    assert Run(run.path).status == "running"
    owner = run.path / ".lock" / "owner.json"
    owner.write_text(json.dumps(json.loads(owner.read_text()) | {"started": "1"}))
    assert Run(run.path).status == "died"


def test_checkpoints_are_in_the_order_of_their_steps(new_run, state_at):
    run = new_run()
    for step in (5, 10**9, 10**9 + 5, 2 * 10**10):  # more digits than the name has room for
        (run.path / "checkpoints" / f"step-{step:09d}").mkdir()
    (run.path / "checkpoints" / "step-x").mkdir()
    names = [path.name for path in Run(run.path).checkpoints()]
    assert names == ["step-000000005", "step-1000000000", "step-1000000005", "step-20000000000"]


def test_a_config_that_is_not_yaml_is_refused_by_file_and_line(three):
    (three[0] / "config.yaml").write_text("a: 1\nb: [1,\n")
    with pytest.raises(InputError, match=r"config\.yaml is not valid YAML: .*line 3"):
        _ = Run(three[0]).config


def test_a_config_cannot_make_an_object(three):
    (three[0] / "config.yaml").write_text("a: !!python/object/apply:os.mkdir [executed]\n")
    with pytest.raises(InputError, match=r"config\.yaml is not valid YAML"):
        _ = Run(three[0]).config


@pytest.mark.parametrize("text", ["", "seed", "seed: 0\n", "seed: 0\nalgo: {gamma: 1}\n", "algo: 1\nenv: 2\n"])
def test_a_config_that_was_cut_short_is_refused(three, text):
    (three[0] / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"config\.yaml is damaged: it does not hold the settings of a run"):
        _ = Run(three[0]).config


def test_a_run_that_was_moved_is_listed_under_the_name_to_type(new_run, tmp_path, capsys):
    run = new_run()
    run.finish("completed")
    run.path.rename(run.path.with_name("elsewhere"))
    with pytest.raises(SystemExit) as ended:
        main(["runs", "--runs-dir", str(tmp_path / "runs")])
    assert not ended.value.code
    assert "elsewhere" in capsys.readouterr().out


def test_a_row_that_is_none_is_named_whatever_is_asked_for(three):
    with (three[0] / "metrics.jsonl").open("a") as file:
        file.write("{garbage\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl is damaged: `\{garbage` is not a row"):
        Run(three[0]).series("eval/return_mean")
