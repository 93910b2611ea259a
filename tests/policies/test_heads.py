"""Real actions: squashed or not, with a standard deviation of the state's or of none; sampler and module are one."""

import numpy as np
import pytest
import torch

from pgcli.errors import InputError
from pgcli.experiment.build import build
from pgcli.experiment.config import compose
from pgcli.policies.cnn import CNN
from pgcli.policies.mlp import MLP
from pgcli.types import Continuous, ControlSpec, Discrete

BOX = Continuous(np.array([-2.0, 0.0, -1.0], np.float32), np.array([2.0, 10.0, 1.0], np.float32))
SPEC = ControlSpec((4,), BOX)
KINDS = [(d, s) for d in ("gaussian", "squashed_gaussian") for s in ("parameter", "network")]


def mlp(distribution="auto", std="parameter", initial_log_std=-0.5, spec=SPEC, scale=0.3):
    config = MLP.Config(
        name="mlp", hidden=(16, 8), activation="tanh", orthogonal=True, distribution=distribution, std=std,
        initial_log_std=initial_log_std, log_std_bounds=(-3, 1),
    )  # fmt: skip
    policy = MLP(spec, config, critic=True, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(scale * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return policy


def observations(n=64):
    return np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)


@pytest.mark.parametrize(("distribution", "std"), KINDS)
def test_the_sampler_draws_from_the_module_s_own_distribution(distribution, std):
    policy, x = mlp(distribution, std), observations()
    sampler = policy.sampler()
    actions, outputs = sampler.act(x, sampler.noise(np.random.default_rng(1), (64,)))
    drawn = sampler.log_probs(torch.from_numpy(outputs), torch.from_numpy(actions))
    own = policy(torch.from_numpy(x), torch.from_numpy(actions)).log_probs
    torch.testing.assert_close(drawn, own, atol=2e-5, rtol=0)
    assert actions.dtype == np.float32


@pytest.mark.parametrize("std", ["parameter", "network"])
def test_a_squashed_sample_s_density_is_that_of_the_noise_it_was_made_of(std):
    # log pi(a) = log N(z) - sum(log std) - sum(log(half (1 - tanh(u)^2))), from the noise and not from the action.
    policy, x = mlp("squashed_gaussian", std), observations()
    sampler = policy.sampler()
    z = sampler.noise(np.random.default_rng(1), (64,))
    actions, outputs = sampler.act(x, z)
    assert (actions >= BOX.low).all()
    assert (actions <= BOX.high).all()
    log_std = (outputs[:, 3:] - 0.5).clip(-3, 1) if std == "network" else policy.head.log_std.detach().numpy()
    u = (outputs[:, :3] + np.exp(log_std) * z).astype(np.float64)
    half = np.array([2.0, 5.0, 1.0])
    normal = -0.5 * np.square(z.astype(np.float64)) - 0.5 * np.log(2 * np.pi) - log_std
    expected = (normal - np.log(half) - np.log(1 - np.tanh(u) ** 2)).sum(1)
    ours = sampler.log_probs(torch.from_numpy(outputs), torch.from_numpy(actions)).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    centre = np.array([0.0, 5.0, 0.0])
    np.testing.assert_allclose(actions, centre + half * np.tanh(u), atol=1e-5)


@pytest.mark.parametrize(("distribution", "std"), KINDS)
def test_greedy_actions_are_those_of_the_mean(distribution, std):
    means, outputs = mlp(distribution, std).sampler().act(observations(), None)
    expected = outputs[:, :3]
    if distribution == "squashed_gaussian":
        expected = np.array([0.0, 5.0, 0.0]) + np.array([2.0, 5.0, 1.0]) * np.tanh(expected)
    np.testing.assert_allclose(means, expected, atol=1e-6)


def test_a_network_s_deviation_depends_on_the_state_begins_as_asked_and_keeps_its_bounds():
    start = mlp("gaussian", "network", initial_log_std=-1.5, scale=0.0)
    x = torch.from_numpy(observations())
    assert start(x, torch.zeros(64, 3)).distribution.log_std.mean().item() == pytest.approx(-1.5, abs=0.01)
    log_std = mlp("gaussian", "network")(x, torch.zeros(64, 3)).distribution.log_std
    assert log_std.std(0).min() > 0.01
    far = mlp("gaussian", "network", scale=30)(x, torch.zeros(64, 3)).distribution.log_std
    assert (far.min().item(), far.max().item()) == (-3, 1)


@pytest.mark.parametrize(("distribution", "std"), KINDS)
def test_the_distribution_s_kl_is_the_mean_log_ratio_of_samples(distribution, std):
    p, q = mlp(distribution, std), mlp(distribution, std, scale=0.1)
    n = 100_000
    x = np.repeat(observations(1), n, axis=0)
    sampler = p.sampler()
    actions, _ = sampler.act(x, sampler.noise(np.random.default_rng(2), (n,)))
    with torch.no_grad():
        ours, theirs = (f(torch.from_numpy(x), torch.from_numpy(actions)) for f in (p, q))
        ratio = ours.log_probs - theirs.log_probs
        kl = ours.distribution.kl(theirs.distribution)[0]
    assert ratio.mean().item() == pytest.approx(kl.item(), abs=5 * ratio.std().item() / n**0.5)
    assert kl > 0.01


@pytest.mark.parametrize(("distribution", "std"), KINDS)
def test_the_fast_evaluation_has_the_module_s_values_and_gradients(distribution, std):
    policy, x = mlp(distribution, std), torch.from_numpy(observations())
    sampler = policy.sampler()
    actions = torch.from_numpy(sampler.act(x.numpy(), sampler.noise(np.random.default_rng(1), (64,)))[0])

    def gradients(evaluate):
        parts = evaluate(x, actions)
        total = (parts.log_probs * torch.linspace(-1, 1, 64)).sum() + parts.entropy.sum() + parts.values.sum()
        policy.zero_grad()
        total.backward()
        return [p.grad for p in policy.parameters()]

    torch.testing.assert_close(gradients(policy.once_differentiable()), gradients(policy), atol=2e-4, rtol=1e-4)


def test_a_saturated_action_has_a_finite_density_and_the_same_one_twice():
    policy = mlp("squashed_gaussian")
    x, edge = torch.zeros(1, 4), torch.tensor([[2.0, 10.0, -1.0]])
    log_probs = policy(x, edge).log_probs
    assert torch.isfinite(log_probs).all()
    assert torch.isfinite(torch.autograd.grad(log_probs.sum(), policy.head.log_std)[0]).all()


def test_what_cannot_be_squashed_is_refused():
    endless = ControlSpec((4,), Continuous(np.array([-np.inf], np.float32), np.array([np.inf], np.float32)))
    with pytest.raises(InputError, match=r"finite bounds.*distribution=gaussian"):
        mlp("squashed_gaussian", spec=endless)
    with pytest.raises(InputError, match="real actions"):
        mlp("gaussian", spec=ControlSpec((4,), Discrete(2)))


def test_a_convolutional_network_can_have_both_too():
    config = CNN.Config(
        name="cnn", channels=(4,), dense=8, activation="relu", orthogonal=True, distribution="squashed_gaussian",
        std="network", initial_log_std=0.0, log_std_bounds=(-3, 1),
    )  # fmt: skip
    spec = ControlSpec((1, 8, 8), BOX)
    policy = CNN(spec, config, critic=False, generator=torch.Generator().manual_seed(0))
    actions, outputs = policy.sampler().act(np.zeros((2, 1, 8, 8), np.float32), np.zeros((2, 3), np.float32))
    assert (actions.shape, outputs.shape) == ((2, 3), (2, 6))


@pytest.mark.parametrize("algo", ["ppo", "a2c", "reinforce", "rloo", "grpo"])
@pytest.mark.parametrize(("distribution", "std"), KINDS[1:])
def test_every_on_policy_method_learns_with_every_head(algo, distribution, std):
    words = [f"algo={algo}", "env=pendulum", "device=cpu", "env.max_episode_steps=6", "algo.entropy_coefficient=0.01"]
    words += [f"policy.distribution={distribution}", f"policy.std={std}"]
    parts = build(compose(words))
    before = [p.clone() for p in parts.policy.parameters()]
    for _ in range(2):
        metrics = parts.algorithm.update(parts.collector.collect(parts.behaviour()))
    assert all(np.isfinite(value) for value in metrics.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, parts.policy.parameters(), strict=True))
    parts.close()
