"""Groups that have something to teach: the others are thrown away, and paid for."""

import pytest
import torch

from pgcli.collectors.informative import InformativeGroups
from pgcli.functional.distributions import Categorical
from pgcli.types import Episode, Rollout


def rollout(returns, length, offset=0):
    """Groups of two, one return an episode, received at its end; the first row of a group is one action shorter."""
    n = len(returns)
    mask = torch.ones(n, length, dtype=torch.bool)
    mask[::2, -1] = False
    last = mask.sum(1) - 1
    rewards = torch.zeros(n, length).scatter_(1, last[:, None], torch.tensor(returns).float()[:, None])
    numbers = offset + torch.arange(n, dtype=torch.float32)
    logits = numbers[:, None, None].expand(n, length, 3)
    ended = torch.zeros(n, length, dtype=torch.bool).scatter_(1, last[:, None], True)
    return Rollout(
        observations={"prompt": torch.arange(n)[:, None].expand(n, 4) + offset},
        actions=torch.arange(n)[:, None].expand(n, length) + offset, rewards=rewards, terminated=ended,
        truncated=torch.zeros_like(mask), mask=mask, log_probs=-numbers[:, None].expand(n, length),
        groups=torch.arange(n) // 2, distribution=Categorical(logits), aux={"gold": numbers},
        metrics={"reward/reward": sum(returns) / n}, episodes=[Episode(float(r), 1, i) for i, r in enumerate(returns)],
    )  # fmt: skip


class Scripted:
    def __init__(self, *rollouts):
        self.rollouts = list(rollouts)

    def collect(self, policy):
        return self.rollouts.pop(0)

    def state_dict(self):
        return {"left": len(self.rollouts)}


def test_it_asks_until_enough_groups_differ_and_takes_the_first_of_them():
    # Groups 0..2 of the first: differ, same, same. Of the second: same, differ, differ: one of them is one too many.
    source = Scripted(rollout([0, 1, 1, 1, 0, 0], 3), rollout([1, 1, 0, 1, 1, 0], 3, offset=10), rollout([0, 1] * 3, 3))
    found = InformativeGroups(source, num_groups=2, max_polls=5).collect(None)
    assert found.actions[:, 0].tolist() == [0, 1, 12, 13]
    assert found.observations["prompt"][:, 0].tolist() == [0, 1, 12, 13]
    assert found.aux["gold"].tolist() == [0, 1, 12, 13]
    assert found.distribution.logits[:, 0, 0].tolist() == [0, 1, 12, 13]
    assert len(found.groups.unique()) == 2
    assert found.groups[0] == found.groups[1]
    assert len(source.rollouts) == 1, "it stops as soon as there are enough"
    # Fifteen actions were taken each time, of which ten are here.
    assert found.steps == 30
    assert found.discarded == 20
    assert len(found.episodes) == 12
    assert found.metrics["reward/reward"] == pytest.approx((3 / 6 + 4 / 6) / 2), "of all that was collected"
    assert found.metrics["rollout/polls"] == 2
    assert found.metrics["rollout/kept_groups"] == pytest.approx(2 / 6)


def test_it_stops_asking_at_the_limit_and_hands_on_what_there_is():
    same, differ = [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]
    collector = InformativeGroups(Scripted(rollout(same, 3), rollout(differ, 3)), num_groups=2, max_polls=2)
    found = collector.collect(None)
    assert len(found.actions) == 2
    assert found.metrics["rollout/polls"] == 2
    nothing = InformativeGroups(Scripted(rollout(same, 3), rollout(same, 3, 10)), num_groups=2, max_polls=2)
    found = nothing.collect(None)
    assert found.actions[:, 0].tolist() == [10, 11, 12, 13], "groups that teach nothing are better than no batch"
    assert found.steps == 20
    assert found.metrics["rollout/kept_groups"] == 0


def test_episodes_of_different_lengths_are_padded_to_the_longest():
    first, second = rollout([0, 1], 3), rollout([0, 1], 5, offset=10)
    for part in (first, second):  # as in control: observations have a T
        part.observations = part.actions[..., None].float()
    found = InformativeGroups(Scripted(first, second), num_groups=2, max_polls=2).collect(None)
    assert found.mask.tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert found.observations.shape == (4, 5, 1)
    assert found.rewards.sum(1).tolist() == [0, 1, 0, 1]
