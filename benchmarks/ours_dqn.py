"""pgcli's DQN on CartPole-v1: steps per second of the loop of `pgcli train --quiet`, after a warm-up. One JSON line.

python benchmarks/ours_dqn.py '{"hidden": [64, 64], "num_steps": 4, ...}'        (a `Setting` of benchmarks/dqn.py)
"""

import json
import sys

from ours_ppo import whole_loop

from pgcli.experiment.build import build
from pgcli.experiment.config import compose

WARM_UP = 2048


def main() -> None:
    setting = json.loads(sys.argv[1])
    # The last row comes after the evaluation at the end: beyond what is timed.
    budget = WARM_UP + setting["total"] + 2 * setting["num_steps"] + 1000
    keys = ("num_steps", "gradient_steps", "batch_size", "target_period")
    parts = build(compose([
        "algo=dqn", "env=cartpole", "tuned=none", "device=cpu", f"total_steps={budget}", f"eval.every={10 * budget}",
        "algo.capacity=100000", "algo.learning_starts=1000", "algo.epsilon_steps=5000", "algo.learning_rate=1e-3",
        f"policy.hidden={setting['hidden']}", "policy.activation=relu", *(f"algo.{key}={setting[key]}" for key in keys),
    ]))  # fmt: skip
    laps = whole_loop(parts).laps
    first = next(lap for lap in laps if lap[0] >= WARM_UP)
    last = next(lap for lap in laps if lap[0] >= WARM_UP + setting["total"])
    steps, wall, cpu = (end - begin for begin, end in zip(first, last, strict=True))
    print(json.dumps({"steps": steps, "wall": wall, "cpu": cpu}))


if __name__ == "__main__":
    main()
