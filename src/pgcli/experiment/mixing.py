"""Options within an option: the tasks of a mixture, each with settings of its own over those of its option's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgcli.errors import InputError
from pgcli.experiment.files import compose_groups, leaves, merge, setting_file
from pgcli.experiment.validation import nearest, show
from pgcli.options import options
from pgcli.registry import find
from pgcli.settings import Settings

GROUP = "env"


def key_of(data: Mapping[str, Any]) -> str | None:
    """The key whose entries are options, `env.tasks`; None if the chosen environment has none."""
    try:
        found: Any = find(GROUP, str(data[GROUP]["name"]))
    except InputError:  # reported with the other mistakes
        return None
    return f"{GROUP}.{found.OPTIONS}" if hasattr(found, "OPTIONS") else None


def model_of(found: Any, settings: Mapping[str, Any]) -> type[Settings]:
    """The model of a class's settings: its `Config`, or what it makes of these settings."""
    return found.model_of(settings) if hasattr(found, "model_of") else found.Config


def fill(data: dict[str, Any], key: str, folders: list[Path]) -> dict[str, Path]:
    """Puts under each entry, in place, the settings of its option that it does not set; returns key -> their file.

    An entry that is null is left out. Raises InputError for what is no option, or cannot be mixed.
    """
    settings = data[GROUP]
    mixture: Any = find(GROUP, str(settings["name"]))
    entries = settings.get(mixture.OPTIONS)
    if not isinstance(entries, dict):
        return {}  # refused with the other mistakes
    files: dict[str, Path] = {}
    settings[mixture.OPTIONS] = entries = {label: entry for label, entry in entries.items() if entry is not None}
    known = options(GROUP, folders)
    of_the_whole = mixture.Config.model_fields.keys() - {"name"}
    for label, entry in entries.items():
        option = str(entry.get("name", label) if isinstance(entry, dict) else label)
        if option not in known:
            close = nearest(option, known)
            hint = f"; did you mean `{close}`?" if close else ""
            raise InputError(f"`{key}.{label}`: no env is called `{option}`{hint}   (pgcli list envs)")
        if not isinstance(entry, dict):
            raise InputError(f"`{key}.{label}` must be settings, such as {{weight: 2}}, not {show(entry)}")
        own = compose_groups({GROUP: option}, folders)[0][GROUP]
        own = {setting: value for setting, value in own.items() if setting not in of_the_whole}
        typed = set(leaves("", entry))
        for setting, value in entry.items():
            if setting != "name":
                merge(own, setting, value)
        entries[label] = own
        for setting in leaves("", own):
            file = setting_file(GROUP, option, setting.partition(".")[0], folders)
            if file and setting not in typed:
                files[f"{key}.{label}.{setting}"] = file
    model_of(mixture, settings)  # what cannot be mixed is refused before a setting of it is missed
    return files
