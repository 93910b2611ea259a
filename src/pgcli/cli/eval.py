"""`pgcli eval`: the return of a run's last checkpoint over fresh episodes."""

import json
from typing import Annotated

import typer


def evaluate(
    run: Annotated[str, typer.Argument(help="The run's directory, or `latest`.")],
    episodes: Annotated[int, typer.Option(help="Fresh episodes for each of the two returns.")] = 100,
    samples: Annotated[int, typer.Option(help="Sampled completions of each prompt; 2 or more give pass@k.")] = 1,
    temperature: Annotated[float, typer.Option(help="Temperature of the sampling, on top of the policy's own.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Sample among this number of likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample among the fewest tokens with this total probability.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Sample among tokens at least this many times as likely as the likeliest.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the episodes; the run's own by default.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Import user code that the run names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Greedy and stochastic return of a run, with 95 % confidence intervals; for texts also the reward's components."""
    from pgcli.experiment import evaluate as measure

    found = measure(
        run, episodes=episodes, samples=samples, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        seed=seed, trust=trust,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(found))
        return
    from pgcli.runs.numbers import number

    for name in ("greedy", "stochastic"):
        interval = found[name]["interval"]
        spread = f" [{number(interval[0])}, {number(interval[1])}]" if interval else ""
        counted, prompts = found[name]["episodes"], found[name]["prompts"]
        fresh = "1 fresh episode" if counted == 1 else f"{counted} fresh episodes"
        of = ""
        if prompts is not None and prompts < counted:
            of = " of one prompt" if prompts == 1 else f" of {prompts} different prompts"
        typer.echo(f"{name:10}  {number(found[name]['mean'])}{spread}   {fresh}{of}")
    if found["metrics"]:
        typer.echo("sampled     " + "  ".join(f"{key} {number(value)}" for key, value in found["metrics"].items()))
