"""What a study is: its file, checked, and the runs that it stands for.

A row's words are those of `pgcli sweep`. What begins with `env` says where (the environment, in the table), all else
says what (the method), and so does the normalisation of observations and rewards. A method on an environment, over the
seeds, is a *cell*, and a line of the table.

Runs that others build on are *stages*, made once for each seed: `init=sft`, `reference=sft` or `reward=rm` in a row, or
in a later stage, stands for the run of that stage with the same seed.
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
"""Gymnasium's extra -> what it brings."""
OWN = ("seed", "total_steps", "eval.every", "runs_dir")
"""Settings that a study sets by keys of its own."""
MEASURES = ("training_return", "evaluation_return", "greedy_return", "learning")


class Source(Settings):
    """Where published numbers come from, and what their +- is."""

    title: str = Field(description="who published them: what a line of the table says")
    link: str | None = Field(default=None, description="where they can be read")
    seeds: int | None = Field(default=None, ge=2, description="runs behind each number; null: not said")
    deviation: Literal["sample", "population"] = Field(
        default="sample", description="the +- divides by n - 1 (sample) or by n (population), as NumPy's std does"
    )


class Published(Settings):
    source: str = Field(description="key of `sources`")
    mean: float = Field(description="as published")
    deviation: float | None = Field(default=None, ge=0, description="the published +-, between seeds; null: none")


class Plane(Settings):
    """A plot of metrics against another one, each run's evaluations in their order."""

    x: str = Field(description="metric along the horizontal axis, such as kl/exact")
    y: tuple[str, ...] = Field(min_length=1, description="metrics along the vertical axis, a panel each")
    root: bool = Field(default=False, description="the square root of x: a distance, where x is a divergence")


class BestOf(Settings):
    """Beside the runs: the best of n completions, by each of some reward models, of a policy that is only sampled."""

    words: tuple[str, ...] = Field(description="words of a run that names the policy by init=<stage>")
    rewards: tuple[str, ...] = Field(min_length=1, description="stages: the reward models that choose")
    largest: int = Field(ge=2, description="completions of each prompt; every power of 2 up to it is reported")
    prompts: int = Field(ge=1, description="held-out prompts")


class Row(Settings):
    words: tuple[str, ...] = Field(min_length=1, description="as after `pgcli sweep`: algo=ppo,a2c env=cartpole")
    fixed: tuple[str, ...] = Field(default=(), description="further words, which the method's name leaves out")
    total_steps: int | None = Field(default=None, ge=1, description="another budget than the study's")
    published: tuple[Published, ...] = Field(default=(), description="what others report for just this")


class Study(Settings):
    """A file of `conf/experiment/`. Its first comment is its title."""

    question: str = Field(description="what the study answers, as a question")
    measure: str = Field(
        description="training_return: mean of the last `window` training episodes, as CleanRL reports; "
        "evaluation_return, greedy_return: the last evaluation; learning: the evaluation's mean over all steps; "
        "any metric's key: its last value",
    )
    columns: tuple[str, ...] = Field(default=(), description="metrics whose last values are shown beside the measure")
    best_of: BestOf | None = Field(default=None, description="the best of n, as a further line of the plane")
    plane: Plane | None = Field(default=None, description="a further plot, of metrics against one another")
    window: int = Field(default=100, ge=1, description="training episodes that training_return averages over")
    seeds: int = Field(ge=1, description="runs of each cell, with seeds 0, 1, ...")
    total_steps: int = Field(ge=1, description="budget of a run in steps (or tokens)")
    evaluations: int = Field(default=50, ge=1, description="points on each learning curve")
    common: tuple[str, ...] = Field(default=(), description="words that all rows share")
    environments: dict[str, tuple[str, ...]] = Field(
        default={}, description="words that come with an environment, for all methods alike"
    )
    stages: dict[str, tuple[str, ...]] = Field(
        default={},
        description="name -> words of a run that others build on, one for each seed; whole at any --fraction",
    )
    rows: tuple[Row, ...] = Field(description="what is run")
    reference: str | None = Field(default=None, description="the method that the others are compared with, by its name")
    needs: Literal["mujoco", "box2d", "atari"] | None = Field(default=None, description="Gymnasium's extra")
    sources: dict[str, Source] = Field(default={}, description="of the published numbers")
    notes: tuple[str, ...] = Field(default=(), description="what a reader of the table must know")

    @model_validator(mode="after")
    def _sources_are_known(self) -> Study:
        for source in (published.source for row in self.rows for published in row.published):
            if source not in self.sources:
                raise ValueError(f"`{source}` is not one of the sources: {', '.join(self.sources) or 'there are none'}")
        return self


class Cell(NamedTuple):
    """A method on an environment: a line of the table for each number that others published."""

    environment: str
    method: str
    words: list[str]
    """Of `pgcli train`, but for what each run has of its own: seed and budget. Stages are names."""
    total_steps: int
    published: tuple[Published, ...]

    @property
    def env(self) -> str:
        """The environment's name alone, as `--only` takes it."""
        return self.environment.partition(" ")[0]


# ---------------------------------------------------------------- the files


def names(config_dirs: Iterable[Path | str] = ()) -> dict[str, str]:
    """Study -> what it is, in one line."""
    return {name: headline(file) for name, file in options(FOLDER, search_path(config_dirs)).items()}


def load(name: str, config_dirs: Iterable[Path | str] = ()) -> Study:
    """The study called `name`. Raises InputError with one line for each thing that is wrong with it."""
    return read_file(FOLDER, name, Study, _check, noun="study", config_dirs=config_dirs)[0]


def _check(study: Study) -> None:
    """What the models cannot say by themselves."""
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
    """Each names a stage that was made before."""
    for word in words:
        key, _, values = word.partition("=")
        for value in values.split(",") if key in SOURCES else ():
            if value not in stages:
                known = f"the stages before it are {', '.join(stages)}" if stages else "there is no stage before it"
                raise InputError(f"`{word}`: {value} is not a stage; {known}")


def require(name: str, study: Study) -> None:
    """Raises InputError, with the command that installs it, where an extra is missing."""
    if study.needs and importlib.util.find_spec(MODULES[study.needs]) is None:
        raise InputError(f"{name} needs a package that is not installed: run pip install 'gymnasium[{study.needs}]'")


# ---------------------------------------------------------------- the cells


def cells(study: Study) -> list[Cell]:
    """The rows, each combination of their words."""
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
    """What a row is called that says nothing but where."""
    return [word for word in study.common if word.startswith("algo=")]


def _is_where(word: str) -> bool:
    key = word.partition("=")[0]
    if key.startswith("env.normalise."):
        return key == "env.normalise.reward_shift"  # of the task; all else there is how a method looks at it
    return key == "env" or key.startswith("env.")


def _spell(words: Sequence[str]) -> str:
    """`algo=ppo algo.gamma=1` -> `ppo gamma=1`; `env=x env.normalise.reward_shift=2` -> `x reward_shift=2`.

    How a method looks at the world keeps its section: `normalise.rewards=true`.
    """
    texts = []
    for key, value, text in parse(words):
        short = key.rpartition(".")[2] if _is_where(text) else key.partition(".")[2]
        texts.append(str(value) if key in ("algo", "env") else f"{short or key}={text.partition('=')[2]}")
    return " ".join(texts)


def only(study: Study, wanted: Sequence[str]) -> list[Cell]:
    """The cells on the environments asked for; all of them if none is."""
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
