from pathlib import Path

import numpy as np
import pytest
import torch

from pgcli.collectors import replay
from pgcli.collectors.replay import Memory, ReplayCollector
from pgcli.environments.normalise import Normalisation, wrap
from pgcli.errors import InputError
from pgcli.types import Continuous, ControlSpec, Discrete

from .test_steps import CPU, Counting, Spy


def collector(env=None, **settings):
    settings = {"num_steps": 4, "learning_starts": 0, "capacity": 100} | settings
    return ReplayCollector(env or Counting(), seed=5, device=CPU, **settings)


def rows(memory, *names):
    """What is remembered, oldest first, as tuples."""
    columns = [
        np.concatenate([piece[name] for _, piece in memory.state_dict()["transitions"].pieces]) for name in names
    ]
    return list(zip(*(column.tolist() for column in columns), strict=True))


def clocks(memory):
    """(t, reward, t of the successor, terminated) of each transition."""
    found = rows(memory, "observations", "rewards", "next_observations", "terminated")
    return [(int(o[1]), r, int(n[1]), end) for o, r, n, end in found]


def test_each_step_of_each_environment_is_remembered_with_its_true_successor():
    # Row 0 terminates after two steps, row 1 is truncated after three: its third successor is the final observation
    # of the same episode, not the first of the next, and it is not terminated.
    experience = collector().collect(Spy())
    assert clocks(experience.memory) == [
        (0, 1, 1, False), (0, 1, 1, False),
        (1, 2, 2, True), (1, 2, 2, False),
        (0, 1, 1, False), (2, 3, 3, False),
        (1, 2, 2, True), (0, 1, 1, False),
    ]  # fmt: skip
    assert experience.steps == experience.size == 8
    assert [(e.total, e.length) for e in experience.episodes] == [(3, 2), (6, 3), (3, 2)]


def test_an_episode_goes_on_in_the_next_call():
    once, twice = collector(num_steps=8), collector()
    whole = once.collect(Spy())
    pieces = [twice.collect(Spy()), twice.collect(Spy())]
    assert clocks(whole.memory) == clocks(pieces[1].memory)
    assert whole.episodes == pieces[0].episodes + pieces[1].episodes


def test_the_first_actions_are_random_and_the_rest_are_the_policy_s():
    c = collector(learning_starts=41, num_steps=1)
    first = c.collect(Spy())
    assert first.steps == 2 * (21 + 1)  # as many steps of both environments as 41 actions need, and one of the policy's
    actions = [action for (action,) in rows(c.memory, "actions")]
    assert set(actions[:42]) == {0, 1}
    assert actions[42:] == [1, 1]  # the spy's only action
    assert c.collect(Spy()).steps == 2


def test_random_real_actions_fill_the_box():
    class Box(Counting):
        def __init__(self):
            super().__init__()
            self.spec = ControlSpec((2,), Continuous(np.array([-1.0, 2.0]), np.array([1.0, 3.0])))

    class Still(Spy):
        def act(self, observations, noise):
            return np.zeros((2, 2), dtype=np.float32), None

    c = collector(Box(), learning_starts=400, capacity=500)
    c.collect(Still())
    actions = np.array([action for (action,) in rows(c.memory, "actions")[:400]])
    assert (actions >= [-1, 2]).all() and (actions <= [1, 3]).all()  # noqa: PT018
    assert actions.mean(0) == pytest.approx([0, 2.5], abs=0.15)
    assert np.abs(np.corrcoef(actions.T)[0, 1]) < 0.2


def test_random_actions_without_bounds_are_refused():
    class Endless(Counting):
        def __init__(self):
            super().__init__()
            self.spec = ControlSpec((2,), Continuous(np.array([-np.inf]), np.array([1.0])))

    with pytest.raises(InputError, match=r"need bounds.*learning_starts=0"):
        collector(Endless(), learning_starts=2).collect(Spy())


@pytest.mark.parametrize("settings", [{"capacity": 1}, {"capacity": 10, "learning_starts": 11}])
def test_a_memory_that_cannot_hold_what_must_be_in_it_is_refused(settings):
    with pytest.raises(InputError, match="capacity"):
        collector(**settings)


def test_a_memory_larger_than_the_machine_is_refused_with_one_that_would_fit(monkeypatch):
    # A transition: two observations of two reals, an action of 8 bytes, a reward, a flag: 16 + 8 + 4 + 1 = 29 bytes.
    # 10^16 of them are 270,083,546.6 GiB. Four fifths of 100 kB hold 2758 of them: two digits of that.
    monkeypatch.setattr(replay, "_free_memory", lambda: 100_000)
    with pytest.raises(InputError, match=r"no room for a memory of 270,083,546\.6 GiB; algo\.capacity=2700 would fit$"):
        collector(capacity=10**16)
    monkeypatch.setattr(replay, "_free_memory", lambda: 0)
    with pytest.raises(InputError, match=r"GiB$"):
        collector(capacity=10**16)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the system does not say how much memory is free")
def test_free_memory_is_in_bytes():
    assert 2**26 < replay._free_memory() < 2**50


# ---------------------------------------------------------------- the ring


def ring(capacity):
    return Memory(ControlSpec((1,), Discrete(9)), capacity, None, seed=0, device=CPU)


def append(memory, *numbers):
    n = np.array(numbers)
    memory.append(n[:, None], n % 9, n, n[:, None] + 0.5, n % 2 == 1)


def test_the_oldest_transitions_are_overwritten():
    memory = ring(5)
    append(memory, 0, 1)
    append(memory, 2, 3)
    append(memory, 4, 5)  # around the corner, in one call
    append(memory, 6, 7)
    assert memory.size == 5
    assert rows(memory, "rewards", "actions", "terminated") == [
        (3, 3, True), (4, 4, False), (5, 5, True), (6, 6, False), (7, 7, True),
    ]  # fmt: skip


def test_draws_are_uniform_over_what_is_there_and_rows_stay_together():
    memory = ring(8)
    append(memory, *range(5))
    drawn = memory.draw(5000)
    counts = torch.bincount(drawn.rewards.long(), minlength=8)
    assert counts[5:].tolist() == [0, 0, 0]
    assert (counts[:5] - 1000).abs().max() < 130  # four standard deviations
    assert torch.equal(drawn.observations[:, 0], drawn.rewards)
    assert torch.equal(drawn.next_observations[:, 0], drawn.rewards + 0.5)
    assert torch.equal(drawn.actions, drawn.rewards.long())
    assert torch.equal(drawn.terminated, drawn.rewards % 2 == 1)
    for _ in range(3):
        append(memory, *range(10, 15))
    assert set(memory.draw(2000).rewards.tolist()) == {10, 11, 12, 13, 14}


@pytest.mark.parametrize("steps", [1, 3, 7, 50])
def test_a_restored_collector_goes_on_as_if_nothing_had_happened(steps):
    settings = {"num_steps": steps, "learning_starts": 6, "capacity": 20}
    first, second = collector(**settings), collector(**settings)
    first.collect(Spy()).draw(3)
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        a, b = first.collect(Spy()), second.collect(Spy())
        assert a.episodes == b.episodes
        assert clocks(a.memory) == clocks(b.memory)
        assert torch.equal(a.draw(50).observations, b.draw(50).observations)


def test_a_smaller_memory_takes_over_the_newest_of_a_larger_one():
    large, small = ring(10), ring(4)
    append(large, *range(13))
    small.load_state_dict(large.state_dict())
    assert rows(small, "rewards") == [(9,), (10,), (11,), (12,)]
    append(small, 13)
    assert rows(small, "rewards") == [(10,), (11,), (12,), (13,)]


# ---------------------------------------------------------------- pixels

LEVELS = np.arange(256, dtype=np.float32) / 255


def pixels(*, kept=True):
    """Ten transitions of (256,) observations, with a capacity of eight."""
    memory = Memory(ControlSpec((256,), Discrete(9), pixels=kept), 8, None, seed=0, device=CPU)
    for i in range(5):
        n = np.arange(2 * i, 2 * i + 2)
        memory.append(np.roll(LEVELS, i)[None].repeat(2, 0), n % 9, n, np.roll(LEVELS, -i)[None].repeat(2, 0), n < 0)
    return memory


def test_pixels_are_kept_as_bytes_and_drawn_as_they_were():
    memory = pixels()
    assert memory.columns["observations"].nbytes == memory.columns["next_observations"].nbytes == 8 * 256
    drawn, expected = vars(memory.draw(50)), vars(pixels(kept=False).draw(50))
    for name in drawn:
        torch.testing.assert_close(drawn[name], expected[name], rtol=0, atol=0)


@pytest.mark.parametrize(("kept", "restored"), [(True, True), (False, True), (True, False)])
def test_pixels_kept_as_reals_or_bytes_are_restored_as_either(kept, restored):
    # Checkpoints of earlier versions have reals.
    source, memory = pixels(kept=kept), pixels(kept=restored)
    memory.load_state_dict(source.state_dict())
    a, b = source.draw(50), memory.draw(50)
    assert torch.equal(a.observations, b.observations)
    assert torch.equal(a.next_observations, b.next_observations)


# ---------------------------------------------------------------- normalised


class Seeing(Spy):
    def __init__(self):
        self.seen = []

    def act(self, observations, noise):
        self.seen.append(observations.copy())
        return super().act(observations, noise)


def test_raw_transitions_are_remembered_and_normalised_when_they_are_drawn():
    config = Normalisation(observations=True, rewards=True, reward_scale=1.0, reward_clip=None, clip=10.0, gamma=0.9)
    env, policy = wrap(Counting(), config), Seeing()
    c = collector(env)
    c.collect(policy)
    assert clocks(c.memory) == clocks(collector().collect(Spy()).memory)

    # The clocks that have been seen: those of two resets (0, 0), of the steps, and of the resets in between.
    seen = [0, 0, 1, 1, 2, 2, 0, 1, 3, 0, 2, 1, 0]
    mean, deviation = np.mean(seen), np.sqrt(np.var(seen) + 1e-8)
    drawn = c.memory.draw(200)
    raw = np.array([t for t, _, _, _ in clocks(c.memory)])
    expected = sorted(set(((raw - mean) / deviation).astype(np.float32).tolist()))
    assert sorted(set(drawn.observations[:, 1].tolist())) == pytest.approx(expected)
    # One reward, one scale, whenever it was earned.
    assert len(set(drawn.rewards.tolist())) == len({r for _, r, _, _ in clocks(c.memory)}) == 3

    c.collect(policy)
    assert c.memory.draw(200).observations[:, 1].unique().tolist() != pytest.approx(expected)


def test_the_policy_sees_a_state_as_a_minibatch_would_show_it():
    config = Normalisation(observations=True, rewards=False, reward_scale=1.0, reward_clip=None, clip=10.0, gamma=0.9)
    env, policy = wrap(Counting(), config), Seeing()
    c = collector(env, num_steps=1)
    c.collect(policy)
    c.collect(policy)
    later = env.normalise(np.array([[0.0, 1.0], [0.0, 1.0]], dtype=np.float32))
    assert policy.seen[1][:, 1].tolist() != later[:, 1].tolist()  # the statistics have moved on since
    c.env.raw = None
    shown = env.normalise(c.observations)
    c.collect(policy)
    assert policy.seen[2].tolist() == shown.tolist()
