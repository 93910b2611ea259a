"""From a name in a config to a class. A config is data: it holds names, never import paths.

`pgcli.<kind>.<name>` is the module of a built-in (`pgcli.environments.text.<name>` of a text task); an installed
package adds its own by an entry point of the group `pgcli.<kind>` that names a class. A module's registered class is
the one that declares a `Config`.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from pgcli.errors import InputError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

KINDS = {"algo": "algorithms", "env": "environments", "policy": "policies", "device": "devices"}
"""Config group -> package and entry-point group."""
MEMBERS = {
    "algo": ("METRICS", "collects", "actions", "needs", "update", "state_dict", "load_state_dict"),
    "env": ("world",),
}
"""What a class of each kind must have, beside its `Config`."""


def plugins(group: str) -> "list[EntryPoint]":
    """The entry points that installed packages declare for a config group (`algo`, `env`, `policy`, `device`)."""
    from importlib.metadata import entry_points  # imported here, because it would slow `--help` down by a tenth

    return list(entry_points(group=f"pgcli.{KINDS[group]}"))


def has_class(group: str, name: str) -> bool:
    """Whether `find` has a class of this name: an option that only changes another's values has no class."""
    return _module(group, name) is not None or name in {e.name for e in plugins(group)}


def _module(group: str, name: str) -> str | None:
    """The built-in module called `name`; None if there is none."""
    rooms = [KINDS[group], "environments.text"] if group == "env" else [KINDS[group]]
    paths = (f"pgcli.{room}.{name}" for room in rooms if name.isidentifier() and not name.startswith("_"))
    return next((path for path in paths if importlib.util.find_spec(path)), None)


def find(group: str, name: str) -> type:
    """The class called `name`. Raises InputError if no module and no entry point has it."""
    path = _module(group, name)
    if path:
        module = importlib.import_module(path)
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == path and "Config" in vars(value):
                return value
    for entry in plugins(group):
        if entry.name == name:
            return _load(entry)
    raise InputError(f"no {group} is called `{name}`")


def _load(entry: "EntryPoint") -> type:
    """Raises InputError, which names the plug-in, if it cannot be imported or its class declares no `Config`."""
    where = f"plug-in {entry.name} ({entry.value} of {entry.dist.name if entry.dist else 'an installed package'})"
    try:
        found = entry.load()
    except Exception as error:
        raise InputError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(found, "Config"):
        raise InputError(f"{where} declares no Config, the settings that it has")
    return found


def complete(group: str, name: str) -> Any:
    """The class called `name`, as `find`. Raises InputError if it lacks a member that its kind must have."""
    found = find(group, name)
    lacking = [member for member in MEMBERS[group] if not hasattr(found, member)]
    if lacking:
        raise InputError(f"{group}={name}: its class {found.__name__} has no {', '.join(lacking)} (docs/extending.md)")
    return found
