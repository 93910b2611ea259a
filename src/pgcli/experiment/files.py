"""The files of a config: the chosen options, their merge by Hydra, the tuned overlay, the origin of each key."""

import copy
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pgcli.errors import InputError
from pgcli.experiment.overrides import Assignment
from pgcli.experiment.validation import nearest
from pgcli.options import GROUPS, PLURALS, built_in_folder, find_file, options, plugin_folders, short

GYMNASIUM_ID = re.compile(r".*[:/].*|.+-v\d+")
"""`LunarLander-v3`, `ALE/Pong-v5`, `my_package:MyEnv-v0`: a typing error such as `cartpol` does not match."""

_hydra_is_a_singleton = threading.Lock()


# ---------------------------------------------------------------- which options


@dataclass
class Choice:
    options: dict[str, str] = field(default_factory=dict)
    values: list[Assignment] = field(default_factory=list)
    """Meaning of a shorthand: `env=LunarLander-v3` is env=gymnasium and env.id=LunarLander-v3."""


def choose(assignments: Iterable[Assignment], folders: list[Path]) -> Choice:
    choice = Choice()
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
            if len(known) < 12 or group not in PLURALS
            else f"   (pgcli list {PLURALS[group]}{also})"
        )
    )


def _gymnasium_id(name: str) -> str | None:
    """The newest version of Gymnasium's environment `name`, whatever its capitals and dashes."""
    import gymnasium

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    found = [key for key, spec in gymnasium.registry.items() if plain(spec.name) == plain(name)]
    return max(found, key=lambda key: gymnasium.registry[key].version or 0, default=None)


def _refuse_hidden(group: str, option: str, folders: list[Path]) -> None:
    """Refuses a user's file with the name of a built-in option: the built-in one would silently be used instead."""
    later = folders[folders.index(built_in_folder()) + 1 :]
    hidden = find_file(group, option, [folder for folder in later if folder not in plugin_folders()])
    if hidden and find_file(group, option, [built_in_folder()]):
        raise InputError(f"{short(hidden)} has the name of a built-in option: give it another one than `{option}`")


# ---------------------------------------------------------------- their files, merged


def compose_groups(chosen: dict[str, str], folders: list[Path]) -> tuple[dict[str, Any], dict[str, str]]:
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
    """Cached, because it takes 50 ms and a sweep calls it hundreds of times; `stamp` changes when a file does."""
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
        outer = GlobalHydra.instance().hydra  # set if the caller is a Hydra application itself
        GlobalHydra.instance().clear()
        try:
            with hydra.initialize_config_dir(str(first), job_name="pgcli", **version):
                composed = hydra.compose("config", words, return_hydra_config=True)
            runtime: Any = OmegaConf.to_container(composed.hydra.runtime.choices)
            data: Any = OmegaConf.to_container(composed, resolve=False)
        except yaml.YAMLError as error:
            raise _bad_yaml(error) from error
        except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
            raise InputError(first_sentence(error)) from error
        finally:
            GlobalHydra.instance().hydra = outer
    data.pop("hydra")
    return data, {group: runtime[group] for group in GROUPS if runtime.get(group)}


# ---------------------------------------------------------------- the tuned overlay


def find_tuned(wanted: Any, names: Sequence[str], folders: list[Path]) -> tuple[str, Path | None]:
    """The overlay's name (`none` if there is none) and file. A user's folder takes precedence over pgcli's own.

    names: of the files that will do, best first, if `wanted` is `auto`.
    """
    if wanted == "none" or wanted is None:
        return "none", None
    own = built_in_folder()
    for name in names if wanted == "auto" else [str(wanted)]:
        file = find_file("tuned", name, sorted(folders, key=lambda folder: folder == own))
        if file is not None:
            return name, file
    if wanted != "auto":
        raise InputError(_unknown_option("tuned", str(wanted), ["auto", "none", *options("tuned", folders)]))
    return "none", None


def apply_tuned(data: dict[str, Any], file: Path) -> Iterator[str]:
    """Overlay a tuned file; yields its keys. A group's section with a `name` applies to that class only, so that
    `policy=cnn` does not get settings that were tuned for the `mlp`; a list of such sections has one for each class.
    """
    overlay = read_yaml(file)
    if "defaults" in overlay:
        raise InputError(f"{short(file)}: a tuned file sets values; it chooses no options, so it has no `defaults`")
    for section, given in overlay.items():
        for values in given if section in GROUPS and isinstance(given, list) else [given]:
            if section in GROUPS and isinstance(values, dict):
                if values.get("name", data[section]["name"]) != data[section]["name"]:
                    continue
                values = {key: value for key, value in values.items() if key != "name"}  # noqa: PLW2901
            merge(data, section, values)
            yield from leaves(section, values)


def check_tuned(data: Mapping[str, Any], file: Path) -> None:
    """Refuses an overlay that was named and whose algorithm is another one: half of it would be left out."""
    algo = read_yaml(file).get("algo")
    if isinstance(algo, dict) and algo.get("name", data["algo"]["name"]) != data["algo"]["name"]:
        raise InputError(f"tuned={file.stem} is for algo={algo['name']}, not for algo={data['algo']['name']}")


# ---------------------------------------------------------------- one file


def read_yaml(file: Path) -> dict[str, Any]:
    import yaml
    from omegaconf import OmegaConf

    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except yaml.YAMLError as error:
        raise _bad_yaml(error) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{short(file)} cannot be read: {first_sentence(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{short(file)} must hold settings (key: value)")
    return content


def _bad_yaml(error: Exception) -> InputError:
    """`conf/algo/mine.yaml, line 3: expected ',' or ']'`."""
    mark = getattr(error, "problem_mark", None)
    name = getattr(mark or error, "name", None)  # without a mark where a character is not allowed
    where = f"{short(Path(name))}{f', line {mark.line + 1}' if mark else ''}: " if name else ""
    return InputError(f"{where}bad YAML: {getattr(error, 'problem', None) or first_sentence(error)}")


def first_sentence(error: Exception) -> str:
    """The first line: Hydra and OmegaConf add their search path, types and links on further lines."""
    return str(error).partition("\n")[0].strip() or type(error).__name__


# ---------------------------------------------------------------- the origin of a key


@dataclass(frozen=True)
class Origins:
    """Where each value of a composition comes from."""

    choices: dict[str, str]
    folders: list[Path]
    typed: dict[str, str]
    """Key -> the command-line word that set it."""
    tuned: Path | None
    tuned_keys: frozenset[str]
    filled: Mapping[str, Path] = field(default_factory=dict)
    """Key -> the file of another option that set it, as those of a mixture's tasks."""

    def file(self, key: str) -> Path | None:
        """The file that sets a key; None for the command line."""
        if key in self.filled:
            return self.filled[key]
        if any(_overlap(key, k) for k in self.typed):
            return None
        if self.tuned and any(_overlap(key, k) for k in self.tuned_keys):
            return self.tuned
        group, _, rest = key.partition(".")
        found = (
            setting_file(group, self.choices[group], rest.partition(".")[0], self.folders)
            if rest and group in GROUPS
            else None
        )
        return found or self.folders[0] / "config.yaml"

    def name(self, key: str) -> str:
        """`command line`, or the file's path as the user knows it."""
        file = self.file(key)
        return label(file) if file else "command line"


def setting_file(group: str, option: str, key: str, folders: list[Path]) -> Path | None:
    """The file that sets a group's key: the option's own, or the last of its `defaults` that sets it."""
    file = find_file(group, option, folders)
    if file is None:
        return None
    content = read_yaml(file)
    if key in content:
        return file
    parents = [parent for parent in content.get("defaults", []) if isinstance(parent, str) and parent != "_self_"]
    return next((found for p in reversed(parents) if (found := setting_file(group, p.lstrip("/"), key, folders))), None)


def label(file: Path) -> str:
    """The file's path from `conf/`, wherever pgcli is installed: `conf/algo/ppo.yaml`."""
    own = built_in_folder()
    return f"conf/{file.relative_to(own).as_posix()}" if file.is_relative_to(own) else short(file)


def _overlap(key: str, other: str) -> bool:
    """Whether the keys are equal or one contains the other."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


# ---------------------------------------------------------------- settings within settings


def merge(target: dict[str, Any], key: str, value: Any) -> None:
    """Groups of settings are merged, other values replaced."""
    if isinstance(value, dict) and isinstance(target.get(key), dict):
        for inner, item in value.items():
            merge(target[key], inner, item)
    else:
        target[key] = value


def leaves(prefix: str, value: Any) -> Iterator[str]:
    if not isinstance(value, dict):
        yield prefix
        return
    for key, item in value.items():
        yield from leaves(f"{prefix}.{key}" if prefix else str(key), item)
