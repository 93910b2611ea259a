"""Progress of a run, read from the end of its metrics while another process writes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Tail:
    """Follows a `metrics.jsonl`: each call reads only the rows appended since the last one."""

    path: Path
    offset: int = 0
    step: int = 0
    evaluation: float | None = None
    """Return of the last evaluation."""

    def look(self) -> None:
        try:
            size = self.path.stat().st_size
            if size < self.offset:  # resumed from an earlier checkpoint: rows were cut off
                self.offset = 0
            if size == self.offset:
                return
            with self.path.open("rb") as file:
                file.seek(self.offset)
                lines = file.read().split(b"\n")[:-1]  # without a row that is still being written
        except OSError:
            return  # not there yet
        self.offset += sum(len(line) + 1 for line in lines)
        for i, line in enumerate(lines):
            if i == len(lines) - 1 or b'"eval/return_mean"' in line:
                row = json.loads(line)
                self.step = row["step"]
                self.evaluation = float(row["eval/return_mean"]) if "eval/return_mean" in row else self.evaluation
