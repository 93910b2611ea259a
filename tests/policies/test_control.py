import numpy as np
import pytest
import torch
from torch.func import functional_call

from pgcli.policies.cnn import CNN
from pgcli.policies.mlp import MLP
from pgcli.policies.products import LARGE, SMALL
from pgcli.types import Continuous, ControlSpec, Discrete

DISCRETE = ControlSpec((4,), Discrete(3))
REAL = ControlSpec((4,), Continuous(-np.ones(2), np.ones(2)))


HEAD = {"distribution": "auto", "std": "parameter", "log_std_bounds": (-20, 2)}


def mlp(spec, *, critic=True, activation="tanh", orthogonal=True, seed=0, **head):
    config = MLP.Config(
        name="mlp", hidden=(16, 8), activation=activation, orthogonal=orthogonal,
        **(HEAD | {"initial_log_std": -0.5} | head),
    )  # fmt: skip
    return MLP(spec, config, critic=critic, generator=torch.Generator().manual_seed(seed))


def cnn(spec, *, critic=True):
    config = CNN.Config(
        name="cnn", channels=(4, 8), dense=16, activation="relu", orthogonal=True, initial_log_std=0.0, **HEAD
    )
    return CNN(spec, config, critic=critic, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spec", [DISCRETE, REAL], ids=["categorical", "gaussian"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_sampler_draws_from_the_module_s_own_distribution(spec, activation):
    policy = mlp(spec, activation=activation)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    observations = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    sampler = policy.sampler()
    actions, outputs = sampler.act(observations, sampler.noise(np.random.default_rng(1), (64,)))
    drawn = sampler.log_probs(torch.from_numpy(outputs), torch.from_numpy(actions))
    own = policy(torch.from_numpy(observations), torch.from_numpy(actions)).log_probs
    torch.testing.assert_close(drawn, own, atol=1e-6, rtol=0)


def test_categorical_samples_have_the_policy_s_frequencies():
    policy = mlp(DISCRETE)
    with torch.no_grad():
        policy.actor.layers[-1].bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    n = 40_000
    sampler = policy.sampler()
    actions, _ = sampler.act(np.zeros((n, 4), dtype=np.float32), sampler.noise(np.random.default_rng(0), (n,)))
    # Zero observations leave the logits (0, 1, -1): softmax = (0.2447, 0.6652, 0.0900); 4 standard errors are 0.0095.
    assert np.bincount(actions) / n == pytest.approx([0.2447, 0.6652, 0.0900], abs=0.0095)


def test_gaussian_samples_have_the_policy_s_mean_and_deviation():
    policy = mlp(REAL)
    with torch.no_grad():
        policy.actor.layers[-1].bias.copy_(torch.tensor([1.0, -2.0]))
    n = 40_000
    sampler = policy.sampler()
    actions, _ = sampler.act(np.zeros((n, 4), dtype=np.float32), sampler.noise(np.random.default_rng(0), (n,)))
    assert actions.mean(0) == pytest.approx([1, -2], abs=0.0125)  # exp(-0.5) = 0.6065; 4 standard errors
    assert actions.std(0) == pytest.approx([0.6065, 0.6065], abs=0.0088)


def test_a_sampler_made_before_an_update_in_place_sees_it():
    policy = mlp(DISCRETE)
    sampler, x = policy.sampler(), np.ones((1, 4), dtype=np.float32)
    before = sampler.act(x, None)[1].copy()
    with torch.no_grad():
        policy.actor.layers[0].weight.mul_(2)
    assert not np.allclose(before, policy.sampler().act(x, None)[1])
    assert np.allclose(sampler.act(x, None)[1], policy.sampler().act(x, None)[1])


def test_greedy_actions_are_the_modes():
    sampler = mlp(DISCRETE).sampler()
    actions, outputs = sampler.act(np.eye(4, dtype=np.float32), None)
    assert actions.tolist() == outputs.argmax(-1).tolist()
    means, outputs = mlp(REAL).sampler().act(np.eye(4, dtype=np.float32), None)
    assert means.tolist() == outputs.tolist()


@pytest.mark.parametrize("make", [mlp, cnn])
def test_the_loss_s_view_is_the_same_with_parameters_bound_from_outside(make):
    spec = DISCRETE if make is mlp else ControlSpec((1, 8, 8), Discrete(3))
    policy = make(spec)
    x, actions = torch.randn(5, *spec.observation_shape), torch.tensor([0, 1, 2, 0, 1])
    bound = functional_call(policy, dict(policy.named_parameters()), (x, actions))
    own = policy(x, actions)
    for a, b in zip(own[:3], bound[:3], strict=True):
        assert a.shape == (5,)
        assert torch.equal(a, b)
    assert torch.equal(own.distribution.logits, bound.distribution.logits)


def test_without_a_critic_there_are_no_values():
    policy = mlp(DISCRETE, critic=False)
    assert policy(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)).values is None
    assert not any("critic" in name for name, _ in policy.named_parameters())


def test_orthogonal_layers_have_orthogonal_rows_of_their_gain():
    policy = mlp(DISCRETE)
    hidden, last = policy.actor.layers[1].weight, policy.actor.layers[-1].weight  # (8, 16), (3, 8)
    torch.testing.assert_close(hidden @ hidden.T, 2 * torch.eye(8), atol=1e-5, rtol=0)  # gain sqrt(2)
    torch.testing.assert_close(last @ last.T, 1e-4 * torch.eye(3), atol=1e-8, rtol=0)  # gain 0.01
    value = policy.critic.layers[-1].weight
    torch.testing.assert_close(value @ value.T, torch.ones(1, 1), atol=1e-5, rtol=0)


def test_weights_come_from_the_generator_alone():
    torch.manual_seed(1)
    first = mlp(DISCRETE, orthogonal=False).state_dict()
    torch.manual_seed(2)
    second = mlp(DISCRETE, orthogonal=False).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    other = mlp(DISCRETE, orthogonal=False, seed=1).state_dict()
    assert not torch.equal(first["actor.layers.0.weight"], other["actor.layers.0.weight"])


@pytest.mark.parametrize("critic", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("spec", [DISCRETE, REAL], ids=["categorical", "gaussian"])
@pytest.mark.parametrize("large", [False, True], ids=["torch's products", "NumPy's and oneDNN's"])
def test_the_fast_evaluation_has_the_module_s_values_and_gradients(spec, activation, critic, large, monkeypatch):
    monkeypatch.setattr("pgcli.policies.products.LARGE", 1 if large else LARGE)
    monkeypatch.setattr("pgcli.policies.products.SMALL", 1 if large else SMALL)
    policy = mlp(spec, critic=critic, activation=activation)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    x = torch.randn(33, 4, generator=generator)
    actions = torch.arange(33) % 3 if spec is DISCRETE else torch.randn(33, 2, generator=generator)
    weights = torch.randn(4, 33, generator=generator)

    def result(evaluate):
        *parts, distribution = [part for part in evaluate(x, actions) if part is not None]
        parts.append(distribution[0])
        total = sum(
            (part.sum(-1) * w if part.dim() > 1 else part * w).sum() for part, w in zip(parts, weights, strict=False)
        )
        policy.zero_grad()
        total.backward()
        return parts, [p.grad for p in policy.parameters()]

    (parts, gradients), (fast_parts, fast_gradients) = result(policy), result(policy.once_differentiable())
    torch.testing.assert_close(fast_parts, parts, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(fast_gradients, gradients, atol=2e-5, rtol=1e-5)


def test_values_are_those_of_the_evaluation():
    policy = mlp(DISCRETE)
    x = torch.randn(7, 4)
    torch.testing.assert_close(policy.values(x), policy(x, torch.zeros(7, dtype=torch.int64)).values)
    assert not policy.values(x).requires_grad
