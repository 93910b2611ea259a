"""`pgcli runs`: the runs in a folder."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pgcli.cli._console import console


def runs(
    runs_dir: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of JSON objects.")] = False,
) -> None:
    """List runs, oldest first: how each ended, and its last evaluation."""
    from pgcli.runs.reader import plain, scan_runs

    found, problems = scan_runs(runs_dir)
    rows = []
    for run in found:
        returns = run.points("eval/return_mean")[1]
        rows.append(
            {
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
        )
    for problem in problems:
        typer.echo(f"warning: {problem}", err=True)
    if as_json:
        typer.echo(json.dumps(plain(rows), indent=1))
    elif rows:
        _print(rows)
    else:
        typer.echo(f"no runs in {runs_dir}; start one:  pgcli train algo=ppo env=cartpole")


def _print(rows: list[dict]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", no_wrap=True)
    for name in ("status", "algo", "env"):
        table.add_column(name, overflow="fold")
    for name in ("seed", "steps", "return", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        value = "-" if row["eval_return"] is None else f"{row['eval_return']:.1f}"
        cells = (row["id"], row["status"], row["algo"], row["env"], str(row["seed"]), f"{row['steps']:,}", value)
        table.add_row(*cells, _age(row["created"]))
    page = console()
    page.print(table)


def _age(created: str) -> str:
    seconds = (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"
