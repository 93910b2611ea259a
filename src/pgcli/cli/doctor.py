"""`pgcli doctor`: check this installation."""

import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import typer

from pgcli.errors import PgcliError

PACKAGES = (
    "torch",
    "gymnasium",
    "hydra-core",
    "omegaconf",
    "typer",
    "pydantic",
    "numpy",
    "safetensors",
    "matplotlib",
    "rich",
)
POSTGRESQL_CLIENT = ("pgexecute.py", "pgcompleter.py", "pgstyle.py")
"""Files of the PostgreSQL client's package, which has the same name and so the same folder as ours."""


class Finding(NamedTuple):
    what: str
    text: str
    good: bool = True


def doctor() -> None:
    """Check versions, devices, config folders, and for a clash with the PostgreSQL client of the same name."""
    findings = [*_versions(), *_torch(), *_config(), *clashes(Path(__file__).parents[1], shutil.which("pgcli"))]
    for what, text, good in findings:
        typer.echo(f"{'ok ' if good else 'BAD'}  {what:14} {text}")
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)


def _versions() -> Iterator[Finding]:
    yield Finding("python", f"{sys.version.split()[0]} ({sys.executable})", sys.version_info >= (3, 11))
    yield Finding("pgcli", metadata.version("policy-gradient-cli"))
    for package in PACKAGES:
        try:
            yield Finding(package, metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Finding(package, "is not installed", good=False)


def _torch() -> Iterator[Finding]:
    import torch

    yield Finding(
        "processor",
        f"{os.cpu_count()} cores; torch's default is {torch.get_num_threads()} threads, a run's is device.threads",
    )
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("cuda", ", ".join(f"cuda:{i} {name}" for i, name in enumerate(names)) or "none")
    yield Finding("mps", "yes" if torch.backends.mps.is_available() else "none")


def _config() -> Iterator[Finding]:
    from pgcli.options import built_in_folder, groups, plugin_folders, user_folders

    try:
        yield Finding("conf", str(built_in_folder()))
        for folder in user_folders():
            yield Finding("PGCLI_CONF", str(folder))
        for folder in plugin_folders():
            yield Finding("plug-in", str(folder))
        yield from _plugins()
        yield Finding("options", ", ".join(f"{len(choices)} {group}" for group, choices in groups().items()))
    except PgcliError as error:
        yield Finding("conf", str(error), good=False)


def _plugins() -> Iterator[Finding]:
    from pgcli.registry import KINDS, find, plugins

    for group in KINDS:
        for entry in plugins(group):
            try:
                find(group, entry.name)
            except PgcliError as error:
                yield Finding("plug-in", str(error), good=False)
            else:
                yield Finding("plug-in", f"{group}={entry.name}")


def clashes(package: Path, command: str | None) -> Iterator[Finding]:
    """The PostgreSQL client installs a package and a command called `pgcli` too. `command`: the first one on PATH."""
    foreign = [name for name in POSTGRESQL_CLIENT if (package / name).exists()]
    if foreign:
        yield Finding(
            "package", f"{package} also holds {', '.join(foreign)} of the PostgreSQL client: {ADVICE}", good=False
        )
    try:
        version = metadata.version("pgcli")
    except metadata.PackageNotFoundError:
        pass
    else:
        yield Finding(
            "package", f"pgcli {version}, the PostgreSQL client, is installed in this environment: {ADVICE}", good=False
        )
    if command is None:
        yield Finding("command", "`pgcli` is not on PATH: use python -m pgcli")
        return
    script = Path(command).read_text(errors="replace") if Path(command).stat().st_size < 100_000 else ""
    ours = "pgcli.cli" in script
    yield Finding(
        "command",
        command if ours else f"{command} is another program: use policy-gradient-cli or python -m pgcli",
        ours,
    )


ADVICE = "give each its own virtual environment"
