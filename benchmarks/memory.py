"""The most memory that a training on CartPole takes."""

import tempfile
from pathlib import Path

from measuring import PGCLI, Section, finish, say

ALGOS = ("ppo", "a2c", "reinforce", "grpo")


def measure(*, total: int) -> Section:
    section = Section("Memory", ["", "peak MB", "aim"])
    for algo in ALGOS:
        words = ["train", f"algo={algo}", "env=cartpole", f"total_steps={total}"]
        with tempfile.TemporaryDirectory() as folder:
            run = finish([*PGCLI, *words], folder=Path(folder))
        section.rows.append([f"`pgcli {' '.join(words)}`", f"{run.megabytes:.0f}", "500"])
        section.measurements[algo] = run.megabytes
        say(f"{algo}  {run.megabytes:.0f} MB")
    return section
