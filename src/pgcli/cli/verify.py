"""`pgcli verify`: each method's own loss compared with exact numbers, in a table."""

import json
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from pgcli.cli._completion import complete_override

if TYPE_CHECKING:
    from rich.text import Text

    from pgcli.verification import Verification
    from pgcli.verification.check import Check

COLUMNS = (("exact", 10), ("ours", 10), ("error", 8), ("tolerance", 11))
"""Heading and width, right-aligned."""
BESIDE = 110
"""Width of a terminal from which notes have a column of their own; in a narrower one they stand below their row."""

LEGEND = (
    "exact: computed. ours: by the method's own code, on every trajectory with its probability. "
    "Of a vector, the length is shown; its error is the largest one of its elements."
)

NARROWEST = 20
"""Columns for which the texts are still folded: a terminal that says 0 has a width that nobody told it."""


def verify(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[algo=NAME]...",
            help="Methods to check; default: all of them, and the mathematics that they share.",
            autocompletion=complete_override,
        ),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with the key `verdict`.")] = False,
) -> None:
    """Check methods against an oracle: a world so small that every trajectory is enumerated, and everything exact.

    Exits with 1 if a quantity is off by more than its tolerance.
    """  # fmt: skip
    from rich.console import Console

    from pgcli import verification

    found = verification.verify(*(overrides or ()))
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        console = Console(highlight=False, markup=False)
        for line in lines(found, max(console.width, NARROWEST)):
            console.print(line, soft_wrap=True)
        typer.echo(found.verdict)
    if not found.passed:
        raise typer.Exit(1)


def lines(found: "Verification", width: int) -> "Iterator[Text]":
    """The table for a terminal of `width` characters: a block for each algorithm."""
    from itertools import groupby

    from rich.text import Text

    if not found.checks:
        return
    yield from (Text(line, "dim") for line in textwrap.wrap(LEGEND, width))
    yield Text()
    longest = max(len(check.quantity) for check in found.checks) + 2
    name = min(longest, 80 - sum(wide for _, wide in COLUMNS))
    for algo, checks in groupby(found.checks, key=lambda check: check.algo):
        title = algo or "what all of them share"
        yield Text.assemble((f"{title:{name}}", "bold"), ("".join(f"{word:>{wide}}" for word, wide in COLUMNS), "dim"))
        for check in checks:
            yield from _row(check, name, width)
        yield Text()
    if found.unchecked:
        yield Text(f"nothing is said of {', '.join(found.unchecked)}", "dim")


def _row(check: "Check", name: int, width: int) -> "Iterator[Text]":
    from rich.text import Text

    cells = (_number(check.exact), _number(check.ours), _power(check.error), _power(check.tolerance))
    mark = " " if check.passed else "x"
    numbers = "".join(f"{text:>{wide}}" for text, (_, wide) in zip(cells, COLUMNS, strict=True))
    first, *rest = textwrap.wrap(check.quantity, name - 2)
    row = Text(f"{mark} {first:{name - 2}}{numbers}")
    if not check.passed:
        row.stylize("bold red")
    beside = width >= BESIDE
    indent = name + sum(wide for _, wide in COLUMNS) + 2 if beside else 6
    notes = textwrap.wrap(check.note, width - indent)
    if beside and notes:
        row.append(" " * (indent - len(row))).append(notes.pop(0), "dim")
    yield row
    yield from (Text(f"    {line}") for line in rest)
    for line in notes:
        yield Text(" " * indent + line, "dim")


def _number(x: float) -> str:
    """Five digits; one digit for a number that is zero up to rounding."""
    return _power(x) if abs(x) < 1e-9 else f"{x:.5g}"


def _power(x: float) -> str:
    return f"{x:.0e}" if x else "0"
