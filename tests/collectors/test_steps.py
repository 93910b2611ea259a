import numpy as np
import torch

from pgcli.collectors.steps import SegmentCollector
from pgcli.types import ControlSpec, Discrete, Memoryless, Step

CPU = torch.device("cpu")


class Counting:
    """Observation = (seed's last digit, steps so far). Row 0 terminates after 2 steps, row 1 is truncated after 3."""

    def __init__(self):
        self.spec, self.num_envs = ControlSpec((2,), Discrete(2)), 2
        self.state = np.zeros((2, 2), dtype=np.float32)
        self.started = []

    def reset(self, rows, seeds):
        self.started += list(zip(rows.tolist(), seeds, strict=True))
        self.state[rows] = np.array([[seed % 10, 0] for seed in seeds])
        return self.state[rows].copy()

    def step(self, actions, rows=None):
        self.state[:, 1] += 1
        rewards = self.state[:, 1].astype(float).copy()
        return Step(self.state.copy(), rewards, self.state[:, 1] >= [2, 99], self.state[:, 1] >= [99, 3], rewards)

    def state_dict(self):
        return {"state": self.state.copy()}

    def load_state_dict(self, state):
        self.state[:] = state["state"]


class Spy(Memoryless):
    """V(s) = 10 * (steps so far); always action 1; log-prob = the first output, which is the observation's clock."""

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


def collector(**settings):
    return SegmentCollector(Counting(), num_steps=4, seed=5, device=CPU, **settings)


def test_an_episode_that_ends_is_followed_at_once_by_the_first_step_of_another():
    rollout = collector().collect(Spy())
    # Row 0 ends after every 2 steps, row 1 after 3: the clock of what was observed, and the rewards 1, 2, (3).
    assert rollout.observations[..., 1].tolist() == [[0, 1, 0, 1], [0, 1, 2, 0]]
    assert rollout.rewards.tolist() == [[1, 2, 1, 2], [1, 2, 3, 1]]
    assert rollout.terminated.tolist() == [[False, True, False, True], [False] * 4]
    assert rollout.truncated.tolist() == [[False] * 4, [False, False, True, False]]
    assert rollout.mask.all()


def test_log_probs_belong_to_the_state_in_which_the_action_was_taken():
    rollout = collector().collect(Spy())
    assert rollout.log_probs.tolist() == [[0, 1, 0, 1], [0, 1, 2, 0]]


def test_next_values_are_those_of_the_true_successor_not_of_the_state_after_the_reset():
    rollout = collector().collect(Spy())
    assert rollout.values.tolist() == [[0, 10, 0, 10], [0, 10, 20, 0]]
    # After the ends (t = 1, 3 of row 0; t = 2 of row 1) the reset state has V = 0; the final states have 20 and 30.
    assert rollout.next_values.tolist() == [[10, 20, 10, 20], [10, 20, 30, 10]]


def test_episodes_are_reported_with_their_return_length_and_seed():
    source = collector()
    rollout = source.collect(Spy())
    seeds = [seed for _, seed in source.env.started]
    assert [tuple(e) for e in rollout.episodes] == [(3.0, 2, seeds[0]), (6.0, 3, seeds[1]), (3.0, 2, seeds[2])]
    assert len(set(seeds)) == len(seeds)


def test_an_open_episode_goes_on_in_the_next_segment():
    source = collector()
    source.collect(Spy())
    second = source.collect(Spy())
    assert second.observations[1, :, 1].tolist() == [1, 2, 0, 1]
    assert second.episodes[0].length == 2
    assert second.episodes[1].length == 3  # of row 1: one step in the first segment, two in the second


def test_a_restored_collector_goes_on_exactly_as_the_original():
    first = collector()
    first.collect(Spy())
    second = collector()
    second.load_state_dict(first.state_dict())
    a, b = first.collect(Spy()), second.collect(Spy())
    assert torch.equal(a.observations, b.observations)
    assert a.episodes == b.episodes
    assert first.generator.random() == second.generator.random()
