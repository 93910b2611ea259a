"""`pgcli show config|metrics`: the config of a run, and the meaning of the logged keys."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgcli.cli._completion import complete_override

if TYPE_CHECKING:
    from pgcli.experiment.config import Composition


class What(StrEnum):
    config = "config"
    metrics = "metrics"


def show(
    what: Annotated[What, typer.Argument(help="`config`: each value, meaning and origin; `metrics`: each logged key.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides as for `pgcli train`.", autocompletion=complete_override)
    ] = None,
    config_dir: Annotated[list[Path] | None, typer.Option(help="A config folder of your own; may be repeated.")] = None,
) -> None:
    """Show the config that overrides compose (as YAML that `pgcli train --config` reads), or the metric dictionary."""
    if what == What.metrics:
        if overrides:
            raise typer.BadParameter("the metrics of all methods are shown: it takes no overrides")
        rows = metrics()
        width = max(len(key) for key, _ in rows)
        for key, meaning in rows:
            typer.echo(f"{key:{width}}  {meaning}")
        return
    from pgcli.experiment.config import explain

    composition = explain(overrides or (), config_dirs=config_dir or (), trust=True)  # nothing is imported: only shown
    for line in config_lines(composition):
        typer.echo(line)


def config_lines(composition: "Composition") -> Iterator[str]:
    """YAML; after each value its meaning, the allowed values, and its origin."""
    from pgcli.experiment.config import dump
    from pgcli.experiment.validation import settings_of

    config, origins = composition
    data = dump(config)
    rows = {row.key: row for row in settings_of(type(config), data)}
    for group in config.choices.keys() - {"tuned"}:
        rows |= {row.key: row for row in settings_of(type(getattr(config, group)), data[group], f"{group}.")}
    yield "# " + " ".join(f"{group}={option}" for group, option in config.choices.items())
    for text, key in _yaml_lines(data):
        if key is None:
            yield text
            continue
        row = rows.get(key)
        meaning = f"{row.help} [{row.expects}], " if row else ""
        yield f"{text:36}  # {meaning}from {origins.name(key)}"


def _yaml_lines(settings: Mapping[str, Any], prefix: str = "", indent: str = "") -> Iterator[tuple[str, str | None]]:
    """(line, dotted key), without a key if the line only opens a group."""
    import yaml

    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:", None
            yield from _yaml_lines(value, f"{prefix}{name}.", indent + "  ")
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
            yield f"{indent}{name}: {text}", prefix + name


def metrics() -> list[tuple[str, str]]:
    """(key, meaning) by key, of the loop, the algorithms and the text tasks; with their names if meanings differ."""
    from pgcli.cli._completion import defaults_of
    from pgcli.collectors import learned_reward
    from pgcli.experiment.loop import METRICS
    from pgcli.options import options, search_path
    from pgcli.registry import find

    folders = search_path()
    declared: dict[tuple[str, str], list[str]] = {(key, meaning): [] for key, meaning in METRICS.items()}
    for name in sorted({str(defaults_of("algo", option, folders).get("name")) for option in options("algo", folders)}):
        for entry in find("algo", name).METRICS.items():  # type: ignore[attr-defined]
            declared.setdefault(entry, []).append(name)
    names = {str(defaults_of("env", option, folders).get("name")) for option in options("env", folders)}
    tasks = {name: getattr(find("env", name), "COMPONENTS", {}) for name in sorted(names)}
    for name, components in (tasks | {"a reward model": learned_reward.COMPONENTS}).items():
        for component, meaning in components.items():
            # The trained reward of an evaluation is logged as its return.
            for prefix in ("reward", "eval") if component != "reward" else ("reward",):
                declared.setdefault((f"{prefix}/{component}", meaning), []).append(name)
    keys = [key for key, _ in declared]
    shared = {key for key in keys if keys.count(key) > 1}
    return sorted(
        (key, meaning + (f" ({', '.join(names)})" if key in shared else ""))
        for (key, meaning), names in declared.items()
    )
