"""What only a memory can learn: the probe `memory` asks at its fourth step for what its first observation said."""

import numpy as np
import pytest
import torch

from pgcli.experiment.build import build
from pgcli.experiment.config import compose
from pgcli.experiment.evaluation import play


def learn(*words, updates):
    parts = build(compose(["env=probe_memory", "tuned=none", "device=cpu", *words]))
    for _ in range(updates):
        parts.algorithm.update(parts.collector.collect(parts.policy))
    return parts


def last_action(parts):
    """pi(action 1) at the fourth step, after +1 and after -1 at the first."""
    shown = torch.zeros(2, 4, 1)
    shown[0, 0], shown[1, 0] = 1, -1
    starts = torch.tensor([[True, False, False, False]] * 2)
    actions = torch.ones(2, 4, dtype=torch.int64)
    with torch.no_grad():
        if parts.policy.unit == "action":
            return parts.policy(shown[:, 3], actions[:, 3]).log_probs.exp().tolist()
        return parts.policy({"observation": shown, "starts": starts}, actions).log_probs[:, 3].exp().tolist()


PPO = ("algo=ppo", "algo.learning_rate=5e-3", "algo.num_envs=32", "algo.num_steps=16", "algo.minibatches=2")
WAYS = {
    "ppo": PPO,
    "ppo, segments that cut every episode": (*PPO, "algo.num_steps=14"),
    "reinforce": ("algo=reinforce", "algo.learning_rate=1e-2", "algo.num_episodes=128"),
    "rloo": ("algo=rloo", "algo.learning_rate=1e-2", "algo.num_groups=8", "algo.group_size=16"),
}


@pytest.mark.parametrize("words", WAYS.values(), ids=WAYS)
def test_a_memory_brings_the_first_observation_to_the_last_action(words):
    after_plus, after_minus = last_action(learn(*words, "policy.hidden=16", updates=60))
    assert after_plus > 0.95
    assert after_minus < 0.05


def test_without_a_memory_it_is_a_coin():
    parts = learn(*PPO, "policy=mlp", "policy.hidden=[16]", updates=60)
    after_plus, after_minus = last_action(parts)
    assert after_plus == after_minus
    returns = play(parts.evaluator, parts.policy, episodes=400, seed=1, stream="coin", greedy=False).returns
    assert abs(np.mean(returns)) < 0.2  # four standard deviations of the mean of 400 fair coins
