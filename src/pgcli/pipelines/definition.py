"""A pipeline: its file, checked, and the words of each stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt

from pgcli.errors import InputError
from pgcli.experiment.config import ExperimentConfig, compose
from pgcli.experiment.overrides import SOURCES, parse, with_runs
from pgcli.experiment.validation import nearest, read_file, read_settings
from pgcli.options import GROUPS, headline, options, search_path
from pgcli.registry import find
from pgcli.settings import Settings

FOLDER = "pipeline"
OWN = ("runs_dir",)
"""Settings that the pipeline sets itself."""


class Stage(Settings):
    name: str = Field(
        pattern=r"^[a-z][a-z0-9_]*$",
        description="name of the stage: of its run directory, and the prefix of its overrides",
    )
    words: tuple[str, ...] = Field(
        min_length=1,
        description="overrides as of `pgcli train`; init=, reference= and reward= may name an earlier stage",
    )


class Report(Settings):
    """Comparison of the stages that write texts, on the same held-out prompts."""

    prompts: int = Field(default=256, ge=2, description="number of held-out prompts")
    baseline: str | None = Field(default=None, description="stage that the others are compared with; null: none")
    best_of: tuple[PositiveInt, ...] = Field(
        default=(), description="values of n for which the best of n samples of the baseline is measured"
    )
    texts: int = Field(default=3, ge=0, description="number of prompts whose completions are shown side by side")


class Definition(Settings):
    """A file of `conf/pipeline/`. Its first comment is its title."""

    stages: tuple[Stage, ...] = Field(min_length=1, description="stages, in the order in which they are run")
    report: Report = Field(default=Report(), description="report at the end")


def names(config_dirs: Iterable[Path | str] = ()) -> dict[str, str]:
    """Pipeline -> its description in one line."""
    return {name: headline(file) for name, file in options(FOLDER, search_path(config_dirs)).items()}


def load(name: str, config_dirs: Iterable[Path | str] = ()) -> tuple[Definition, str]:
    """The pipeline called `name`, or of the file `name` (.yaml), and its title.

    Raises InputError with one line for each mistake.
    """
    if name.endswith(".yaml"):
        own = Path(name).expanduser()
        return read_settings(own, Definition, _check, noun="pipeline"), headline(own)
    found, file = read_file(FOLDER, name, Definition, _check, noun="pipeline", config_dirs=config_dirs)
    return found, headline(file)


def _check(definition: Definition) -> None:
    """Checks that the models cannot do by themselves."""
    known = [stage.name for stage in definition.stages]
    for i, name in enumerate(known):
        if name in known[:i]:
            raise InputError(f"two stages are called `{name}`")
        if name in _keys():
            raise InputError(f"a stage cannot be called `{name}`, as a setting is")
    baseline = definition.report.baseline
    if baseline is not None and baseline not in known:
        raise InputError(f"`report.baseline`: no stage is called `{baseline}`" + _hint(baseline, known))
    if definition.report.best_of and baseline is None:
        raise InputError("`report.best_of` measures the baseline's completions: name a stage as `report.baseline`")


# ---------------------------------------------------------------- the words of each stage


def plan(
    definition: Definition, overrides: Sequence[str], *, config_dirs: Iterable[Path | str] = (), trust: bool = False
) -> dict[str, list[str]]:
    """Stage -> its words, with the overrides of the command line: `sft.seed=3` for one stage, `seed=3` for all.

    Every stage's config is composed; nothing is written. Raises InputError if any of them is refused.
    """
    known = [stage.name for stage in definition.stages]
    words = {stage.name: [*stage.words] for stage in definition.stages}
    for word in overrides:
        stage, dot, own = word.partition(".")
        if dot and stage in words:
            words[stage].append(own)
        elif word.partition("=")[0].partition(".")[0] in _keys():
            for every in words.values():
                every.append(word)
        else:
            name = stage.partition("=")[0]
            raise InputError(f"`{word}`: no stage is called `{name}`" + _hint(name, known, _keys()))
    folders, configs = list(config_dirs), dict[str, ExperimentConfig]()
    for i, (name, own_words) in enumerate(words.items()):
        try:
            _check_sources(own_words, name, known[:i], known)
            runs = {stage: Path(stage) for stage in known}
            configs[name] = compose(with_runs(own_words, runs), config_dirs=folders, trust=trust)
            _check_tokens(own_words, configs[name], configs)
        except InputError as error:
            raise InputError("\n".join(f"stage {name}: {line}" for line in str(error).splitlines())) from error
    return words


def _check_sources(words: Sequence[str], name: str, earlier: Sequence[str], known: Sequence[str]) -> None:
    """Each source must be an earlier stage, or an existing run."""
    for key, value, text in parse(words):
        if key in OWN:
            raise InputError(f"`{text}`: a stage is a run directory inside the pipeline's")
        if key not in SOURCES or value is None or value in earlier:
            continue
        if value in known:
            what = "itself" if value == name else "a later stage, so that neither could be first"
            raise InputError(f"`{text}` is {what}: a stage builds on earlier ones")
        if not (Path(str(value)) / "run.json").is_file():
            raise InputError(f"`{text}` is neither a stage nor a run" + _hint(str(value), known))


def _check_tokens(words: Sequence[str], config: ExperimentConfig, earlier: Mapping[str, ExperimentConfig]) -> None:
    """What a stage builds on must be of its own tokens."""
    for key, value, text in parse(words):
        if key not in SOURCES or value not in earlier or earlier[value].env == config.env:
            continue
        if _tokens(earlier[value]) != _tokens(config):
            there, here = (f"env={one.choices['env']}" for one in (earlier[value], config))
            raise InputError(f"`{text}`: its tokens are those of {there}, and not those of {here}")


def _tokens(config: ExperimentConfig) -> str | None:
    from pgcli.experiment.sources import vocabulary  # torch, which completion in a shell does not need

    environment: Any = find("env", config.env.name)
    return vocabulary(environment(config.env)) if environment.world == "text" else None


def _keys() -> set[str]:
    return {*GROUPS, "tuned", *ExperimentConfig.model_fields}


def _hint(name: str, known: Sequence[str], settings: Iterable[str] = ()) -> str:
    close = nearest(name, [*known, *settings])
    return (f"; did you mean `{close}`?" if close else "") + f"   (stages: {', '.join(known)})"
