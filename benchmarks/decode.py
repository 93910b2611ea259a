"""Tokens per CPU second of batched decoding, beside what the core's arithmetic allows."""

import json
import sys
from typing import Any

from measuring import HERE, Section, finish, median, say

ROWS = 256
CASES = {"alone": "every prompt another", "groups": "8 completions a prompt", "ends": "rows end at random"}


def measure(*, rounds: int, core: int | None, presets: tuple[str, ...] = ("nano", "tiny", "small")) -> Section:
    section = Section(
        f"Decoding {ROWS} completions of 32 tokens after prompts of 16, 44 words",
        ["preset", *(f"{meaning}, tokens/CPU s" for meaning in CASES.values()), "limit", "share"],
    )
    for preset in presets:
        turns: list[dict[str, Any]] = []
        for _ in range(rounds):
            command = [sys.executable, str(HERE / "ours_decode.py"), preset, str(ROWS), "20"]
            turns.append(json.loads(finish(command, core=core).output.splitlines()[-1]))
        section.measurements[preset] = turns
        rates = [median([turn[case]["tokens"] / turn[case]["cpu"] for turn in turns]) for case in CASES]
        limit = median([1e9 * turn["gflops"] / turn["flop"] for turn in turns])
        section.rows.append([preset, *(f"{rate:,.0f}" for rate in (*rates, limit)), f"{rates[0] / limit:.0%}"])
        say(f"{preset}  {section.rows[-1]}")
    section.notes.append(
        f"Medians of {rounds} processes, each its fastest of 20 rounds. The limit: the rate of a step's largest "
        "product on this core, divided by all products of a token and of its share of the prompt; the share is that of "
        "prompts all different. The aim is 40,000 for tiny."
    )
    return section
