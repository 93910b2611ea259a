"""The processor."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from pgcli.settings import Settings


class CPU:
    class Config(Settings):
        name: Literal["cpu"]
        threads: int = Field(ge=1, description="of one operation; more than one only pays for large networks")

    def __init__(self, config: Config, *, parameters: int) -> None:
        del parameters  # the processor serves every size
        torch.set_num_threads(config.threads)
        self.torch = torch.device("cpu")
        self.note = f"cpu, {config.threads} thread{'s' if config.threads > 1 else ''}"

    def synchronise(self) -> None:
        """Nothing is queued here."""
