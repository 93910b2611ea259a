"""The GRU: its equations, its three ways of being computed, and where its memory ends."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from pgcli.policies.gru import GRU, unroll
from pgcli.types import Continuous, ControlSpec, Discrete

DISCRETE = ControlSpec((2,), Discrete(3))
REAL = ControlSpec((2,), Continuous(-np.ones(2), np.ones(2)))
SPECS = pytest.mark.parametrize("spec", [DISCRETE, REAL], ids=["categorical", "gaussian"])
N, T, H = 3, 12, 8


def gru(spec=DISCRETE, *, critic=True, hidden=H, dtype=torch.float64):
    config = GRU.Config(
        name="gru", hidden=hidden, orthogonal=True, distribution="auto", std="parameter", initial_log_std=-0.5,
        log_std_bounds=(-20, 2),
    )  # fmt: skip
    policy = GRU(spec, config, critic=critic, generator=torch.Generator().manual_seed(0)).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.parameters():  # so that no bias is zero and no action almost certain
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=dtype))
    return policy


def sequences(spec=DISCRETE, *, dtype=torch.float64, seed=2, starts=True, columns=T):
    """A tree with episodes that start inside, and actions."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    flags = torch.zeros(N, columns, dtype=torch.bool)
    if starts:
        flags[0, 0] = flags[1, 5] = flags[2, 3] = flags[2, 4] = True
    tree = {"observation": normal(N, columns, 2), "starts": flags, "actor": normal(N, H), "critic": normal(N, H)}
    actions = torch.arange(N * columns).view(N, columns) % 3 if spec is DISCRETE else normal(N, columns, 2)
    return tree, actions


def test_a_step_is_the_equation():
    # One unit, weights 0 but W_n = 1, U_n = 2, b_z = 0, so r = z = 1/2:  n = tanh(x + h),  h' = (n + h) / 2.
    policy = gru(ControlSpec((1,), Discrete(2)), critic=False, hidden=1)
    with torch.no_grad():
        for p in policy.actor.parameters():
            p.zero_()
        policy.actor.input.weight[2], policy.actor.recurrent.weight[2] = 1.0, 2.0
    first = math.tanh(1 + 0.5) / 2 + 0.25
    second = (math.tanh(-3 + first) + first) / 2
    tree = {
        "observation": torch.tensor([[[1.0], [-3.0]]], dtype=torch.float64),
        "starts": torch.tensor([[False, False]]),
        "actor": torch.tensor([[0.5]], dtype=torch.float64),
    }
    for hidden in (policy.actor.hidden(tree), unroll([policy.actor], tree)[0].transpose(0, 1)):
        assert hidden.flatten().tolist() == pytest.approx([first, second], abs=1e-12)


def test_without_a_start_inside_it_is_torch_s_gru():
    policy = gru()
    tree, _ = sequences(starts=False)
    reference = nn.GRU(2, H, batch_first=True, dtype=torch.float64)
    names = ("weight_ih_l0", "bias_ih_l0", "weight_hh_l0", "bias_hh_l0")
    own = dict(zip(names, policy.actor.tensors(), strict=True))
    expected, _ = functional_call(reference, own, (tree["observation"], tree["actor"][None]))
    torch.testing.assert_close(policy.actor.hidden(tree), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(unroll([policy.actor], tree)[0].transpose(0, 1), expected, atol=1e-12, rtol=0)


def test_an_episode_that_starts_inside_is_evaluated_as_if_it_stood_alone():
    policy, (tree, actions) = gru(), sequences()
    for evaluate in (policy, policy.once_differentiable()):
        whole = evaluate(tree, actions)
        alone = evaluate(
            {"observation": tree["observation"][1:2, 5:], "starts": tree["starts"][1:2, 5:]}, actions[1:2, 5:]
        )
        torch.testing.assert_close(whole.log_probs[1:2, 5:], alone.log_probs, atol=1e-12, rtol=0)
        torch.testing.assert_close(whole.values[1:2, 5:], alone.values, atol=1e-12, rtol=0)


def result(evaluate, policy, tree, actions, weights):
    parts = [part for part in evaluate(tree, actions)[:3] if part is not None]
    total = sum((part * w).sum() for part, w in zip(parts, weights, strict=False))
    return parts, torch.autograd.grad(total, list(policy.parameters()))


@pytest.mark.parametrize("critic", [True, False])
@SPECS
def test_the_fast_evaluation_has_the_module_s_values_and_gradients(spec, critic):
    policy, (tree, actions) = gru(spec, critic=critic), sequences(spec)
    weights = torch.randn(3, N, T, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    slow, fast = (result(e, policy, tree, actions, weights) for e in (policy, policy.once_differentiable()))
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-11)
    assert all(g.abs().max() > 1e-6 for g in fast[1])


@pytest.mark.parametrize("fast", [False, True])
def test_no_gradient_goes_past_the_start_of_an_episode(fast):
    """A loss on what comes after the starts has a gradient that what came before cannot change by a single bit."""
    policy, (tree, actions) = gru(), sequences()
    after = tree["starts"].cumsum(1) > 0
    weights = torch.randn(3, N, T, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * after
    other, _ = sequences(seed=9)
    before = {
        **tree,
        "observation": torch.where(after[..., None], tree["observation"], other["observation"]),
        "actor": other["actor"],
        "critic": other["critic"],
    }
    evaluate = policy.once_differentiable() if fast else policy
    one, two = (result(evaluate, policy, t, actions, weights)[1] for t in (tree, before))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_the_gradient_with_respect_to_what_was_seen_before_a_start_is_exactly_zero():
    policy, (tree, actions) = gru(), sequences()
    leaves = {key: tree[key].clone().requires_grad_() for key in ("observation", "actor", "critic")}
    values = policy({**tree, **leaves}, actions)
    (values.log_probs + values.values)[1, 5:].sum().backward()
    seen = leaves["observation"].grad
    assert torch.count_nonzero(seen[1, :5]) == torch.count_nonzero(seen[[0, 2]]) == 0
    assert torch.count_nonzero(leaves["actor"].grad) == torch.count_nonzero(leaves["critic"].grad) == 0
    assert (seen[1, 5:].abs().sum(-1) > 0).all()


def test_parameters_can_be_bound_from_outside():
    policy, (tree, actions) = gru(), sequences()
    own = policy(tree, actions)
    bound = functional_call(policy, dict(policy.named_parameters()), (tree, actions))
    assert all(torch.equal(a, b) for a, b in zip(own[:3], bound[:3], strict=True))
    moved = {name: p + 0.1 for name, p in policy.named_parameters()}
    assert not torch.allclose(functional_call(policy, moved, (tree, actions)).values, own.values)


# ---------------------------------------------------------------- the sampler


@SPECS
def test_step_by_step_the_sampler_is_the_sequence_s_forward_pass(spec):
    policy, (tree, _) = gru(spec, dtype=torch.float32), sequences(spec, dtype=torch.float32)
    observations, starts = tree["observation"].numpy(), tree["starts"].numpy()
    sampler, generator = policy.sampler(), np.random.default_rng(0)
    sampler.start(N, {key: tree[key].numpy() for key in ("actor", "critic")})
    acted = []
    for t in range(T):
        sampler.forget(np.flatnonzero(starts[:, t]))
        acted.append(sampler.act(observations[:, t].copy(), sampler.noise(generator, (N,))))
    actions, outputs = (torch.from_numpy(np.stack(part, axis=1)) for part in zip(*acted, strict=True))
    evaluated = policy(tree, actions)
    torch.testing.assert_close(outputs, evaluated.distribution[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(sampler.log_probs(outputs, actions), evaluated.log_probs, atol=1e-6, rtol=1e-6)


def test_rows_that_go_on_alone_keep_what_they_remember():
    policy = gru(dtype=torch.float32)
    tree, _ = sequences(dtype=torch.float32, starts=False)
    observations = tree["observation"].numpy()
    together, fewer = policy.sampler(), policy.sampler()
    for sampler in (together, fewer):
        sampler.start(N)
        sampler.act(observations[:, 0].copy(), None)
    kept = np.array([True, False, True])
    fewer.keep(kept)
    _, all_ = together.act(observations[:, 1].copy(), None)
    _, some = fewer.act(observations[kept, 1].copy(), None)
    np.testing.assert_allclose(some, all_[kept], atol=1e-6)


def test_a_sampler_begins_with_nothing_and_leaves_what_it_was_given_as_it_was():
    policy = gru(dtype=torch.float32)
    sampler, given = policy.sampler(), {"actor": np.ones((N, H), dtype=np.float32), "critic": np.ones((N, H))}
    sampler.start(N)
    assert {role: (state.shape, state.any()) for role, state in sampler.memory.items()} == {
        "actor": ((N, H), False), "critic": ((N, H), False)
    }  # fmt: skip
    sampler.start(N, given)
    sampler.act(np.zeros((N, 2), dtype=np.float32), None)
    sampler.forget(np.array([0]))
    assert all(state.all() for state in given.values())
