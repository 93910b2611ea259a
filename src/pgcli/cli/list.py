"""`pgcli list algos|envs|policies|devices|pipelines|studies`: the available options."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pgcli.options import PLURALS, groups, headline, options, search_path


class What(StrEnum):
    algos = PLURALS["algo"]
    envs = PLURALS["env"]
    policies = PLURALS["policy"]
    devices = PLURALS["device"]
    pipelines = "pipelines"
    studies = "studies"


FOLDERS = {What.pipelines: "pipeline", What.studies: "experiment"}
"""What is no group of a config, and its folder."""


def list_options(
    what: Annotated[What, typer.Argument(help="The group whose options to list.")],
    config_dir: Annotated[list[Path] | None, typer.Option(help="A config folder of your own; may be repeated.")] = None,
) -> None:
    """List the options of a group: built in, in your config folders, and of installed plug-ins."""
    if what in FOLDERS:
        found = options(FOLDERS[what], search_path(config_dir or ()))
        print_options({name: headline(file) for name, file in found.items()})
        return
    group = next(group for group, plural in PLURALS.items() if plural == what)
    print_options(groups(config_dir or ())[group])
    if what == What.envs and sys.stdout.isatty():
        typer.echo("\nor a Gymnasium id: env=LunarLander-v3, env=my_package:MyEnv-v0")


def print_options(choices: dict[str, str]) -> None:
    """Name and description, one line each."""
    width = max(map(len, choices), default=0)
    for option, help in choices.items():
        typer.echo(f"{option:{width}}  {help}".rstrip())
