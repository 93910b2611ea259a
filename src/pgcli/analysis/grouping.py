"""Groups of runs that differ only in seed and environment. A group is named by the settings in which groups differ.

A setting distinguishes groups if it takes two values under one algorithm on one environment. A setting that merely
comes with the algorithm, or with the environment, as tuned defaults do, is not named: `algo=ppo` stands for it. If such
a setting is outside the algorithm's own section, `confounded` reports it.
"""

import json
from collections.abc import Iterable
from typing import Any

from pgcli.analysis.curves import Curve, bearing

ABSENT = object()
"""The value of a setting that a run's algorithm does not have. Not None, which is a possible value."""

CHOICES = ("env", "policy", "tuned")
"""Config groups whose choice stands for the settings that come with it; `algo` always does."""


def group_curves(curves: list[Curve]) -> list[tuple[dict[str, Any], list[Curve]]]:
    """Runs by the settings that distinguish them: [({"algo": "ppo", "algo.learning_rate": 0.001}, [...]), ...].

    In the order of their settings. The settings are `{"algo": name}` if nothing differs.
    """
    settings = [bearing(curve.run.config) for curve in curves]
    cells: list[tuple[Any, ...]] = [(curve.algorithm, curve.slug) for curve in curves]
    named: list[tuple[str, list[Any]]] = []

    for choice in CHOICES:  # choices first: settings that come with one need not be named again
        values = [curve.run.choices.get(choice) for curve in curves]
        if varies(cells, values):
            named.append((choice, values))
            cells = [(*cell, str(value)) for cell, value in zip(cells, values, strict=True)]
    for key in dict.fromkeys(key for flat in settings for key in flat):
        values = [flat.get(key, ABSENT) for flat in settings]
        if varies(cells, values):
            named.append((key, values))

    if len({curve.algorithm for curve in curves}) > 1 or not named:
        named.insert(0, ("algo", [curve.algorithm for curve in curves]))
    groups: dict[str, tuple[dict[str, Any], list[Curve]]] = {}
    for i, curve in enumerate(curves):
        own = {name: values[i] for name, values in named if values[i] is not ABSENT}
        groups.setdefault(text_of(own), (own, []))[1].append(curve)
    return list(groups.values())


def varies(cells: Iterable[tuple[Any, ...]], values: list[Any]) -> bool:
    """Whether two runs of one cell differ in this setting."""
    seen: dict[tuple[Any, ...], str] = {}
    return any(
        seen.setdefault(cell, text_of(value)) != text_of(value) for cell, value in zip(cells, values, strict=True)
    )


def text_of(value: Any) -> str:
    return json.dumps(value, default=str)


def spell(value: Any) -> str:
    """A setting's value as one would type it: `0.001`, `0`, `[64,64]`, `null`, `true`."""
    if isinstance(value, float) and value.is_integer():
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)


def labels(groups: list[dict[str, Any]]) -> list[str]:
    """Each group's name, by the settings that distinguish it: `algo=ppo learning_rate=0.001`.

    A setting goes by its name without the section's (`kl.coefficient`), unless another that differs has the same. Runs
    that were made before the settings existed have none of them.
    """
    names = list(dict.fromkeys(name for settings in groups for name in settings))
    last = [name.partition(".")[2] or name for name in names]
    short = {name: word if last.count(word) == 1 else name for name, word in zip(names, last, strict=True)}
    spelled = (" ".join(f"{short[name]}={spell(value)}" for name, value in settings.items()) for settings in groups)
    return [text or "without these settings" for text in spelled]


def confounded(groups: list[tuple[str, list[Curve]]], named: set[str]) -> list[str]:
    """Further differences between groups on one environment, outside the algorithm's section, that do not name them."""
    found: dict[str, dict[str, str]] = {}
    for slug in dict.fromkeys(curve.slug for _, curves in groups for curve in curves):
        flats = [(name, bearing(curve.run.config)) for name, curves in groups for curve in curves if curve.slug == slug]
        for key in dict.fromkeys(key for _, flat in flats for key in flat):
            section = key.partition(".")[0]
            if section in named | {"algo", "total_steps", "stop_at"} or key in named:
                continue
            values = {name: spell(flat.get(key)) for name, flat in flats}
            if len(set(values.values())) > 1:
                found.setdefault(key, values)
    return [
        f"{key} differs too: " + ", ".join(f"{value} ({name})" for name, value in values.items())
        for key, values in found.items()
    ]


JUDGES = ("reward_model", "outcome_reward")
"""Algorithms, by the names in their settings (a process reward model has an outcome reward model's), whose policy is a
judge, evaluated by how often it is right."""


def apart(curves: list[Curve]) -> str:
    """Why returns on one environment cannot be ranked, as a sentence; empty if they have one unit."""
    for slug in dict.fromkeys(curve.slug for curve in curves):
        units: dict[str, dict[str, None]] = {}
        for curve in (curve for curve in curves if curve.slug == slug):
            units.setdefault(unit(curve), {})[curve.algorithm] = None
        if len(units) > 1:
            spelled = ", ".join(f"{unit} ({', '.join(algorithms)})" for unit, algorithms in units.items())
            return f"returns on {slug} have no common unit: {spelled}"
    return ""


def unit(curve: Curve) -> str:
    """What a run's return consists of."""
    if curve.run.config["algo"].get("name", curve.algorithm) in JUDGES:
        return "a judge's accuracy"
    settings = bearing(curve.run.config)
    if settings.get("reward") is None:
        return "the task's reward"
    combine = settings.get("judge.combine", "mean")
    return f"the scores of {settings['reward']}" + (f" by their {combine}" if combine != "mean" else "")
