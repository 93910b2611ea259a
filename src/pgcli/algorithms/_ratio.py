"""Metrics of methods that reuse a batch: how far each action's probability has moved since it was sampled.

A loss reports the log-ratios of its actions; the metrics are computed from all of them once per update, so that no
gradient step waits for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pgcli.functional.masked import masked_mean, masked_std, row_mean
from pgcli.functional.policy_loss import ratio_statistics
from pgcli.types import Batch, Metrics

MISMATCH = {
    "policy/mismatch_mean": "mean |log pi - log pi_sampled| at the first gradient step, where both are the same policy",
    "policy/mismatch_max": "largest |log pi - log pi_sampled| at the first gradient step; far above rounding, sampling "
    "and training compute different policies. Where the step takes over the pass that wrote the completions (built-in "
    "transformers on the CPU), there is no other: `pgcli audit` reads them again",
}
ADVANTAGES = {
    "advantage/mean": "mean advantage over actions, before any scaling by minibatch",
    "advantage/std": "standard deviation of the advantages over actions, before any scaling by minibatch",
}
METRICS = {
    **MISMATCH,
    **ADVANTAGES,
    "policy/approx_kl": "KL(pi_old || pi), estimated by k3 on the batch, in nats per action",
    "policy/clip_fraction": "share of actions whose ratio left the clip range; 0 without clipping",
    "policy/clip_fraction_high": "share of actions whose ratio rose above the clip range",
    "policy/clip_fraction_low": "share of actions whose ratio fell below the clip range",
    "policy/ratio_min": "the smallest ratio pi / pi_old of the update",
    "policy/ratio_max": "the largest ratio pi / pi_old of the update",
    "policy/effective_samples": "effective sample size of the ratios (Kish), as a share of the actions; 1 on-policy",
}


def mismatch(log_ratios: Sequence[Tensor], weights: Sequence[Tensor]) -> Metrics:
    """Of the first gradient step: how far the log-probs of sampling are from those of training."""
    moved, w = torch.stack([log_ratios[0].flatten(), weights[0].flatten()]).cpu().numpy()
    apart, w = np.abs(moved[w != 0]), w[w != 0]
    if not len(w):  # a minibatch may be all padding
        return dict.fromkeys(MISMATCH, 0.0)
    return dict(zip(MISMATCH, (float(apart @ w / w.sum()), float(apart.max())), strict=True))


def movement(
    log_ratios: Sequence[Tensor], weights: Sequence[Tensor], *, low: float, high: float, by_row: bool = False
) -> Metrics:
    """Over all gradient steps of an update, one tensor each. `by_row`: the clipped ratio is a whole row's."""
    moved, weight = torch.cat(list(log_ratios)), torch.cat(list(weights))
    found = ratio_statistics(moved, weight, low=low, high=high)
    clipped = ratio_statistics(row_mean(moved, weight > 0), weight, low=low, high=high) if by_row else found
    return {
        "policy/approx_kl": found.approx_kl,
        "policy/clip_fraction": clipped.clipped_high + clipped.clipped_low,
        "policy/clip_fraction_high": clipped.clipped_high,
        "policy/clip_fraction_low": clipped.clipped_low,
        "policy/ratio_min": clipped.smallest,
        "policy/ratio_max": clipped.largest,
        "policy/effective_samples": clipped.effective,
    } | mismatch(log_ratios, weights)


def spread(batch: Batch) -> Metrics:
    """Mean and standard deviation of a batch's advantages."""
    mean, std = masked_mean(batch.advantages, batch.mask), masked_std(batch.advantages, batch.mask)
    return dict(zip(ADVANTAGES, torch.stack([mean, std]).tolist(), strict=True))
