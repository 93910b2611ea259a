"""Stable-Baselines3's PPO on CartPole-v1 or HalfCheetah-v5: steps per second after a warm-up. Prints one JSON line.

    PYTHON_WITH_SB3 benchmarks/peer_sb3_ppo.py NUM_ENVS NUM_STEPS MINIBATCHES TOTAL [ENV]

Runs in an environment of its own, without pgcli. CleanRL's hyperparameters; what is not said here (Adam's epsilon 1e-5,
normalised advantages, clip range 0.2) is Stable-Baselines3's default and CleanRL's value.
"""

import json
import sys
import time
from importlib.metadata import version

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

WARM_UP = 3

torch.set_num_threads(1)
envs, steps, minibatches, total = map(int, sys.argv[1:5])
task = sys.argv[5] if len(sys.argv) > 5 else "CartPole-v1"
real = task != "CartPole-v1"
batch = envs * steps
world = make_vec_env(task, n_envs=envs, seed=0)
model = PPO(
    "MlpPolicy", VecNormalize(world, gamma=0.99) if real else world,
    n_steps=steps, batch_size=batch // minibatches, n_epochs=10 if real else 4,
    learning_rate=3e-4 if real else 2.5e-4, gamma=0.99, gae_lambda=0.95,
    ent_coef=0.0 if real else 0.01, vf_coef=0.5, max_grad_norm=0.5, seed=0, device="cpu",
    policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}, "activation_fn": torch.nn.Tanh},
)  # fmt: skip
model.learn(WARM_UP * batch)
begun, wall, cpu = model.num_timesteps, time.perf_counter(), time.process_time()
model.learn(total // batch * batch, reset_num_timesteps=False)
print(
    json.dumps({
        "steps": model.num_timesteps - begun,
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "versions": {name: version(name) for name in ("stable-baselines3", "torch", "gymnasium")},
    })
)  # fmt: skip
