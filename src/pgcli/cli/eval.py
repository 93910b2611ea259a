"""`pgcli eval`: the return of a run's last checkpoint over fresh episodes."""

import json
from typing import Annotated

import typer


def evaluate(
    run: Annotated[str, typer.Argument(help="Its directory, or `latest`.")],
    episodes: Annotated[int, typer.Option(help="Fresh episodes for each of the two returns.")] = 100,
    seed: Annotated[int | None, typer.Option(help="Of the episodes; the run's own by default.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Import user code that the run names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object.")] = False,
) -> None:
    """Greedy and stochastic return of a run, with 95 % confidence intervals."""
    from pgcli.experiment import evaluate as measure

    found = measure(run, episodes=episodes, seed=seed, trust=trust)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for name in ("greedy", "stochastic"):
        interval = found[name]["interval"]
        spread = f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else ""
        typer.echo(f"{name:10}  {found[name]['mean']:.4g}{spread}   {episodes} fresh episodes")
