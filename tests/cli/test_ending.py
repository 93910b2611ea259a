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
