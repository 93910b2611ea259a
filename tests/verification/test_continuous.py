"""The linear-quadratic oracle: every row holds, and bites where a formula is broken."""

import pytest
import torch

from pgcli.algorithms import ddpg, sac
from pgcli.types import Transitions
from pgcli.verification import continuous
from pgcli.verification.continuous import GAIN, GAMMA, START, A, B, C, R, best_gain, checks, cost_to_go


def test_every_quantity_is_exact():
    rows = list(checks())
    assert {row.algo for row in rows} == set(continuous.BUILT_IN)
    for row in rows:
        assert row.passed, row
        assert row.tolerance <= 1e-8


def test_the_cost_to_go_is_the_discounted_sum_along_a_path():
    p, s = cost_to_go(GAIN), torch.tensor([0.7, -0.4], dtype=torch.float64)
    predicted, total = s @ p @ s, 0.0
    for t in range(400):
        u = -GAIN @ s
        total += GAMMA**t * (s @ C @ s + u @ R @ u)
        s = A @ s + B @ u
    torch.testing.assert_close(predicted, total)


def test_no_gain_nearby_is_better_than_the_best():
    best = best_gain()
    cost = (cost_to_go(best) @ START).trace()
    for seed in range(20):
        near = best + 0.05 * torch.randn(2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert (cost_to_go(near) @ START).trace() > cost


def broken(monkeypatch, module, name, replacement):
    monkeypatch.setattr(module, name, replacement)
    return {row.algo for row in checks() if not row.passed}


BREAKS = {
    "no discount": ("bellman_target", lambda r, v, end, gamma: r + v * ~end, {"ddpg", "td3", "sac"}),
    "bootstraps behind the end": ("bellman_target", lambda r, v, end, gamma: r + gamma * v, {"ddpg", "td3"}),
    "one critic learns": ("squared", lambda errors: errors[:1].square() / 2, {"sac"}),
    "the error itself": ("squared", lambda errors: errors, {"sac"}),
    "the first critic judges": ("lowest", lambda q: q[0], {"td3"}),
    "the last critic judges": ("lowest", lambda q: q[-1], {"td3"}),
    "entropy with the wrong sign": ("soft_value", lambda q, log_pi, alpha: q.amin(0) + alpha * log_pi, {"sac"}),
    "the highest critic": ("soft_value", lambda q, log_pi, alpha: q.amax(0) - alpha * log_pi, {"sac"}),
    "temperature with the wrong sign": ("temperature_loss", lambda a, log_pi, h: a * (log_pi.detach() + h), {"sac"}),
}


@pytest.mark.parametrize(("name", "replacement", "caught"), BREAKS.values(), ids=BREAKS)
def test_a_broken_formula_is_noticed(monkeypatch, name, replacement, caught):
    for module, own in ((ddpg, {"ddpg", "td3"}), (sac, {"sac"})):
        if hasattr(module, name):
            with monkeypatch.context() as patch:
                assert broken(patch, module, name, replacement) >= caught & own


def test_forgotten_weights_are_noticed(monkeypatch):
    assert broken(monkeypatch, Transitions, "mean", lambda self, x: x.mean()) >= {"ddpg", "td3", "sac"}
