"""`pgcli sample`: completions by a trained policy."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer


def sample(
    run: Annotated[str, typer.Argument(help="The run's directory, or `latest`.")],
    prompt: Annotated[str | None, typer.Option(help="Text to complete; default: held-out prompts.")] = None,
    *,
    n: Annotated[int, typer.Option("-n", help="Number of completions.")] = 8,
    temperature: Annotated[float, typer.Option(help="Temperature of the sampling, on top of the policy's own.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Sample among this number of likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample among the fewest tokens with this total probability.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Sample among tokens at least this many times as likely as the likeliest.")
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest token each time.")] = False,
    best_of: Annotated[
        int, typer.Option(metavar="N", help="Sample N for each one shown: that of the highest reward.")
    ] = 1,
    seed: Annotated[int | None, typer.Option(help="Seed of prompts and noise; the run's own by default.")] = None,
    history: Annotated[
        bool, typer.Option("--history", help="Show instead -n completions of each evaluation in training.")
    ] = False,
    trust: Annotated[bool, typer.Option("--trust", help="Import user code that the run names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Completions by a run's last checkpoint, with their log-probs, rewards and divergence from the reference."""
    if history:
        found = _history(run, n)
    else:
        from pgcli.experiment import sample as write

        found = write(
            run, prompt, n=n, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, greedy=greedy,
            best_of=best_of, seed=seed, trust=trust,
        )  # fmt: skip
    if as_json:
        from pgcli.runs.reader import plain

        typer.echo(json.dumps(plain(found), ensure_ascii=False))  # what cannot be scored has a reward of NaN
        return
    for line in lines(found["samples"]):
        typer.echo(line)


def _history(run: str, n: int) -> dict[str, Any]:
    from pgcli.errors import InputError
    from pgcli.runs.reader import find_run

    found = find_run(run)
    rows = found.samples()
    if not rows:
        raise InputError(f"{found.path} has written no completions down (eval.texts, of a text task)")
    steps = [row["step"] for row in rows]
    first = [row for i, row in enumerate(rows) if i - steps.index(row["step"]) < n]
    return {"run": str(found.path), "samples": first}


def lines(samples: list[dict[str, Any]]) -> Iterator[str]:
    """A block for each sample: the text, then its numbers; a heading when the step changes."""
    step = None
    for sample in samples:
        if sample.get("step") != step:
            step = sample["step"]
            yield f"step {step:,}"
        end = "" if sample["finished"] else " ..."
        yield f"{sample['prompt']} | {sample['completion']}{end}"
        yield "  " + "  ".join(f"{name} {value}" for name, value in _numbers(sample))


def _numbers(sample: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from pgcli.runs.numbers import number

    yield "reward", number(sample["reward"])
    for name, value in sample["components"].items():
        yield name.replace("_", " "), number(value)
    yield "log-prob", number(sample["log_prob"])
    if "sampled_log_prob" in sample:
        yield "as sampled", number(sample["sampled_log_prob"])
    if "kl" in sample:
        yield "KL", number(sample["kl"])
    yield "tokens", f"{sample['tokens']}" + ("" if sample["finished"] else " (cut)")
