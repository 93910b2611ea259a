"""Each classic method learns a task of its own kind, and three of language the oracle's table of rewards, from the
command line's words, in a few seconds.

The bounds lie far above what acting at random gives (CartPole about 22, Pendulum about -1,200, FrozenLake 0.014, the
oracle 0.43 to 0.53), and below what seeds 0 to 2 reached, unless a comment says otherwise.
"""

import pytest

from pgcli.experiment.session import train

CARTPOLE = {
    "vanilla_pg": (40_000, 60), "reinforce": (40_000, 150), "actor_critic": (60_000, 60), "a2c": (40_000, 120),
    "a3c": (60_000, 60), "npg": (25_000, 300), "trpo": (25_000, 300), "cpi": (30_000, 120), "ppo_kl": (25_000, 120),
    "ppo": (20_000, 200), "rloo": (60_000, 150), "grpo": (60_000, 120),
    "es": (60_000, 300), "ga": (60_000, 300), "nelder_mead": (60_000, 150),
}  # fmt: skip
PENDULUM = {"ddpg": (5_000, -700), "td3": (7_000, -700), "sac": (4_000, -500)}
SMALL = ["policy.width=16", "policy.heads=2", "policy.layers=1", "policy.hidden=16"]
ORACLE = {
    "raft": (20_000, 0.8, "algo.learning_rate=3e-3"),
    "online_dpo": (20_000, 0.75, "algo.learning_rate=1e-2", "algo.num_pairs=32"),
    "kto": (20_000, 0.6, "algo.learning_rate=1e-2", "env.pairs=500"),  # what its 1,000 texts, all random, can tell
}
TASKS = [
    *((algo, "cartpole", *bound, []) for algo, bound in CARTPOLE.items()),
    *((algo, "pendulum", *bound, []) for algo, bound in PENDULUM.items()),
    *((algo, "oracle", steps, bound, [*SMALL, *words]) for algo, (steps, bound, *words) in ORACLE.items()),
    ("dqn", "cartpole", 25_000, 100, ["algo.learning_starts=1_000", "algo.epsilon_steps=10_000"]),
    ("q_learning", "frozen_lake", 60_000, 0.4, []),
    ("sarsa", "frozen_lake", 60_000, 0.2, ["algo.epsilon_steps=40_000"]),
]


@pytest.mark.parametrize(("algo", "env", "steps", "bound", "words"), TASKS, ids=[task[0] for task in TASKS])
def test_a_method_learns_its_own_task(algo, env, steps, bound, words, tmp_path):
    run = train(
        f"algo={algo}", f"env={env}", f"total_steps={steps}", f"eval.every={steps}", "eval.episodes=50", *words,
        f"runs_dir={tmp_path}", quiet=True,
    )  # fmt: skip
    assert run.info["summary"]["eval/return_mean"] > bound
