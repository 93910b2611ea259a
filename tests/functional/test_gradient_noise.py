import math

import torch
from torch.testing import assert_close

from pgcli.functional.gradient_noise import gradient_noise


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def test_the_variance_is_of_all_coordinates_and_the_signal_is_rid_of_it():
    # Mean (2, 0); squared distances 2, 2, 0 -> variance 4 / 2 = 2. |mean|^2 = 4, less 2 / 3.
    found = gradient_noise(torch.tensor([[1.0, 1.0], [3.0, -1.0], [2.0, 0.0]]))
    assert_close(found.variance, scalar(2.0))
    assert_close(found.signal, scalar(4 - 2 / 3))
    assert_close(found.relative, scalar(2 / (4 - 2 / 3)))


def test_both_parts_are_unbiased():
    # Every pair of two equally likely gradients, 0 and 2: variance 1, signal 1 on average.
    pairs = [gradient_noise(torch.tensor([[a], [b]])) for a in (0.0, 2.0) for b in (0.0, 2.0)]
    assert_close(torch.stack([found.variance for found in pairs]).mean(), scalar(1.0))
    assert_close(torch.stack([found.signal for found in pairs]).mean(), scalar(1.0))


def test_a_signal_that_is_lost_in_the_noise_has_no_relative_variance():
    assert gradient_noise(torch.tensor([[1.0], [-1.0]])).relative == math.inf


def test_scaling_an_estimator_changes_nothing_that_is_relative():
    gradients = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) + 1
    assert_close(gradient_noise(3 * gradients).relative, gradient_noise(gradients).relative)
