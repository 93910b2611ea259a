"""DQN's steps per second on CartPole-v1 beside Stable-Baselines3, one environment, one core each.

At two settings: an update of one minibatch after every fourth step, and RL Zoo's, where a wide network takes most of
the time and is the same arithmetic for both. The tools take turns, as in the part ppo.
"""

import json
import sys
from dataclasses import asdict, dataclass

from measuring import HERE, Section, finish, median, say, spread
from ppo import compared, rates


@dataclass(frozen=True)
class Setting:
    name: str
    hidden: list[int]
    num_steps: int
    gradient_steps: int
    batch_size: int
    target_period: int
    """Gradient steps."""
    total: int
    """Steps to time."""


SETTINGS = [
    Setting("an update every 4 steps", [64, 64], 4, 1, 32, 1000, 20_480),
    Setting("RL Zoo's", [256, 256], 256, 128, 64, 128, 10_240),
]


def measure(setting: Setting, sb3: str | None, *, rounds: int, core: int | None, share: int = 1) -> Section:
    """Steps per second of the loop of `pgcli train`, and how many times those of the peer; of a `share`-th of them."""
    words = json.dumps(asdict(setting) | {"total": setting.total // share})
    tools = {"pgcli": [sys.executable, str(HERE / "ours_dqn.py")]}
    if sb3:
        tools["SB3"] = [sb3, str(HERE / "peer_sb3_dqn.py")]
    results: dict[str, list[dict]] = {name: [] for name in tools}
    for turn in range(rounds):
        for name, command in tools.items():
            result = json.loads(finish([*command, words], core=core).output.splitlines()[-1])
            results[name].append(result)
            rate = result["steps"] / result["cpu"]
            say(f"round {turn + 1}/{rounds}  DQN, {setting.name}  {name:6} {rate:7,.0f} steps/CPU s")
    section = Section(
        f"DQN, {setting.name}",
        ["", "steps/s", "steps/CPU s", *(["/ SB3", "/ SB3, CPU"] if sb3 else [])],
        measurements={"setting": asdict(setting), "tools": results},
    )
    for name, turns in results.items():
        cells = [f"{median(rates(turns, clock)):,.0f}" for clock in ("wall", "cpu")]
        if sb3:
            cells += [spread(compared(turns, results["SB3"], clock), 2) for clock in ("wall", "cpu")]
        section.rows.append([name, *cells])
    section.notes.append(
        f"Medians of {rounds} rounds of {setting.total // share:,} steps: hidden layers of {setting.hidden}, "
        f"{setting.gradient_steps} minibatches of {setting.batch_size} after every {setting.num_steps} steps."
    )
    return section
