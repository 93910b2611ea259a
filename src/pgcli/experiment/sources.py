"""The runs that a config names as `init`, `reference` and `reward`: found, and their configs and weights read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pgcli.experiment.config import ExperimentConfig, load
from pgcli.experiment.overrides import SOURCES
from pgcli.runs import checkpoint
from pgcli.runs.reader import find_run
from pgcli.types import State, TextSpec


class Weights(NamedTuple):
    """Another run's policy, and what its parameters' shapes do not say."""

    state: State
    foundation: str | None = None
    """A hash of the weights that its adapters belong to, if it has adapters."""
    vocabulary: str | None = None
    """`vocabulary` of its task."""
    settings: Mapping[str, Any] = {}
    """Of the policy."""


class Trained(NamedTuple):
    """Another run's config and policy."""

    config: ExperimentConfig
    policy: Weights


@dataclass(frozen=True)
class Sources:
    """The runs that a config names, loaded."""

    init: Weights | None = None
    reference: Trained | None = None
    reward: Trained | None = None
    begun: bool = False
    """The run's own checkpoint holds all frozen modules, so nothing that it will overwrite needs to be computed."""


NO_SOURCES = Sources()


FEW_TOKENS = 4096
"""Largest vocabulary that is compared word by word. Those of pretrained models come with the model."""


def vocabulary(task: Any) -> str | None:
    """A hash of what each token of a text task says; None if it is no text task, or has too many tokens."""
    if not isinstance(task.spec, TextSpec) or task.spec.vocabulary > FEW_TOKENS:
        return None
    return hashlib.sha256(repr(words(task)).encode()).hexdigest()


def words(task: Any) -> list[str]:
    """What each token of a text task says."""
    return [task.decode([token]) for token in range(task.spec.vocabulary)]


def located(settings: ExperimentConfig) -> ExperimentConfig:
    """Replaces run names by absolute paths, because `latest` and the working directory may differ on resume."""
    named = _named(settings)
    found = {key: str(find_run(name, settings.runs_dir).path.resolve()) for key, name in named.items()}
    return settings.model_copy(update=found)


def moved_along(settings: ExperimentConfig, run: Path) -> ExperimentConfig:
    """Replaces a path where there is no run any longer by that of its namesake beside `run`, if there is one: a folder
    of runs, or a pipeline, was moved or copied with all that is in it.
    """
    beside = run.resolve().parent
    found = {key: beside / Path(name).name for key, name in _named(settings).items() if not _is_run(Path(name))}
    return settings.model_copy(update={key: str(path) for key, path in found.items() if _is_run(path)})


def _named(settings: ExperimentConfig) -> dict[str, str]:
    return {key: name for key in SOURCES if (name := getattr(settings, key)) is not None}


def _is_run(path: Path) -> bool:
    return (path / "run.json").is_file()


def sources(settings: ExperimentConfig, *, begun: bool = False, trust: bool = False) -> Sources:
    """The runs that a config names. If this run has `begun`, its own checkpoint holds their weights, but the kind of a
    reference or a reward model is only in the config of its run. `trust`: that config may name user code to import.
    """

    def policy(name: str) -> Weights:
        run = find_run(name)
        state = checkpoint.load_last(run.path / "checkpoints", memory=False).state["policy"]
        info, settings = run.info, run.config.get("policy", {})
        return Weights(state, info.get("foundation"), info.get("vocabulary"), settings)

    def trained(name: str | None) -> Trained | None:
        return Trained(load(find_run(name).path, trust=trust), policy(name)) if name is not None else None

    return Sources(
        init=policy(settings.init) if settings.init is not None and not begun else None,
        reference=trained(settings.reference), reward=trained(settings.reward), begun=begun,
    )  # fmt: skip
