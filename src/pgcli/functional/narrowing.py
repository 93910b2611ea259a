"""Distributions with their improbable tokens cut off: for inspecting what a policy writes, never for training it.

An update changes which tokens are cut, so that the log-probs before and after it belong to distributions of different
supports, and their ratio is meaningless.
"""

import math

import torch
from torch import Tensor

from pgcli.functional.precision import widest


def narrow(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """The logits of a narrower distribution: -inf where a token was cut off.

        logits / temperature;  then the top_k likeliest tokens;  then the fewest of these that together have top_p;
        then those that are at least min_p times as likely as the likeliest

    The token with which the sum reaches top_p stays, so that at least one stays. Ties with the k-th token stay, too.

    Args:
        logits: (..., V).
        top_k, top_p, min_p: None cuts nothing off.

    Returns: (..., V). Source of top_p: Holtzman et al. 2020, eq. 2 and 3; of min_p: Nguyen et al. 2024, eq. 2.
    """
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        lowest = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    if top_p is not None and top_p < 1:
        shares, order = torch.softmax(logits.to(widest(logits.device)), dim=-1).sort(
            dim=-1, descending=True, stable=True
        )
        beyond = shares.cumsum(-1) - shares >= top_p
        logits = logits.masked_fill(beyond.gather(-1, order.argsort(dim=-1)), -torch.inf)
    if min_p is not None and min_p > 0:
        least = logits.amax(-1, keepdim=True) + math.log(min_p)
        logits = logits.masked_fill(logits < least, -torch.inf)
    return logits
