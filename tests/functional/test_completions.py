import math

import pytest
import torch

from pgcli.functional.completions import preference_probability, soft_overlong, tilt


def test_the_punishment_for_length_begins_with_the_buffer_and_is_one_at_the_limit():
    lengths = torch.tensor([1, 6, 7, 8, 9, 10])
    found = soft_overlong(lengths, limit=10, buffer=4)
    torch.testing.assert_close(found, torch.tensor([0, 0, -0.25, -0.5, -0.75, -1]))


def test_labels_prefer_the_better_one_by_bradley_terry_and_are_turned_round_now_and_then():
    # Differences of log 3 times the scale: sigmoid = 3/4; a tenth turned round: 0.9 * 3/4 + 0.1 * 1/4 = 0.7.
    difference = torch.tensor([2 * math.log(3), -2 * math.log(3), 0.0])
    torch.testing.assert_close(preference_probability(difference, scale=2.0, flip=0.0), torch.tensor([0.75, 0.25, 0.5]))
    torch.testing.assert_close(preference_probability(difference, scale=2.0, flip=0.1), torch.tensor([0.7, 0.3, 0.5]))


@pytest.mark.parametrize("beta", [0.1, 1.0, 7.0])
def test_no_policy_has_more_reward_less_divergence_than_the_tilted_one(beta):
    generator = torch.Generator().manual_seed(0)
    reference = torch.log_softmax(torch.randn(5, dtype=torch.float64, generator=generator), 0)
    rewards = torch.rand(5, dtype=torch.float64, generator=generator)

    def objective(log_probs):
        return (log_probs.exp() * (rewards - beta * (log_probs - reference))).sum()

    best = objective(tilt(reference, rewards, beta))
    # The maximum is beta log E_ref[exp(r / beta)], of which the code knows nothing.
    torch.testing.assert_close(best, beta * (reference.exp() * (rewards / beta).exp()).sum().log())
    for _ in range(20):
        other = torch.log_softmax(3 * torch.randn(5, dtype=torch.float64, generator=generator), 0)
        assert objective(other) < best
