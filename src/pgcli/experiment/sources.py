"""The runs that a config names as `init`, `reference` and `reward`: found, and their configs and weights read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pgcli.experiment.config import ExperimentConfig, load
from pgcli.runs import checkpoint
from pgcli.runs.reader import find_run
from pgcli.types import State


class Trained(NamedTuple):
    """Another run's config and policy weights."""

    config: ExperimentConfig
    policy: State


@dataclass(frozen=True)
class Sources:
    """The runs that a config names, loaded."""

    init: State | None = None
    reference: Trained | None = None
    reward: Trained | None = None
    begun: bool = False
    """The run's own checkpoint holds all frozen modules, so nothing that it will overwrite needs to be computed."""


NO_SOURCES = Sources()


def located(settings: ExperimentConfig) -> ExperimentConfig:
    """Replaces run names by absolute paths, because `latest` and the working directory may differ on resume."""
    named = {key: name for key in ("init", "reference", "reward") if (name := getattr(settings, key)) is not None}
    found = {key: str(find_run(name, settings.runs_dir).path.resolve()) for key, name in named.items()}
    return settings.model_copy(update=found)


def sources(settings: ExperimentConfig, *, begun: bool = False, trust: bool = False) -> Sources:
    """The runs that a config names. If this run has `begun`, its own checkpoint holds their weights, but the kind of a
    reference or a reward model is only in the config of its run. `trust`: that config may name user code to import.
    """

    def policy(name: str) -> State:
        return checkpoint.load_last(find_run(name).path / "checkpoints", memory=False).state["policy"]

    def trained(name: str | None) -> Trained | None:
        return Trained(load(find_run(name).path, trust=trust), policy(name)) if name is not None else None

    return Sources(
        init=policy(settings.init) if settings.init is not None and not begun else None,
        reference=trained(settings.reference), reward=trained(settings.reward), begun=begun,
    )  # fmt: skip
