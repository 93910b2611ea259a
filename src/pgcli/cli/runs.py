"""`pgcli runs`: the runs in a folder."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgcli.cli._console import console

if TYPE_CHECKING:
    from rich.table import Table

    from pgcli.runs import Run


def runs(
    runs_dir: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of JSON objects.")] = False,
) -> None:
    """List runs, oldest first: how each ended, and its last evaluation."""
    from pgcli.errors import InputError
    from pgcli.runs.reader import plain, scan_runs

    if runs_dir != Path("runs") and not runs_dir.is_dir():  # the default one is made by the first run
        raise InputError(f"--runs-dir {runs_dir}: there is no such folder")
    found, problems = scan_runs(runs_dir)
    rows = []
    for run in found:
        try:
            rows.append(_row(run))
        except InputError as error:  # of its metrics: one damaged run hides no other
            problems.append(str(error))
    for problem in problems:
        typer.echo(f"warning: {problem}", err=True)
    if as_json:
        typer.echo(json.dumps(plain(rows), indent=1))
    elif rows:
        _print(rows)
    else:
        typer.echo(f"no runs in {runs_dir}; start one:  pgcli train algo=ppo env=cartpole")


def _row(run: "Run") -> dict:
    returns = run.points("eval/return_mean")[1]
    return {
        "id": run.id,
        "path": str(run.path),
        "status": run.status,
        "algo": run.choices["algo"],
        "env": run.slug,
        "seed": run.seed,
        "steps": run.steps,
        "eval_return": returns[-1] if returns else None,
        "created": run.info["created"],
        "reason": run.info["reason"],
    }


NARROW = ("seed", "algo", "env", "age", "steps")
"""What goes first where the terminal is narrow: the name that a run was given by `pgcli train` has the first three."""


def _print(rows: list[dict]) -> None:
    from pgcli.runs.numbers import number

    columns = {
        "run": [Path(row["path"]).name for row in rows],  # as one types it: a run may have been moved
        "status": [row["status"] for row in rows],
        "algo": [row["algo"] for row in rows],
        "env": [row["env"] for row in rows],
        "seed": [str(row["seed"]) for row in rows],
        "steps": [f"{row['steps']:,}" for row in rows],
        "return": ["-" if row["eval_return"] is None else number(row["eval_return"]) for row in rows],
        "age": [_age(row["created"]) for row in rows],
    }
    page = console()
    narrow = [*NARROW]
    while narrow and _width(columns) > page.width:
        del columns[narrow.pop(0)]
    page.print(_table(columns))


def _width(columns: dict[str, list[str]]) -> int:
    return sum(3 + max(map(len, [name, *cells])) for name, cells in columns.items())


def _table(columns: dict[str, list[str]]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        number = name in ("seed", "steps", "return", "age")
        table.add_column(name, justify="right" if number else "left", no_wrap=name != "run", overflow="fold")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def _age(created: str) -> str:
    seconds = (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"
