"""The rows on DQN, Q-learning and SARSA pass, and notice what is wrong."""

import pytest
import torch

from pgcli.algorithms import dqn, q_learning, sarsa
from pgcli.functional import temporal_difference
from pgcli.verification.value_based import checks

MODULES = {"dqn": dqn, "q_learning": q_learning, "sarsa": sarsa}


def failing():
    return {check.algo for check in checks() if not check.passed}


def test_every_mean_update_is_what_dynamic_programming_says():
    found = list(checks())
    assert {check.algo for check in found} == set(MODULES)
    assert [check.quantity for check in found if not check.passed] == []
    assert max(check.error for check in found) < 1e-10
    # A row that holds for any Q would prove nothing: those away from a fixed point are far from zero.
    assert all(abs(check.ours) > 0.5 for check in found if "sweep" in check.quantity or "clipped" in check.quantity)


MUTATIONS = {
    "no end to an episode": ("bellman_target", lambda r, v, end, gamma: r + gamma * v),
    "an end everywhere": ("bellman_target", lambda r, v, end, gamma: r),
    "no discount": ("bellman_target", lambda r, v, end, gamma: r + v * ~end),
    "a sign": ("bellman_target", lambda r, v, end, gamma: r - gamma * v * ~end),
    "the wrong action": ("select", lambda q, a: temporal_difference.select(q, (a + 1) % q.shape[1])),
    "twice the step": ("squared", lambda errors: errors.square()),
    "ascent": ("squared", lambda errors: -errors.square() / 2),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mistake_in_a_method_is_noticed(monkeypatch, name, mutation):
    function, broken = MUTATIONS[mutation]
    monkeypatch.setattr(MODULES[name], function, broken)
    assert failing() == {name}


def test_a_gradient_through_the_target_is_noticed(monkeypatch):
    for module in MODULES.values():
        monkeypatch.setattr(module.torch, "no_grad", torch.enable_grad)
    # The table that DQN's target network reads is another one: with it there is nothing to differentiate by mistake.
    assert {"q_learning", "sarsa"} <= failing()


def test_a_huber_loss_that_does_not_clip_is_noticed(monkeypatch):
    monkeypatch.setattr(dqn, "huber", temporal_difference.squared)
    assert failing() == {"dqn"}


def test_a_policy_that_explores_more_than_it_says_is_noticed(monkeypatch):
    monkeypatch.setattr(sarsa, "epsilon_greedy", lambda q, epsilon: temporal_difference.epsilon_greedy(q, 2 * epsilon))
    assert failing() == {"sarsa"}
