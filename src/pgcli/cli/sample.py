"""`pgcli sample`: what a trained policy writes."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer


def sample(
    run: Annotated[str, typer.Argument(help="Its directory, or `latest`.")],
    prompt: Annotated[str | None, typer.Option(help="What to go on from; default: held-out prompts.")] = None,
    *,
    n: Annotated[int, typer.Option("-n", help="Completions.")] = 8,
    temperature: Annotated[float, typer.Option(help="Of the sampling, on top of the policy's own.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Sample among so many likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the fewest that have this probability.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="The likeliest token each time.")] = False,
    best_of: Annotated[int, typer.Option(metavar="N", help="Write N for each, show the one of highest reward.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Of prompts and noise; the run's own by default.")] = None,
    history: Annotated[
        bool, typer.Option("--history", help="Those of each evaluation while it trained, instead; -n of each.")
    ] = False,
    trust: Annotated[bool, typer.Option("--trust", help="Import user code that the run names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object.")] = False,
) -> None:
    """Completions by a run's last checkpoint, with their log-probs, rewards and divergence from the reference."""
    if history:
        found = _history(run, n)
    else:
        from pgcli.experiment import sample as write

        found = write(
            run, prompt, n=n, temperature=temperature, top_k=top_k, top_p=top_p, greedy=greedy, best_of=best_of,
            seed=seed, trust=trust,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    for line in lines(found["samples"]):
        typer.echo(line)


def _history(run: str, n: int) -> dict[str, Any]:
    from pgcli.errors import InputError
    from pgcli.runs.reader import find_run, plain

    found = find_run(run)
    rows = found.samples()
    if not rows:
        raise InputError(f"{found.path} has written no completions down (eval.texts, of a text task)")
    steps = [row["step"] for row in rows]
    first = [row for i, row in enumerate(rows) if i - steps.index(row["step"]) < n]
    return {"run": str(found.path), "samples": plain(first)}


def lines(samples: list[dict[str, Any]]) -> Iterator[str]:
    """A block for each: the text, then its numbers; a heading where the step changes."""
    step = None
    for sample in samples:
        if sample.get("step") != step:
            step = sample["step"]
            yield f"step {step:,}"
        end = "" if sample["finished"] else " ..."
        yield f"{sample['prompt']} | {sample['completion']}{end}"
        yield "  " + "  ".join(f"{name} {value}" for name, value in _numbers(sample))


def _numbers(sample: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from pgcli.runs.console import number

    yield "reward", number(sample["reward"])
    for name, value in sample["components"].items():
        yield name.replace("_", " "), number(value)
    yield "log-prob", number(sample["log_prob"])
    if "sampled_log_prob" in sample:
        yield "as sampled", number(sample["sampled_log_prob"])
    if "kl" in sample:
        yield "KL", number(sample["kl"])
    yield "tokens", f"{sample['tokens']}" + ("" if sample["finished"] else " (cut)")
