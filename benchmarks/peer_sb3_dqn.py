"""Stable-Baselines3's DQN on CartPole-v1: steps per second after a warm-up. Prints one JSON line.

    PYTHON_WITH_SB3 benchmarks/peer_sb3_dqn.py '{"hidden": [64, 64], "num_steps": 4, ...}'

Runs in an environment of its own, without pgcli. Its target network is moved by steps of the environment while it
collects: the same number of gradient steps apart.
"""

import json
import sys
import time
from importlib.metadata import version

import torch
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env

WARM_UP = 2048

torch.set_num_threads(1)
setting = json.loads(sys.argv[1])
steps, updates = setting["num_steps"], setting["gradient_steps"]
model = DQN(
    "MlpPolicy", make_vec_env("CartPole-v1", n_envs=1, seed=0),
    train_freq=steps, gradient_steps=updates, batch_size=setting["batch_size"], learning_rate=1e-3, gamma=0.99,
    buffer_size=100_000, learning_starts=1000, target_update_interval=setting["target_period"] * steps // updates,
    exploration_fraction=0.2, exploration_final_eps=0.05, max_grad_norm=10, seed=0, device="cpu",
    policy_kwargs={"net_arch": setting["hidden"], "activation_fn": torch.nn.ReLU},
)  # fmt: skip
model.learn(WARM_UP)
begun, wall, cpu = model.num_timesteps, time.perf_counter(), time.process_time()
model.learn(setting["total"], reset_num_timesteps=False)
print(
    json.dumps({
        "steps": model.num_timesteps - begun,
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "versions": {name: version(name) for name in ("stable-baselines3", "torch", "gymnasium")},
    })
)  # fmt: skip
