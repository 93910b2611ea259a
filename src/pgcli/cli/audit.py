"""`pgcli audit`: checks of properties that every run must have."""

import json
from typing import Annotated

import typer


def audit(
    run: Annotated[str, typer.Argument(help="The run's directory, or `latest`.")],
    *,
    trust: Annotated[bool, typer.Option("--trust", help="Import user code that the run names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object, with the key `passed`.")] = False,
) -> None:
    """Check a finished run: its files, and by playing its last checkpoint once more. Exits with 1 if a check fails."""
    from pgcli.experiment import audit as check

    found = check(run, trust=trust)
    failed = [one for one in found if one.ok is False]
    if as_json:
        rows = [one._asdict() for one in found]
        typer.echo(json.dumps({"passed": not failed, "checks": rows}, indent=1))
    else:
        width = max(len(one.name) for one in found)
        for one in found:
            mark = {True: "ok", False: "NOT", None: "-"}[one.ok]
            typer.echo(f"{mark:4}{one.name:{width}}  {one.seen}")
        held = sum(one.ok is True for one in found)
        typer.echo(
            f"{held} hold, {len(failed)} do not" + (f": {', '.join(one.name for one in failed)}" if failed else "")
        )
    if failed:
        raise typer.Exit(1)
