"""The refusal of losses and gradients that are not finite, before a parameter has changed."""

import math

from pgcli.errors import RunError
from pgcli.types import Metrics

CONSEQUENCES = ("loss/total", "optimiser/")
"""Not finite because a term is not: named only where no term is to blame."""


def finite(values: Metrics, update: int) -> Metrics:
    """The values as they are. Raises RunError, which names the causes, where one is NaN or infinite."""
    if all(map(math.isfinite, values.values())):
        return values
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    causes = {name: value for name, value in bad.items() if not name.startswith(CONSEQUENCES)} or bad
    named = ", ".join(f"{name} = {value}" for name, value in causes.items())
    raise RunError(
        f"update {update}: {named}; stopped before the optimiser step. "
        "Smaller learning rates or a max_grad_norm often help"
    )
