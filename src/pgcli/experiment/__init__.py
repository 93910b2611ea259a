"""The program: compose and validate a config, build its parts, turn the loop, evaluate, resume."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgcli.experiment.session import evaluate, resume, train

__all__ = ["evaluate", "resume", "train"]


def __getattr__(name: str) -> Any:
    """Imported when first used: a config can be composed, listed and refused without torch."""
    if name in __all__:
        from pgcli.experiment import session

        return getattr(session, name)
    raise AttributeError(f"module `pgcli.experiment` has no attribute `{name}`")
