"""`make demo`'s command for several seeds: from the start of the process until CartPole is solved and it has ended."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measuring import PGCLI, Section, finish, median, say

COMMAND = ["train", "algo=ppo", "env=cartpole", "stop_at=475"]


def measure(*, seeds: Sequence[int]) -> Section:
    """Solved: an evaluation reached 475 and 100 fresh episodes, whose time is included, confirmed it."""
    section = Section("The demo", ["seed", "seconds", "CPU seconds", "of them training", "steps", "greedy return"])
    walls = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            run = finish([*PGCLI, *COMMAND, f"seed={seed}"], folder=Path(folder))
            summary = json.loads(next(Path(folder).glob("runs/*/run.json")).read_text())["summary"]
        solved = summary["solved"]
        reached = f"{solved['greedy_return_mean']:.1f}" if solved else "not solved"
        times = [f"{seconds:.1f}" for seconds in (run.wall, run.cpu, summary["seconds"])]
        section.rows.append([str(seed), *times, f"{summary['steps']:,}", reached])
        section.measurements[str(seed)] = {"wall": run.wall, "cpu": run.cpu} | summary
        walls.append(run.wall)
        say(f"seed {seed}  {run.wall:.1f} s  {reached}")
    section.notes.append(
        f"`pgcli {' '.join(COMMAND)} seed=...`, process from start to end: "
        f"median {median(walls):.1f} s, longest {max(walls):.1f} s; the aim is 15 s for every seed."
    )
    return section
