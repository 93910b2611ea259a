"""The command `pgcli`: one file for each command, imported when the command runs or shows its help.

Error messages are printed here and nowhere else.
"""

import errno
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from pgcli.cli._ending import one_of_many
from pgcli.errors import PgcliError

COMMANDS = {
    "train": "train", "resume": "resume", "eval": "evaluate", "sample": "sample", "sweep": "sweep",
    "export": "export", "pipeline": "pipeline", "audit": "audit",
    "compare": "compare", "reproduce": "reproduce", "verify": "verify", "runs": "runs", "list": "list_options",
    "show": "show", "doctor": "doctor",
}  # fmt: skip
"""Command -> function in the module of the command's name."""
WITH_SETTINGS = ("train", "sweep")
"""Commands whose help also lists the settings that overrides can change."""


class Commands(TyperGroup):
    """Imports `pgcli.cli.<name>` only when `<name>` is used."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = dict.fromkeys(COMMANDS)  # type: ignore[assignment]  # their names suggest themselves for a typo

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        if cmd_name not in COMMANDS:
            return None
        from pgcli.cli._help import CommandWithSettings

        one = typer.Typer(add_completion=False)
        one.command(cmd_name, cls=CommandWithSettings if cmd_name in WITH_SETTINGS else None)(
            getattr(importlib.import_module(f"pgcli.cli.{cmd_name}"), COMMANDS[cmd_name])
        )
        return typer.main.get_command(one)


app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        import pgcli

        typer.echo(f"policy-gradient-cli {pgcli.__version__}")
        raise typer.Exit


@app.callback()
def pgcli(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; works after the command too, as does PGCLI_DEBUG=1.")
    ] = False,
) -> None:
    """Experiments with policy-gradient methods, from REINFORCE on CartPole to GRPO on a language model.

    Start with:  pgcli train algo=ppo env=cartpole
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit: 0, 1 for a failure while running, 2 for refused input, 130 for Ctrl-C."""
    from pgcli.cli import _completion

    _open_streams()
    words = [*sys.argv[1:]] if arguments is None else [*arguments]
    if "--debug" in words:
        words = [word for word in words if word != "--debug"]
        os.environ["PGCLI_DEBUG"] = "1"  # for the processes that a sweep starts, too
    if _completion.handle(words):
        sys.exit(0)
    try:
        code = typer.main.get_command(app).main(words or ["--help"], prog_name="pgcli", standalone_mode=False)
        sys.stdout.flush()
    except Exception as error:
        code = _report(error, words)
    sys.exit(code if type(code) is int else 0)


def _open_streams() -> None:
    """A closed stream (`>&-`) becomes /dev/null; an encoding that lacks a character (Latin-1, of `▁`) gets a `?`."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in order: each gets its usual number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape" if encoding.lower().startswith("utf") else "replace")


def _report(error: Exception, words: Sequence[str]) -> int:
    """Say in one line what was wrong, and give the exit code."""
    if os.environ.get("PGCLI_DEBUG", "0") not in ("", "0"):
        raise error
    match error:
        case PgcliError():
            return _say(f"error: {error}", error.exit_code)
        case typer.TyperException():  # a wrong option, a missing argument
            typed = " ".join(["pgcli", *(word for word in words[:1] if word in COMMANDS)])
            command = getattr(getattr(error, "ctx", None), "command_path", typed)
            text = " ".join(error.format_message().split()).replace(": Value error, ", ": ")  # pydantic's own words
            return _say(f"error: {text}{_suggestion(text)}   ({command} --help)", 2)
        case typer.Abort():
            return _say("aborted", 1)
        case OSError(errno=errno.ENAMETOOLONG):  # several names quoted as one, say; wherever it was looked for
            return _say(f"error: `{str(error.filename)[:60]}...` is too long for the name of a file", 2)
        case BrokenPipeError():  # `pgcli list envs | head -1`: no reader is left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
    first = str(error).partition("\n")[0]
    notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", []))
    return _say(f"error: {type(error).__name__}: {first}   (--debug shows where){notes}", 1)


def _suggestion(text: str) -> str:
    """`'algo' is not one of 'algos', 'envs'.` -> ` Did you mean 'algos'?`, as typer says it of commands."""
    from pgcli.experiment.validation import nearest

    typed, refused, choices = text.rpartition(": ")[2].partition(" is not one of ")
    close = nearest(typed.strip("'"), re.findall("'([^']*)'", choices)) if refused else None
    return f" Did you mean '{close}'?" if close else ""


def _say(text: str, code: int) -> int:
    # While completing, the shell would print it into the line that is being typed.
    if "_PGCLI_COMPLETE" not in os.environ and not one_of_many():
        with suppress(OSError):  # where nobody reads it, the code still says it
            typer.echo(text, err=True)
    return code
