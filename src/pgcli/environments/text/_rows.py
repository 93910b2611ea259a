"""A file of JSON objects, one per line, and texts of different lengths as one array."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgcli.errors import InputError, one_line

TEXTS = ("prompt", "completion", "answer", "chosen", "rejected", "text")
"""Keys of a row with a meaning for the task."""
SURROGATE = re.compile("[\ud800-\udfff]")


def read(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(file and line, row) of each line. Raises InputError with the number of a wrong line."""
    try:
        # A text may hold what `splitlines` takes for the end of a line: U+2028 is a character like others in JSON.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"env.path={path} cannot be read: {reason}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
            raise InputError(f"{where}: cannot be read ({one_line(error)})") from error
        if not isinstance(row, dict):
            raise InputError(f"{where}: a row is an object, {{...}}")
        wrong = next((key for key in TEXTS if not isinstance(row.get(key), str | None)), None)
        if wrong:
            raise InputError(f"{where}: `{wrong}` must be text")
        torn = next((key for key in TEXTS if SURROGATE.search(row.get(key) or "")), None)
        if torn:
            raise InputError(f"{where}: `{torn}` has half a character (a lone surrogate), which no tokenizer reads")
        if row.get("completion") is not None and row.get("answer") is not None:
            raise InputError(f"{where}: `completion` and `answer` are the same thing: a row has one of them")
        if completed(row) and not isinstance(row.get("label"), bool | None):
            raise InputError(f"{where}: the `label` of a completion must be true or false")
        if row.get("prompt") is None and row.get("text") is None:
            raise InputError(f"{where}: a row has a `prompt` or a `text`")
        rows.append((where, row))
    if not rows:
        raise InputError(f"{path} has no rows")
    return rows


def completed(row: dict[str, Any]) -> bool:
    """Whether a row has a completion. Without one, `label` is a key of the user's own."""
    return row.get("completion") is not None or row.get("answer") is not None


def digest(path: Path) -> str:
    """A hash of a file."""
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


class Ragged:
    """Lists of tokens of different lengths."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.lengths = np.array([len(row) for row in rows], dtype=np.int64)
        self.starts = self.lengths.cumsum() - self.lengths
        self.flat = np.array([token for row in rows for token in row] or [0], dtype=np.int32)
        self.longest = int(self.lengths.max(initial=0))

    def row(self, number: int) -> list[int]:
        start = self.starts[number]
        return self.flat[start : start + self.lengths[number]].tolist()

    def padded(self, numbers: np.ndarray, length: int, pad: int, *, left: bool = False) -> Tensor:
        """(N, length) int64: the rows with indices `numbers`, padded."""
        own = self.lengths[numbers][:, None]
        place = np.arange(length) - (length - own if left else 0)
        at = (self.starts[numbers][:, None] + place).clip(0, len(self.flat) - 1)
        return torch.from_numpy(np.where((place >= 0) & (place < own), self.flat[at], pad).astype(np.int64))
