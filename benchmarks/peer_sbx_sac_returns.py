"""SBX's SAC on HalfCheetah-v5: what its last training episodes return. Prints one JSON line a seed.

    PYTHON_WITH_SBX benchmarks/peer_sbx_sac_returns.py TOTAL SEED [SEED ...]

The peer's side of the study `sac_peer`, at the same settings: its own defaults, but for the 5,000 random steps. Runs
in an environment of its own, without pgcli. To be pinned to one core: XLA takes all there are.
"""

import json
import sys
import time
from importlib.metadata import version

import numpy as np
from sbx import SAC

WINDOW = 10  # training episodes, as the study's

total = int(sys.argv[1])
for seed in map(int, sys.argv[2:]):
    begun = time.process_time()
    model = SAC("MlpPolicy", "HalfCheetah-v5", learning_starts=5_000, seed=seed, device="cpu", stats_window_size=WINDOW)
    model.learn(total)
    returns = [episode["r"] for episode in model.ep_info_buffer]
    print(
        json.dumps(
            {
                "seed": seed,
                "training_return": float(np.mean(returns)),
                "episodes": len(returns),
                "cpu": time.process_time() - begun,
                "versions": {name: version(name) for name in ("sbx-rl", "jax", "gymnasium", "mujoco")},
            }
        ),
        flush=True,
    )
