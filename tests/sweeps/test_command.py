import dataclasses
import functools
import io
import json

import pytest
from rich.console import Console

import pgcli.sweeps
from pgcli.cli import main
from pgcli.cli.sweep import Board, summary
from pgcli.experiment.config import compose
from pgcli.experiment.overrides import expand
from pgcli.runs.reader import Run
from pgcli.sweeps import driver, ledger
from pgcli.sweeps.progress import Tail

from .helpers import fake_command, plan

TINY = ["env=cartpole", "total_steps=1024", "eval.every=1024", "eval.episodes=2", "tuned=none"]


@pytest.fixture
def pgcli_sweep(tmp_path, monkeypatch, capsys):
    """The command, in an empty folder: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        with pytest.raises(SystemExit) as ended:
            main(["sweep", *words])
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return call


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setattr(
        pgcli.sweeps, "resume_sweep", functools.partial(pgcli.sweeps.resume_sweep, command=fake_command)
    )


# ---------------------------------------------------------------- input that is refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to sweep"),
        (["algo=ppo", "env=cartpole", "algo.learning_rate=1e-3,-1"], "algo.learning_rate"),
        (["algo=ppo,ppoo", "env=cartpole"], "no algo is called `ppoo`"),
        (["algo=ppo", "env=cartpole", "algo.gamma=0.9,0.99", "algo.gamma=0.5"], "two runs of this sweep are the same"),
        (["algo=ppo", "env=cartpole", "runs_dir=a,b"], "two runs of this sweep are the same"),
        (["algo=ppo", "env=cartpole", "seed=0..5"], "is no list of values; did you mean 'seed=range(0,5)'?"),
        (["algo=ppo", "env=cartpole", "--workers", "0"], "--workers must be 1 or more"),
        (["algo=ppo,sac", "env=cartpole"], "algo=sac is for continuous actions; those of env=CartPole-v1 are discrete"),
        (
            ["algo=ppo", "env=cartpole", "policy=mlp,cnn"],
            "policy=cnn reads images, and env=cartpole has vectors",
        ),
        (["algo=ppo,dpo", "env=cartpole"], "algo=dpo learns from"),
        (["algo=ppo", "env=cartpole", "init=nowhere"], "nowhere is not a run directory"),
        (["--resume", "latest"], "there is no sweep in sweeps: start one"),
        (["--resume", "elsewhere"], "elsewhere is not a sweep directory"),
        (["algo=ppo", "--resume", "elsewhere"], "takes no overrides"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(pgcli_sweep, tmp_path, words, message):
    code, out, err = pgcli_sweep(*words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_what_fits_together_is_checked_once_for_all_seeds_and_rates():
    checked = []
    words = expand(["algo=ppo,a2c", "env=cartpole", "algo.learning_rate=1e-3,1e-4", "seed=range(0,5)"])
    driver._check_parts([compose(word) for word in words], checked.append)
    assert [config.algo.name for config in checked] == ["ppo", "a2c"]


# ---------------------------------------------------------------- what is said


def test_a_pipe_gets_a_line_for_each_event_and_what_to_do_next(pgcli_sweep, stand_ins, tmp_path):
    sweep = plan(tmp_path, "do=ok", "do=crash")
    code, out, _ = pgcli_sweep("--resume", str(sweep.path))
    lines = out.splitlines()
    assert lines[0] == f"{sweep.path}: 2 to go"
    assert lines[1:5] == [
        "started     000  do=ok",
        "finished    000  do=ok  return 42.00  (1 of 2)",
        "started     001  do=crash",
        "failed      001  do=crash  Segmentation fault",
    ]
    assert lines[5].startswith("2 runs in ")
    assert lines[5].endswith("1 failed · 1 finished")
    assert lines[6:] == [
        "failed  001  do=crash  Segmentation fault",
        f"log     {sweep.path}/logs/001.log",
        f"next    pgcli compare {sweep.path}",
        f"        pgcli sweep --resume {sweep.path}",
    ]
    assert code == 1


def test_resume_says_what_it_is_going_to_do_and_ends_well_when_all_are_finished(pgcli_sweep, stand_ins, tmp_path):
    sweep = plan(tmp_path, "do=vanish", "do=ok")
    assert pgcli_sweep("--resume", str(sweep.path))[0] == 1
    code, out, _ = pgcli_sweep("--resume", str(sweep.path))
    assert out.splitlines()[0] == f"{sweep.path}: 1 finished: not repeated · 1 failed: tried once more"
    assert "finished    001" not in out
    assert code == 0


def test_the_latest_sweep_goes_on(pgcli_sweep, stand_ins, tmp_path):
    for name in ("20260101-000000_ffff", "20260102-000000_0000"):
        ledger.create(
            tmp_path / "sweeps", [ledger.Planned("run", ["do=ok"], 100)], overrides=["all"], config_dirs=[],
            trust=False, version="0", name=name,
        )  # fmt: skip
    code, out, _ = pgcli_sweep("--resume", "latest")
    assert (code, out.splitlines()[0]) == (0, "sweeps/20260102-000000_0000: 1 to go")


def test_to_go_on_with_user_code_takes_trust(tmp_path):
    sweep = plan(tmp_path, "do=ok env=danger:Env-v0")
    assert summary(sweep, 1.0).endswith(f"pgcli sweep --resume {sweep.path} --trust")


def test_a_sweep_that_gives_up_says_why_once(pgcli_sweep, stand_ins, tmp_path):
    sweep = plan(tmp_path, *(f"do=fail seed={n}" for n in range(5)))
    code, out, _ = pgcli_sweep("--resume", str(sweep.path))
    after = out[out.index("5 runs in") :]
    assert after.count("no reason at step") == 1
    assert "gave up: every run failed in the same way, so 2 more were not started: no reason at step" in after
    assert code == 1


def test_failures_of_one_reason_share_a_line(tmp_path):
    sweep = plan(tmp_path, "a=0", "a=1", "a=2")
    for trial, reason in zip(sweep.trials, ("full disk", "NaN", "full disk"), strict=True):
        trial.status, trial.reason = "failed", reason
    assert "failed  000, 002  full disk\nfailed  001  a=1  NaN" in summary(sweep, 1.0)


def test_json_is_all_that_is_printed(pgcli_sweep, stand_ins, tmp_path):
    sweep = plan(tmp_path, "do=ok", "do=crash")
    code, out, _ = pgcli_sweep("--resume", str(sweep.path), "--json")
    data = json.loads(out)
    assert code == 1
    assert (data["finished"], data["failed"], data["path"]) == (1, 1, str(sweep.path))
    assert [run["status"] for run in data["runs"]] == ["finished", "failed"]
    assert [run["eval_return"] for run in data["runs"]] == [42.0, None]
    assert data["runs"][1]["reason"] == "Segmentation fault"


@pytest.mark.parametrize(("width", "height"), [(40, 10), (100, 30)])
def test_the_table_fits_the_terminal_and_shows_the_busy_runs(tmp_path, width, height):
    sweep = plan(tmp_path, *(f"policy.hidden=[64,64] algo.learning_rate=0.001 seed={n}" for n in range(40)))
    for trial in sweep.trials[:30]:
        trial.status = "finished"
    for trial in sweep.trials[30:32]:
        trial.status = "running"
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(Board().table(sweep, width, height))
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert sum("running" in line for line in lines) == 3  # two rows, and the count
    assert "2 running · 30 finished · 8 planned" in lines[-1]


# ---------------------------------------------------------------- how far a run is


def test_a_tail_follows_metrics_that_grow_are_torn_and_are_cut_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    tail.look()  # not there yet
    assert (tail.step, tail.evaluation) == (0, None)
    first, second = '{"step": 10, "eval/return_mean": 1.5}\n', '{"step": 20}\n{"step": 30}\n'
    path.write_text(first + second + '{"step": 40, "eval/ret')
    tail.look()
    assert (tail.step, tail.evaluation) == (30, 1.5)
    path.write_text(first + second + '{"step": 40, "eval/return_mean": "NaN"}\n')
    tail.look()
    assert tail.step == 40
    assert tail.evaluation != tail.evaluation  # NaN
    path.write_text(first)  # the run was resumed from its checkpoint at 10
    tail.look()
    assert (tail.step, tail.evaluation) == (10, 1.5)


# ---------------------------------------------------------------- end to end


def test_a_sweep_of_real_runs_leaves_run_directories_that_can_be_compared(pgcli_sweep, tmp_path):
    code, out, err = pgcli_sweep("algo=reinforce", "seed=0,1", *TINY, "--workers", "2")
    assert code == 0, out + err
    (sweep,) = (tmp_path / "sweeps").iterdir()
    runs = [Run(path) for path in sorted((sweep / "runs").iterdir())]
    assert [run.path.name for run in runs] == ["000_reinforce_cartpole_s0", "001_reinforce_cartpole_s1"]
    assert [run.status for run in runs] == ["completed", "completed"]
    assert [run.seed for run in runs] == [0, 1]
    assert all(run.rows()[-1]["step"] >= 1024 for run in runs)
    assert out.splitlines()[-1] == f"next    pgcli compare sweeps/{sweep.name}"


def test_runs_that_are_planned_later_are_news_too(tmp_path):
    sweep, board = plan(tmp_path, "do=ok seed=0", "do=ok seed=1", "do=ok seed=2"), Board()
    first, later = [dataclasses.replace(sweep, trials=sweep.trials[part]) for part in (slice(0, 1), slice(1, 3))]
    first.trials[0].status = "running"
    assert [line.split()[0] for line in board.news(first)] == ["started"]
    later.trials[0].status, later.trials[1].status = "finished", "running"  # the one was there before
    assert [line.split()[:2] for line in board.news(later)] == [["started", "002"]]


def test_runs_that_finish_at_once_are_counted_one_by_one(tmp_path):
    sweep, board = plan(tmp_path, "do=ok seed=0", "do=ok seed=1", "do=ok seed=2"), Board()
    board.news(sweep)
    for trial in sweep.trials[:2]:
        trial.status = "finished"
    assert [line[-8:] for line in board.news(sweep)] == ["(1 of 3)", "(2 of 3)"]
