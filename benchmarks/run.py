"""All benchmarks, or some: `python benchmarks/run.py --help`. What the figures mean is in benchmarks/README.md."""

import json
import shutil
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import compare
import decode
import demo
import dqn
import es
import grpo
import memory
import ppo
import sac
import sort
import startup
import typer
from measuring import Section, machine, say
from rich.console import Console


class Part(StrEnum):
    ppo = "ppo"
    dqn = "dqn"
    ppo_mujoco = "ppo_mujoco"
    startup = "startup"
    demo = "demo"
    memory = "memory"
    compare = "compare"
    sort = "sort"
    decode = "decode"
    es = "es"
    sac = "sac"
    grpo = "grpo"


TOTAL = {4: 61_440, 64: 409_600}
"""Steps to time, by environments: some seconds of the slowest tool."""


def main(
    parts: Annotated[list[Part] | None, typer.Argument(help="Which; all of them by default.")] = None,
    sb3: Annotated[Path | None, typer.Option(envvar="BENCH_SB3", help="The Python that has Stable-Baselines3.")] = None,
    rejax: Annotated[Path | None, typer.Option(envvar="BENCH_REJAX", help="The Python that has rejax.")] = None,
    sbx: Annotated[
        Path | None, typer.Option(envvar="BENCH_SBX", help="The Python that has SBX, for the part sac.")
    ] = None,
    trl: Annotated[
        Path | None, typer.Option(envvar="BENCH_TRL", help="The Python that has TRL and pgcli, for the part grpo.")
    ] = None,
    envs: Annotated[list[int] | None, typer.Option(help="Environments of the part ppo; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often the tools take turns.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of the demo (and half as many of sort): 0, 1, ...")] = 10,
    core: Annotated[int, typer.Option(help="The core for what is compared on one core; -1: any.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="To see that it runs: little of everything, once.")] = False,
    save: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Write the results to a .md or .json file; may be repeated."),
    ] = None,
) -> None:
    """Measure the speed of pgcli, beside the peers whose Python is given."""
    for path in save or []:
        if path.suffix not in (".md", ".json"):
            raise typer.BadParameter(f"--save {path}: a .md or a .json file")
    about = machine()
    pinned = core if core >= 0 and shutil.which("taskset") else None
    if quick:
        rounds, seeds = 1, 1
    missing = _check_peers(sb3, rejax, sbx, trl)
    peers = ppo.tools(str(sb3.absolute()) if sb3 else None, str(rejax.absolute()) if rejax else None)

    def speed() -> list[Section]:
        found = []
        for number in envs or TOTAL:
            total = TOTAL.get(number, number * 6400) // (8 if quick else 1)
            found.append(ppo.measure(peers, envs=number, total=total, rounds=rounds, core=pinned))
            found[-1].notes += missing
        return found

    def mujoco() -> list[Section]:
        own = ppo.tools(str(sb3.absolute()) if sb3 else None)
        total = 8_192 if quick else 40_960
        return [ppo.measure(own, envs=1, total=total, rounds=rounds, core=pinned, task=ppo.HALF_CHEETAH)]

    measures: dict[Part, Callable[[], list[Section]]] = {
        Part.ppo: speed,
        Part.dqn: lambda: [
            dqn.measure(
                setting, str(sb3.absolute()) if sb3 else None, rounds=rounds, core=pinned, share=8 if quick else 1
            )
            for setting in dqn.SETTINGS
        ],
        Part.ppo_mujoco: mujoco,
        Part.startup: lambda: [startup.measure(rounds=rounds)],
        Part.demo: lambda: [demo.measure(seeds=range(seeds))],
        Part.memory: lambda: [memory.measure(total=10_000 if quick else 100_000)],
        Part.compare: lambda: [compare.measure(runs=20 if quick else 200, rows=1000, rounds=rounds)],
        Part.sort: lambda: [
            sort.measure(seeds=range((seeds + 1) // 2), core=pinned, changes=["total_steps=5000"] if quick else [])
        ],
        Part.es: lambda: es.measure(total=200_000 if quick else 2_000_000, rounds=rounds, core=pinned),
    }
    measures[Part.decode] = lambda: [
        decode.measure(rounds=rounds, core=pinned, presets=("tiny",) if quick else ("nano", "tiny", "small"))
    ]
    measures[Part.sac] = lambda: [
        sac.measure(
            str(sb3.absolute()) if sb3 else None, str(sbx.absolute()) if sbx else None,
            total=300 if quick else 2_000, rounds=rounds, core=pinned,
        )
    ]  # fmt: skip
    measures[Part.grpo] = lambda: [
        grpo.measure(str(trl.absolute()), rollouts=rollouts, steps=6 if quick else 20, rounds=rounds, core=pinned)
        for rollouts in grpo.ROLLOUTS
        if trl
    ]
    console = Console(highlight=False)
    sections = []
    for part in parts or list(Part):
        for section in measures[part]():
            sections.append(section)
            console.print(section.table())
            for note in section.notes:
                console.print(note, markup=False, soft_wrap=True)
            console.print()
    for path in save or []:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_markdown(about, sections) if path.suffix == ".md" else _json(about, sections))
        say(f"written to {path}")


def _check_peers(sb3: Path | None, rejax: Path | None, sbx: Path | None, trl: Path | None) -> list[str]:
    """What to do about the peers that are missing. Refuses an interpreter that is not there."""
    notes = []
    peers = (("SB3", "--sb3", sb3), ("rejax", "--rejax", rejax), ("SBX", "--sbx", sbx), ("TRL", "--trl", trl))
    for name, option, python in peers:
        if python is None:
            notes.append(f"{name} did not take part: name its Python with {option} (see benchmarks/README.md).")
            say(notes[-1])
        elif not shutil.which(python):
            raise typer.BadParameter(f"{option} {python}: no program there")
    return notes


def _markdown(about: dict[str, str], sections: list[Section]) -> str:
    facts = "".join(f"- {key}: {value}\n" for key, value in about.items())
    head = "# Speed\n\nWritten by `benchmarks/run.py`; how to read it is in `benchmarks/README.md`.\n\n"
    return "\n".join([head + facts, *(section.markdown() for section in sections)])


def _json(about: dict[str, str], sections: list[Section]) -> str:
    return json.dumps(about | {"sections": [section.json() for section in sections]}, indent=1) + "\n"


if __name__ == "__main__":
    typer.run(main)
