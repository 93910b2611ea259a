"""Discounted returns, and the one recurrence that they share with generalised advantage estimates."""

import torch
from torch import Tensor


def reverse_recurrence(x: Tensor, done: Tensor, *, decay: float | Tensor) -> Tensor:
    """A decaying sum of the present and later entries, cut at the end of each episode.

        y_t = x_t + decay * (1 - done_t) * y_{t+1}        y = 0 after the last column

    Args:
        x: (N, T), finite on padding.
        done: (N, T) bool.
        decay: per step, a number; or (N, T), one per entry.

    Returns: (N, T).
    """
    carry = decay * (~done).to(x.dtype)
    running = torch.zeros_like(x[:, 0])
    columns = []
    # Columns are sliced once and each step is one fused operation: for small N the number of calls is the cost.
    for x_t, carry_t in zip(reversed(x.unbind(1)), reversed(carry.unbind(1)), strict=True):
        running = torch.addcmul(x_t, carry_t, running)
        columns.append(running)
    return torch.stack(columns[::-1], dim=1)


def discounted_returns(rewards: Tensor, done: Tensor, *, gamma: float, mask: Tensor | None = None) -> Tensor:
    """Reward-to-go: what follows an action, in the same episode.

        G_t = r_t + gamma * (1 - done_t) * G_{t+1}

    Nothing is bootstrapped: an episode that is cut, by a limit or by the last column, counts as ending there.
    The exact gradient of the discounted return weights the score of action t by gamma**t * G_t; most implementations
    leave the factor gamma**t out (Thomas 2014).

    Args:
        rewards: (N, T), 0 on padding.
        done: (N, T) bool, terminated or truncated.
        mask: (N, T) bool, 1 where the policy chose the action; None: everywhere. What it did not choose in the middle
            of an episode (a task's reply) takes no time, as in `advantages.gae`.

    Returns: (N, T). Source: Williams 1992; Sutton and Barto 2018, eq. 3.9.
    """
    decay = gamma if mask is None else torch.ones_like(rewards).masked_fill(mask, gamma)
    return reverse_recurrence(rewards, done, decay=decay)


def trajectory_returns(rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """The discounted return of a whole episode, the same for each of its actions. A row is one episode.

        R = sum_t gamma**t * r_t             t counts the policy's own actions

    Args:
        rewards: (N, T).
        mask: (N, T) bool, 1 where the policy chose the action; 0 behind the episode's last action, and on a reply.

    Returns: (N, T), equal along a row; `[:, 0]` is one number per episode.
    """
    discounts = gamma ** (mask.cumsum(dim=1) - mask.long()).to(rewards.dtype)
    return torch.where(mask, discounts * rewards, 0).sum(dim=1, keepdim=True).expand_as(rewards)
