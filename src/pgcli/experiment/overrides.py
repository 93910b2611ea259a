"""The words of a command line: `key=value` in Hydra's grammar, one run (`parse`) or the product of many (`expand`).

Some settings name other runs (`SOURCES`). In a study or a pipeline they name stages, whose runs are made first.
"""

import itertools
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pgcli.errors import InputError
from pgcli.options import groups

KEY = re.compile(r"[\w@/-]+(\.[\w-]+)*")
COUNTED = re.compile(r"(.+)=(\d+)\.\.+(\d+)")
"""Other languages' ways to count: `seed=0..5`."""
SOURCES = ("init", "reference", "reward")
"""Settings that name another run."""
MOST_RUNS = 10_000
"""Runs of one command line: `range(0,1e9)` is a slip, and would fill the memory before anything were said."""


class Assignment(NamedTuple):
    """`algo.gamma=0.9` -> key `algo.gamma`, value 0.9, and the text itself."""

    key: str
    value: Any
    text: str


def parse(overrides: Sequence[str]) -> list[Assignment]:
    """The assignments of one run. Raises InputError for a sweep, and for what Hydra's grammar cannot read."""
    assignments = []
    for text in overrides:
        override = _read(text)
        if override.is_sweep_override():
            raise InputError(f"`{text}` is a sweep: use `pgcli sweep`")
        assignments.append(Assignment(override.key_or_group, override.value(), text))
    return assignments


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """The product of the alternatives `a,b`, `range(0,5)`, `[64,64],[32,32]`; the last one varies fastest."""
    alternatives = [_alternatives(text) for text in overrides]
    number = math.prod(map(len, alternatives))
    if number > MOST_RUNS:
        raise InputError(f"`{' '.join(overrides)}` is {number:,} runs; {MOST_RUNS:,} are the most of one sweep")
    return [list(run) for run in itertools.product(*alternatives)]


def with_runs(words: Iterable[str], runs: Mapping[str, Path]) -> list[str]:
    """The words with each stage's name replaced by its run: `init=sft` -> `init=runs/sft`."""
    found = []
    for word in words:
        key, _, value = word.partition("=")
        found.append(f"{key}={quoted(str(runs[value]))}" if key in SOURCES and value in runs else word)
    return found


def quoted(value: str) -> str:
    """The value quoted for Hydra's grammar, where it holds characters that the grammar would not read (a path, say)."""
    if re.fullmatch(r"[\w.-]*/[\w./-]*|(?!(?i:null|true|false|nan|inf)$)[a-zA-Z_][\w.-]*", value):
        return value
    escaped = re.sub(r"(\\*)'", lambda backslashes: 2 * backslashes[1] + "\\'", value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{trailing * chr(92)}'"


def _alternatives(text: str) -> list[str]:
    override = _read(text)
    if counted := COUNTED.fullmatch(text):
        raise InputError(
            f"`{text}` is no list of values; did you mean '{counted[1]}=range({counted[2]},{counted[3]})'?"
        )
    if not override.is_sweep_override():
        return [text]
    if override.is_interval_sweep() or "GLOB" in override.value_type.name:
        raise InputError(f"`{text}` is not a list of values: write `a,b,c` or `range(start,stop,step)`")
    if override.value().shuffle:
        raise InputError(f"`{text}` has no order of its own: a sweep runs its values as given, leave shuffle out")
    if override.is_range_sweep():
        _check_range(text, override.value())
    values = list(override.sweep_string_iterator())  # quoted again, so that each one parses back
    if not values:
        counted = override.value()  # a list or a choice of nothing is no grammar
        up = "up" if counted.step > 0 else "down"
        raise InputError(f"`{text}` is empty: it counts {up} from {counted.start:g} and ends before {counted.stop:g}")
    twice = next((value for value, count in Counter(values).items() if count > 1), None)
    if twice is not None:
        raise InputError(f"`{text}` names {twice} twice: the same run would count as two")
    return [f"{override.get_key_element()}={value}" for value in values]


def _check_range(text: str, counted: Any) -> None:
    if counted.step == 0:
        raise InputError(f"`{text}` never ends: its step is 0")
    number = (counted.stop - counted.start) / counted.step
    if not math.isfinite(number):
        raise InputError(f"`{text}` never ends: start, stop and step must be finite")
    if number > MOST_RUNS:
        raise InputError(f"`{text}` is {number:,.0f} runs; {MOST_RUNS:,} are the most of one sweep")


def _read(text: str) -> Any:
    """Hydra's `Override`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if any("\ud800" <= character <= "\udfff" for character in text):  # bytes of the command line that are no text
        raise InputError(f"`{text}` is not UTF-8, as the files of a run are: rename what it names")
    if text.startswith("+"):
        raise InputError(f"`{text}` is refused: settings are set (key=value), not added")
    if text.startswith("~"):
        raise InputError(f"`{text}` is refused: settings are set (key=value), not removed")
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        homes = [f"{group}={text}" for group, options in groups().items() if text in options]
        raise InputError(f"`{text}` is not key=value" + (f"; did you mean `{homes[0]}`?" if homes else ""))
    if not value.strip():
        raise InputError(f"`{text}` has no value; leave it out to keep the default")
    if not KEY.fullmatch(key):
        raise InputError(f"`{key}` is not a setting   (all of them: pgcli show config)")
    try:
        override = OverridesParser.create().parse_overrides([text])[0]
    except HydraException as error:
        raise InputError(f"`{text}` cannot be read; write {_quoted(text)}") from error
    if override.package is not None:
        raise InputError(f"`{text}` is refused: write {override.key_or_group}={value}")
    return override


def _quoted(text: str) -> str:
    """The spelling to suggest: `h=(64,64)` -> h=[64,64], `tag=run#1` -> 'tag="run#1"'."""
    key, _, value = text.partition("=")
    if value.startswith("(") and value.endswith(")"):
        return f"{key}=[{value[1:-1]}]"
    escaped = value.replace('"', '\\"')
    return shlex.quote(f'{key}="{escaped}"')
