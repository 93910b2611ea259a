import math

import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence
from torch.testing import assert_close

from pgcli.functional.distributions import (
    categorical,
    categorical_kl,
    gaussian_entropy,
    gaussian_kl,
    gaussian_log_probs,
)

# Probabilities 1/2, 1/4, 1/4 as unnormalised logits: log(2), log(1), log(1) plus any constant.
LOGITS = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64).log() + 7


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_categorical_log_probs_are_normalised():
    log_probs, _ = categorical(LOGITS.expand(3, 3), torch.arange(3))
    assert_close(log_probs, real(0.5, 0.25, 0.25).log())


def test_categorical_entropy_in_nats():
    # 1/2 log 2 + 2 * 1/4 log 4 = 1.5 log 2
    assert_close(categorical(LOGITS, torch.tensor(0))[1], scalar(1.5 * math.log(2)))


def test_categorical_kl_is_that_of_the_first_from_the_second():
    # p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2): 1/2 log 2 + 0 + 1/4 log 1/2 = 1/4 log 2
    # q = (1/2, 3/8, 1/8): 1/4 log(2/3) + 1/4 log 2 = 1/4 log(4/3), and not 3/8 log(3/2) - 1/8 log 2, the other way.
    assert_close(categorical_kl(LOGITS, LOGITS.flip(0)), scalar(0.25 * math.log(2)))
    q = real(0.5, 0.375, 0.125).log()
    assert_close(categorical_kl(LOGITS, q), scalar(0.25 * math.log(4 / 3)))
    assert_close(categorical_kl(q, LOGITS), scalar(0.375 * math.log(3 / 2) - 0.125 * math.log(2)))


def test_categorical_agrees_with_torch_distributions_values_and_gradients():
    logits = draw(4, 5, 6).requires_grad_()
    actions = torch.randint(6, (4, 5), generator=torch.Generator().manual_seed(1))
    other = draw(4, 5, 6, seed=2)
    oracle = Categorical(logits=logits)
    log_probs, entropy = categorical(logits, actions)
    kl = categorical_kl(logits, other)
    for ours, theirs in [
        (log_probs, oracle.log_prob(actions)),
        (entropy, oracle.entropy()),
        (kl, kl_divergence(oracle, Categorical(logits=other))),
    ]:
        assert_close(ours, theirs)
        slopes = [torch.autograd.grad(x.sin().sum(), logits, retain_graph=True)[0] for x in (ours, theirs)]
        assert_close(*slopes)


def test_a_forbidden_action_is_a_large_negative_logit():
    logits = torch.tensor([0.0, 0.0, -1e9], requires_grad=True)
    log_probs, entropy = categorical(logits, torch.tensor(0))
    (log_probs + entropy).backward()
    assert_close(log_probs.exp().detach(), torch.tensor(0.5))
    assert_close(entropy.detach(), torch.tensor(math.log(2)))
    assert logits.grad.isfinite().all()


def test_gaussian_log_probs_are_summed_over_components():
    # Component 1: mean 1, std 2, action 3: z = 1.  -1/2 - log 2 - log(2 pi)/2
    # Component 2: mean 0, std 1/2, action 1: z = 2. -2 + log 2 - log(2 pi)/2
    log_probs = gaussian_log_probs(real(1, 0), real(2, 0.5).log(), real(3, 1))
    assert_close(log_probs, scalar(-2.5 - math.log(2 * math.pi)))


def test_gaussian_entropy_in_nats():
    # log 2 + log 3 + 2 * (log(2 pi) + 1) / 2
    assert_close(gaussian_entropy(real(2, 3).log()), scalar(math.log(6) + math.log(2 * math.pi) + 1))


def test_gaussian_kl_is_that_of_the_first_from_the_second():
    # N(0, 1) from N(1, 2^2): log 2 + (1 + 1) / 8 - 1/2.   The other way: -log 2 + (4 + 1) / 2 - 1/2.
    narrow, wide = (real(0), real(1).log()), (real(1), real(2).log())
    assert_close(gaussian_kl(*narrow, *wide), scalar(math.log(2) - 0.25))
    assert_close(gaussian_kl(*wide, *narrow), scalar(2 - math.log(2)))


def test_gaussian_agrees_with_torch_distributions_values_and_gradients():
    mean, log_std = draw(4, 5, 3).requires_grad_(), draw(3, seed=1).requires_grad_()
    actions, other_mean, other_log_std = draw(4, 5, 3, seed=2), draw(4, 5, 3, seed=3), draw(3, seed=4)
    oracle = Independent(Normal(mean, log_std.exp()), 1)
    other = Independent(Normal(other_mean, other_log_std.exp()), 1)
    for ours, theirs in [
        (gaussian_log_probs(mean, log_std, actions), oracle.log_prob(actions)),
        (gaussian_entropy(log_std).expand(4, 5), oracle.entropy()),
        (gaussian_kl(mean, log_std, other_mean, other_log_std), kl_divergence(oracle, other)),
    ]:
        assert_close(ours, theirs)
        slopes = [torch.autograd.grad(x.sin().sum(), log_std, retain_graph=True)[0] for x in (ours, theirs)]
        assert_close(*slopes)


def test_gaussian_takes_a_deviation_for_each_state():
    mean, log_std, actions = draw(4, 5, 3), draw(4, 5, 3, seed=1), draw(4, 5, 3, seed=2)
    oracle = Independent(Normal(mean, log_std.exp()), 1)
    assert_close(gaussian_log_probs(mean, log_std, actions), oracle.log_prob(actions))
    assert_close(gaussian_entropy(log_std), oracle.entropy())
