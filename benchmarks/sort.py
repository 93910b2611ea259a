"""The small language task: supervised fine-tuning, then GRPO from its weights, on one core."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measuring import PGCLI, Section, finish, median, say

PROMPTS = 1000


def measure(*, seeds: Sequence[int], core: int | None, changes: Sequence[str] = ()) -> Section:
    """Greedy exact match on held-out prompts after each of the two, and the seconds from process start to end."""
    section = Section(
        "Sorting digits", ["seed", "sft, seconds", "exact match", "grpo, seconds", "exact match", "seconds"]
    )
    seconds, matches = [], []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            cells = [str(seed)]
            spent = 0.0
            init: list[str] = []
            for algo in ("sft", "grpo"):
                words = ["train", f"algo={algo}", "env=sort", f"seed={seed}", *init, *changes, "--json"]
                run = finish([*PGCLI, *words], core=core, folder=folder)
                path = json.loads(run.output.splitlines()[-1])["run"]
                played = finish([*PGCLI, "eval", path, f"--episodes={PROMPTS}", "--json"], folder=folder)
                match = json.loads(played.output.splitlines()[-1])["greedy"]["mean"]
                init = [f"init={path}"]
                spent += run.wall
                cells += [f"{run.wall:.1f}", f"{match:.3f}"]
                say(f"seed {seed}  {algo}  {run.wall:.1f} s  {match:.3f}")
                section.measurements[f"{algo}/{seed}"] = {"wall": run.wall, "cpu": run.cpu, "match": match}
        section.rows.append([*cells, f"{spent:.1f}"])
        seconds.append(spent)
        matches.append(match)
    section.notes.append(
        f"Greedy, {PROMPTS:,} held-out prompts, the default settings. Median after grpo {median(matches):.3f}, "
        f"after {median(seconds):.0f} s; the aim is 0.9 within 90 s."
    )
    return section
