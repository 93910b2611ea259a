"""The device by the size of the network."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from pgcli import processes
from pgcli.devices.cpu import MOST_THREADS, keep_freed_memory
from pgcli.devices.cuda import own_gpu
from pgcli.settings import Settings


class Auto:
    """The CPU for small networks, whose operations are shorter than launching a GPU kernel; else the best GPU."""

    class Config(Settings):
        name: Literal["auto"]
        threads: int = Field(ge=1, le=MOST_THREADS, description="threads of one operation on the CPU")
        small: int = Field(ge=0, description="number of parameters below which a network stays on the CPU")

    def __init__(self, config: Config, *, parameters: int) -> None:
        torch.set_num_threads(config.threads)
        alone = processes.size() == 1  # several processes cannot share an Apple GPU
        candidates = ("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available() and alone)
        found = [name for name, there in candidates if there]
        if found and parameters >= config.small:
            self.torch = torch.device(found[0]) if alone else own_gpu(0)
            self.note = f"{found[0]} (auto)"
            return
        self.torch = torch.device("cpu")
        keep_freed_memory()
        why = f"auto: a network of {parameters:,} parameters is faster there than on {found[0]}" if found else "auto"
        self.note = f"cpu, {config.threads} thread{'s' if config.threads > 1 else ''} ({why})"

    def synchronise(self) -> None:
        if self.torch.type == "cuda":
            torch.cuda.synchronize(self.torch)
        elif self.torch.type == "mps":
            torch.mps.synchronize()
