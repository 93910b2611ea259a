"""One GRPO step on a tiny Llama beside TRL's: the same weights, prompts, reward and settings, one core.

The tools take turns, round after round; a ratio is of two tools in one round, and the median over rounds is reported.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from measuring import HERE, Section, finish, median, say, spread

ROLLOUTS = (32, 256)
PEER = "TRL"
TOOLS = {
    "pgcli, the built-in model": ("ours_trl_grpo.py", "transformer"),
    "pgcli, policy=hf": ("ours_trl_grpo.py", "hf"),
    PEER: ("peer_trl_grpo.py",),
}
WARM_UP = 2


def measure(python: str, *, rollouts: int, steps: int, rounds: int, core: int | None) -> Section:
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in TOOLS}
    with tempfile.TemporaryDirectory() as folder:
        finish([python, str(HERE / TOOLS[PEER][0]), folder], PYTHONPATH=_path())
        for turn in range(rounds):
            for name, (script, *words) in TOOLS.items():
                command = [python, str(HERE / script), folder, str(rollouts), str(steps + WARM_UP), *words]
                answer = finish(command, core=core, PYTHONPATH=_path()).output.splitlines()[-1]
                results[name].append(json.loads(answer))
                rate = results[name][-1]["tokens"] / results[name][-1]["cpu"]
                say(f"round {turn + 1}/{rounds}  {name:26}  {rate:9,.0f} tokens/CPU s")
    section = Section(
        f"GRPO, {rollouts} completions of 32 tokens", ["", "CPU ms a step", "tokens/CPU s", f"/ {PEER}"],
        measurements={"tools": results},
    )  # fmt: skip
    for name, turns in results.items():
        rates = [turn["tokens"] / turn["cpu"] for turn in turns]
        peers = [turn["tokens"] / turn["cpu"] for turn in results[PEER]]
        ratios = [own / peer for own, peer in zip(rates, peers, strict=True)]
        milliseconds = median([turn["cpu"] for turn in turns]) * 1e3
        section.rows.append([name, f"{milliseconds:.0f}", f"{median(rates):,.0f}", spread(ratios, 2)])
    versions = ", ".join(f"{package} {number}" for package, number in results[PEER][0]["versions"].items())
    section.notes.append(f"Medians of {rounds} rounds of {steps} steps each ({versions}).")
    return section


def _path() -> str:
    """Where this pgcli is, so that the peer's Python measures it and no other."""
    import pgcli

    return str(Path(pgcli.__file__).parents[1])
