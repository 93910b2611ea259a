"""The folders of YAML files that a config is composed of, and the options in them.

Nothing slow is imported here, because `pgcli --help`, `pgcli list` and shell completion use it.
"""

import importlib.util
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from pgcli.errors import InputError
from pgcli.registry import KINDS, plugins

GROUPS = tuple(KINDS)
"""The config groups; in each, one option is chosen by name."""
PLURALS = {"algo": "algos", "env": "envs", "policy": "policies", "device": "devices"}
"""The groups' names in `pgcli list`."""


def built_in_folder() -> Path:
    """The `conf/` of pgcli: inside the installed package, or beside `src/` in a checkout (an editable install too)."""
    package = Path(__file__).resolve().parent
    if (package / "conf").is_dir():
        return package / "conf"
    project = package.parent.parent / "pyproject.toml"
    if project.is_file() and tomllib.loads(project.read_text()).get("project", {}).get("name") == "policy-gradient-cli":
        folder = project.parent / "conf"
        if folder.is_dir():
            return folder
    raise InputError(
        f"this installation has no conf/ folder (looked in {package} and {project.parent}): install it again"
    )


def user_folders(config_dirs: Iterable[Path | str] = ()) -> list[Path]:
    """The folders that `--config-dir` and the environment variable PGCLI_CONF name."""
    named = [*config_dirs, *filter(None, os.environ.get("PGCLI_CONF", "").split(os.pathsep))]
    folders = [Path(folder).expanduser().resolve() for folder in named]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"config folder {folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    return list(dict.fromkeys(folders))


def plugin_folders() -> list[Path]:
    """`conf/` of each installed package that declares an entry point of pgcli. Packages are found, not imported."""
    packages = {entry.value.partition(":")[0].partition(".")[0]: None for group in GROUPS for entry in plugins(group)}
    folders = []
    for package in packages:
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            if Path(place, "conf").is_dir():
                folders.append(Path(place, "conf").resolve())
    return folders


def search_path(config_dirs: Iterable[Path | str] = ()) -> list[Path]:
    """Every folder of YAML files; if two have the same file the first one counts.

    The first is the one that holds `config.yaml`: pgcli's own, unless a user's folder is a whole tree and has one too.
    """
    user = user_folders(config_dirs)
    leading = [folder for folder in user if (folder / "config.yaml").is_file()]
    adding = [folder for folder in user if folder not in leading]
    return list(dict.fromkeys([*leading, built_in_folder(), *adding, *plugin_folders()]))


def find_file(group: str, option: str, folders: Iterable[Path]) -> Path | None:
    """The file of an option in the first folder that has it."""
    files = (folder / group / f"{option}.yaml" for folder in folders)
    return next((file for file in files if file.is_file()), None)


def options(group: str, folders: Iterable[Path]) -> dict[str, Path]:
    """Option -> its file, by name. A file that begins with `_` is not an option but a base of others."""
    found: dict[str, Path] = {}
    for folder in folders:
        for file in sorted((folder / group).glob("*.yaml")):
            if not file.stem.startswith("_"):
                found.setdefault(file.stem, file)
    return dict(sorted(found.items()))


def groups(config_dirs: Iterable[Path | str] = ()) -> dict[str, dict[str, str]]:
    """Group -> option -> its description in one line: the first comment of its file."""
    folders = search_path(config_dirs)
    return {group: {name: headline(file) for name, file in options(group, folders).items()} for group in GROUPS}


SENTENCE = re.compile(r"(?<!\b[A-Z][a-z])[.?!](?= +[A-Z]|$)")
"""How a sentence ends, and `et al. 2016` or `Dr. GRPO` does not."""
WRAPPED = 80
"""A line of so many characters may go on in the next one."""


def headline(file: Path) -> str:
    """The first line of the comment that a file begins with; of one that goes on below it, whole sentences."""
    comment: list[str] = []
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            text = line.lstrip("# ").rstrip()
            if not line.startswith("#") or (comment and not text):
                break
            if not line.startswith("# @"):
                comment.append(text)
    first = comment[0] if comment else ""
    if len(comment) == 1 or len(first) < WRAPPED:
        return first
    if ends := [found.end() for found in SENTENCE.finditer(first)]:
        return first[: ends[-1]]
    whole = " ".join(comment)
    end = SENTENCE.search(whole)
    return whole[: end.end()] if end else whole


def short(path: Path) -> str:
    """A path for messages: relative to the working directory if it is inside it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
