"""`pgcli reproduce`: a named study, and its results beside published ones."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgcli.cli._completion import complete_study
from pgcli.cli._console import console

if TYPE_CHECKING:
    from pgcli.studies import Reproduction


def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="Name of the study; none: list them.", autocompletion=complete_study)
    ] = None,
    *,
    fraction: Annotated[float, typer.Option(help="Share of the study's budget to run, for a first look.")] = 1.0,
    seeds: Annotated[
        int | None, typer.Option(help="Runs (seeds) of each line of the table; default: the study's number.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Runs at a time, each with a process and a core.")] = 1,
    only: Annotated[
        list[str] | None, typer.Option(metavar="ENV", help="Run this environment only; may be repeated.")
    ] = None,
    studies_dir: Annotated[Path, typer.Option(help="Folder for the runs, in a folder of the study's name.")] = Path(
        "studies"
    ),
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report (.md and .svg); default: beside the runs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")] = False,
    config_dir: Annotated[list[Path] | None, typer.Option(help="A config folder of your own; may be repeated.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Import user code that a file names.")] = False,
) -> None:
    """Run a named study, and print our results beside published ones. The same command again resumes it."""
    from pgcli.cli.list import print_options
    from pgcli.cli.sweep import Board, failures, lines, nothing, screen
    from pgcli.options import headline, options, search_path

    if name is None:
        found = {study: headline(file) for study, file in options("experiment", search_path(config_dir or ())).items()}
        if as_json:
            typer.echo(json.dumps(found, indent=1))
            return
        print_options(found)
        return

    from pgcli import studies
    from pgcli.runs.console import Stream, is_plain
    from pgcli.studies import report

    stream, board = Stream(sys.stdout), Board()
    view = nothing() if as_json else lines(board, stream) if is_plain(sys.stdout, os.environ) else screen(board, stream)
    with view as show:
        done = studies.reproduce(
            name, fraction=fraction, seeds=seeds, workers=workers, only=only or [], studies_dir=studies_dir, out=out,
            config_dirs=config_dir or [], trust=trust, on_change=show,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(report.as_data(done), indent=1))
    else:
        _print(done, out, failures(done.sweep))
    if done.sweep.signal is not None:
        raise typer.Exit(128 + done.sweep.signal)
    if not done.finished:
        raise typer.Exit(1)


def _print(done: Reproduction, out: Path | None, failed: list[str]) -> None:
    from pgcli.studies import report

    page = console()
    if done.lines:
        page.print(f"{done.name}: {report.what(done)}; 95% intervals in brackets", soft_wrap=True)
        page.print(report.as_table(done, page.width))
    for text in [report.scaled(done), *done.study.notes, *done.missing, *report.not_run(done)]:
        if text:
            page.print(f"note: {text}", soft_wrap=True)
    for text in failed:
        page.print(text, soft_wrap=True)
    if done.lines:
        page.print(f"report {(out or done.path) / done.name}.md", soft_wrap=True)
    page.print(f"runs   {done.path}", soft_wrap=True)
    again = f"{report.command(done)}: the same command goes on" if not done.finished else f"pgcli compare {done.path}"
    page.print(f"next   {again}", soft_wrap=True)
