"""`pgcli compare`: which group of runs is better, and how certain that is."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pgcli.cli._console import console


def compare(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATHS", help="Run directories, or folders with runs in them.")
    ],
    *,
    threshold: Annotated[
        float | None, typer.Option(help="Value to reach; default: the environment's solved_at.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            help="Difference worth detecting: also tells the number of seeds it needs. On several environments a share "
            "of the range of all runs."
        ),
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Compare evaluations of the greedy policy, not of the stochastic one.")
    ] = False,
    metric: Annotated[
        str | None, typer.Option(help="Metric of the evaluations to compare instead of the return; more is better.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap and the permutation test.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with the key `verdict`.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table to a CSV file.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the curves into a .png or .svg file.")] = None,
) -> None:
    """Compare runs: groups by the settings that differ, intervals over seeds, and a verdict.

    In brackets: 95% intervals. Area: the mean height of the curve where all runs have been evaluated.
    """
    from pgcli import analysis
    from pgcli.analysis import report
    from pgcli.errors import InputError

    found = analysis.compare(paths, threshold=threshold, margin=margin, greedy=greedy, metric=metric, seed=seed)
    if csv is not None:
        try:
            csv.write_text(report.as_csv(found), "utf-8")
        except OSError as error:
            raise InputError(f"cannot write {csv}: {error.strerror}") from error
    if plot is not None:
        from pgcli.analysis.plots import plot as draw

        draw(found, plot)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    elif markdown:
        typer.echo(report.as_markdown(found))
    else:
        page = console()
        page.print(report.as_table(found, page.width))
        for warning in found.warnings:
            page.print(f"note: {warning}", soft_wrap=True)
        typer.echo(found.verdict)
