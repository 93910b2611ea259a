"""The console that the commands print their tables to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

UNBOUNDED = 200


def console() -> Console:
    """As wide as the terminal. For a pipe or a file nothing is cut or folded."""
    from rich.console import Console

    found = Console(highlight=False, markup=False)
    if not found.is_terminal and "COLUMNS" not in os.environ:
        found.width = UNBOUNDED
    return found
