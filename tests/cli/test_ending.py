import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from pgcli.cli import _ending

JUDGE = ["pgcli eval r", "pgcli train algo=ppo env=e init=i reward=r algo.kl.coefficient=0.1"]


@pytest.mark.parametrize(
    ("algo", "unit", "lines"),
    [
        ("ppo", "steps", ["pgcli eval r", "pgcli sweep algo=ppo env=e init=i reward=w 'seed=range(0,10)'"]),
        ("pretrain", "tokens", ["pgcli sample r", "pgcli train algo=sft env=e init=r"]),
        ("sft", "tokens", ["pgcli sample r", "pgcli train algo=grpo env=e init=r"]),
        ("reward_model", "tokens", JUDGE),
        ("outcome_reward", "tokens", JUDGE),
    ],
)  # fmt: skip
def test_what_to_type_next_goes_on_from_this_run(algo, unit, lines):
    run = SimpleNamespace(
        status="completed", path=Path("r"), choices={"algo": algo, "env": "e"}, info={"unit": unit},
        config={"env": {}, "init": "i", "reward": "w", "total_steps": 1},
    )  # fmt: skip
    assert _ending._next(run).split("\n       ") == lines


@pytest.mark.parametrize(
    ("algo", "env", "steps", "words", "sweep"),
    [
        ("ppo", "cartpole", 300_000, "seed=3 stop_at=475 runs_dir=x", "algo=ppo,a2c env=cartpole"),
        ("ppo", "cartpole", 300_000, "algo.gamma=0.9", "algo=ppo,a2c env=cartpole algo.gamma=0.9"),
        ("dqn", "cartpole", 300_000, "algo.batch_size=8", "algo=dqn env=cartpole algo.batch_size=8"),  # not one of a2c
        ("sac", "pendulum", 10_000, "", "algo=sac env=pendulum"),  # a2c is given 300,000 steps
        ("sac", "pendulum", 500, "total_steps=500", "algo=sac,a2c env=pendulum total_steps=500"),
        ("grpo", "sort", 1_000, "total_steps=1_000", "algo=grpo,rloo env=sort total_steps=1_000"),
        ("ppo", "gymnasium", 9, "env.id=Acrobot-v1 total_steps=9", "algo=ppo,a2c env=Acrobot-v1 total_steps=9"),
    ],
)
def test_the_suggested_sweep_is_of_what_was_typed(tmp_path, algo, env, steps, words, sweep):
    typed = [f"algo={algo}", f"env={env}", *words.split()]
    (tmp_path / "overrides.txt").write_text("\n".join(typed))
    run = SimpleNamespace(
        status="completed", path=tmp_path, choices={"algo": algo, "env": env},
        info={"unit": "tokens" if env == "sort" else "steps"},
        config={"env": {"id": "Acrobot-v1"}, "init": None, "total_steps": steps},
    )  # fmt: skip
    assert _ending._next(run).split("\n       ")[1] == f"pgcli sweep {sweep} 'seed=range(0,10)'"


def test_the_options_that_were_typed_are_in_what_to_type_next(tmp_path):
    mine = tmp_path / "my conf"
    mine.mkdir()
    run = ended(tmp_path, "ppo", total_steps=300_000)
    run.choices["env"], run.info["unit"] = "cartpole", "steps"
    run.info["argv"] = ["pgcli", "train", "algo=ppo", "--config-dir", str(mine), "--trust"]
    run.config["env"] = {}
    sweep = f"pgcli sweep algo=ppo,a2c env=cartpole 'seed=range(0,10)' --config-dir '{mine}' --trust"
    assert _ending._next(run).split("\n       ") == [f"pgcli eval {tmp_path}", sweep]
    # A sweep takes neither the file of a run nor a checkpoint to go on from.
    for change in ({"argv": ["pgcli", "train", "--config=c.yaml"]}, {"parent": "a run"}):
        run.info = {"unit": "steps"} | change
        assert _ending._next(run) == f"pgcli eval {tmp_path}"


def test_what_to_type_next_says_where_the_model_and_the_texts_are(tmp_path):
    (tmp_path / "overrides.txt").write_text("algo=sft\nenv=jsonl\nenv.path=p.jsonl\npolicy=hf\npolicy.path=m\nseed=3\n")
    run = SimpleNamespace(
        status="completed", path=tmp_path, choices={"algo": "sft", "env": "jsonl"}, info={"unit": "tokens"},
        config={"env": {}, "init": None},
    )  # fmt: skip
    following = _ending._next(run).split("\n       ")[1]
    assert following == f"pgcli train algo=grpo env=jsonl env.path=p.jsonl policy=hf policy.path=m init={tmp_path}"


def test_what_to_type_next_needs_no_legible_file_of_overrides(tmp_path):
    (tmp_path / "overrides.txt").write_bytes(b"env.path=\xff\n")
    run = SimpleNamespace(
        status="completed", path=tmp_path, choices={"algo": "sft", "env": "jsonl"}, info={"unit": "tokens"},
        config={"env": {}, "init": None},
    )  # fmt: skip
    assert _ending._next(run).splitlines()[0] == f"pgcli sample {tmp_path}"


@pytest.mark.parametrize(
    ("mean", "greedy", "said"), [(-1110.2, -0.04, "-1,110, greedy -0.04"), (0.8931, 500, "0.893, greedy 500.0")]
)
def test_returns_are_spelled_as_in_the_lines_before(mean, greedy, said):
    summary = {
        "steps": 500,
        "seconds": 1.0,
        "solved": None,
        "eval/return_mean": mean,
        "eval/greedy_return_mean": greedy,
    }
    run = SimpleNamespace(
        status="completed", choices={"algo": "sac", "env": "e"}, info={"unit": "steps", "summary": summary},
        config={"env": {}},
    )  # fmt: skip
    assert _ending._outcome(run) == f"finished sac on e after 500 steps in 1.0 s: return {said}"


def ended(path, algo, *words, **config):
    (path / "overrides.txt").write_text("\n".join(words))
    return SimpleNamespace(
        status="completed", path=path, choices={"algo": algo, "env": "jsonl"}, info={"unit": "tokens"},
        config={"env": {"reward": None}, "init": None, "total_steps": 1} | config,
    )  # fmt: skip


def test_no_method_that_needs_a_reward_is_suggested_where_there_is_none(tmp_path):
    assert _ending._next(ended(tmp_path, "sft", "env.path=d.jsonl")) == f"pgcli sample {tmp_path}"
    following = _ending._next(ended(tmp_path, "dpo", "env.path=d.jsonl")).split("\n       ")[1]
    assert following == "pgcli sweep algo=dpo env=jsonl env.path=d.jsonl 'seed=range(0,10)'"


def test_a_run_with_user_code_is_looked_at_with_trust(tmp_path):
    coded = {"env": {"reward": "my.py:score"}}
    lines = _ending._next(ended(tmp_path, "grpo", "env.reward=my.py:score", **coded)).split("\n       ")
    assert lines == [
        f"pgcli sample {tmp_path} --trust",  # a file names the code, and below the command line does
        "pgcli sweep algo=grpo env=jsonl env.reward=my.py:score 'seed=range(0,10)'",
    ]
    assert _ending._next(ended(tmp_path, "reward_model", **coded)).endswith(" algo.kl.coefficient=0.1 --trust")


def test_paths_are_quoted_where_they_must_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = ended(tmp_path, "grpo", "env.path=my texts.jsonl", init=str(tmp_path / "pipelines/a/sft"), reward="/a b/rm")
    following = _ending._next(run).split("\n       ")[1]
    assert shlex.split(following)[3:] == [
        "env=jsonl", "env.path=my texts.jsonl", "init=pipelines/a/sft", "reward='/a b/rm'", "seed=range(0,10)",
    ]  # fmt: skip
    assert " init=pipelines/a/sft " in following
