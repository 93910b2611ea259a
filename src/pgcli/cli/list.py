"""`pgcli list algos|envs|policies|devices`: what there is to choose from."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pgcli.options import PLURALS, groups


class What(StrEnum):
    algos = PLURALS["algo"]
    envs = PLURALS["env"]
    policies = PLURALS["policy"]
    devices = PLURALS["device"]


def list_options(
    what: Annotated[What, typer.Argument(help="Of which group.")],
    config_dir: Annotated[list[Path] | None, typer.Option(help="A config folder of your own; may be repeated.")] = None,
) -> None:
    """List the options of a group: built in, in your config folders, and of installed plug-ins."""
    group = next(group for group, plural in PLURALS.items() if plural == what)
    choices = groups(config_dir or ())[group]
    width = max(map(len, choices), default=0)
    for option, help in choices.items():
        typer.echo(f"{option:{width}}  {help}".rstrip())
    if what == What.envs and sys.stdout.isatty():
        typer.echo("\nor any Gymnasium id: env=LunarLander-v3, env=my_package:MyEnv-v0")
