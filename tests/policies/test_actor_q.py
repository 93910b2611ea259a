"""An actor with critics: who gets which gradient, and that the fast passes are the plain ones."""

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.testing import assert_close

from pgcli.errors import InputError
from pgcli.policies.mlp import MLP
from pgcli.types import ActorWithQ, Continuous, ControlSpec

BOX = Continuous(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32))
CENTRE, REACH = torch.tensor([0.0, 5.0]), torch.tensor([2.0, 5.0])


def actor_q(*, stochastic=True, critics=2, activation="relu", std="network", hidden=(16, 8), distribution="auto"):
    config = MLP.Config(
        name="mlp", hidden=hidden, activation=activation, orthogonal=False, distribution=distribution, std=std,
        initial_log_std=-0.5, log_std_bounds=(-5, 2),
    )  # fmt: skip
    needs = ActorWithQ(critics=critics, stochastic=stochastic)
    return MLP.make(ControlSpec((3,), BOX), config, needs, torch.Generator().manual_seed(0))


def data(n=33):
    generator = torch.Generator().manual_seed(1)
    x, z = torch.randn(n, 3, generator=generator), torch.randn(n, 2, generator=generator)
    return x, CENTRE + REACH * (2 * torch.rand(n, 2, generator=generator) - 1), z


def gradients(total, policy):
    """By part: whose gradient is not all zero."""
    policy.zero_grad()
    total.backward()
    return {name.partition(".")[0] for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("critics", [1, 2, 3])
def test_the_fast_passes_have_the_plain_values_and_gradients(critics, activation, stochastic):
    policy = actor_q(stochastic=stochastic, critics=critics, activation=activation)
    x, a, z = data()
    weights = torch.linspace(-1, 1, critics * 33).view(critics, 33)

    def result(view):
        actions, log_probs = view.act(x, z)
        values, fixed = view.values(x, a), view.fixed_values(x, actions)
        total = (values * weights).sum() + (fixed * weights).sum()
        if stochastic:
            total = total + log_probs.sum()
        policy.zero_grad()
        total.backward()
        found = [p.grad.clone() for p in policy.parameters() if p.requires_grad]
        one = view.fixed_values(x, actions, first=1)
        assert_close(one, fixed[:1])
        return [actions, values, fixed, view.target_values(x, a)], found

    (plain, slow), (quick, fast) = result(policy), result(policy.once_differentiable())
    assert_close(quick, plain, atol=2e-6, rtol=1e-5)
    assert_close(fast, slow, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("stochastic", "std"), [(True, "network"), (True, "parameter"), (False, "network")])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_both_sets_of_actions_are_those_of_two_passes(stochastic, std, activation):
    policy = actor_q(stochastic=stochastic, std=std, activation=activation)
    x, _, z = data()
    following, other_z = x.flip(0) + 1, -z.flip(1)
    view = policy.once_differentiable()

    def result(drawn):
        actions, log_probs = drawn
        weights = torch.linspace(-1, 1, actions.numel()).view_as(actions)
        policy.zero_grad()
        ((actions * weights).sum() + (log_probs.square().sum() if stochastic else 0)).backward()
        return drawn, [p.grad.clone() for p in policy.actor_parameters()]

    for both in (view.act_now_and_next, policy.act_now_and_next):
        drawn, others = both(x, following, z, other_z)
        (ours, found), (plain, slow) = result(drawn), result(policy.act(x, z))
        assert_close(ours, plain, atol=2e-6, rtol=1e-5)
        assert_close(found, slow, atol=2e-5, rtol=1e-4)
        with torch.no_grad():
            assert_close(others, policy.act(following, other_z), atol=2e-6, rtol=1e-5)
        assert not any(y is not None and y.requires_grad for y in others)


@pytest.mark.parametrize("differentiable", [True, False])
@pytest.mark.parametrize("critics", [1, 2, 3])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_both_sets_of_values_are_those_of_two_passes(activation, critics, differentiable):
    policy = actor_q(activation=activation, critics=critics)
    x, a, z = data()
    view = policy.once_differentiable()
    weights = torch.linspace(-1, 1, critics * 33).view(critics, 33)

    def result(passes):
        others = (CENTRE + 0.3 * REACH * z).requires_grad_(differentiable)
        values, fixed = passes(others)
        policy.zero_grad()
        ((values * weights).sum() + (fixed.square() * weights).sum()).backward()
        assert (others.grad is not None) == differentiable
        return [values, fixed, *([others.grad] if differentiable else [])], [
            p.grad for p in policy.critics.parameters()
        ]

    plain, slow = result(lambda others: (policy.values(x, a), policy.fixed_values(x, others)))
    for both in (view.values_beside, policy.values_beside):
        found, fast = result(lambda others, both=both: both(x, a, others))
        assert_close(found, plain, atol=2e-6, rtol=1e-5)
        assert_close(fast, slow, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("stochastic", [True, False])
def test_each_pass_has_the_gradient_that_it_says_and_no_other(stochastic, fast):
    policy = actor_q(stochastic=stochastic)
    view = policy.once_differentiable() if fast else policy
    x, a, z = data()
    actions, log_probs = view.act(x, z)
    assert gradients(view.values(x, a).sum(), policy) == {"critics"}
    assert gradients(view.fixed_values(x, actions).sum(), policy) == {"actor"}
    assert not view.target_values(x, a).requires_grad
    if stochastic:
        assert gradients(view.act(x, z)[1].sum(), policy) == {"actor"}
    else:
        assert log_probs is None
        assert not view.target_act(x, z).requires_grad


def test_a_critic_of_the_stack_is_the_network_one_would_write():
    policy = actor_q(critics=2)
    x, a, _ = data()
    both = torch.cat([x, (a - CENTRE) / REACH], 1)
    for k in range(2):
        hidden = both
        for i, layer in enumerate(policy.critics[k].layers):
            hidden = hidden @ layer.weight.T + layer.bias
            if i < 2:
                hidden = hidden.clamp(min=0)
        assert_close(policy.values(x, a)[k], hidden[:, 0])
    assert not torch.equal(policy.values(x, a)[0], policy.values(x, a)[1])


def test_targets_begin_as_copies_and_stay_where_they_are():
    policy = actor_q(stochastic=False)
    x, a, z = data()
    assert torch.equal(policy.values(x, a), policy.target_values(x, a))
    assert torch.equal(policy.act(x, z)[0], policy.target_act(x, 0 * z))
    before = policy.target_values(x, a)
    with torch.no_grad():
        for p in [*policy.critics.parameters(), *policy.actor.parameters()]:
            p.add_(0.1)
    assert torch.equal(policy.target_values(x, a), before)
    assert not torch.equal(policy.values(x, a), before)


def test_smoothed_targets_are_moved_in_units_of_the_box_and_stay_inside():
    policy = actor_q(stochastic=False)
    x, _, _ = data(4)
    still = policy.target_act(x, torch.zeros(4, 2))
    moved = policy.target_act(x, torch.full((4, 2), 0.1))
    assert_close(moved - still, torch.tensor([0.2, 0.5]).expand(4, 2))  # a tenth of half the range
    assert_close(policy.target_act(x, torch.full((4, 2), 9.0)), torch.tensor([2.0, 10.0]).expand(4, 2))


@pytest.mark.parametrize("std", ["network", "parameter"])
@pytest.mark.parametrize("stochastic", [True, False])
def test_the_sampler_acts_as_the_module(stochastic, std):
    policy = actor_q(stochastic=stochastic, std=std)
    x, _, z = data()
    sampler = policy.sampler()
    if stochastic:
        drawn, _ = sampler.act(x.numpy(), z.numpy())
        assert_close(torch.from_numpy(drawn), policy.act(x, z)[0].detach(), atol=2e-6, rtol=1e-5)
    greedy, outputs = sampler.act(x.numpy(), None)
    assert_close(torch.from_numpy(greedy), CENTRE + REACH * torch.tanh(torch.from_numpy(outputs[:, :2])))
    assert greedy.dtype == np.float32


def test_log_probs_are_densities_in_the_unit_box():
    # One actor in units of the environment (the head's own evaluation), one here: they differ by the log volume.
    policy = actor_q()
    x, _, z = data()
    actions, log_probs = policy.act(x, z)
    outputs = policy.actor(x)
    assert_close(log_probs, policy.head.evaluate(outputs, actions)[0] + REACH.log().sum(), atol=1e-4, rtol=1e-4)


def test_other_parameters_can_be_bound_from_outside():
    policy = actor_q()
    x, a, _ = data()
    doubled = {name: 2 * p for name, p in policy.named_parameters()}
    bound = functional_call(policy, doubled, ("values", x, a))
    own = policy.values(x, a)
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(2)
    assert_close(bound, policy.values(x, a))
    assert not torch.allclose(bound, own)


def test_an_actor_that_may_leave_the_box_is_refused():
    with pytest.raises(InputError, match="squashed_gaussian"):
        actor_q(distribution="gaussian")
