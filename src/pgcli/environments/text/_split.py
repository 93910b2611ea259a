"""Shared by text tasks: the split into training and held-out prompts, by a hash of the prompt and never by its seed,
and a prompt with its answer as one text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from pgcli.seeding import keys_of, mix
from pgcli.types import Written

HELD_OUT_ONE_IN = 20


def is_held_out(codes: np.ndarray, one_in: int = HELD_OUT_ONE_IN) -> np.ndarray:
    """(N,) uint64, a number for each different prompt -> (N,) bool. Mixed twice: codes are drawn by mixing once."""
    return mix(mix(codes)) % np.uint64(one_in) == 0


def draw(seeds: Sequence[int], code: Callable[[np.ndarray], np.ndarray], *, held_out: bool) -> np.ndarray:
    """(N,) uint64: each seed draws codes until one is on the requested side of the split, independently of other seeds.

    Args:
        code: from n random uint64 to n codes, a number for each different prompt.
    """
    state = keys_of(seeds)
    codes = np.zeros_like(state)
    open_rows = np.arange(len(state))
    while len(open_rows):
        state[open_rows] = mix(state[open_rows])
        codes[open_rows] = code(state[open_rows])
        open_rows = open_rows[is_held_out(codes[open_rows]) != held_out]
    return codes


def digits(codes: np.ndarray, base: int, count: int) -> np.ndarray:
    """(N,) uint64 -> (N, count) int64, each number's digits, the most significant first."""
    powers = np.uint64(base) ** np.arange(count - 1, -1, -1, dtype=np.uint64)
    return (codes[:, None] // powers % np.uint64(base)).astype(np.int64)


def whole_text(written: Written, pad: int) -> Written:
    """A prompt and its answer as one text for pretraining, all of it learned except the first token.

    Padding on the left of a prompt moves to the end.
    """
    prompt = written.observations["prompt"]
    text = torch.cat([prompt, written.actions], dim=1)
    if "lengths" in written.observations:
        order = torch.arange(text.shape[1]) + (prompt.shape[1] - written.observations["lengths"])[:, None]
        text = torch.nn.functional.pad(text, (0, text.shape[1]), value=pad).gather(1, order)
    return Written({"prompt": text[:, :1]}, text[:, 1:])
