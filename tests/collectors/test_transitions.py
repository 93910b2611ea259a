import numpy as np
import pytest
import torch

from pgcli.collectors.transitions import TransitionCollector

from .test_steps import CPU, Counting, Spy


class Counter(Spy):
    """Its actions count up, so that each one tells when it was chosen."""

    def __init__(self):
        self.chosen = 0

    def act(self, observations, noise):
        actions = self.chosen + np.arange(len(observations))
        self.chosen += len(observations)
        return actions, None


def collect(steps, *, looks_ahead=False, policy=None):
    collector = TransitionCollector(Counting(), looks_ahead=looks_ahead, seed=5, device=CPU)
    policy = policy or Counter()
    return collector, [collector.collect(policy) for _ in range(steps)]


def test_a_transition_ends_in_the_true_successor_and_the_next_begins_in_a_new_episode():
    # Row 0 terminates after two steps, row 1 is truncated after three.
    _, found = collect(4)
    clocks = [
        list(zip(*(x.tolist() for x in (t.observations[:, 1], t.next_observations[:, 1], t.terminated)), strict=True))
        for t in (steps.transitions for steps in found)
    ]
    assert clocks == [
        [(0, 1, False), (0, 1, False)],
        [(1, 2, True), (1, 2, False)],
        [(0, 1, False), (2, 3, False)],
        [(1, 2, True), (0, 1, False)],
    ]
    assert [[(e.total, e.length) for e in steps.episodes] for steps in found] == [[], [(3, 2)], [(6, 3)], [(3, 2)]]
    assert [steps.steps for steps in found] == [2] * 4


def test_without_looking_ahead_an_action_is_chosen_when_it_is_taken():
    _, found = collect(3)
    assert [steps.transitions.actions.tolist() for steps in found] == [[0, 1], [2, 3], [4, 5]]
    assert found[0].transitions.next_actions is None


def test_looking_ahead_hands_on_the_action_that_is_taken_next():
    _, found = collect(4, looks_ahead=True)
    actions = [steps.transitions.actions.tolist() for steps in found]
    following = [steps.transitions.next_actions.tolist() for steps in found]
    for now, later, ended in zip(following, actions[1:], [(), (0,), (1,)], strict=False):
        for row in (0, 1):
            # Behind an episode's end, nobody takes it: the new episode's first action is chosen for its first state.
            assert (now[row] == later[row]) == (row not in ended)
    assert all(len(set(pair)) == 2 for pair in actions)


@pytest.mark.parametrize("looks_ahead", [False, True])
@pytest.mark.parametrize("after", range(5))
def test_a_restored_collector_goes_on_as_if_nothing_had_happened(looks_ahead, after):
    class Noisy(Spy):
        def act(self, observations, noise):
            return (noise[:, 0] > 0.5).astype(np.int64), None

    first, _ = collect(after, looks_ahead=looks_ahead, policy=Noisy())
    second, _ = collect(0, looks_ahead=looks_ahead)
    second.load_state_dict(first.state_dict())
    for _ in range(6):
        a, b = first.collect(Noisy()), second.collect(Noisy())
        assert a.episodes == b.episodes
        for name in ("observations", "actions", "rewards", "next_observations", "terminated", "next_actions"):
            x, y = getattr(a.transitions, name), getattr(b.transitions, name)
            assert (x is y is None) or torch.equal(x, y)
