"""`pgcli export`: a run's language model for other tools."""

import json
from typing import Annotated

import typer


def export(
    run: Annotated[str, typer.Argument(help="The run's directory, or `latest`.")],
    folder: Annotated[str, typer.Argument(help="The folder to create.")],
    trust: Annotated[bool, typer.Option("--trust", help="Import user code that the run names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Write a run's language model as a Hugging Face folder: weights, config and, where possible, a tokenizer."""
    from pgcli.experiment import export as write

    found = write(run, folder, trust=trust)
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(f"{found['folder']}: {', '.join(found['files'])} (step {found['step']:,})")
