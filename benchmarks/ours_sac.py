"""pgcli's SAC on HalfCheetah-v5: steps per second after a warm-up. Prints one JSON line.

    python benchmarks/ours_sac.py TOTAL

The loop of `pgcli train --quiet`: rows of metrics, finished episodes and checkpoints that are due included.
"""

import json
import sys

from ours_ppo import whole_loop

from pgcli.experiment.build import build
from pgcli.experiment.config import compose

LEARNING_STARTS, EVERY = 1_000, 100
WARM_UP = LEARNING_STARTS + 2 * EVERY


def main() -> None:
    total = int(sys.argv[1])
    # One row more than is timed: the loop evaluates at the end, and its last row comes after that.
    budget = WARM_UP + total + EVERY
    config = compose([
        "algo=sac", "env=HalfCheetah-v5", "tuned=none", "device=cpu", f"total_steps={budget}", f"log_every={EVERY}",
        f"eval.every={10 * budget}", "eval.episodes=1", f"algo.learning_starts={LEARNING_STARTS}",
    ])  # fmt: skip
    watch = whole_loop(build(config))
    timed = [lap for lap in watch.laps if WARM_UP <= lap[0] <= WARM_UP + total]
    (first, wall, cpu), (last, wall_end, cpu_end) = timed[0], timed[-1]
    print(json.dumps({"steps": last - first, "wall": wall_end - wall, "cpu": cpu_end - cpu}))


if __name__ == "__main__":
    main()
