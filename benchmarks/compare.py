"""`pgcli compare` over many runs: one real run gives the form of its files, the figures in them are drawn at random."""

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import yaml
from measuring import PGCLI, Section, finish, say, spread

RATES = (1e-4, 2.5e-4, 1e-3, 2.5e-3)


def measure(*, runs: int, rows: int, rounds: int) -> Section:
    """`runs` in four groups that differ by a learning rate, `rows` of metrics each, one in ten with an evaluation."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = ["train", "algo=ppo", "env=cartpole", "tuned=none", "total_steps=1024", "runs_dir=template", "--quiet"]
        finish([*PGCLI, *words], folder=folder)
        write(next(folder.glob("template/*")), folder / "runs", runs, rows)
        turns = [finish([*PGCLI, "compare", "runs"], folder=folder) for _ in range(rounds)]
        size = sum(path.stat().st_size for path in folder.glob("runs/*/metrics.jsonl")) / 1e6
    verdict = turns[-1].output.splitlines()[-1]
    say(f"compare  {turns[0].wall:.2f} s  {verdict}")
    return Section(
        "Compare", ["", "seconds", "CPU seconds", "peak MB", "aim"],
        [[
            f"{runs} runs of {rows:,} rows", spread([turn.wall for turn in turns], 2),
            spread([turn.cpu for turn in turns], 2), f"{max(turn.megabytes for turn in turns):.0f}", "3",
        ]],
        [f"`pgcli compare`, process from start to end, {rounds} times, over {size:.0f} MB of metrics just written."],
        {"wall": [turn.wall for turn in turns], "cpu": [turn.cpu for turn in turns]},
    )  # fmt: skip


def write(template: Path, folder: Path, runs: int, rows: int) -> None:
    """Runs as `template` would have left them: its config and keys, a seed and a learning rate of their own."""
    random_numbers = random.Random(0)
    info = json.loads((template / "run.json").read_text())
    config = yaml.safe_load((template / "config.yaml").read_text())
    examples = [json.loads(line) for line in (template / "metrics.jsonl").read_text().splitlines()]
    usual = next(row for row in examples if "eval/return_mean" not in row)
    evaluated = {key: 0.0 for row in examples for key in row if key.startswith("eval/")}
    for number in range(runs):
        seed, rate = number // len(RATES), RATES[number % len(RATES)]
        path = folder / f"run-{number:03}"
        path.mkdir(parents=True)
        config |= {"seed": seed, "total_steps": rows * 512, "algo": config["algo"] | {"learning_rate": rate}}
        about = info | {"id": path.name, "seed": seed, "steps": rows * 512}
        (path / "run.json").write_text(json.dumps(about))
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        (path / "overrides.txt").write_text(f"algo.learning_rate={rate}\n")
        lines = []
        for update in range(1, rows + 1):
            row: dict[str, Any] = usual | (evaluated if update % 10 == 0 else {})
            row = {key: random_numbers.uniform(0, 500) for key in row}
            lines.append(json.dumps(row | {"step": update * 512, "update": update, "wall": update * 0.1}))
        (path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
