"""SAC's steps per second on HalfCheetah-v5 beside its peers: one gradient step of 256 transitions a step, one core.

The networks are the authors' (256 x 256, relu, twin critics). The tools take turns, round after round; a ratio is of
two tools in one round, and the median over rounds is reported.
"""

import json
import sys
from typing import Any

from measuring import HERE, Section, finish, median, say, spread
from ppo import compared, rates

STATES, ACTIONS, UNITS, BATCH = 17, 6, 256, 256
ACTOR = STATES * UNITS + UNITS * UNITS + UNITS * 2 * ACTIONS
CRITIC = (STATES + ACTIONS) * UNITS + UNITS * UNITS + UNITS
ACTOR_BACK, CRITIC_BACK = ACTOR - STATES * UNITS, CRITIC - (STATES + ACTIONS) * UNITS
FLOP = 2 * BATCH * (
    ACTOR + 2 * CRITIC  # the targets: a' from the actor, and both target critics
    + 2 * (CRITIC + CRITIC + CRITIC_BACK)  # both critics: forward, by weights, by activations
    + ACTOR + 2 * CRITIC  # a~ and its values
    + 2 * (CRITIC_BACK + ACTIONS * UNITS)  # through both critics to the action, past their weights
    + ACTOR + ACTOR_BACK  # the actor by weights and by activations
)  # fmt: skip
"""Multiplications and additions of one update: what no implementation of this algorithm can leave out."""
OURS = "pgcli, the loop"


def measure(sb3: str | None, sbx: str | None, *, total: int, rounds: int, core: int | None) -> Section:
    commands = {OURS: [sys.executable, str(HERE / "ours_sac.py")]}
    if sb3:
        commands["SB3"] = [sb3, str(HERE / "peer_sb3_sac.py")]
    if sbx:
        commands["SBX"] = [sbx, str(HERE / "peer_sbx_sac.py")]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    gflops = []
    for turn in range(rounds):
        gflops.append(_answer([sys.executable, str(HERE / "arithmetic.py"), str(BATCH), str(UNITS)], core)["gflops"])
        for name, command in commands.items():
            result = _answer([*command, str(total)], core)
            results[name].append(result)
            say(f"round {turn + 1}/{rounds}  {name:16}  {result['steps'] / result['cpu']:7,.1f} steps/CPU s")

    peers = [name for name in commands if name != OURS]
    limit = median(gflops) * 1e9 / FLOP
    section = Section(
        "SAC, HalfCheetah-v5",
        ["", "steps/s", "steps/CPU s", "of the limit", *(f"/ {peer}{by}" for peer in peers for by in ("", ", CPU"))],
        measurements={"gflops": gflops, "tools": results},
    )
    for name, turns in results.items():
        wall, cpu = median(rates(turns, "wall")), median(rates(turns, "cpu"))
        ratios = [median(compared(turns, results[peer], clock)) for peer in peers for clock in ("wall", "cpu")]
        cells = [f"{wall:,.1f}", f"{cpu:,.1f}", f"{cpu / limit:.0%}", *(f"{ratio:.2f}" for ratio in ratios)]
        section.rows.append([name, *cells])
    section.notes.append(
        f"Medians of {rounds} rounds of {total:,} steps. The limit is {limit:,.0f} steps/s: {FLOP / 1e6:.0f} MFLOP an "
        f"update at the {median(gflops):.0f} GFLOP/s of {BATCH} x {UNITS} x {UNITS} products."
    )
    for peer in peers:
        ranges = [spread(compared(results[OURS], results[peer], clock), 2) for clock in ("wall", "cpu")]
        versions = ", ".join(f"{package} {number}" for package, number in results[peer][0]["versions"].items())
        section.notes.append(f"The loop / {peer}: {ranges[0]} by wall time, {ranges[1]} by CPU time ({versions}).")
    return section


def _answer(command: list[str], core: int | None) -> dict[str, Any]:
    return json.loads(finish(command, core=core).output.splitlines()[-1])
