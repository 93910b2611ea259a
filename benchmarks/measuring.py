"""What the parts of the benchmark share: processes with their wall time, CPU time and memory; medians; tables."""

import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
PGCLI = [sys.executable, "-m", "pgcli"]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
PACKAGES = ("policy-gradient-cli", "torch", "numpy", "gymnasium", "hydra-core", "typer", "rich")


@dataclass(frozen=True)
class Finished:
    """A process that ended well. cpu: seconds of the processor, user and system, its children's too."""

    wall: float
    cpu: float
    megabytes: float
    """The most that was resident at once."""
    output: str


def finish(command: Sequence[str], *, core: int | None = None, folder: Path | None = None, **environ: str) -> Finished:
    """Run a command to its end. Exits with what it wrote if it fails.

    This process must stay small: the peak memory of a child is never less than its parent's when it was started.
    """
    begun = time.perf_counter()
    process = start(command, core=core, folder=folder, **environ)
    assert process.stdout
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode:
        sys.exit(f"{' '.join(command)}\nended with {process.returncode}:\n{output}")
    scale = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return Finished(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * scale / 1e6, output)


def start(
    command: Sequence[str], *, core: int | None = None, folder: Path | None = None, **environ: str
) -> subprocess.Popen[str]:
    pinned = ["taskset", "-c", str(core)] if core is not None and shutil.which("taskset") else []
    return subprocess.Popen(
        [*pinned, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
        env=os.environ | ONE_THREAD | environ,
    )  # fmt: skip


@dataclass
class Section:
    """A table of results, what to know when reading it, and the single measurements behind it."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    measurements: dict[str, Any] = field(default_factory=dict)

    def table(self) -> Table:
        table = Table(title=self.title, title_justify="left")
        for i, column in enumerate(self.columns):
            table.add_column(column, justify="right" if i else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        rule = ["---", *("---:" for _ in self.columns[1:])]
        lines = [f"| {' | '.join(cells)} |" for cells in (self.columns, rule, *self.rows)]
        notes = "".join(f"\n{note}\n" for note in self.notes)
        return f"## {self.title}\n\n" + "\n".join(lines) + "\n" + notes

    def json(self) -> dict[str, Any]:
        return asdict(self)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median and, of several, the smallest and the largest: `3.4 [3.2, 3.9]`."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def say(text: str) -> None:
    Console(stderr=True, highlight=False).print(text, style="dim", soft_wrap=True)


def machine() -> dict[str, str]:
    """What a figure depends on."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    return {
        "command": " ".join(["python", *(Path(word).name if "/" in word else word for word in sys.argv)]),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "processor": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "load when it began": f"{load} (1, 5, 15 minutes)",
        "versions": f"Python {platform.python_version()}, {packages}",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()
