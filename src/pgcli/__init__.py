"""Experiments with policy-gradient methods. Each command of `pgcli` is also a function here.

from pgcli import train, sweep, compare, Run
run = train("algo=ppo", "env=cartpole", "seed=3")
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# NumPy's linear algebra reads this once, when it is loaded. On small matrices its second thread only costs time;
# torch's threads are set by `device.threads`.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

if TYPE_CHECKING:
    from pgcli.analysis import compare as compare
    from pgcli.experiment import audit as audit
    from pgcli.experiment import evaluate as evaluate
    from pgcli.experiment import resume as resume
    from pgcli.experiment import sample as sample
    from pgcli.experiment import train as train
    from pgcli.experiment.agent import load as load
    from pgcli.experiment.exporting import export as export
    from pgcli.pipelines import pipeline as pipeline
    from pgcli.runs import Run as Run
    from pgcli.studies import reproduce as reproduce
    from pgcli.sweeps import sweep as sweep
    from pgcli.verification import verify as verify

    __version__: str

# Imported when first used: torch takes more than a second, and `pgcli --help` needs none of it.
_HOMES = {
    "train": "pgcli.experiment",
    "resume": "pgcli.experiment",
    "evaluate": "pgcli.experiment",
    "sample": "pgcli.experiment",
    "audit": "pgcli.experiment",
    "export": "pgcli.experiment.exporting",
    "load": "pgcli.experiment.agent",
    "pipeline": "pgcli.pipelines",
    "sweep": "pgcli.sweeps",
    "compare": "pgcli.analysis",
    "verify": "pgcli.verification",
    "reproduce": "pgcli.studies",
    "Run": "pgcli.runs",
}
__all__ = [*_HOMES]  # noqa: PLE0604 (names, though ruff cannot see it)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("policy-gradient-cli")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module `pgcli` has no attribute `{name}`")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES, "__version__"]
