"""How noisy an estimate of a gradient is."""

from typing import NamedTuple

import torch
from torch import Tensor


class GradientNoise(NamedTuple):
    """Scalars. See `gradient_noise`."""

    signal: Tensor
    variance: Tensor
    relative: Tensor


def gradient_noise(gradients: Tensor) -> GradientNoise:
    """From independent estimates g_1 .. g_R of one gradient, each from the same number of episodes:

        variance  tr Cov(g)   = sum_r |g_r - mean|^2 / (R - 1)
        signal    |E g|^2     = |mean|^2 - variance / R          the mean of R is noisy too, and so too long
        relative  variance / signal                              infinite where the signal is lost in the noise

    `relative` is the number of such batches whose average is as much signal as noise, and has no unit: of several
    estimators of one gradient, or of multiples of it, the one with the smaller value learns from fewer episodes.
    Variance and signal are unbiased; their ratio is so only for large R.

    Args:
        gradients: (R, P), R >= 2.

    Source: McCandlish et al. 2018, appendix A.1, where tr Cov / |E g|^2 is the simple noise scale.
    """
    count = len(gradients)
    gradients = gradients.double()
    mean = gradients.mean(0)
    variance = (gradients - mean).square().sum() / (count - 1)
    signal = mean.square().sum() - variance / count
    return GradientNoise(signal, variance, torch.where(signal > 0, variance / signal, torch.inf))
