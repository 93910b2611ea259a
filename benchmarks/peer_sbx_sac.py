"""SBX's SAC on HalfCheetah-v5: steps per second after a warm-up. Prints one JSON line.

    PYTHON_WITH_SBX benchmarks/peer_sbx_sac.py TOTAL

Runs in an environment of its own, without pgcli. Its defaults are the authors' hyperparameters, and ours: 256 x 256
units, batches of 256, a learning rate of 3e-4, tau 0.005, one gradient step for each step. To be pinned to one core:
XLA takes all there are.
"""

import json
import sys
import time
from importlib.metadata import version

from sbx import SAC

WARM_UP = 1_200

total = int(sys.argv[1])
model = SAC("MlpPolicy", "HalfCheetah-v5", learning_starts=1_000, seed=0, device="cpu")
model.learn(WARM_UP)
begun, wall, cpu = model.num_timesteps, time.perf_counter(), time.process_time()
model.learn(total, reset_num_timesteps=False)
print(
    json.dumps({
        "steps": model.num_timesteps - begun,
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "versions": {name: version(name) for name in ("sbx-rl", "jax", "gymnasium")},
    })
)  # fmt: skip
