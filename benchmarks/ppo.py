"""PPO's steps per second on CartPole-v1 and HalfCheetah-v5 beside its peers, at CleanRL's settings, one core each.

The tools take turns, round after round, so that what slows the machine for a while slows all of them; a ratio is of two
tools in one round, and the median over rounds is reported.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from measuring import HERE, Section, finish, median, say, spread


@dataclass(frozen=True)
class Task:
    """An environment at CleanRL's sizes. The networks are an actor and a critic of 2 x 64 units each."""

    env: str
    steps: int
    minibatches: int
    epochs: int
    observations: int
    outputs: int

    @property
    def flop_per_step(self) -> int:
        """2 operations a weight and 1 a bias. Forward once to collect; forward, and twice as much backward, in each
        epoch: 13 passes with 4 epochs.
        """
        weights = sum(self.observations * 64 + 64 * 64 + 64 * outputs for outputs in (self.outputs, 1))
        biases = 4 * 64 + self.outputs + 1
        return (1 + 3 * self.epochs) * (2 * weights + biases)


CARTPOLE = Task("CartPole-v1", steps=128, minibatches=4, epochs=4, observations=4, outputs=2)
HALF_CHEETAH = Task("HalfCheetah-v5", steps=2048, minibatches=32, epochs=10, observations=17, outputs=6)
LOOP, PIECES = "pgcli, the loop", "pgcli, its parts"


@dataclass(frozen=True)
class Tool:
    name: str
    command: list[str]
    """Without its sizes."""


def tools(sb3: str | None, rejax: str | None = None) -> list[Tool]:
    """What takes part: ourselves twice, and the peers whose Python is known."""
    ours = [sys.executable, str(HERE / "ours_ppo.py")]
    found = [Tool(LOOP, [*ours, "--loop"]), Tool(PIECES, ours)]
    if sb3:
        found.append(Tool("SB3", [sb3, str(HERE / "peer_sb3_ppo.py")]))
    if rejax:
        found.append(Tool("rejax", [rejax, str(HERE / "peer_rejax_ppo.py")]))
    return found


def measure(
    taking_part: Sequence[Tool], *, envs: int, total: int, rounds: int, core: int | None, task: Task = CARTPOLE
) -> Section:
    """Steps per second of each tool with `envs` environments, and how many times those of each peer."""
    sizes = [str(size) for size in (envs, task.steps, task.minibatches, total)]
    sizes += [task.env] if task is not CARTPOLE else []
    rows = envs * task.steps // task.minibatches
    results: dict[str, list[dict[str, Any]]] = {tool.name: [] for tool in taking_part}
    gflops = []
    for turn in range(rounds):
        gflops.append(_answer([sys.executable, str(HERE / "arithmetic.py"), str(rows)], core)["gflops"])
        for tool in taking_part:
            result = _answer([*tool.command, *sizes], core)
            results[tool.name].append(result)
            rate = result["steps"] / result["cpu"]
            say(f"round {turn + 1}/{rounds}  {envs:3} environments  {tool.name:16}  {rate:9,.0f} steps/CPU s")

    peers = [tool.name for tool in taking_part if tool.name not in (LOOP, PIECES)]
    limit = median(gflops) * 1e9 / task.flop_per_step
    section = Section(
        f"PPO on {task.env}, {envs} x {task.steps} steps",
        ["", "steps/s", "steps/CPU s", "of the limit", *(f"/ {peer}{by}" for peer in peers for by in ("", ", CPU"))],
        measurements={"gflops": gflops, "tools": results},
    )
    for name, turns in results.items():
        wall, cpu = median(rates(turns, "wall")), median(rates(turns, "cpu"))
        ratios = [median(compared(turns, results[peer], clock)) for peer in peers for clock in ("wall", "cpu")]
        cells = [f"{wall:,.0f}", f"{cpu:,.0f}", f"{cpu / limit:.1%}", *(f"{ratio:.2f}" for ratio in ratios)]
        section.rows.append([name, *cells])

    section.notes.append(
        f"Medians of {rounds} rounds of {total:,} steps. The limit is {limit:,.0f} steps/s: "
        f"{task.flop_per_step / 1000:.0f} kFLOP a step at the {median(gflops):.0f} GFLOP/s of {rows} x 64 x 64 "
        "products."
    )
    for peer in peers:
        ranges = [spread(compared(results[LOOP], results[peer], clock), 2) for clock in ("wall", "cpu")]
        versions = ", ".join(f"{package} {number}" for package, number in results[peer][0]["versions"].items())
        section.notes.append(f"The loop / {peer}: {ranges[0]} by wall time, {ranges[1]} by CPU time ({versions}).")
    if "rejax" in results:
        compilation = spread([turn["compilation"] for turn in results["rejax"]])
        section.notes.append(f"rejax compiles for {compilation} s first, which is not counted.")
    return section


def rates(turns: list[dict[str, Any]], clock: str) -> list[float]:
    return [turn["steps"] / turn[clock] for turn in turns]


def compared(turns: list[dict[str, Any]], peer: list[dict[str, Any]], clock: str) -> list[float]:
    return [ours / theirs for ours, theirs in zip(rates(turns, clock), rates(peer, clock), strict=True)]


def _answer(command: list[str], core: int | None) -> dict[str, Any]:
    return json.loads(finish(command, core=core).output.splitlines()[-1])
