"""The program: compose and validate a config, build its parts, run the loop, evaluate, resume."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgcli.experiment.auditing import audit
    from pgcli.experiment.exporting import export
    from pgcli.experiment.sampling import sample
    from pgcli.experiment.session import check, evaluate, resume, train

HOMES = {
    "check": "session",
    "train": "session",
    "resume": "session",
    "evaluate": "session",
    "sample": "sampling",
    "export": "exporting",
    "audit": "auditing",
}
__all__ = ["audit", "check", "evaluate", "export", "resume", "sample", "train"]


def __getattr__(name: str) -> Any:
    """Imported when first used: a config can be composed, listed and refused without torch."""
    if name in HOMES:
        return getattr(importlib.import_module(f"pgcli.experiment.{HOMES[name]}"), name)
    raise AttributeError(f"module `pgcli.experiment` has no attribute `{name}`")
