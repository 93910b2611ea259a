"""A study: its file, checked, and the runs that it describes.

A row's words are those of `pgcli sweep`. Words that begin with `env` give the environment, the others, and the
normalisation of observations and rewards, the method. A method on an environment, over the seeds, is a *cell*, and a
line of the table.

Runs that others build on are *stages*, made once for each seed: `init=sft`, `reference=sft` or `reward=rm` in a row, or
in a later stage, means the run of that stage with the same seed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from itertools import chain
from math import sqrt
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from pgcli.errors import InputError
from pgcli.experiment.overrides import SOURCES, expand, parse
from pgcli.experiment.validation import nearest, read_file
from pgcli.options import headline, options, search_path
from pgcli.settings import Settings

FOLDER = "experiment"
MODULES = {"mujoco": "mujoco", "box2d": "Box2D", "atari": "ale_py"}
"""Gymnasium's extra -> the package that it installs."""
OWN = ("seed", "total_steps", "eval.every", "runs_dir")
"""Settings that a study sets by its own keys."""
MEASURES = ("training_return", "evaluation_return", "greedy_return", "learning")


class Source(Settings):
    """The source of published numbers, and the meaning of their +-."""

    title: str = Field(description="name of the source in the table")
    link: str | None = Field(default=None, description="where the numbers are published")
    seeds: int | None = Field(
        default=None, ge=2, description="number of runs (seeds) behind each number; null: not stated"
    )
    deviation: Literal["sample", "population"] = Field(
        default="sample",
        description="kind of the +-: standard deviation by n - 1 (sample) or by n (population), as NumPy's std",
    )


class Published(Settings):
    source: str = Field(description="source of the number, a key of `sources`")
    mean: float = Field(description="published mean")
    deviation: float | None = Field(default=None, ge=0, description="published +- between seeds; null: none")


class Plane(Settings):
    """A plot of metrics against another metric, each run's evaluations in their order."""

    x: str = Field(description="metric along the horizontal axis, such as kl/exact")
    y: tuple[str, ...] = Field(min_length=1, description="metrics along the vertical axis, one panel each")
    root: bool = Field(default=False, description="plot against the square root of x: a distance, if x is a divergence")


class BestOf(Settings):
    """In addition to the runs: the best of n completions of an untrained policy, by each of some reward models."""

    words: tuple[str, ...] = Field(description="words of a run, whose policy is given by init=<stage>")
    rewards: tuple[str, ...] = Field(
        min_length=1, description="stages of the reward models that select the best completion"
    )
    largest: int = Field(ge=2, description="completions of each prompt; every power of 2 up to it is reported")
    prompts: int = Field(ge=1, description="number of held-out prompts")


class Row(Settings):
    words: tuple[str, ...] = Field(min_length=1, description="overrides as of `pgcli sweep`: algo=ppo,a2c env=cartpole")
    fixed: tuple[str, ...] = Field(default=(), description="further overrides, left out of the method's name")
    total_steps: int | None = Field(default=None, ge=1, description="budget of these runs; null: the study's")
    published: tuple[Published, ...] = Field(default=(), description="published numbers for exactly this run")


class Study(Settings):
    """A file of `conf/experiment/`. Its first comment is its title."""

    question: str = Field(description="what the study answers, as a question")
    measure: str = Field(
        description="measure of a run: training_return, the mean of the last `window` training episodes, as in "
        "CleanRL; evaluation_return or greedy_return, of the last evaluation; learning, the mean of the evaluations "
        "over all steps; or any metric's key, its last value",
    )
    columns: tuple[str, ...] = Field(default=(), description="metrics whose last values are shown beside the measure")
    best_of: BestOf | None = Field(default=None, description="best of n completions, as a further line of the plane")
    plane: Plane | None = Field(default=None, description="further plot, of metrics against another metric")
    window: int = Field(default=100, ge=1, description="training episodes that training_return averages over")
    seeds: int = Field(ge=1, description="runs of each cell, with seeds 0, 1, ...")
    total_steps: int = Field(ge=1, description="budget of a run in steps (or tokens)")
    evaluations: int = Field(default=50, ge=1, description="points on each learning curve")
    common: tuple[str, ...] = Field(default=(), description="overrides that all rows share")
    environments: dict[str, tuple[str, ...]] = Field(
        default={}, description="overrides that belong to an environment, for all methods alike"
    )
    stages: dict[str, tuple[str, ...]] = Field(
        default={},
        description="name -> overrides of a run that others build on, one for each seed; its budget ignores --fraction",
    )
    rows: tuple[Row, ...] = Field(description="runs of the study, as rows of overrides")
    reference: str | None = Field(default=None, description="name of the method that the others are compared with")
    needs: Literal["mujoco", "box2d", "atari"] | None = Field(
        default=None, description="extra of Gymnasium that the study needs"
    )
    sources: dict[str, Source] = Field(default={}, description="sources of the published numbers, by key")
    notes: tuple[str, ...] = Field(default=(), description="notes for the reader of the table")

    @model_validator(mode="after")
    def _sources_are_known(self) -> Study:
        for source in (published.source for row in self.rows for published in row.published):
            if source not in self.sources:
                raise ValueError(f"`{source}` is not one of the sources: {', '.join(self.sources) or 'there are none'}")
        return self


class Cell(NamedTuple):
    """A method on an environment: one line of the table per published number."""

    environment: str
    method: str
    words: list[str]
    """Overrides of `pgcli train` without the seed and the budget, which differ between runs. Stages are names."""
    total_steps: int
    published: tuple[Published, ...]

    @property
    def env(self) -> str:
        """The environment's name, as in `--only`."""
        return self.environment.partition(" ")[0]


# ---------------------------------------------------------------- the files


def names(config_dirs: Iterable[Path | str] = ()) -> dict[str, str]:
    """Study -> its description in one line."""
    return {name: headline(file) for name, file in options(FOLDER, search_path(config_dirs)).items()}


def load(name: str, config_dirs: Iterable[Path | str] = ()) -> Study:
    """The study called `name`. Raises InputError with one line for each mistake in it."""
    return read_file(FOLDER, name, Study, _check, noun="study", config_dirs=config_dirs)[0]


def _check(study: Study) -> None:
    """Checks that the models cannot do by themselves."""
    if study.measure not in MEASURES and study.measure.count("/") != 1:
        raise InputError(
            f"`measure` must be one of {', '.join(MEASURES)}, or a metric's key such as eval/gold, not {study.measure}"
        )
    for word in [
        *study.common,
        *(word for own in study.stages.values() for word in own if not word.startswith("total_steps=")),
        *chain(*study.environments.values()),
        *chain(*((*row.words, *row.fixed) for row in study.rows)),
    ]:
        key = word.partition("=")[0]
        if key in OWN:
            raise InputError(f"`{word}`: a study sets {key} by its own keys (seeds, total_steps, evaluations)")
    for i, own in enumerate(study.stages.values()):
        _check_sources(own, list(study.stages)[:i])
    if study.best_of:
        _check_sources([*study.best_of.words, f"reward={','.join(study.best_of.rewards)}"], list(study.stages))
    for words in [study.common, *study.environments.values(), *((*row.words, *row.fixed) for row in study.rows)]:
        _check_sources(words, list(study.stages))
    if not study.rows:
        raise InputError("`rows` is empty: there is nothing to run")
    for row in study.rows:
        if row.published and len(expand(row.words)) > 1:
            raise InputError(f"`{' '.join(row.words)}` is several runs, and a published number belongs to one")
    everything = cells(study)
    for env in study.environments.keys() - {cell.env for cell in everything}:
        raise InputError(f"environments: no row has env={env}")
    methods = list(dict.fromkeys(cell.method for cell in everything))
    if study.reference is not None and study.reference not in methods:
        raise InputError(f"reference: `{study.reference}` is not one of the methods {', '.join(methods)}")


def _check_sources(words: Sequence[str], stages: Sequence[str]) -> None:
    """Each source must be an earlier stage."""
    for word in words:
        key, _, values = word.partition("=")
        for value in values.split(",") if key in SOURCES else ():
            if value not in stages:
                known = f"the stages before it are {', '.join(stages)}" if stages else "there is no stage before it"
                raise InputError(f"`{word}`: {value} is not a stage; {known}")


def require(name: str, study: Study) -> None:
    """Raises InputError, with the command that installs it, if an extra is missing."""
    if study.needs and importlib.util.find_spec(MODULES[study.needs]) is None:
        raise InputError(f"{name} needs a package that is not installed: run pip install 'gymnasium[{study.needs}]'")


# ---------------------------------------------------------------- the cells


def cells(study: Study) -> list[Cell]:
    """The cells of all rows, one for each combination of their words."""
    found = []
    for row in study.rows:
        for words in expand(row.words):
            where = [word for word in words if _is_where(word)]
            what = [word for word in words if not _is_where(word)] or _algorithm(study)
            cell = Cell(_spell(where), _spell(what), [], row.total_steps or study.total_steps, row.published)
            coming = study.environments.get(cell.env, ())
            found.append(cell._replace(words=[*study.common, *coming, *row.fixed, *words]))
    return found


def _algorithm(study: Study) -> list[str]:
    """The method words of a row that names only an environment."""
    return [word for word in study.common if word.startswith("algo=")]


def _is_where(word: str) -> bool:
    key = word.partition("=")[0]
    if key.startswith("env.normalise."):
        return key == "env.normalise.reward_shift"  # part of the task; the other normalisations belong to the method
    return key == "env" or key.startswith("env.")


def _spell(words: Sequence[str]) -> str:
    """`algo=ppo algo.gamma=1` -> `ppo gamma=1`; `env=x env.normalise.reward_shift=2` -> `x reward_shift=2`.

    Normalisations, which belong to the method, keep their section: `normalise.rewards=true`.
    """
    texts = []
    for key, value, text in parse(words):
        short = key.rpartition(".")[2] if _is_where(text) else key.partition(".")[2]
        texts.append(str(value) if key in ("algo", "env") else f"{short or key}={text.partition('=')[2]}")
    return " ".join(texts)


def only(study: Study, wanted: Sequence[str]) -> list[Cell]:
    """The cells on the wanted environments; all of them if none is given."""
    everything = cells(study)
    known = list(dict.fromkeys(cell.env for cell in everything))
    for env in wanted:
        if env not in known:
            close = nearest(env, known)
            hint = f"; did you mean `{close}`?" if close else ""
            raise InputError(f"this study has no environment `{env}`{hint}   (it has {', '.join(known)})")
    return [cell for cell in everything if not wanted or cell.env in wanted]


def sample_deviation(published: Published, source: Source) -> float | None:
    """The published +- as a sample standard deviation: of n values, sqrt(n / (n - 1)) times the population's."""
    if published.deviation is None or source.seeds is None or source.deviation == "sample":
        return published.deviation
    return published.deviation * sqrt(source.seeds / (source.seeds - 1))
