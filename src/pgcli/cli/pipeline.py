"""`pgcli pipeline`: runs that build on one another, and a report at the end."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pgcli.cli._completion import complete_pipeline, complete_stage_override
from pgcli.cli._console import console
from pgcli.cli._ending import trusted


def pipeline(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Name of a pipeline or a file of stages (.yaml), or a pipeline's directory, to go on; none: list.",
            autocompletion=complete_pipeline,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="STAGE.key=value for one stage (ppo.algo.kl.coefficient=0), key=value for all (seed=1).",
            autocompletion=complete_stage_override,
        ),
    ] = None,
    *,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the newest pipeline of this name with these overrides.")
    ] = False,
    pipelines_dir: Annotated[Path, typer.Option(help="Folder of the pipelines' directories.")] = Path("pipelines"),
    samples: Annotated[bool, typer.Option("--samples", help="Show some completions of each evaluation.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as a JSON object, and nothing else.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the report.")] = False,
    config_dir: Annotated[list[Path] | None, typer.Option(help="A config folder of your own; may be repeated.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Import user code that a file names.")] = False,
) -> None:
    """Run a list of stages, each a run directory, and compare their results. A killed pipeline can be resumed."""
    if name is None:
        from pgcli.cli.list import print_options
        from pgcli.options import headline, options, search_path

        folders = search_path(config_dir or ())
        print_options({option: headline(file) for option, file in options("pipeline", folders).items()})
        return
    from pgcli.pipelines import pipeline as run
    from pgcli.pipelines import report

    silent = quiet or as_json

    def tell(number: int, stage: str, over: bool) -> None:
        if not silent:
            typer.echo(f"stage {number + 1}, {stage}" + (": finished before" if over else ""))

    done = run(
        name, *(overrides or []), resume=resume, pipelines_dir=pipelines_dir, config_dirs=config_dir or [], trust=trust,
        quiet=silent, samples=samples, on_stage=tell,
    )  # fmt: skip
    if done.signal is not None:
        typer.echo(f"interrupted\nnext   pgcli pipeline {done.path}", err=as_json)
        raise typer.Exit(128 + done.signal)
    found = report.make(done)
    if as_json:
        from pgcli.runs.reader import plain

        typer.echo(json.dumps(plain(found), indent=1))
    else:
        _print(found, done.path)


def _print(found: dict[str, Any], path: Path) -> None:
    from pgcli.pipelines import report
    from pgcli.runs import Run

    page = console()
    page.print()
    for rows in (report.stage_table(found), report.policy_table(found)):
        if rows:
            page.print(_table(rows))
    for line in [*report.explanations(found), "", *report.samples(found)]:
        page.print(line, soft_wrap=not page.is_terminal)
    last = path / found["stages"][-1]["run"]
    trust = trusted(Run(last))
    page.print(f"\nreport {path / 'report.md'}", soft_wrap=True)
    page.print(f"next   pgcli sample {last}{trust}\n       pgcli audit {last}{trust}", soft_wrap=True)


def _table(rows: list[list[str]]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, heading in enumerate(rows[0]):
        table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for row in rows[1:]:
        table.add_row(*row)
    return table
