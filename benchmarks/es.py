"""Environment steps per second of evolution strategies, beside the bare vectorised environment of as many rows."""

import json
import sys
from itertools import product
from typing import Any

from measuring import HERE, Section, finish, median, say, spread

POPULATIONS = (64, 256)
ORDER = {
    "bare": "the bare environment, random actions",
    "unbroken": "the same, no episode ever ending",
    "learning": "es, from a fresh policy",
    "learned": "es, from then on",
}


def measure(*, total: int, rounds: int, core: int | None) -> list[Section]:
    """One section for each policy and population: medians over the rounds, ratios within a round, by CPU time."""
    sections = []
    for policy, rows in product(("linear", "mlp"), POPULATIONS):
        turns: list[dict[str, Any]] = []
        for turn in range(rounds):
            command = [sys.executable, str(HERE / "ours_es.py"), str(rows), str(total), policy]
            turns.append(json.loads(finish(command, core=core).output.splitlines()[-1]))
            rates = "  ".join(f"{name} {_rate(turns[-1], name):,.0f}" for name in ORDER)
            say(f"round {turn + 1}/{rounds}  {policy:6} x {rows:3}  steps/CPU s: {rates}")
        section = Section(
            f"Evolution strategies, {policy} policy, {rows} candidates of one episode on CartPole",
            ["", "steps/s", "steps/CPU s", "/ bare", "/ bare, unbroken"],
            measurements={"turns": turns},
        )
        for name, meaning in ORDER.items():
            cells = [f"{median([_rate(turn, name, clock) for turn in turns]):,.0f}" for clock in ("wall", "cpu")]
            for other in ("bare", "unbroken"):
                cells.append(spread([_rate(turn, name) / _rate(turn, other) for turn in turns], 2))
            section.rows.append([meaning, *cells])
        section.notes.append(
            f"Medians of {rounds} rounds of {total:,} steps; the ratios are by CPU time. An episode that ends "
            "costs the bare environment a new generator; a generation shares its seeds, so that only the first of the "
            "candidates pays. Unbroken, nothing is ever reset: what no use of an environment can reach."
        )
        sections.append(section)
    return sections


def _rate(turn: dict[str, Any], name: str, clock: str = "cpu") -> float:
    return turn[name]["steps"] / turn[name][clock]
