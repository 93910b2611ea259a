import numpy as np
import torch

from pgcli.collectors.episodes import EpisodeCollector, Stepping
from pgcli.types import ControlSpec, Discrete, Memoryless, Step

CPU = torch.device("cpu")


class Fuse:
    """An episode terminates after 1 + seed % 3 steps; reward 1 a step; observation = (length, steps so far)."""

    def __init__(self, num_envs):
        self.spec, self.num_envs = ControlSpec((2,), Discrete(2)), num_envs
        self.state = np.zeros((num_envs, 2), dtype=np.float32)
        self.stepped = []

    def reset(self, rows, seeds):
        self.state[rows] = np.array([[1 + seed % 3, 0] for seed in seeds])
        return self.state[rows].copy()

    def step(self, actions, rows):
        self.stepped.append(rows.tolist())
        self.state[rows, 1] += 1
        ended = self.state[rows, 1] >= self.state[rows, 0]
        one = np.ones(len(rows))
        return Step(self.state[rows].copy(), one, ended, np.zeros_like(ended), one)

    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...


class Critic(Memoryless):
    """V(s) = 10 * (steps so far); action 1; log-prob 0."""

    has_critic = True

    def sampler(self):
        return self

    def noise(self, generator, shape):
        return generator.random((*shape, 1), dtype=np.float32)

    def act(self, observations, noise):
        return np.ones(len(observations), dtype=np.int64), observations[:, 1:]

    def log_probs(self, outputs, actions):
        return outputs[..., 0]

    def values(self, observations):
        return 10 * observations[:, 1]


def test_every_episode_that_was_begun_is_finished_and_padded_on_the_right():
    env = Fuse(3)
    rollout = Stepping(env, device=CPU).play(Critic(), [0, 1, 2], None)  # lengths 1, 2, 3
    assert rollout.mask.tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert rollout.rewards.tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert rollout.terminated.tolist() == [[True, False, False], [False, True, False], [False, False, True]]
    assert env.stepped == [[0, 1, 2], [1, 2], [2]]  # an ended episode is not stepped again


def test_values_of_successors_include_the_final_state():
    rollout = Stepping(Fuse(3), device=CPU).play(Critic(), [0, 1, 2], None)
    kept = torch.where(rollout.mask, rollout.next_values, -1)
    assert kept.tolist() == [[10, -1, -1], [10, 20, -1], [10, 20, 30]]


def test_more_episodes_than_environments_are_played_in_turns():
    rollout = Stepping(Fuse(2), device=CPU).play(Critic(), [2, 0, 1], None)
    assert rollout.mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert [e.length for e in rollout.episodes] == [3, 1, 2]
    assert [e.seed for e in rollout.episodes] == [2, 0, 1]


def test_the_episodes_of_a_group_share_their_seed_and_their_number():
    source = EpisodeCollector(Stepping(Fuse(6), device=CPU), num_groups=2, group_size=3, seed=1)
    rollout = source.collect(Critic())
    assert rollout.groups.tolist() == [0, 0, 0, 1, 1, 1]
    seeds = [e.seed for e in rollout.episodes]
    assert len(set(seeds[:3])) == len(set(seeds[3:])) == 1
    assert seeds[0] != seeds[3]
    assert {e.seed for e in source.collect(Critic()).episodes}.isdisjoint(seeds)


def test_a_restored_collector_begins_with_the_next_seeds():
    first = EpisodeCollector(Stepping(Fuse(4), device=CPU), num_groups=4, group_size=1, seed=1)
    first.collect(Critic())
    second = EpisodeCollector(Stepping(Fuse(4), device=CPU), num_groups=4, group_size=1, seed=1)
    second.load_state_dict(first.state_dict())
    assert first.collect(Critic()).episodes == second.collect(Critic()).episodes
