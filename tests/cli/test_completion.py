"""Completion, as the shell asks for it: in a real bash, and by Typer's protocol for the others."""

import os
import shutil
import stat
import subprocess
import sys

import pytest

from pgcli.cli import _completion
from pgcli.options import options, search_path


def words(incomplete: str, *before: str) -> list[str]:
    folders = search_path()
    chosen = _completion._choices(before, folders)
    return [word for word, _ in _completion._words(incomplete, chosen, folders) if word.startswith(incomplete)]


def test_options_of_a_group():
    assert words("algo=pp") == ["algo=ppo", "algo=ppo_kl"]
    assert words("device=c") == ["device=cpu", "device=cuda"]
    assert words("env=") == [f"env={name}" for name in options("env", search_path())]


def test_a_sweep_goes_on_after_its_comma():
    assert words("algo=ppo,a2") == ["algo=ppo,a2c"]


def test_settings_are_those_of_the_chosen_options():
    assert words("algo.clip", "algo=ppo") == ["algo.clip_range=", "algo.clip_range_value="]
    assert words("algo.clip", "algo=dr_grpo") == [
        "algo.clip.low=",
        "algo.clip.high=",
    ]  # of grpo.yaml, which it starts from
    assert "algo.name=" not in words("algo.")
    assert words("env.k", "env=LunarLander-v3") == ["env.kwargs="]  # an id is the gymnasium option


def test_a_setting_offers_its_value():
    assert words("algo.group_size=", "algo=grpo") == ["algo.group_size=8"]
    assert words("policy.orthogonal=") == ["policy.orthogonal=true", "policy.orthogonal=false"]
    assert words("tuned=") == ["tuned=auto", "tuned=none"] or "tuned=auto" in words("tuned=")


def test_the_first_letters_offer_groups_and_settings():
    assert words("al") == ["algo=", "algo."]
    assert words("eval.ev") == ["eval.every="]
    assert words("s") == ["seed=", "stop_at="]


# ---------------------------------------------------------------- in the shell


@pytest.fixture
def path(tmp_path):
    """PATH with a `pgcli` in front that tells what it imported."""
    script = tmp_path / "pgcli"
    lines = [
        f"#!{sys.executable}",
        "import sys",
        "from pgcli.cli import main",
        "try: main()",
        "finally:",
        f"    with open({str(tmp_path / 'heavy')!r}, 'w') as file:",
        "        file.writelines(m for m in ('torch', 'hydra', 'gymnasium') if m in sys.modules)",
    ]
    script.write_text("\n".join(lines) + "\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return f"{tmp_path}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    ("line", "cut", "reply"),
    [
        ("pgcli tr", "(pgcli tr)", ["train"]),
        ("pgcli train algo=pp", "(pgcli train algo = pp)", ["ppo", "ppo_kl"]),
        (
            "pgcli train algo=ppo algo.clip_range_",
            "(pgcli train algo = ppo algo.clip_range_)",
            ["algo.clip_range_value="],
        ),
        ("pgcli train env=cartpole device=", "(pgcli train env = cartpole device =)", ["auto", "cpu", "cuda", "mps"]),
        ("pgcli train env=my:Env-v0 --tru", "(pgcli train env = my : Env-v0 --tru)", ["--trust"]),
        ("pgcli list po", "(pgcli list po)", ["policies"]),
    ],
)
def test_bash_completes_a_word_that_it_has_cut_at_equals_signs(path, tmp_path, line, cut, reply):
    # Readline would set these variables: COMP_LINE is what was typed, COMP_WORDS is cut at COMP_WORDBREAKS.
    ask = f"""
        {_completion.BASH}
        COMP_LINE={line!r} COMP_POINT={len(line)} COMP_WORDS={cut}
        COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )) COMP_WORDBREAKS=$' \\t\\n"><=;|&(:'
        _pgcli_completion
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", ask], capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )
    assert (done.stdout.split(), done.stderr) == (reply, "")
    assert (tmp_path / "heavy").read_text() == ""


@pytest.mark.parametrize(("shell", "answer"), [("fish", "algo=ppo\tProximal"), ("zsh", '"algo=ppo":"Proximal')])
def test_other_shells_are_answered_in_their_own_words(path, shell, answer):
    asked = {
        "_PGCLI_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "pgcli train algo=pp",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    env = {**os.environ, "PATH": path, **asked}
    done = subprocess.run(["pgcli"], capture_output=True, text=True, check=False, env=env)
    assert answer in done.stdout


def test_the_script_is_shown_and_installed_once(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(_completion, "_shell", lambda: "bash")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _completion.handle(["--show-completion"])
    assert capsys.readouterr().out == _completion.BASH
    for _ in range(2):
        assert _completion.handle(["--install-completion"])
    assert (tmp_path / ".bash_completions" / "pgcli.sh").read_text() == _completion.BASH
    assert (tmp_path / ".bashrc").read_text().count("pgcli.sh") == 1
    monkeypatch.setattr(_completion, "_shell", lambda: "zsh")
    assert not _completion.handle(["--install-completion"])  # Typer's
