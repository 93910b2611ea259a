import numpy as np
import pytest
import torch

from pgcli.collectors.episodes import EpisodeCollector, Stepping
from pgcli.types import ControlSpec, Discrete, Episode, Memoryless, Rollout, Step

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


def test_what_could_not_be_scored_is_left_out_and_so_is_what_has_nobody_to_compare_with():
    nan = float("nan")

    class Scorer:
        """Groups of three: one without a score; two without; none without."""

        def play(self, policy, seeds, generator):
            rewards = torch.tensor([[1.0], [nan], [3.0], [nan], [nan], [6.0], [7.0], [8.0], [9.0]])
            flags = torch.ones(9, 1, dtype=torch.bool)
            return Rollout(
                observations=rewards, actions=torch.arange(9)[:, None], rewards=rewards, terminated=flags,
                truncated=~flags, mask=flags, aux={"reward": rewards[:, 0]},
                episodes=[Episode(float(r), 1, s) for r, s in zip(rewards, seeds, strict=True)],
            )  # fmt: skip

    rollout = EpisodeCollector(Scorer(), num_groups=3, group_size=3, seed=0).collect(None)
    assert rollout.rewards[:, 0].tolist() == [1, 3, 7, 8, 9]
    assert rollout.actions[:, 0].tolist() == [0, 2, 6, 7, 8]
    assert rollout.groups.tolist() == [0, 0, 2, 2, 2]
    assert [e.total for e in rollout.episodes] == rollout.aux["reward"].tolist() == [1, 3, 7, 8, 9]
    assert rollout.metrics["rollout/unscorable"] == pytest.approx(1 / 3)
