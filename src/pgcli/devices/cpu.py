"""The CPU."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from typing import Literal

import torch
from pydantic import Field

from pgcli.settings import Settings

MOST_THREADS = 1024
"""More than any processor has: with many thousands torch dies without a word."""


class CPU:
    class Config(Settings):
        name: Literal["cpu"]
        threads: int = Field(
            ge=1, le=MOST_THREADS, description="threads of one operation; more than one pays only for large networks"
        )

    def __init__(self, config: Config, *, parameters: int) -> None:
        del parameters  # the CPU is used for every size
        torch.set_num_threads(config.threads)
        keep_freed_memory()
        self.torch = torch.device("cpu")
        self.note = f"cpu, {config.threads} thread{'s' if config.threads > 1 else ''}"

    def synchronise(self) -> None:
        """Does nothing: CPU operations are not queued."""


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT = 32 * 2**20


def keep_freed_memory() -> None:
    """Ask glibc to keep blocks of up to 32 MB that a tensor has freed for the next one.

    By default it returns them to the system, and each new tensor costs page faults: a tenth of an update of some
    thousand actions. Other C libraries are not changed.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_TRIM_THRESHOLD, 2 * KEPT)
            mallopt(M_MMAP_THRESHOLD, KEPT)
