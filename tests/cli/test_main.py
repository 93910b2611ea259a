"""The command itself: help, exit codes, one line for each mistake, and what it imports."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from pgcli.cli import COMMANDS, main
from pgcli.errors import RunError

HEAVY = ("torch", "gymnasium", "hydra", "omegaconf", "matplotlib", "numpy", "pydantic")


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """run("list", "algos") -> exit code, stdout, stderr; in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PGCLI_DEBUG", raising=False)

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(words)
        said = capsys.readouterr()
        assert os.listdir(tmp_path) == [], "nothing is written before the input is found good"
        return stop.value.code, said.out, said.err

    return call


def python(*lines: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def imported(*words: str) -> set[str]:
    """Which of the heavy packages a command line imports."""
    done = python(
        "import sys",
        "from pgcli.cli import main",
        f"try: main({list(words)!r})",
        "except SystemExit: pass",
        f"print(*(m for m in {HEAVY!r} if m in sys.modules), file=sys.stderr)",
    )
    return set(done.stderr.split())


def test_help_names_every_command_and_imports_nothing_heavy(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(f" {command} " in out for command in COMMANDS)
    assert imported("--help") == set()


def test_no_word_at_all_is_help(run):
    assert run() == run("--help")


@pytest.mark.parametrize("words", [["list", "algos"], ["train", "--help"], ["runs"], ["compare", "--help"]])
def test_light_commands_need_neither_torch_nor_hydra(words):
    assert imported(*words) <= {"pydantic", "numpy"}  # Typer reads arguments with pydantic


@pytest.mark.parametrize("words", [["resume"], ["compare"], ["pipeline"], ["runs", "--runs-dir"]])
def test_a_name_that_is_too_long_for_a_file_is_bad_input(run, words):
    assert run(*words, "x" * 300) == (2, "", f"error: `{'x' * 60}...` is too long for the name of a file\n")


def test_a_folder_of_runs_that_is_named_must_exist(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run("runs", "--runs-dir", "rnus") == (2, "", "error: --runs-dir rnus: there is no such folder\n")
    assert run("runs")[0] == 0


@pytest.mark.parametrize(
    ("redirected", "code"), [("list algos >&-", 0), ("train seed=x 2>&-", 2), ("train seed=x 2>/dev/full", 2)]
)
def test_a_stream_that_is_closed_or_full_changes_no_exit_code(redirected, code):
    command = f'"$0" -m pgcli {redirected}'
    assert subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, check=False).returncode == code


def test_what_an_encoding_lacks_is_replaced():
    script = ("import pgcli.cli", "try: pgcli.cli.main(['--version'])", "except SystemExit: print('▁')")
    done = python(*script, PYTHONIOENCODING="latin-1")
    assert (done.stdout.splitlines()[1:], done.stderr) == (["?"], "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Usage: pgcli {command}" in out


def test_studies_are_listed_as_reproduce_lists_them(run):
    code, out, _ = run("list", "studies")
    assert (code, out) == (0, run("reproduce")[1])
    assert "kl_frontier" in out


def test_the_version_is_the_distributions(run):
    assert run("--version") == (0, f"policy-gradient-cli {importlib.metadata.version('policy-gradient-cli')}\n", "")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train", "algo=ppoo"], "error: no algo is called `ppoo`; did you mean `algo=ppo`?   (pgcli list algos)"),
        (["train", "algo.lrr=3"], "error: `algo.lrr` is not a setting of ppo; did you mean `algo.learning_rate`?"),
        (["train", "algo.learning_rate=abc"], "error: `algo.learning_rate` must be a number > 0"),
        (["train", "algo.clip_range=-3"], "error: `algo.clip_range` must be a number > 0"),
        (["train", "seed="], "error: `seed=` has no value; leave it out to keep the default"),
        (["train", "+algo.extra=1"], "error: `+algo.extra=1` is refused: settings are set (key=value), not added"),
        (["train", "seed=1,2"], "error: `seed=1,2` is a sweep: use `pgcli sweep`"),
        (["train", "--config-dir", "nowhere"], "error: config folder "),
        (["train", "--config", "nowhere.yaml"], "error: nowhere.yaml does not exist"),
        (["train", "-x"], "error: No such option: -x   (pgcli train --help)"),
        (["trian"], "error: No such command 'trian'. Did you mean 'train'?   (pgcli --help)"),
        (["list"], "error: Missing argument 'what'."),
        (["list", "dogs"], "error: Invalid value for 'what': 'dogs' is not one of"),
        (["list", "algo"], "error: Invalid value for 'what': 'algo' is not one of 'algos', 'envs', 'policies', "
         "'devices', 'pipelines', 'studies'. Did you mean 'algos'?   (pgcli list --help)"),
        (["show", "confg"], "error: Invalid value for 'what': 'confg' is not one of 'config', 'metrics'. Did you mean "
         "'config'?   (pgcli show --help)"),
        (["sweep", "--resume"], "error: Option '--resume' requires an argument.   (pgcli sweep --help)"),
        (["sweep", "seed=interval(0,1)"], "error: `seed=interval(0,1)` is not a list of values"),
        (["show", "metrics", "algo=ppo"], "error: Invalid value: the metrics of all methods are shown: it takes no"),
        (["show", "config", "env=gymnasium"], "error: `env.id` has no default: give it a value, env.id=..."),
    ],
)  # fmt: skip
def test_refused_input_is_one_line_and_exit_code_2(run, words, line):
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(line)


def noted(error: Exception, note: str) -> Exception:
    error.add_note(note)
    return error


def fail_with(monkeypatch, error: BaseException) -> None:
    def fail(_shell: str) -> None:
        raise error

    monkeypatch.setattr("pgcli.cli.list.groups", fail)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RunError("the disk is full"), 1, "error: the disk is full\n"),
        (
            ZeroDivisionError("division by zero\nmore"),
            1,
            "error: ZeroDivisionError: division by zero   (--debug shows where)\n",
        ),
        (
            noted(ValueError("odd"), "run    runs/mine (failed)"),
            1,
            "error: ValueError: odd   (--debug shows where)\nrun    runs/mine (failed)\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_while_running_have_their_exit_codes_and_no_traceback(run, monkeypatch, error, code, line):
    fail_with(monkeypatch, error)
    assert run("list", "algos") == (code, "", line)


@pytest.mark.parametrize("words", [["--debug", "list", "algos"], ["list", "algos", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(monkeypatch, words):
    monkeypatch.setenv("PGCLI_DEBUG", "")  # so that it is restored
    fail_with(monkeypatch, ZeroDivisionError("here"))
    with pytest.raises(ZeroDivisionError):
        main(words)


@pytest.mark.parametrize("writer", ["typer.echo", "print"])  # one writes at once, the other when the program ends
def test_a_reader_that_leaves_early_hears_no_complaint(tmp_path, writer):
    script = tmp_path / "list.py"
    script.write_text(f"import typer\ntyper.echo = {writer}\nfrom pgcli.cli import main\nmain(['list', 'envs'])\n")
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} {script} | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONUNBUFFERED": ""},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_the_package_exports_its_functions_lazily():
    done = python(
        "import sys, pgcli",
        "assert 'torch' not in sys.modules and 'hydra' not in sys.modules",
        "assert pgcli.__version__",
        "assert {'train', 'resume', 'evaluate', 'sweep', 'compare', 'Run'} <= set(dir(pgcli))",
        "from pgcli import Run",
        "assert 'torch' not in sys.modules",
        "try: pgcli.nothing",
        "except AttributeError as error: print(error)",
    )
    assert (done.stdout, done.stderr) == ("module `pgcli` has no attribute `nothing`\n", "")
