"""From `key=value` words to one frozen, typed config. Hydra chooses the files, the models check their contents.

    config.yaml  <  group files  <  conf/tuned/<algo>_<env>.yaml  <  the command line            (the last one wins)

Where a method and a task have no tuned file of their own, that of the policy is taken, conf/tuned/<policy>.yaml.
A config is data: names, numbers, texts. No `_target_`, nothing evaluated; a name becomes a class by `registry.find`.
"""

import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from pydantic import Field, field_validator

from pgcli.environments._slug import slug
from pgcli.errors import InputError
from pgcli.experiment import mixing
from pgcli.experiment.files import (
    Origins,
    apply_tuned,
    check_tuned,
    choose,
    compose_groups,
    find_tuned,
    first_sentence,
    label,
    leaves,
    merge,
    read_yaml,
    setting_file,
)
from pgcli.experiment.overrides import Assignment, parse
from pgcli.experiment.validation import Problem, nearest, settings_of, validate
from pgcli.options import GROUPS, built_in_folder, plugin_folders, search_path, short
from pgcli.registry import find
from pgcli.settings import Settings

ECHO = re.compile(r"\$\{(?:oc\.select:)?([\w.]+)")
Origin: TypeAlias = Callable[[str], Path | None]

ABSENT = object()
TRUNCATED = {"top_k", "top_p", "min_p"}
"""Settings of sampling that are refused in training."""
DERIVED = ("choices", "overrides", "added")
"""Fields of the config that say how it was composed, and are no settings."""


class Evaluation(Settings):
    every: int = Field(ge=1, description="actions (environment steps, or tokens) between two evaluations")
    episodes: int = Field(
        ge=1, description="episodes of each evaluation, for the greedy and for the stochastic policy alike"
    )
    texts: int = Field(
        ge=0, description="of a text task: completions of each evaluation that are written to samples.jsonl; 0: none"
    )
    samples: int = Field(
        ge=1,
        description="sampled completions of each held-out prompt; 2 or more also give pass@k of a task with "
        "exact_match",
    )
    gradients: int = Field(
        ge=0,
        description="fresh rollouts at each evaluation, from which the gradient's variance is measured; 0: not "
        "measured",
    )

    @field_validator("gradients")
    @classmethod
    def _enough_to_vary(cls, value: int) -> int:
        if value == 1:
            raise ValueError("one gradient says nothing of how they vary: 0, or at least 2")
        return value


class Checkpoint(Settings):
    every: int = Field(ge=1, description="actions between two checkpoints")
    keep: int = Field(
        ge=1,
        description="number of the latest valid checkpoints that are kept, besides the best of "
        "those that were written at an evaluation",
    )


class Judging(Settings):
    """How a trained reward is used, the run that `reward` names. Without one nothing reads these."""

    combine: Literal["mean", "min", "mean_minus_variance"] = Field(
        description="how the rewards of an ensemble's members are combined; min and mean_minus_variance are lower "
        "where they disagree"
    )
    pessimism: float = Field(ge=0, description="weight of the variance with combine=mean_minus_variance")
    calibration: int = Field(
        ge=2,
        description="completions, of the reference or else of the initial policy, on which a preference model's scores "
        "are scaled to mean 0 and standard deviation 1",
    )
    stop_disagreement: float | None = Field(
        gt=0,
        description="stop once the members' standard deviation, mean over a batch of completions, exceeds this; null: "
        "never",
    )


class ExperimentConfig(Settings):
    """A whole experiment. Dumped as `config.yaml` of a run directory, from which `load` reads the same values back."""

    seed: int = Field(ge=0, description="seed of all random numbers of a run")
    total_steps: int = Field(
        ge=1,
        description="actions (environment steps, or tokens) to train for; the batch that reaches this number is the "
        "last",
    )
    stop_at: float | None = Field(
        description="greedy return of an evaluation at which training stops, if 100 fresh episodes confirm it; null: "
        "never stop early"
    )
    init: str | None = Field(description="run whose last checkpoint gives the initial weights; null: fresh weights")
    reference: str | None = Field(
        description="run whose last checkpoint is the frozen reference that the policy is compared with; null: the "
        "initial policy, for algorithms that need one"
    )
    reward: str | None = Field(
        description="run of a reward model that scores completions in place of the task; null: the task's own reward"
    )
    judge: Judging = Field(description="how the reward model of `reward` is used")
    runs_dir: str = Field(min_length=1, description="folder of the run directories")
    log_every: int = Field(
        ge=1, description="actions between two rows of metrics; 1: one row per update, however small"
    )
    eval: Evaluation = Field(description="evaluation while training")
    checkpoint: Checkpoint = Field(description="checkpoints, from which a run can be resumed")
    algo: Any = Field(description="the algorithm's own `Config`")
    env: Any = Field(description="the environment's own `Config`")
    policy: Any = Field(description="the policy's own `Config`")
    device: Any = Field(description="the device's own `Config`")
    choices: dict[str, str] = Field(exclude=True, description="group -> chosen option; `tuned` -> overlay, or `none`")
    overrides: tuple[str, ...] = Field(exclude=True, description="overrides that were typed")
    added: tuple[str, ...] = Field(
        default=(), exclude=True, description="settings that an older run's config lacks, from the files: `key=value`"
    )


class Composition(NamedTuple):
    config: ExperimentConfig
    origins: Origins


# ---------------------------------------------------------------- compose


def compose(
    overrides: Sequence[str] = (), *, config_dirs: Iterable[Path | str] = (), trust: bool = False
) -> ExperimentConfig:
    """The config that `pgcli train OVERRIDES` runs. Raises InputError with one line for each mistake.

    `trust`: let a file of a user's config folder name user code to import (`env.id: package:Env-v0`,
    `env.reward: my_rewards.py:score`).
    """
    return explain(overrides, config_dirs=config_dirs, trust=trust).config


def explain(
    overrides: Sequence[str] = (), *, config_dirs: Iterable[Path | str] = (), trust: bool = False
) -> Composition:
    """The config of `compose`, with the origin of each value."""
    folders = search_path(config_dirs)
    assignments = parse(overrides)
    wanted = choose([a for a in assignments if a.key in GROUPS], folders)
    values = [*wanted.values, *(a for a in assignments if a.key not in (*GROUPS, "tuned"))]
    data, choices = compose_groups(wanted.options, folders)

    overlay = next((a.value for a in reversed(assignments) if a.key == "tuned"), "auto")
    env_id = next((a.value for a in reversed(values) if a.key == "env.id"), data["env"].get("id"))
    pair = f"{choices['algo']}_{slug(str(env_id or choices['env']))}"
    choices["tuned"], tuned = find_tuned(overlay, (pair, choices["policy"], data["policy"]["name"]), folders)
    if tuned and overlay != "auto":
        check_tuned(data, tuned)
    tuned_keys = frozenset(apply_tuned(data, tuned)) if tuned else frozenset()
    if overlay == "auto" and not tuned_keys:  # a file for this policy, and not for this method
        choices["tuned"], tuned = "none", None

    mixed = mixing.key_of(data)
    typed = _assign(data, values, replaced=mixed)
    filled = mixing.fill(data, mixed, folders) if mixed else {}
    origins = Origins(choices, folders, typed, tuned, tuned_keys, filled)
    config = _typed_config(_resolve(data), choices, tuple(overrides), origins.file, _echoes(data))
    for key, value in _user_code(config):
        if not trust and origins.file(key) and not _is_installed(config, key, value):
            raise _untrusted(key, value, origins.name(key))
    return Composition(config, origins)


# ---------------------------------------------------------------- the tuned overlay


# ---------------------------------------------------------------- values


def _assign(data: dict[str, Any], values: Iterable[Assignment], *, replaced: str | None = None) -> dict[str, str]:
    """Set each value in place; returns key -> the word that set it.

    replaced: key of a group of settings that is replaced as a whole, because the names in it are the user's choice.
    """
    typed: dict[str, str] = {}
    for key, value, text in values:
        *parents, last = key.split(".")
        if parents and last == "name" and parents[0] in GROUPS and len(parents) == 1:
            raise InputError(f"`{text}`: the {parents[0]} is chosen with {parents[0]}={value}")
        inner = data
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise InputError(_unknown_setting(key, list(leaves("", data)), {}))
        if key == replaced:
            inner[last] = value
        else:
            merge(inner, last, value)
        typed |= dict.fromkeys([key, *leaves(key, value)], text)
    return typed


def _echoes(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Key -> the key whose value it repeats: {"env.normalise.gamma": "algo.gamma"}."""
    found: dict[str, str] = {}
    for name, value in data.items():
        if isinstance(value, dict):
            found |= _echoes(value, f"{prefix}{name}.")
        elif isinstance(value, str) and (echo := ECHO.match(value)):
            found[f"{prefix}{name}"] = echo[1]
    return found


RESOLVER = re.compile(r"\$\{\s*(?!oc\.select\b)([\w.]+)\s*:")
"""What a config would compute, or fetch from its surroundings: `${oc.env:HOME}`. `oc.select` reads another setting."""


def _refuse_resolvers(data: Any, key: str = "") -> None:
    """A config is data: it says the same on every machine."""
    match data:
        case dict():
            for name, value in data.items():
                _refuse_resolvers(value, f"{key}.{name}" if key else str(name))
        case list():
            for value in data:
                _refuse_resolvers(value, key)
        case str() if found := RESOLVER.search(data):
            raise InputError(f"`{key}`: a config is data, and `{found[1]}:` would be computed; write the value")


def _resolve(data: dict[str, Any]) -> dict[str, Any]:
    """Replaces interpolations (`${seed}`) by values."""
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    _refuse_resolvers(data)
    try:
        resolved: Any = OmegaConf.to_container(OmegaConf.create(data), resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise InputError(f"`{error.full_key}` has no default: give it a value, {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise InputError((f"`{key}`: " if key else "") + first_sentence(error)) from error
    return resolved


def _typed_config(
    data: Mapping[str, Any], choices: dict[str, str], overrides: tuple[str, ...], origin: Origin,
    echoes: Mapping[str, str], added: Sequence[str] = (),
) -> ExperimentConfig:  # fmt: skip
    """Validates all models; reports all mistakes at once. `origin`: key -> the file that set it, None: command line.
    `echoes`: key -> the key whose value it repeats; a repeated value is reported once.
    """
    problems = [Problem(key, "unknown") for key in DERIVED if key in data]
    classes = {group: _class_of(group, str(data[group]["name"]), origin) for group in GROUPS}
    models = {group: mixing.model_of(found, data[group]) for group, found in classes.items()}
    typed: dict[str, Any] = {}
    for group, model in models.items():
        typed[group], found = validate(model, data[group], f"{group}.")
        problems += found
    whole = {**data, **typed, "choices": choices, "overrides": overrides, "added": tuple(added)}
    config, found = validate(ExperimentConfig, whole)
    blamed = {problem.key for problem in [*found, *problems]}
    problems = [problem for problem in [*found, *problems] if echoes.get(problem.key) not in blamed]
    if not problems and isinstance(config, ExperimentConfig):
        return config
    keys = [row.key for row in settings_of(ExperimentConfig, data) if row.key not in GROUPS]
    keys += [row.key for group, model in models.items() for row in settings_of(model, data[group], f"{group}.")]
    raise InputError("\n".join(_sentence(problem, keys, choices, origin) for problem in problems))


def _class_of(group: str, name: str, origin: Origin) -> Any:
    try:
        return find(group, name)
    except InputError as error:
        file = origin(f"{group}.name")
        if file is None or str(error) != f"no {group} is called `{name}`":
            raise
        raise InputError(
            f"{label(file)}: `name: {name}` is no {group} that is built in or installed; a file with `defaults` takes "
            "its name from them"
        ) from error


def _sentence(problem: Problem, keys: list[str], choices: Mapping[str, str], origin: Origin) -> str:
    file = None if problem.kind == "missing" else origin(problem.key)
    where = f"{label(file)}: " if file else ""
    if problem.kind == "unknown":
        return where + _unknown_setting(problem.key, keys, choices)
    return f"{where}`{problem.key}` {problem.text}"


def _unknown_setting(key: str, keys: list[str], choices: Mapping[str, str]) -> str:
    group = key.partition(".")[0]
    if key.rpartition(".")[2] in TRUNCATED:
        return (
            f"`{key}` is refused: each update would change which tokens the truncation leaves, and the log-probs would "
            "no longer be those of what was sampled; it belongs to `pgcli sample` and `pgcli eval`"
        )
    owner = choices.get(group) if "." in key else None
    close = nearest(key, keys if "." in key else [*keys, *GROUPS])
    return (
        f"`{key}` is not a setting{f' of {owner}' if owner else ''}"
        + (f"; did you mean `{close}`?" if close else "")
        + f"   (all of them: pgcli show config{f' {group}={owner}' if owner else ''})"
    )


# ---------------------------------------------------------------- trust


USER_CODE = {"env.id", "env.reward"}
"""Settings by which a config can name code to import, with a colon: `package:Env-v0`, `my_rewards.py:score`."""


def _user_code(config: ExperimentConfig) -> list[tuple[str, str]]:
    """(key, value) of each setting that names user code."""
    found = [(key, str(getattr(config.env, key.removeprefix("env."), ""))) for key in sorted(USER_CODE)]
    return [(key, value) for key, value in found if ":" in value]


def _is_installed(config: ExperimentConfig, key: str, value: str) -> bool:
    """Whether an installed file has the same value: one of pgcli, or of a plug-in, whose code the user runs anyway.

    The value is compared, because a file elsewhere can reach any key (`# @package _global_`).
    """
    name = key.removeprefix("env.")
    file = setting_file("env", config.choices["env"], name, [built_in_folder(), *plugin_folders()])
    return file is not None and read_yaml(file).get(name) == value


class UntrustedError(InputError):
    """User code that would be imported because a file names it."""


def _untrusted(key: str, value: str, origin: str) -> UntrustedError:
    return UntrustedError(
        f"{origin} names user code to import, {key}={value}: pass --trust if you trust it, or name it yourself"
    )


# ---------------------------------------------------------------- a config that was written down


def dump(config: ExperimentConfig) -> dict[str, Any]:
    """Plain data, as written to `config.yaml`. `load(dump(config))` has the same values."""
    return config.model_dump(mode="json")


def load(
    source: Path | str | Mapping[str, Any], overrides: Sequence[str] = (), *, trust: bool = False
) -> ExperimentConfig:
    """The config of a run (its directory or `config.yaml`), of any file that `dump` wrote, or of the dict itself.

    `overrides` may change values, not choose other options: the file is one composition. Settings that did not exist
    when a run was made get their files' values, and are listed in `added`.
    """
    choices: dict[str, str] = {}
    file: Path | None
    if isinstance(source, Mapping):
        data, file, name = json.loads(json.dumps(source)), None, "this config"
    else:
        file = Path(source) / "config.yaml" if Path(source).is_dir() else Path(source)
        if not file.is_file():
            raise InputError(f"{short(file)} does not exist")
        data, name = read_yaml(file), short(file)
        if (run := file.with_name("run.json")).is_file():
            choices = _choices_of(run)
    of_a_run = bool(choices)
    for group in GROUPS:
        if not isinstance(data.get(group), dict) or "name" not in data[group]:
            raise InputError(f"{name} is not the config of a run: it has no `{group}.name`")
    choices = {**{group: str(data[group]["name"]) for group in GROUPS}, "tuned": "none", **choices}
    values = parse(overrides)
    for key, _, text in values:
        if key in (*GROUPS, "tuned"):
            raise InputError(f"`{text}` is refused here: {name} has chosen its {key}; only its settings can be changed")
    added = _complete(data, choices) if of_a_run else ()
    typed = _assign(data, values)
    config = _typed_config(data, choices, tuple(overrides), lambda key: None if key in typed else file, {}, added)
    for key, value in _user_code(config):
        if not trust and key not in typed:
            raise _untrusted(key, value, name)
    return config


def _complete(data: dict[str, Any], choices: Mapping[str, str]) -> list[str]:
    """Adds to a run's config, in place, the settings that its files have and it has not; returns them as `key=value`.

    Nothing is added if its options are not to be found here: what is missing is then reported as such.
    """
    models = {group: mixing.model_of(find(group, str(data[group]["name"])), data[group]) for group in GROUPS}
    problems = validate(ExperimentConfig, {**data, "choices": {}, "overrides": ()})[1]
    for group, model in models.items():
        problems += validate(model, data[group], f"{group}.")[1]
    missing = [problem.key for problem in problems if problem.kind == "missing"]
    if not missing:
        return []
    try:
        files, _ = compose_groups({group: choices[group] for group in GROUPS}, search_path())
        for key, value in copy.deepcopy(data).items():
            merge(files, key, value)
        if mixed := mixing.key_of(files):
            mixing.fill(files, mixed, search_path())
        known = _resolve(files)
    except (InputError, KeyError):
        return []
    found = []
    for key in missing:
        inner: Any = known
        for part in key.split("."):
            inner = inner.get(part, ABSENT) if isinstance(inner, dict) else ABSENT
        if inner is not ABSENT:
            found.append(Assignment(key, inner, f"{key}={json.dumps(inner)}"))
    _assign(data, found)
    return [text for _, _, text in found]


def _choices_of(file: Path) -> dict[str, str]:
    """The options that a run was composed of, by its run.json."""
    try:
        return json.loads(file.read_text("utf-8")).get("choices", {})
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{short(file)} is damaged: it does not say what the run was composed of") from error
