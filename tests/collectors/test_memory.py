"""A policy that remembers, collected in segments and in episodes: what it is told, and with which memory V is asked.

The policy is a GRU of one unit whose memory is easy to follow: r = z = 1/2 and n = tanh(x), so h' = (h + tanh(x)) / 2,
and V = h. The environment shows the seed of the episode and its clock, so every episode's memory can be followed from
its start, by the few lines of `followed`.
"""

import math

import numpy as np
import pytest
import torch

from pgcli.collectors.episodes import EpisodeCollector, Stepping
from pgcli.collectors.steps import SegmentCollector
from pgcli.experiment.build import build
from pgcli.experiment.config import compose
from pgcli.policies.gru import GRU
from pgcli.types import ControlSpec, Discrete, Step

HEAD = {"distribution": "auto", "std": "parameter", "log_std_bounds": (-20, 2)}

CPU = torch.device("cpu")
SPEC = ControlSpec((1,), Discrete(2))


class Lengths:
    """An episode lasts 2 + seed % 4 steps and is truncated, or terminated if odd. o = seed % 7 + clock / 10."""

    def __init__(self, num_envs):
        self.spec, self.num_envs = SPEC, num_envs
        self.seeds, self.clock = np.zeros(num_envs, dtype=np.int64), np.zeros(num_envs, dtype=np.int64)

    def reset(self, rows, seeds):
        self.seeds[rows], self.clock[rows] = seeds, 0
        return self.observe(rows)

    def observe(self, rows):
        return np.array(
            [[shown(s, c)] for s, c in zip(self.seeds[rows], self.clock[rows], strict=True)], dtype=np.float32
        )

    def step(self, actions, rows=None):
        rows = np.arange(self.num_envs) if rows is None else rows
        self.clock[rows] += 1
        over = self.clock[rows] == length(self.seeds[rows])
        odd = self.seeds[rows] % 2 == 1
        ones = np.ones(len(rows))
        return Step(self.observe(rows), ones, over & odd, over & ~odd, ones)

    def state_dict(self):
        return {"seeds": self.seeds.copy(), "clock": self.clock.copy()}

    def load_state_dict(self, state):
        self.seeds[:], self.clock[:] = state["seeds"], state["clock"]


def length(seed):
    return 2 + seed % 4


def shown(seed, clock):
    return seed % 7 + clock / 10


def followed(seed, clock):
    """What is remembered, and so V, after the observation of that clock."""
    h = 0.0
    for c in range(clock + 1):
        h = (h + math.tanh(shown(seed, c))) / 2
    return h


def transparent():
    config = GRU.Config(name="gru", hidden=1, orthogonal=True, initial_log_std=0.0, **HEAD)
    policy = GRU(SPEC, config, critic=True, generator=torch.Generator())
    with torch.no_grad():
        for p in policy.parameters():
            p.zero_()
        for network in (policy.actor, policy.critic):
            network.input.weight[2] = network.readout.weight[0] = 1.0
    return policy


def segments(steps, num_envs=3):
    return SegmentCollector(Lengths(num_envs), num_steps=steps, seed=5, device=CPU)


def walk(source, policy, count):
    """(observation's seed and clock of each row and step, rollout) of some segments, by asking the environment."""
    found = []
    for _ in range(count):
        told, inner = [], source.env.step

        def step(actions, rows=None, told=told, inner=inner):
            told.append(list(zip(source.env.seeds.tolist(), source.env.clock.tolist(), strict=True)))
            return inner(actions, rows)

        source.env.step = step
        rollout = source.collect(policy)
        source.env.step = inner
        found.append(([list(row) for row in zip(*told, strict=True)], rollout))
    return found


def test_values_in_segments_remember_the_episode_and_nothing_else():
    ended = cut = 0
    for told, rollout in walk(segments(7), transparent(), 3):
        for row, states in enumerate(told):
            for t, (seed, clock) in enumerate(states):
                assert rollout.values[row, t].item() == pytest.approx(followed(seed, clock), abs=1e-6)
                # The true successor, the final state of a truncated episode as much as the one behind the segment.
                assert rollout.next_values[row, t].item() == pytest.approx(followed(seed, clock + 1), abs=1e-6)
                ended += bool(rollout.truncated[row, t])
            cut += not rollout.done[row, -1]
    assert ended > 3, "truncated episodes were tested"
    assert cut > 1, "segments that cut an episode were tested"


def test_segments_begin_with_what_was_remembered_and_say_where_episodes_start():
    for told, rollout in walk(segments(7), transparent(), 3):
        tree = rollout.observations
        assert tree["starts"].tolist() == [[clock == 0 for _, clock in states] for states in told]
        for row, states in enumerate(told):
            seed, clock = states[0]
            if clock:  # what stands in a row that starts an episode is never looked at
                remembered = [tree[role][row].item() for role in ("actor", "critic")]
                assert remembered == pytest.approx([followed(seed, clock - 1)] * 2, abs=1e-6)


def test_two_segments_are_one_of_twice_the_length():
    """The same steps, cut in the middle: what the policy did and thought must not depend on the cut."""
    policy = random_gru()
    (_, whole), halves = walk(segments(10), policy, 1)[0], walk(segments(5), policy, 2)
    for name in ("actions", "log_probs", "values", "next_values"):
        joined = torch.cat([getattr(rollout, name) for _, rollout in halves], dim=1)
        torch.testing.assert_close(joined, getattr(whole, name), atol=1e-6, rtol=0)


def random_gru():
    config = GRU.Config(name="gru", hidden=8, orthogonal=True, initial_log_std=0.0, **HEAD)
    policy = GRU(SPEC, config, critic=True, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(4)))
    return policy


@pytest.mark.parametrize("make", ["segments", "episodes"])
def test_what_was_collected_is_what_the_policy_says_of_it(make):
    policy = random_gru()
    source = (
        segments(7)
        if make == "segments"
        else EpisodeCollector(Stepping(Lengths(5), device=CPU), num_groups=5, group_size=1, seed=1)
    )
    for _ in range(2):
        rollout = source.collect(policy)
        for evaluate in (policy, policy.once_differentiable()):
            again = evaluate(rollout.observations, rollout.actions)
            for found, own in ((rollout.log_probs, again.log_probs), (rollout.values, again.values)):
                torch.testing.assert_close(found[rollout.mask], own[rollout.mask], atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_envs", [5, 2])
def test_values_in_episodes_end_with_that_of_the_true_final_state(num_envs):
    seeds = [0, 1, 2, 3, 4]
    rollout = Stepping(Lengths(num_envs), device=CPU).play(transparent(), seeds, None)
    assert rollout.mask.sum(1).tolist() == [length(seed) for seed in seeds]
    for row, seed in enumerate(seeds):
        for t in range(length(seed)):
            assert rollout.values[row, t].item() == pytest.approx(followed(seed, t), abs=1e-6)
            assert rollout.next_values[row, t].item() == pytest.approx(followed(seed, t + 1), abs=1e-6)
    assert rollout.observations["starts"].sum(1).tolist() == [1] * 5
    assert rollout.observations["starts"][:, 0].all()


def test_a_restored_collector_remembers_what_the_original_did():
    policy = random_gru()
    first = segments(5)
    first.collect(policy)
    second = segments(5)
    second.load_state_dict(first.state_dict())
    a, b = first.collect(policy), second.collect(policy)
    assert torch.equal(a.observations["actor"], b.observations["actor"])
    assert torch.equal(a.log_probs, b.log_probs)
    assert torch.equal(a.next_values, b.next_values)


# ---------------------------------------------------------------- what is made of it


def ppo(*words):
    base = "algo=ppo env=cartpole_positions tuned=none device=cpu policy.hidden=8 algo.num_envs=4 algo.num_steps=16"
    return build(compose([*base.split(), *words]))


def test_padding_changes_no_loss_and_no_gradient():
    parts = ppo("algo.collect=episodes", "algo.num_episodes=4", "algo.normalise_advantages=minibatch")
    rollout = parts.collector.collect(parts.policy)
    batch = parts.algorithm.prepare(rollout)
    loss, _ = parts.algorithm.loss(parts.policy.once_differentiable(), batch, None)
    gradients = torch.autograd.grad(loss, list(parts.policy.parameters()))
    generator = torch.Generator().manual_seed(0)

    def pad(x):
        more = torch.randint(0, 2, (x.shape[0], 3, *x.shape[2:]), generator=generator).to(x.dtype)
        return torch.cat([x, torch.zeros_like(more) if x is batch.mask else more], dim=1)

    def padded(x):
        return {key: pad(value) for key, value in x.items()} if isinstance(x, dict) else pad(x)

    fields = {name: padded(value) for name, value in vars(batch).items() if value is not None}
    fields |= {name: torch.nn.functional.pad(getattr(batch, name), (0, 3)) for name in ("weights", "per_action")}
    longer, _ = parts.algorithm.loss(parts.policy.once_differentiable(), type(batch)(**fields), None)
    torch.testing.assert_close(longer, loss, atol=1e-6, rtol=1e-6)
    more = torch.autograd.grad(longer, list(parts.policy.parameters()))
    torch.testing.assert_close(more, gradients, atol=1e-6, rtol=1e-5)


def test_minibatches_are_whole_sequences_and_at_most_one_each():
    parts = ppo("algo.minibatches=4", "algo.epochs=2")
    rollout = parts.collector.collect(parts.policy)
    assert parts.algorithm.update(rollout)["optimiser/gradient_steps"] == 2 * 4
    # Rows may be missing, because they could not be scored.
    three = parts.algorithm.prepare(rollout)[torch.arange(3)]
    metrics = parts.algorithm.updater.epochs(parts.algorithm.loss, three, epochs=2, minibatches=4, steps=48)
    assert metrics["optimiser/gradient_steps"] == 2 * 3
