"""The learning claims: every algorithm on CartPole over ten seeds, and on the language task over five.

    .venv/bin/python benchmarks/study.py            # about fifteen minutes on two cores; writes docs/results/

An interrupted study goes on where it was: `pgcli sweep --resume` each of its sweeps, then this again with --reuse.
"""

import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pgcli import Run, compare, sweep, train
from pgcli.analysis.plots import plot
from pgcli.analysis.report import as_markdown
from pgcli.runs.provenance import machine, versions

RESULTS = Path(__file__).parents[1] / "docs" / "results"
CARTPOLE = ["algo=ppo,a2c,reinforce,rloo,grpo", "env=cartpole", "seed=range(0,10)"]
SORT = ["algo=grpo,rloo,ppo,reinforce", "env=sort", "seed=range(0,5)"]
SOLVED = {"cartpole": 475.0, "sort": 0.9}


def main(
    workers: Annotated[int, typer.Option(help="Runs at a time.")] = 2,
    folder: Annotated[Path, typer.Option(help="Where the runs go.")] = Path("study"),
    reuse: Annotated[bool, typer.Option(help="Take the sweeps that are there.")] = False,
) -> None:
    """Run the studies and write what came out, the bad too."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    starts = [folder / f"sft_{seed}" for seed in range(5)]
    if not reuse:
        for seed, path in enumerate(starts):
            train("algo=sft", "env=sort", f"seed={seed}", run_dir=path, quiet=True)
        sweep(*SORT, f"init={folder}/sft_${{seed}}", workers=workers, sweeps_dir=folder / "sort")
        sweep(*CARTPOLE, workers=workers, sweeps_dir=folder / "cartpole")
    report("sort", folder / "sort", SORT, [Run(path) for path in starts])
    report("cartpole", folder / "cartpole", CARTPOLE, [])


def report(name: str, folder: Path, words: list[str], starts: list[Run]) -> None:
    """docs/results/<name>.md: a row for each algorithm, the verdict, and how to do it again."""
    runs = [Run(path.parent) for path in sorted(folder.glob("*/runs/*/run.json"))]
    solved = SOLVED[name]
    lines = [
        f"# {name}",
        "",
        f"`pgcli sweep {' '.join(words)}`" + (" with `init=` an SFT run of the same seed" if starts else ""),
    ]
    lines += ["", f"{datetime.now(UTC):%Y-%m-%d}, {machine()['cpu']}, one thread a run, {text(versions())}.", ""]
    if starts:
        before = [start.series("eval/greedy_return_mean")[1][-1] for start in starts]
        lines += [f"Start (`algo=sft`), greedy: {listed(before)}, median {statistics.median(before):.3f}.", ""]
    lines += [
        f"| algo | greedy >= {solved:g} at the end | at some time | greedy at the end, by seed | median | seconds |"
    ]
    lines += ["|---|---:|---:|---|---:|---:|"]
    for algo in dict.fromkeys(run.choices["algo"] for run in runs):
        own = [run for run in runs if run.choices["algo"] == algo]
        curves = [run.series("eval/greedy_return_mean")[1] for run in own]
        last = [curve[-1] for curve in curves]
        seconds = statistics.median(run.info["summary"]["seconds"] for run in own)
        ended, ever = sum(x >= solved for x in last), sum(max(curve) >= solved for curve in curves)
        lines.append(
            f"| {algo} | {ended} of {len(own)} | {ever} of {len(own)} | {listed(last)} | {statistics.median(last):.4g} "
            f"| {seconds:.1f} |"
        )
    found = compare([run.path for run in runs])
    plot(found, RESULTS / f"{name}.png")
    lines += ["", as_markdown(found), "", f"![curves]({name}.png)"]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    typer.echo("\n".join(lines))


def listed(values: list[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def text(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())


if __name__ == "__main__":
    typer.run(main)
