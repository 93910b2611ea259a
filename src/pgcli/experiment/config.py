"""From `key=value` words to one frozen, typed config. Hydra chooses the files, the models check what is in them.

    config.yaml  <  group files  <  conf/tuned/<algo>_<env>.yaml  <  the command line            (the last one wins)

A config is data: names, numbers, texts. No `_target_`, nothing evaluated; a name becomes a class by `registry.find`.
"""

import copy
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from pydantic import Field, field_validator

from pgcli.environments._slug import slug
from pgcli.errors import InputError
from pgcli.experiment.overrides import Assignment, expand, parse
from pgcli.experiment.validation import Problem, nearest, settings_of, validate
from pgcli.options import (
    GROUPS,
    PLURALS,
    built_in_folder,
    find_file,
    groups,
    options,
    plugin_folders,
    search_path,
    short,
)
from pgcli.registry import find
from pgcli.settings import Settings

__all__ = [
    "Composition", "ExperimentConfig", "compose", "dump", "expand", "explain", "groups", "load", "settings_of",
]  # fmt: skip

GYMNASIUM_ID = re.compile(r".*[:/].*|.+-v\d+")
"""`LunarLander-v3`, `ALE/Pong-v5`, `my_package:MyEnv-v0`: a slip such as `cartpol` is not one."""

Origin: TypeAlias = Callable[[str], Path | None]

TRUNCATED = {"top_k", "top_p", "min_p"}
"""Settings of sampling that training must not have."""

_hydra_is_a_singleton = threading.Lock()


class Evaluation(Settings):
    every: int = Field(ge=1, description="actions between evaluations (environment steps, or tokens)")
    episodes: int = Field(ge=1, description="episodes of each evaluation, for the greedy and for the stochastic policy")
    texts: int = Field(ge=0, description="completions of each evaluation that are written to samples.jsonl; 0: none")
    samples: int = Field(
        ge=1, description="sampled completions of each held-out prompt; from 2, pass@k of a task with exact_match"
    )
    gradients: int = Field(
        ge=0, description="fresh rollouts of each evaluation on which the gradient's variance is measured; 0: none"
    )

    @field_validator("gradients")
    @classmethod
    def _enough_to_vary(cls, value: int) -> int:
        if value == 1:
            raise ValueError("one gradient says nothing of how they vary: 0, or at least 2")
        return value


class Checkpoint(Settings):
    every: int = Field(ge=1, description="actions between checkpoints")
    keep: int = Field(ge=1, description="how many of the last valid checkpoints stay, besides the best")


class Judging(Settings):
    """How a trained reward is used."""

    combine: Literal["mean", "min", "mean_minus_variance"] = Field(
        description="what an ensemble's members come to; the last two distrust what they disagree on"
    )
    pessimism: float = Field(ge=0, description="weight of the variance in mean_minus_variance")
    calibration: int = Field(
        ge=2,
        description="completions of the reference, else of the initial policy, on which the scores get mean 0 and "
        "deviation 1",
    )
    stop_disagreement: float | None = Field(
        gt=0, description="stop once the members' deviation, mean over a batch of completions, exceeds it; null: never"
    )


class ExperimentConfig(Settings):
    """A whole experiment. Dumped as `config.yaml` of a run directory, from which `load` reads the same thing back."""

    seed: int = Field(ge=0, description="all random numbers of a run come from it")
    total_steps: int = Field(
        ge=1, description="actions to train for (environment steps, or tokens); the batch that reaches it is the last"
    )
    stop_at: float | None = Field(description="stop once an evaluation's greedy return reaches it; null: never")
    init: str | None = Field(description="run whose last checkpoint gives the initial weights; null: fresh ones")
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
        ge=1, description="actions between two rows of metrics; 1: a row for each update, however small"
    )
    eval: Evaluation = Field(description="evaluation while training")
    checkpoint: Checkpoint = Field(description="what a resumed run starts from")
    algo: Any = Field(description="the algorithm's own `Config`")
    env: Any = Field(description="the environment's own `Config`")
    policy: Any = Field(description="the policy's own `Config`")
    device: Any = Field(description="the device's own `Config`")
    choices: dict[str, str] = Field(exclude=True, description="group -> chosen option; `tuned` -> overlay, or `none`")
    overrides: tuple[str, ...] = Field(exclude=True, description="the words that were typed")


@dataclass(frozen=True)
class Origins:
    """Where each value of a composition comes from."""

    choices: dict[str, str]
    folders: list[Path]
    typed: dict[str, str]
    """Key -> the word of the command line that set it."""
    tuned: Path | None
    tuned_keys: frozenset[str]

    def file(self, key: str) -> Path | None:
        """The file that sets a key; None for the command line."""
        if any(_overlap(key, k) for k in self.typed):
            return None
        if self.tuned and any(_overlap(key, k) for k in self.tuned_keys):
            return self.tuned
        group, _, rest = key.partition(".")
        found = (
            _source(group, self.choices[group], rest.partition(".")[0], self.folders)
            if rest and group in GROUPS
            else None
        )
        return found or self.folders[0] / "config.yaml"

    def name(self, key: str) -> str:
        """`command line`, or the file as a user knows it."""
        file = self.file(key)
        return _label(file) if file else "command line"


class Composition(NamedTuple):
    config: ExperimentConfig
    origins: Origins


# ---------------------------------------------------------------- compose


def compose(
    overrides: Sequence[str] = (), *, config_dirs: Iterable[Path | str] = (), trust: bool = False
) -> ExperimentConfig:
    """The config that `pgcli train OVERRIDES` runs. Raises InputError with one line for each thing that is wrong.

    `trust`: let a file of a user's config folder name user code to import (`env.id: package:Env-v0`,
    `env.reward: my_rewards.py:score`).
    """
    return explain(overrides, config_dirs=config_dirs, trust=trust).config


def explain(
    overrides: Sequence[str] = (), *, config_dirs: Iterable[Path | str] = (), trust: bool = False
) -> Composition:
    """`compose`, with the origin of each value."""
    folders = search_path(config_dirs)
    assignments = parse(overrides)
    wanted = _choose([a for a in assignments if a.key in GROUPS], folders)
    values = [*wanted.values, *(a for a in assignments if a.key not in (*GROUPS, "tuned"))]
    data, choices = _compose_groups(wanted.options, folders)

    overlay = next((a.value for a in reversed(assignments) if a.key == "tuned"), "auto")
    env_id = next((a.value for a in reversed(values) if a.key == "env.id"), data["env"].get("id"))
    choices["tuned"], tuned = _find_tuned(overlay, choices["algo"], slug(str(env_id or choices["env"])), folders)
    tuned_keys = frozenset(_apply_tuned(data, tuned)) if tuned else frozenset()

    typed = _assign(data, values)
    origins = Origins(choices, folders, typed, tuned, tuned_keys)
    config = _typed_config(_resolve(data), choices, tuple(overrides), origins.file)
    for key, value in _user_code(config):
        if not trust and origins.file(key) and not _is_installed(config, key, value):
            raise _untrusted(key, value, origins.name(key))
    return Composition(config, origins)


@dataclass
class _Choice:
    options: dict[str, str] = field(default_factory=dict)
    values: list[Assignment] = field(default_factory=list)
    """What a shorthand stands for: `env=LunarLander-v3` is env=gymnasium and env.id=LunarLander-v3."""


def _choose(assignments: Iterable[Assignment], folders: list[Path]) -> _Choice:
    choice = _Choice()
    for group, value, text in assignments:
        known = options(group, folders)
        name, colon, index = str(value).partition(":")
        if isinstance(value, dict | list):
            raise InputError(f"`{text}`: {group} is chosen by name, one of {', '.join(known)}")
        if str(value) in known:
            choice.options[group] = str(value)
            _refuse_hidden(group, str(value), folders)
        elif group == "env" and GYMNASIUM_ID.fullmatch(str(value)):
            choice.options[group] = "gymnasium"
            choice.values.append(Assignment("env.id", value, text))
        elif group == "device" and colon and name in known and index.isdecimal():
            choice.options[group] = name
            choice.values.append(Assignment("device.index", int(index), text))
        else:
            raise InputError(_unknown_option(group, str(value), known))
    return choice


def _unknown_option(group: str, value: str, known: Iterable[str]) -> str:
    known = list(known)
    close = nearest(value, known) or (_gymnasium_id(value) if group == "env" else None)
    also = " or a Gymnasium id such as LunarLander-v3" if group == "env" else ""
    return (
        f"no {group} is called `{value}`"
        + (f"; did you mean `{group}={close}`?" if close else "")
        + (
            f"   ({group} is one of {', '.join(known)}{also})"
            if len(known) < 12
            else f"   (pgcli list {PLURALS.get(group, group)}{also})"
        )
    )


def _gymnasium_id(name: str) -> str | None:
    """The newest version of what Gymnasium calls `name`, whatever its capitals and dashes."""
    import gymnasium

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    found = [key for key, spec in gymnasium.registry.items() if plain(spec.name) == plain(name)]
    return max(found, key=lambda key: gymnasium.registry[key].version or 0, default=None)


def _refuse_hidden(group: str, option: str, folders: list[Path]) -> None:
    """Two files of one name: the built-in one would be taken in silence, and the user's left aside."""
    later = folders[folders.index(built_in_folder()) + 1 :]
    hidden = find_file(group, option, [folder for folder in later if folder not in plugin_folders()])
    if hidden and find_file(group, option, [built_in_folder()]):
        raise InputError(f"{short(hidden)} has the name of a built-in option: give it another one than `{option}`")


def _compose_groups(chosen: dict[str, str], folders: list[Path]) -> tuple[dict[str, Any], dict[str, str]]:
    """The files of the chosen options, merged by Hydra, interpolations kept; and the option of each group."""
    files = (file for folder in folders for file in folder.glob("**/*.yaml"))
    stamp = tuple((str(file), file.stat().st_mtime_ns) for file in files)
    data, choices = copy.deepcopy(_ask_hydra(tuple(chosen.items()), tuple(folders), stamp))
    for group in GROUPS:
        if not isinstance(data.get(group), dict) or "name" not in data[group]:
            file = find_file(group, choices.get(group, ""), folders)
            raise InputError(
                f"{short(file) if file else 'config.yaml'} must hold settings, `name` among them, for {group}"
            )
    return data, choices


@lru_cache(maxsize=64)
def _ask_hydra(
    chosen: tuple[tuple[str, str], ...],
    folders: tuple[Path, ...],
    stamp: tuple[tuple[str, int], ...],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Remembered, because it takes 50 ms and a sweep asks hundreds of times; `stamp` changes when a file does."""
    import hydra
    import yaml
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    first, *others = folders
    paths = ",".join("'file://" + folder.as_posix().replace("'", "\\'") + "'" for folder in others)
    words = [f"hydra.searchpath=[{paths}]", *(f"{group}='{option}'" for group, option in chosen)]
    # 1.3 warns without a version_base, 1.4 warns with one.
    version = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}
    with _hydra_is_a_singleton:
        outer = GlobalHydra.instance().hydra  # of a caller that is a Hydra application itself
        GlobalHydra.instance().clear()
        try:
            with hydra.initialize_config_dir(str(first), job_name="pgcli", **version):
                composed = hydra.compose("config", words, return_hydra_config=True)
            runtime: Any = OmegaConf.to_container(composed.hydra.runtime.choices)
            data: Any = OmegaConf.to_container(composed, resolve=False)
        except yaml.YAMLError as error:
            raise _bad_yaml(error) from error
        except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
            raise InputError(_first_sentence(error)) from error
        finally:
            GlobalHydra.instance().hydra = outer
    data.pop("hydra")
    return data, {group: runtime[group] for group in GROUPS if runtime.get(group)}


def _bad_yaml(error: Exception) -> InputError:
    """`conf/algo/mine.yaml, line 3: expected ',' or ']'`."""
    mark = getattr(error, "problem_mark", None)
    where = f"{short(Path(mark.name))}, line {mark.line + 1}: " if mark else ""
    return InputError(f"{where}bad YAML: {getattr(error, 'problem', None) or _first_sentence(error)}")


def _first_sentence(error: Exception) -> str:
    """Hydra and OmegaConf add their search path, types and links on further lines."""
    return str(error).partition("\n")[0].strip() or type(error).__name__


# ---------------------------------------------------------------- the tuned overlay


def _find_tuned(wanted: Any, algo: str, env: str, folders: list[Path]) -> tuple[str, Path | None]:
    """The overlay's name (`none` where there is none) and file. A user's folder comes before pgcli's own."""
    if wanted == "none" or wanted is None:
        return "none", None
    name = f"{algo}_{env}" if wanted == "auto" else str(wanted)
    own = built_in_folder()
    file = find_file("tuned", name, sorted(folders, key=lambda folder: folder == own))
    if file is None and wanted != "auto":
        raise InputError(_unknown_option("tuned", name, ["auto", "none", *options("tuned", folders)]))
    return (name, file) if file else ("none", None)


def _apply_tuned(data: dict[str, Any], file: Path) -> Iterator[str]:
    """Overlay a tuned file; yields its keys. A group's section that states a `name` is for that class only, so that
    `policy=cnn` is not given the settings that were tuned for the `mlp`.
    """
    overlay = _read_yaml(file)
    if "defaults" in overlay:
        raise InputError(f"{short(file)}: a tuned file sets values; it chooses no options, so it has no `defaults`")
    for section, values in overlay.items():
        if section in GROUPS and isinstance(values, dict):
            if values.get("name", data[section]["name"]) != data[section]["name"]:
                continue
            values = {key: value for key, value in values.items() if key != "name"}  # noqa: PLW2901
        _merge(data, section, values)
        yield from _leaves(section, values)


def _read_yaml(file: Path) -> dict[str, Any]:
    import yaml
    from omegaconf import OmegaConf

    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except yaml.YAMLError as error:
        raise _bad_yaml(error) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{short(file)} cannot be read: {_first_sentence(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{short(file)} must hold settings (key: value)")
    return content


# ---------------------------------------------------------------- values


def _assign(data: dict[str, Any], values: Iterable[Assignment]) -> dict[str, str]:
    """Set each value in place; returns key -> the word that set it."""
    typed: dict[str, str] = {}
    for key, value, text in values:
        *parents, last = key.split(".")
        if parents and last == "name" and parents[0] in GROUPS and len(parents) == 1:
            raise InputError(f"`{text}`: the {parents[0]} is chosen with {parents[0]}={value}")
        inner = data
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise InputError(_unknown_setting(key, list(_leaves("", data)), {}))
        _merge(inner, last, value)
        typed |= dict.fromkeys([key, *_leaves(key, value)], text)
    return typed


def _merge(target: dict[str, Any], key: str, value: Any) -> None:
    """Settings are merged, all else replaced."""
    if isinstance(value, dict) and isinstance(target.get(key), dict):
        for inner, item in value.items():
            _merge(target[key], inner, item)
    else:
        target[key] = value


def _leaves(prefix: str, value: Any) -> Iterator[str]:
    if not isinstance(value, dict):
        yield prefix
        return
    for key, item in value.items():
        yield from _leaves(f"{prefix}.{key}" if prefix else str(key), item)


def _resolve(data: dict[str, Any]) -> dict[str, Any]:
    """Interpolations (`${seed}`) replaced by values."""
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        resolved: Any = OmegaConf.to_container(OmegaConf.create(data), resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise InputError(f"`{error.full_key}` has no default: give it a value, {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise InputError((f"`{key}`: " if key else "") + _first_sentence(error)) from error
    return resolved


def _typed_config(
    data: Mapping[str, Any], choices: dict[str, str], overrides: tuple[str, ...], origin: Origin
) -> ExperimentConfig:
    """Every model's verdict at once. `origin`: key -> the file to blame for it, None for the command line."""
    problems: list[Problem] = []
    models = {group: find(group, str(data[group]["name"])).Config for group in GROUPS}  # type: ignore[attr-defined]
    typed: dict[str, Any] = {}
    for group, model in models.items():
        typed[group], found = validate(model, data[group], f"{group}.")
        problems += found
    whole = {**data, **typed, "choices": choices, "overrides": overrides}
    config, found = validate(ExperimentConfig, whole)
    problems = [*found, *problems]
    if not problems and isinstance(config, ExperimentConfig):
        return config
    keys = [row.key for row in settings_of(ExperimentConfig, data) if row.key not in GROUPS]
    keys += [row.key for group, model in models.items() for row in settings_of(model, data[group], f"{group}.")]
    raise InputError("\n".join(_sentence(problem, keys, choices, origin) for problem in problems))


def _sentence(problem: Problem, keys: list[str], choices: Mapping[str, str], origin: Origin) -> str:
    file = None if problem.kind == "missing" else origin(problem.key)
    where = f"{_label(file)}: " if file else ""
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
    close = nearest(key, keys)
    return (
        f"`{key}` is not a setting{f' of {owner}' if owner else ''}"
        + (f"; did you mean `{close}`?" if close else "")
        + f"   (all of them: pgcli show config{f' {group}={owner}' if owner else ''})"
    )


def _overlap(key: str, other: str) -> bool:
    """One is the other, or holds it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _label(file: Path) -> str:
    """`conf/algo/ppo.yaml`, wherever pgcli is installed."""
    own = built_in_folder()
    return f"conf/{file.relative_to(own).as_posix()}" if file.is_relative_to(own) else short(file)


def _source(group: str, option: str, key: str, folders: list[Path]) -> Path | None:
    """The file that sets a group's key: the option's own, or the last of its `defaults` that does."""
    file = find_file(group, option, folders)
    if file is None:
        return None
    content = _read_yaml(file)
    if key in content:
        return file
    parents = [parent for parent in content.get("defaults", []) if isinstance(parent, str) and parent != "_self_"]
    return next((found for p in reversed(parents) if (found := _source(group, p.lstrip("/"), key, folders))), None)


# ---------------------------------------------------------------- trust


USER_CODE = {"env.id", "env.reward"}
"""Settings by which a config can name code to import, with a colon: `package:Env-v0`, `my_rewards.py:score`."""


def _user_code(config: ExperimentConfig) -> list[tuple[str, str]]:
    """(key, value) of each setting that names some."""
    found = [(key, str(getattr(config.env, key.removeprefix("env."), ""))) for key in sorted(USER_CODE)]
    return [(key, value) for key, value in found if ":" in value]


def _is_installed(config: ExperimentConfig, key: str, value: str) -> bool:
    """An installed file says the same: of pgcli, or of a plug-in, whose code its user runs anyway.

    The value is compared, because a file elsewhere can reach any key (`# @package _global_`).
    """
    name = key.removeprefix("env.")
    file = _source("env", config.choices["env"], name, [built_in_folder(), *plugin_folders()])
    return file is not None and _read_yaml(file).get(name) == value


def _untrusted(key: str, value: str, origin: str) -> InputError:
    return InputError(
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

    `overrides` may change values, not choose other options: the file is one composition.
    """
    choices: dict[str, str] = {}
    file: Path | None
    if isinstance(source, Mapping):
        data, file, name = json.loads(json.dumps(source)), None, "this config"
    else:
        file = Path(source) / "config.yaml" if Path(source).is_dir() else Path(source)
        if not file.is_file():
            raise InputError(f"{short(file)} does not exist")
        data, name = _read_yaml(file), short(file)
        if (run := file.with_name("run.json")).is_file():
            choices = json.loads(run.read_text()).get("choices", {})
    for group in GROUPS:
        if not isinstance(data.get(group), dict) or "name" not in data[group]:
            raise InputError(f"{name} is not the config of a run: it has no `{group}.name`")
    choices = {**{group: str(data[group]["name"]) for group in GROUPS}, "tuned": "none", **choices}
    values = parse(overrides)
    for key, _, text in values:
        if key in (*GROUPS, "tuned"):
            raise InputError(f"`{text}` is refused here: {name} has chosen its {key}; only its settings can be changed")
    typed = _assign(data, values)
    config = _typed_config(data, choices, tuple(overrides), lambda key: None if key in typed else file)
    for key, value in _user_code(config):
        if not trust and key not in typed:
            raise _untrusted(key, value, name)
    return config
