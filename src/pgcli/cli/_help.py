"""The generated part of `pgcli train --help`: the groups and settings, with their values and meanings.

pgcli train --help              the options of each group, and the settings of every experiment
pgcli train algo=ppo --help     every setting of that composition
"""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from pgcli.options import GROUPS, groups

if TYPE_CHECKING:
    from pgcli.experiment.validation import Setting

WORDS = "pgcli.words"


class CommandWithSettings(TyperCommand):
    """A command of overrides. Its help gets the whole line, because `--help` is handled before the line is parsed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[WORDS] = [*args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        words = ctx.meta[WORDS]
        folders = [after for word, after in itertools.pairwise(words) if word == "--config-dir"]
        folders += [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]
        print_settings([word for word in words if "=" in word and not word.startswith("-")], folders)


def print_settings(overrides: list[str], config_dirs: Iterable[Path | str] = ()) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    for table in _composition(overrides, config_dirs) if overrides else _overview(config_dirs):
        console.print(table)
    if not overrides:
        console.print(
            "Every setting of a choice:  pgcli train algo=ppo env=cartpole --help\n"
            "Where its value comes from: pgcli show config algo=ppo env=cartpole"
        )


def _overview(config_dirs: Iterable[Path | str]) -> Iterator[Any]:
    from pgcli.cli._completion import _yaml
    from pgcli.experiment.config import ExperimentConfig
    from pgcli.experiment.validation import settings_of
    from pgcli.options import search_path

    for group, choices in groups(config_dirs).items():
        title = f"{group}=" + (
            " one of these, or a Gymnasium id such as LunarLander-v3" if group == "env" else " one of"
        )
        yield _table(title, choices.items(), columns=2)
    values = _yaml(search_path(config_dirs)[0] / "config.yaml")
    rows = [row for row in settings_of(ExperimentConfig, values) if row.key not in GROUPS]
    tuned = ("tuned", "auto", "conf/tuned/<algo>_<env>.yaml, else <policy>.yaml, if there is one; a name, or none")
    yield _table("settings of every experiment", [*map(_row, rows), tuned])


def _composition(overrides: list[str], config_dirs: Iterable[Path | str]) -> Iterator[Any]:
    from pgcli.experiment.config import compose, dump
    from pgcli.experiment.overrides import expand
    from pgcli.experiment.validation import settings_of

    config = compose(expand(overrides)[0], config_dirs=config_dirs, trust=True)  # imports nothing that a file names
    data = dump(config)
    for group in GROUPS:
        rows = settings_of(type(getattr(config, group)), data[group], f"{group}.")
        yield _table(f"{group}={config.choices[group]}", map(_row, rows))
    rows = settings_of(type(config), data)
    tuned = ("tuned", config.choices["tuned"], "overlay of values found for this algorithm and environment")
    yield _table("every experiment", [*(_row(row) for row in rows if row.key not in GROUPS), tuned])


def _row(row: "Setting") -> tuple[Any, ...]:
    from rich.text import Text

    from pgcli.experiment.validation import show

    return row.key, show(row.value), Text.assemble(row.help, (f" [{row.expects}]", "dim"))


def _table(title: str, rows: Iterable[Iterable[Any]], columns: int = 3) -> Any:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, title=Text(title, style="bold"), title_justify="left", pad_edge=False)
    for column in range(columns):
        table.add_column(overflow="fold", style="cyan" if column == 0 else None)
    for cells in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))  # never read as markup
    return Padding(table, (0, 0, 1, 1))
