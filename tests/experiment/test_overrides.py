"""Names of stages in overrides, and the paths that take their place."""

from pathlib import Path

import pytest

from pgcli.experiment.overrides import parse, quoted, with_runs


def test_a_stage_s_name_stands_for_its_run_and_any_other_word_for_itself():
    words = ["algo=ppo", "init=sft", "reward=rm", "reference=runs/sft", "env.name=sft"]
    found = with_runs(words, {"sft": Path("runs/sft"), "rm": Path("/tmp/a b/rm")})
    assert found == ["algo=ppo", "init=runs/sft", "reward='/tmp/a b/rm'", "reference=runs/sft", "env.name=sft"]


@pytest.mark.parametrize(
    "path",
    [
        "runs/sft",
        "my runs/sft",
        "a,b/sft",
        "a(1)/sft",
        "a=b/sft",
        "anna's/sft",
        "a\\'b/sft",
        "null",
        "NaN",
        "sft_2.b",
        "12",
        "a\\",
        "${x}/sft",
    ],
)
def test_a_path_is_read_back_whatever_it_is_called(path):
    if path in ("runs/sft", "sft_2.b"):
        assert quoted(path) == path
    [assignment] = parse([f"init={quoted(path)}"])
    assert assignment.value == path
