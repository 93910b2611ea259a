"""`pgcli train`: one experiment, from a config to a run directory."""

from pathlib import Path
from typing import Annotated

import typer

from pgcli.cli._completion import complete_override
from pgcli.cli._ending import end


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Overrides: group=option and key=value.", autocompletion=complete_override),
    ] = None,
    *,
    config_dir: Annotated[list[Path] | None, typer.Option(help="A config folder of your own; may be repeated.")] = None,
    config: Annotated[Path | None, typer.Option(help="The config.yaml of a run, to use instead of conf/.")] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="The run directory to create, instead of one in runs_dir.")
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Import user code that a file names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print nothing but a JSON object at the end.")] = False,
    samples: Annotated[
        bool, typer.Option("--samples", help="Show some completions of each evaluation, of a text task.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")] = False,
) -> None:
    """Train a policy, with the tuned settings for this algorithm and environment if there are any."""
    from pgcli.experiment import train as start

    run = start(
        *(overrides or []),
        config=config,
        config_dirs=config_dir or (),
        run_dir=run_dir,
        trust=trust,
        quiet=quiet or as_json,
        samples=samples,
    )
    end(run, as_json=as_json)
