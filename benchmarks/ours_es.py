"""Evolution strategies on the native CartPole, beside the bare environment of as many rows. Prints one JSON line.

    python benchmarks/ours_es.py ROWS TOTAL POLICY

The bare environment gets random actions that were drawn before, and every episode that ends is followed by a new one
with a seed of its own. Evolution strategies begin with a fresh policy: collector and update, and nothing else.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from pgcli.experiment.build import Parts, build
from pgcli.experiment.config import compose

VALUES = {
    "linear": ["algo.noise_std=0.3", "algo.learning_rate=0.1"],
    "mlp": ["algo.noise_std=0.05", "algo.learning_rate=0.05"],
}


def timed(work: Callable[[], int]) -> dict[str, float]:
    """Steps, and what they took by both clocks."""
    wall, cpu = time.perf_counter(), time.process_time()
    steps = work()
    return {"steps": steps, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def bare(parts: Parts, rows: int, total: int, *, resets: bool) -> int:
    """Steps of the environment under random actions. Without resets, an episode that ended goes on beyond its end."""
    env = parts.environment
    begun = rows
    env.reset(np.arange(rows), list(range(rows)))
    actions = np.random.default_rng(0).integers(0, 2, (100, rows))
    for t in range(total // rows):
        step = env.step(actions[t % 100])
        if resets:
            ended = np.flatnonzero(step.terminated | step.truncated)
            if len(ended):
                env.reset(ended, range(begun, begun + len(ended)))
                begun += len(ended)
    return total // rows * rows


def evolve(parts: Parts, total: int) -> int:
    done = 0
    while done < total:
        fitness = parts.collector.collect(parts.behaviour())
        parts.algorithm.update(fitness)
        done += fitness.steps
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int)
    parser.add_argument("total", type=int)
    parser.add_argument("policy", choices=VALUES)
    arguments = parser.parse_args()
    rows, total, policy = arguments.rows, arguments.total, arguments.policy
    words = ["algo=es", "env=cartpole", f"policy={policy}", f"algo.population={rows}", "tuned=none", "device=cpu"]
    parts = build(compose([*words, *VALUES[policy]]))
    for resets in (True, False):
        bare(parts, rows, total // 10, resets=resets)
    evolve(build(compose([*words, *VALUES[policy]])), total // 10)
    found = {
        "bare": timed(lambda: bare(parts, rows, total, resets=True)),
        "unbroken": timed(lambda: bare(parts, rows, total, resets=False)),
        "learning": timed(lambda: evolve(parts, total)),
        "learned": timed(lambda: evolve(parts, total)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
