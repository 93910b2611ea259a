from pathlib import Path
from types import SimpleNamespace

import pytest

from pgcli.cli import _ending

JUDGE = ["pgcli eval r", "pgcli train algo=ppo env=e init=i reward=r algo.kl.coefficient=0.1"]


@pytest.mark.parametrize(
    ("algo", "unit", "lines"),
    [
        ("ppo", "steps", ["pgcli eval r", "pgcli sweep algo=ppo,a2c env=e init=i reward=w 'seed=range(0,10)'"]),
        ("grpo", "tokens", ["pgcli sample r", "pgcli sweep algo=grpo,rloo env=e init=i reward=w 'seed=range(0,10)'"]),
        ("pretrain", "tokens", ["pgcli sample r", "pgcli train algo=sft env=e init=r"]),
        ("sft", "tokens", ["pgcli sample r", "pgcli train algo=grpo env=e init=r"]),
        ("reward_model", "tokens", JUDGE),
        ("outcome_reward", "tokens", JUDGE),
    ],
)  # fmt: skip
def test_what_to_type_next_goes_on_from_this_run(algo, unit, lines):
    run = SimpleNamespace(
        status="completed", path=Path("r"), choices={"algo": algo, "env": "e"}, info={"unit": unit},
        config={"env": {}, "init": "i", "reward": "w"},
    )  # fmt: skip
    assert _ending._next(run).split("\n       ") == lines


def test_what_to_type_next_says_where_the_model_and_the_texts_are(tmp_path):
    (tmp_path / "overrides.txt").write_text("algo=sft\nenv=jsonl\nenv.path=p.jsonl\npolicy=hf\npolicy.path=m\nseed=3\n")
    run = SimpleNamespace(
        status="completed", path=tmp_path, choices={"algo": "sft", "env": "jsonl"}, info={"unit": "tokens"},
        config={"env": {}, "init": None},
    )  # fmt: skip
    following = _ending._next(run).split("\n       ")[1]
    assert following == f"pgcli train algo=grpo env=jsonl env.path=p.jsonl policy=hf policy.path=m init={tmp_path}"
