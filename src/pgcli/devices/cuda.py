"""An NVIDIA (or ROCm) GPU."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from pgcli import processes
from pgcli.devices.cpu import MOST_THREADS
from pgcli.errors import InputError
from pgcli.settings import Settings


class CUDA:
    class Config(Settings):
        name: Literal["cuda"]
        index: int = Field(ge=0, description="number of the GPU, from 0; `device=cuda:1` sets it")
        threads: int = Field(
            ge=1,
            le=MOST_THREADS,
            description="threads of one operation on the CPU, which still steps the environments",
        )

    def __init__(self, config: Config, *, parameters: int) -> None:
        """Raises InputError if this machine has no such device: never a silent run on the CPU."""
        del parameters  # chosen by name, so used for every size
        if not torch.cuda.is_available():
            raise InputError("device=cuda: torch finds no CUDA device on this machine; use device=cpu (or device=auto)")
        self.torch = own_gpu(config.index)
        torch.set_num_threads(config.threads)
        self.note = f"{self.torch}, {torch.cuda.get_device_name(self.torch.index)}"

    def synchronise(self) -> None:
        torch.cuda.synchronize(self.torch)


def own_gpu(first: int) -> torch.device:
    """The GPU of this process: each process of a `torchrun` has its own, from number `first` on. Raises InputError."""
    index = first + processes.local_rank()
    if index >= torch.cuda.device_count():
        raise InputError(f"device=cuda:{index}: this machine has {torch.cuda.device_count()} CUDA device(s)")
    return torch.device("cuda", index)
