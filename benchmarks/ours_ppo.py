"""pgcli's PPO on CartPole-v1 or HalfCheetah-v5: steps per second after a warm-up. Prints one JSON line.

    python benchmarks/ours_ppo.py NUM_ENVS NUM_STEPS MINIBATCHES TOTAL [ENV] [--loop]

By default its collector and its update, and nothing else; with --loop the loop of `pgcli train --quiet`, which also
writes a row of metrics for each update, the finished episodes and the checkpoints that are due.
"""

import argparse
import json
import tempfile
import time

from pgcli.experiment.build import Parts, build
from pgcli.experiment.config import compose, dump
from pgcli.experiment.loop import Progress, run_loop
from pgcli.experiment.signals import StopRequest
from pgcli.runs.writer import RunWriter

WARM_UP = 3
CHANGES = {
    "CartPole-v1": ["env=cartpole", "algo.epochs=4"],
    "HalfCheetah-v5": [
        "env=HalfCheetah-v5", "algo.epochs=10", "algo.learning_rate=3e-4", "algo.entropy_coefficient=0",
        "env.normalise.observations=true", "env.normalise.rewards=true",
    ],
}  # fmt: skip
"""What CleanRL's ppo.py and ppo_continuous_action.py have, beyond the sizes and conf/algo/ppo.yaml."""


class Stopwatch:
    """A console that looks at the clocks, and shows nothing."""

    def __init__(self) -> None:
        self.laps: list[tuple[int, float, float]] = []

    def log(self, row: dict[str, float]) -> None:
        self.laps.append((int(row["step"]), time.perf_counter(), time.process_time()))

    def samples(self, samples: list[dict[str, object]]) -> None: ...


def collect_and_update(parts: Parts, rollouts: int) -> Stopwatch:
    watch = Stopwatch()
    for update in range(1, rollouts + 1):
        rollout = parts.collector.collect(parts.policy)
        parts.algorithm.update(rollout)
        watch.log({"step": update * rollout.mask.numel()})
    return watch


def whole_loop(parts: Parts) -> Stopwatch:
    watch = Stopwatch()
    config = parts.config
    with tempfile.TemporaryDirectory() as folder:
        writer = RunWriter.create(
            folder, algo="ppo", slug="benchmark", seed=0, info={}, config=dump(config), overrides=list(config.overrides)
        )
        run_loop(parts, writer, watch, Progress(), StopRequest())
        writer.finish("completed")
    return watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", type=int, nargs=4, metavar="NUM_ENVS NUM_STEPS MINIBATCHES TOTAL")
    parser.add_argument("env", nargs="?", choices=list(CHANGES), default="CartPole-v1")
    parser.add_argument("--loop", action="store_true")
    arguments = parser.parse_args()
    envs, steps, minibatches, total = arguments.sizes

    rollouts = WARM_UP + total // (envs * steps)
    # One more rollout than is timed: the loop evaluates at the end, and its last row comes after that.
    budget = (rollouts + 1) * envs * steps
    config = compose([
        "algo=ppo", *CHANGES[arguments.env], "tuned=none", "device=cpu",
        f"total_steps={budget}", f"eval.every={10 * budget}",
        f"algo.num_envs={envs}", f"algo.num_steps={steps}", f"algo.minibatches={minibatches}",
    ])  # fmt: skip
    parts = build(config)
    watch = whole_loop(parts) if arguments.loop else collect_and_update(parts, rollouts)
    (first, wall, cpu), (last, wall_end, cpu_end) = watch.laps[WARM_UP - 1], watch.laps[rollouts - 1]
    print(json.dumps({"steps": last - first, "wall": wall_end - wall, "cpu": cpu_end - cpu}))


if __name__ == "__main__":
    main()
