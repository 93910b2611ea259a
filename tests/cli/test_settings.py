"""What a user reads about settings: the living part of --help, `list`, `show`, `doctor`."""

import re
from pathlib import Path

import pytest
import yaml

from pgcli.cli import doctor, main
from pgcli.experiment.config import compose, dump, load
from pgcli.options import groups


@pytest.fixture
def out(capsys, monkeypatch, tmp_path):
    """out("list", "algos") -> what it printed, 80 columns wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        return capsys.readouterr().out

    return call


def test_the_help_of_train_lists_the_living_groups_and_settings(out, tmp_path):
    (tmp_path / "mine" / "algo").mkdir(parents=True)
    (tmp_path / "mine" / "algo" / "mine.yaml").write_text("# My own method.\nname: ppo\n")
    text = out("train", "--help", "--config-dir", "mine")
    for group, options in groups().items():
        assert f"{group}= one of" in text
        assert all(re.search(rf"^ {option[:38]}", text, re.MULTILINE) for option in options)
    assert re.search(r"^ mine +My own method\.", text, re.MULTILINE)
    for key in ("seed", "total_steps", "eval.every", "checkpoint.keep", "tuned"):
        assert re.search(rf"^ {re.escape(key)} ", text, re.MULTILINE)


@pytest.mark.parametrize(
    "words", [["train", "--help"], ["train", "algo=ppo", "env=sort", "--help"], ["sweep", "algo=ppo,a2c", "--help"]]
)
def test_help_fits_eighty_columns(out, words):
    assert max(map(len, out(*words).splitlines())) <= 80


def test_help_with_choices_shows_their_settings_with_value_bounds_and_meaning(out):
    text = " ".join(out("train", "algo=ppo", "algo.clip_range=0.3", "--help").split())
    meaning = "eps: how far from 1 the ratio may move and still gain; null: any distance"
    assert f"algo.clip_range 0.3 {meaning} [number > 0 or null]" in text
    assert "policy.activation tanh activation of the hidden layers [tanh | relu]" in text
    assert "eval.episodes 20 " in text


def test_list_prints_each_option_with_its_headline(out):
    lines = out("list", "policies").splitlines()
    assert [line.split()[0] for line in lines] == [*groups()["policy"]]
    assert "mlp          A multilayer perceptron for observations that are vectors; separate actor and critic." in lines


def test_shown_config_is_yaml_that_train_reads(out, tmp_path):
    words = ["algo=dr_grpo", "env=cartpole", "seed=3", "algo.clip.low=1e-5", "tuned=none"]
    text = out("show", "config", *words)
    assert yaml.safe_load(text) == dump(compose(words))
    (tmp_path / "shown.yaml").write_text(text)
    assert dump(load(tmp_path / "shown.yaml")) == dump(compose(words))


def test_shown_config_says_where_each_value_comes_from(out, tmp_path):
    (tmp_path / "mine" / "tuned").mkdir(parents=True)
    (tmp_path / "mine" / "tuned" / "dr_grpo_cartpole.yaml").write_text("algo: {epochs: 7}\n")
    text = out("show", "config", "algo=dr_grpo", "env=cartpole", "seed=3", "--config-dir", "mine")
    lines = {line.split(":")[0].strip(): line for line in text.splitlines()}
    assert lines["seed"].endswith("# seed of all random numbers of a run [integer >= 0], from command line")
    assert lines["advantage"].endswith(", from conf/algo/dr_grpo.yaml")
    assert lines["group_size"].endswith(", from conf/algo/grpo.yaml")
    assert lines["epochs"].endswith(", from mine/tuned/dr_grpo_cartpole.yaml")
    assert lines["log_every"].endswith(", from conf/config.yaml")
    assert text.startswith("# algo=dr_grpo env=cartpole policy=mlp device=auto tuned=dr_grpo_cartpole\n")


def test_every_metric_has_a_meaning(out):
    lines = out("show", "metrics").splitlines()
    meanings = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}
    assert {
        "loss/policy",
        "eval/return_mean",
        "rollout/return_mean",
        "time/steps_per_second",
        "policy/entropy",
    } <= meanings.keys()
    assert sum(line.startswith("loss/policy ") and "(" in line for line in lines) > 1  # algorithms differ, by name


def test_a_sound_installation_has_no_finding(out):
    text = out("doctor")
    assert "BAD" not in text
    for word in ("python", "torch", "hydra-core", "cuda", "conf ", "options"):
        assert f"ok   {word}" in text


def test_doctor_finds_the_postgresql_client_in_the_package_and_on_the_path(tmp_path):
    (tmp_path / "pgexecute.py").touch()
    theirs = tmp_path / "pgcli"
    theirs.write_text("#!/usr/bin/python3\nfrom pgcli.main import cli\ncli()\n")
    found = [*doctor.clashes(tmp_path, str(theirs))]
    assert [finding.what for finding in found if not finding.good] == ["package", "command"]
    assert "PostgreSQL client" in found[0].text
    assert found[1].text.endswith("is another program: use policy-gradient-cli or python -m pgcli")


def test_doctor_knows_our_own_command(tmp_path):
    ours = tmp_path / "pgcli"
    ours.write_text("#!/usr/bin/python3\nimport sys\nfrom pgcli.cli import main\nsys.exit(main())\n")
    assert [finding.good for finding in doctor.clashes(Path(doctor.__file__).parents[1], str(ours))] == [True]
