"""`pgcli verify`: every method's own loss, against exact enumeration.

One module per topic, each with `checks() -> Iterator[Check]`; `TOPICS` lists them in the order of the output, and the
other modules support them. A topic of few algorithms lists them in `ALGOS`, and is skipped if none of them is wanted; a
topic of all algorithms gets the wanted ones, `checks(only)`, and makes no other checks.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgcli.errors import InputError
from pgcli.experiment.validation import nearest
from pgcli.options import options, search_path

if TYPE_CHECKING:
    from pgcli.verification.check import Check

TOPICS = (
    "policy_gradients",
    "trust_region",
    "gradient_free",
    "continuous",
    "value_based",
    "language",
    "preferences",
)  # fmt: skip


@dataclass(frozen=True)
class Verification:
    """The checks and their results."""

    checks: list[Check]
    unchecked: list[str]
    """Algorithms that no topic checks."""

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    @property
    def verdict(self) -> str:
        """The result in one line."""
        names = sorted({check.algo for check in self.checks if check.algo})
        of = f" of {', '.join(names) if len(names) < 4 else f'{len(names)} algorithms'}" if names else ""
        total = f"{len(self.checks)} quantities{of}"
        if not self.checks:
            return f"nothing to verify: no topic speaks of {', '.join(self.unchecked)}"
        if self.passed:
            worst = max(check.error for check in self.checks)
            return f"verified: {total} are exact; the largest error is {worst:.0e}"
        wrong = sorted({check.algo or "the shared mathematics" for check in self.failures})
        return f"not verified: {len(self.failures)} of {total} fail, in {', '.join(wrong)}"

    def to_json(self) -> dict[str, Any]:
        """The results for JSON, with null for NaN, which JSON does not have."""

        def number(x: float) -> float | None:
            return x if abs(x) < float("inf") else None

        return {
            "verdict": self.verdict,
            "passed": self.passed,
            "checks": [
                {
                    "algo": c.algo or None, "quantity": c.quantity, "exact": number(c.exact), "ours": number(c.ours),
                    "error": number(c.error), "tolerance": c.tolerance, "passed": c.passed, "note": c.note,
                }
                for c in self.checks
            ],
            "unchecked": self.unchecked,
        }  # fmt: skip


def verify(*words: str) -> Verification:
    """Check the algorithms named by `algo=NAME` words, or everything. Raises InputError for an unknown name."""
    known = list(options("algo", search_path()))
    wanted = _wanted(words, known)
    # In the order of the options, the shared mathematics first.
    order = {name: i for i, name in enumerate(["", *known])}
    checks = sorted(_all(wanted), key=lambda check: order.get(check.algo, len(order)))
    spoken = {check.algo for check in checks}
    return Verification(checks, [name for name in wanted or known if name not in spoken])


def _wanted(words: Iterable[str], known: Collection[str]) -> list[str]:
    wanted = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key != "algo":
            hint = f"; did you mean `algo={word}`?" if word in known else "; write algo=NAME"
            raise InputError(f"`{word}` is not something to verify{hint}")
        for name in value.split(","):
            if name not in known:
                close = nearest(name, known)
                also = f"; did you mean `algo={close}`?" if close else ""
                raise InputError(f"no algo is called `{name}`{also}   (pgcli list algos)")
            wanted.append(name)
    return list(dict.fromkeys(wanted))


def _all(wanted: Collection[str]) -> Iterator[Check]:
    """The rows of every topic of the wanted algorithms; for a topic that raises an error, a row that says so."""
    from pgcli.verification.check import broken
    from pgcli.verification.method import configured

    configured.cache_clear()  # an option's file may have changed
    for topic in TOPICS:
        try:
            module: Any = importlib.import_module(f"pgcli.verification.{topic}")
            spoken = getattr(module, "ALGOS", wanted)
            if wanted and not set(spoken) & set(wanted):
                continue
            given = (wanted,) if inspect.signature(module.checks).parameters else ()
            for check in module.checks(*given):
                if not wanted or check.algo in wanted:
                    yield check
        except Exception as error:
            yield broken("", topic.replace("_", " "), error)
