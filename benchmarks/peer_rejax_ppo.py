"""rejax's PPO on gymnax's CartPole-v1, the whole training one XLA program: steps per second. Prints one JSON line.

    PYTHON_WITH_REJAX benchmarks/peer_rejax_ppo.py NUM_ENVS NUM_STEPS MINIBATCHES TOTAL

Runs in an environment of its own, without pgcli. CleanRL's hyperparameters, as far as rejax has them: it clips the
value loss, and each element of the gradient instead of its norm, and its Adam's epsilon is 1e-8; the matrix products
are the same. The compilation is timed by itself, and one training is run before the one that counts.
"""

import json
import sys
import time
from importlib.metadata import version

import jax
from rejax import get_algo

envs, steps, minibatches, total = map(int, sys.argv[1:5])
total = total // (envs * steps) * envs * steps
algo = get_algo("ppo").create(
    env="CartPole-v1", total_timesteps=total, eval_freq=total, skip_initial_evaluation=True,
    num_envs=envs, num_steps=steps, num_minibatches=minibatches, num_epochs=4, learning_rate=2.5e-4, gamma=0.99,
    gae_lambda=0.95, clip_eps=0.2, ent_coef=0.01, vf_coef=0.5, max_grad_norm=0.5,
    agent_kwargs={"hidden_layer_sizes": (64, 64), "activation": "tanh"},
)  # fmt: skip
algo = algo.replace(eval_callback=lambda algo, state, key: ())  # no evaluation: the others make none either

begun = time.perf_counter()
train = jax.jit(algo.train).lower(jax.random.PRNGKey(0)).compile()
compilation = time.perf_counter() - begun
jax.block_until_ready(train(jax.random.PRNGKey(0)))
wall, cpu = time.perf_counter(), time.process_time()
jax.block_until_ready(train(jax.random.PRNGKey(1)))
print(
    json.dumps({
        "steps": total,
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "compilation": compilation,
        "versions": {name: version(name) for name in ("rejax", "gymnax", "jax")},
    })
)  # fmt: skip
