"""Every method learns the probes that it can: values are asserted for those with a critic, the policy for all.

The probes' docstring derives what is exact; the learning rates here only make it quick.
"""

import pytest
import torch

from pgcli.experiment.build import build
from pgcli.experiment.config import compose

CRITICS = {
    "ppo": ["algo.learning_rate=3e-3", "algo.num_envs=16", "algo.num_steps=32"],
    "ppo episodes": ["algo=ppo", "algo.collect=episodes", "algo.learning_rate=3e-3", "algo.num_episodes=512"],
    "a2c": ["algo.learning_rate=5e-3", "algo.num_envs=64", "algo.num_steps=2"],
    "a3c": ["algo.num_workers=1", "algo.learning_rate=5e-3", "algo.num_envs=64", "algo.num_steps=2"],
    "actor_critic": ["algo.learning_rate=5e-3", "algo.num_envs=64"],
    "reinforce": ["algo.baseline=value"],
    "npg": [
        "algo.learning_rate=1e-2",
        "algo.num_envs=16",
        "algo.num_steps=32",
        "algo.max_kl=0.05",
        "algo.value_minibatches=4",
    ],
    "trpo": [
        "algo.learning_rate=1e-2",
        "algo.num_envs=16",
        "algo.num_steps=32",
        "algo.max_kl=0.05",
        "algo.value_minibatches=4",
    ],
    "ppo_kl": ["algo.learning_rate=3e-3", "algo.num_envs=16", "algo.num_steps=32"],
    "cpi": ["algo.learning_rate=3e-3", "algo.num_envs=16", "algo.num_steps=32"],
}
CRITIC_FREE = {
    "vanilla_pg": [],
    "reinforce without baseline": ["algo=reinforce", "algo.baseline=none"],
    "reinforce with the mean": ["algo=reinforce", "algo.baseline=mean"],
    "reinforce with the best constant": ["algo=reinforce", "algo.baseline=optimal"],
    "rloo": [],
    "grpo": ["algo.learning_rate=1e-2"],
    "dr_grpo": ["algo.learning_rate=1e-2"],
}
EVERYONE = CRITICS | CRITIC_FREE
GAMMA = 0.9


def learn(name, env, *more, steps=12_000):
    """Train on a probe; returns the parts."""
    words = [
        f"algo={name.split()[0]}",
        f"env=probe_{env}",
        f"total_steps={steps}",
        "tuned=none",
        "device=cpu",
        *EVERYONE[name],
        *more,
    ]
    parts = build(compose(words))
    done = 0
    while done < steps:
        collected = parts.collector.collect(parts.behaviour())
        parts.algorithm.update(collected)
        done += collected.steps
    parts.close()
    return parts


def values(parts, *observations):
    with torch.no_grad():
        return parts.policy.values(torch.tensor(observations, dtype=torch.float32)[:, None]).tolist()


def with_gamma(name):
    return [f"algo.gamma={GAMMA}", "algo.entropy_coefficient=0"]


@pytest.mark.parametrize("kind", ["", "_continuous"])
@pytest.mark.parametrize("name", CRITICS)
def test_a_constant_reward_is_the_value(name, kind):
    parts = learn(name, f"constant_reward{kind}", *with_gamma(name), steps=8_000)
    assert values(parts, 0) == pytest.approx([1], abs=0.05)


@pytest.mark.parametrize("kind", ["", "_continuous"])
@pytest.mark.parametrize("name", CRITICS)
def test_the_value_depends_on_the_observation(name, kind):
    parts = learn(name, f"observation_value{kind}", *with_gamma(name), steps=8_000)
    assert values(parts, -1, 1) == pytest.approx([-1, 1], abs=0.05)


@pytest.mark.parametrize("kind", ["", "_continuous"])
@pytest.mark.parametrize("name", CRITICS)
def test_a_delayed_reward_is_discounted_once(name, kind):
    parts = learn(name, f"delayed_reward{kind}", *with_gamma(name))
    assert values(parts, 0, 1) == pytest.approx([GAMMA, 1], abs=0.05)


def probability(parts, observation, action):
    x = torch.tensor([[float(observation)]])
    with torch.no_grad():
        return parts.policy(x, torch.tensor([action])).log_probs.exp().item()


@pytest.mark.parametrize("name", EVERYONE)
def test_the_better_action_is_found(name):
    parts = learn(name, "action_reward")
    assert probability(parts, 0, 1) > 0.95
    if parts.policy.has_critic:
        assert values(parts, 0) == pytest.approx([2 * probability(parts, 0, 1) - 1], abs=0.1)


@pytest.mark.parametrize("name", EVERYONE)
def test_the_better_action_of_each_observation_is_found(name):
    parts = learn(name, "observation_action_reward", steps=16_000)
    assert probability(parts, 1, 1) > 0.95
    assert probability(parts, -1, 0) > 0.95
    if parts.policy.has_critic:
        exact = [2 * probability(parts, -1, 0) - 1, 2 * probability(parts, 1, 1) - 1]
        assert values(parts, -1, 1) == pytest.approx(exact, abs=0.1)


def gaussian(parts, observation):
    """Mean and standard deviation of the policy."""
    with torch.no_grad():
        mean = parts.policy.actor(torch.tensor([[float(observation)]])).item()
        return mean, parts.policy.head.log_std.exp().item()


@pytest.mark.parametrize("name", EVERYONE)
def test_the_best_real_action_is_found(name):
    parts = learn(name, "action_reward_continuous", "algo.entropy_coefficient=0", steps=24_000)
    mean, std = gaussian(parts, 0)
    assert mean == pytest.approx(0.5, abs=0.1)
    if parts.policy.has_critic:
        assert values(parts, 0) == pytest.approx([-((mean - 0.5) ** 2) - std**2], abs=0.1)


@pytest.mark.parametrize("name", EVERYONE)
def test_the_best_real_action_of_each_observation_is_found(name):
    parts = learn(name, "observation_action_reward_continuous", "algo.entropy_coefficient=0", steps=32_000)
    for observation in (-1, 1):
        mean, std = gaussian(parts, observation)
        assert mean == pytest.approx(observation / 2, abs=0.15)
        if parts.policy.has_critic:
            assert values(parts, observation) == pytest.approx([-((mean - observation / 2) ** 2) - std**2], abs=0.1)


def test_a_convolutional_network_learns_from_images():
    words = [
        "algo=ppo",
        "env=probe_image",
        "total_steps=8_000",
        "tuned=none",
        "algo.learning_rate=1e-3",
        "algo.num_envs=32",
    ]
    parts = build(compose(words))
    for _ in range(2):
        parts.algorithm.update(parts.collector.collect(parts.policy))
    image = torch.zeros(2, 1, 8, 8)
    image[0, :, :, :4], image[1, :, :, 4:] = 1, 1  # -1 and +1
    with torch.no_grad():
        right = parts.policy(image, torch.tensor([0, 1])).log_probs.exp()
    assert (right > 0.9).all(), right
