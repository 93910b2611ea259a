"""pgcli's GRPO on the tiny Llama that peer_trl_grpo.py has written: CPU seconds of each step. Prints one JSON line.

    python benchmarks/ours_trl_grpo.py FOLDER ROLLOUTS STEPS {transformer,hf}

The loop of `pgcli train --quiet`, on the same prompts with the same reward: `transformer` loads the folder into the
built-in model, `hf` has transformers load it.
"""

import json
import statistics
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from ours_ppo import whole_loop
from peer_trl_grpo import GROUP, NEW

from pgcli.experiment.build import build
from pgcli.experiment.config import compose

POLICIES = {
    "transformer": ["policy=transformer", "policy.width=64", "policy.layers=2", "policy.heads=4", "policy.hidden=256"],
    "hf": ["policy=hf"],
}
NEVER = -1


def main() -> None:
    folder, rollouts, steps, policy = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    tokens = rollouts * NEW
    config = compose([
        "algo=grpo", "env=jsonl", "tuned=none", "device=cpu", *POLICIES[policy], f"policy.path={folder}",
        f"env.path={folder / 'prompts.jsonl'}", f"env.reward={folder / 'reward.py'}:score", f"env.tokenizer={folder}",
        f"env.completion_length={NEW}", f"algo.num_groups={rollouts // GROUP}", f"algo.group_size={GROUP}",
        "algo.epochs=1", "algo.aggregation=token_mean", "algo.learning_rate=1e-3", "log_every=1",
        # One step more than is timed: the loop evaluates at the end, and its last row comes after that.
        f"total_steps={(steps + 1) * tokens}", f"eval.every={10 * steps * tokens}", "eval.episodes=1",
        f"checkpoint.every={10 * steps * tokens}",
    ])  # fmt: skip
    parts = build(config)
    # The peer is told to write 32 tokens and no fewer. Here no token ends a completion.
    parts.environment.spec = replace(parts.environment.spec, end=NEVER)
    watch = whole_loop(parts)
    steps_of_cpu = [(b[0] - a[0], b[2] - a[2]) for a, b in pairwise(watch.laps)]
    assert all(written == tokens for written, _ in steps_of_cpu)
    spent = [cpu for _, cpu in steps_of_cpu[1:-1]]
    print(json.dumps({"tokens": tokens, "cpu": statistics.median(spent)}))


if __name__ == "__main__":
    main()
