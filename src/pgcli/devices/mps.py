"""The GPU of an Apple computer."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from pgcli import processes
from pgcli.devices.cpu import MOST_THREADS
from pgcli.errors import InputError
from pgcli.settings import Settings


class MPS:
    class Config(Settings):
        name: Literal["mps"]
        threads: int = Field(
            ge=1,
            le=MOST_THREADS,
            description="threads of one operation on the CPU, which still steps the environments",
        )

    def __init__(self, config: Config, *, parameters: int) -> None:
        """Raises InputError if this machine has no such device, or several processes are to use it."""
        del parameters  # chosen by name, so used for every size
        if not torch.backends.mps.is_available():
            raise InputError("device=mps: torch finds no Metal device on this machine; use device=cpu (or device=auto)")
        if processes.size() > 1:
            raise InputError("device=mps: the processes of a torchrun cannot exchange tensors of it; use device=cpu")
        torch.set_num_threads(config.threads)
        self.torch = torch.device("mps")
        self.note = "mps"

    def synchronise(self) -> None:
        torch.mps.synchronize()
