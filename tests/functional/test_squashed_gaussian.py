"""The squashed Gaussian against numerical integration, the change of variables and torch's own transform."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution
from torch.testing import assert_close

from pgcli.functional.distributions import (
    gauss_hermite,
    gaussian_kl,
    squashed_gaussian_entropy,
    squashed_gaussian_log_probs,
    squashed_gaussian_sample,
    tanh_log_slope,
)


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_density_integrates_to_one_over_the_actions():
    # a runs over (-1, 1); the midpoint rule with half a million cells, where the density is smooth and vanishes at +-1.
    cells = 500_000
    a = (2 * (torch.arange(cells, dtype=torch.float64) + 0.5) / cells - 1)[:, None]
    for mean, std in ((0.0, 0.5), (0.7, 0.3), (-1.2, 0.4)):
        density = squashed_gaussian_log_probs(real(mean), real(std).log(), torch.atanh(a)).exp()
        assert float(density.sum() * 2 / cells) == pytest.approx(1, abs=1e-6)
        first = float((density * a[:, 0]).sum() * 2 / cells)
        z, w = gauss_hermite(64)
        assert first == pytest.approx(float((torch.tanh(mean + std * z) * w).sum()), abs=1e-6)


def test_the_density_at_a_point_by_hand():
    # u = atanh(1/2) = log(3)/2; 1 - a^2 = 3/4; standard normal: -u^2/2 - log(2 pi)/2 - log(3/4).
    u = math.log(3) / 2
    exact = -(u**2) / 2 - math.log(2 * math.pi) / 2 - math.log(3 / 4)
    assert_close(squashed_gaussian_log_probs(real(0), real(0), real(u)), torch.tensor(exact, dtype=torch.float64))


def test_the_density_is_torch_s_transformed_one_with_its_gradient():
    generator = torch.Generator().manual_seed(0)
    mean, log_std, u = (torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    mean.requires_grad_(), log_std.requires_grad_()
    normal = Independent(Normal(mean, log_std.exp()), 1)
    theirs = TransformedDistribution(normal, [TanhTransform(cache_size=1)]).log_prob(torch.tanh(u))
    ours = squashed_gaussian_log_probs(mean, log_std, u)
    assert_close(ours, theirs)
    for a, b in zip(*(torch.autograd.grad(x.sum(), (mean, log_std)) for x in (ours, theirs)), strict=True):
        assert_close(a, b)


def test_the_slope_stays_right_where_one_minus_tanh_squared_has_no_digits_left():
    # 1 - tanh(u)^2 = 4 / (e^u + e^-u)^2, so its log is log 4 - 2u - 2 log(1 + e^-2u): at 30, log 4 - 60 to 26 digits.
    assert_close(tanh_log_slope(torch.tensor([30.0, -30.0, 0.0])), torch.tensor([math.log(4) - 60] * 2 + [0.0]))


def test_a_sample_has_the_density_of_the_point_where_it_fell_and_a_gradient_through_both():
    generator = torch.Generator().manual_seed(1)
    mean, log_std, noise = (torch.randn(5, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    actions, log_probs = squashed_gaussian_sample(mean, log_std, noise)
    u = mean + log_std.exp() * noise
    assert_close(actions, torch.tanh(u))
    assert_close(log_probs, squashed_gaussian_log_probs(mean, log_std, u))

    def sampled(mean, log_std):
        return squashed_gaussian_sample(mean, log_std, noise)

    torch.autograd.gradcheck(sampled, (mean.requires_grad_(), log_std.requires_grad_()))


@pytest.mark.parametrize(("std", "tolerance"), [(0.3, 1e-8), (1.0, 1e-4), (2.0, 5e-3)])
def test_the_entropy_is_the_integral(std, tolerance):
    z = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    for mean in (0.0, 0.3, 1.5, 4.0):
        u = (mean + std * z)[:, None]
        log_density = squashed_gaussian_log_probs(real(mean), real(std).log(), u)
        exact = -(torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * log_density).sum() * (z[1] - z[0])
        assert_close(squashed_gaussian_entropy(real(mean), real(std).log()), exact, atol=tolerance, rtol=0)


def test_the_kl_is_that_of_the_gaussians():
    # By integration over the actions: p = tanh N(0.2, 0.5), q = tanh N(-0.3, 0.8).
    cells = 400_000
    a = (2 * (torch.arange(cells, dtype=torch.float64) + 0.5) / cells - 1)[:, None]
    p, q = (real(0.2), real(0.5).log()), (real(-0.3), real(0.8).log())
    log_p, log_q = (squashed_gaussian_log_probs(*x, torch.atanh(a)) for x in (p, q))
    assert_close((log_p.exp() * (log_p - log_q)).sum() * 2 / cells, gaussian_kl(*p, *q), atol=1e-6, rtol=0)


def test_gauss_hermite_has_the_moments_of_a_standard_normal():
    z, w = gauss_hermite(5)  # exact up to z^9
    for power, moment in ((0, 1), (1, 0), (2, 1), (4, 3), (6, 15), (8, 105), (9, 0)):
        assert_close((w * z**power).sum(), torch.tensor(float(moment), dtype=torch.float64))
