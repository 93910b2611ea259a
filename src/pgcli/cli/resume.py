"""`pgcli resume`: go on with a run from its newest valid checkpoint."""

from typing import Annotated

import typer

from pgcli.cli._completion import complete_override
from pgcli.cli._ending import end


def resume(
    run: Annotated[str, typer.Argument(help="The run's directory, or `latest`.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings to change: total_steps=..., stop_at=...", autocompletion=complete_override),
    ] = None,
    *,
    fork: Annotated[bool, typer.Option("--fork", help="Go on in a new run directory; any setting may change.")] = False,
    trust: Annotated[bool, typer.Option("--trust", help="Import user code that the run names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print nothing but a JSON object at the end.")] = False,
    samples: Annotated[
        bool, typer.Option("--samples", help="Show some completions of each evaluation, of a text task.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")] = False,
) -> None:
    """Resume a run: it ends as if it had never stopped."""
    from pgcli.experiment import resume as go_on

    done = go_on(run, *(overrides or []), fork=fork, trust=trust, quiet=quiet or as_json, samples=samples)
    end(done, as_json=as_json)
