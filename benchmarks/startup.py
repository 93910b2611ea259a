"""How long a user waits: for help, for a completion, for the first line of a training."""

import sys
import tempfile
import time
from pathlib import Path

from measuring import HERE, PGCLI, Finished, Section, finish, median, say, spread, start

COMPLETION = {"_PGCLI_COMPLETE": "complete_bash", "COMP_WORDS": "pgcli train algo=pp", "COMP_CWORD": "2"}


def measure(*, rounds: int) -> Section:
    """Whole processes, from start to end. The two helps take turns; the first turn fills caches and does not count."""
    turns = [(helped(), empty_help(), completed()) for _ in range(4 * rounds + 1)]
    ours, empty, completion = (list(runs) for runs in zip(*turns[1:], strict=True))
    lines = [first_line() for _ in range(rounds + 1)][1:]
    wall = [a.wall / b.wall for a, b in zip(ours, empty, strict=True)]
    cpu = [a.cpu / b.cpu for a, b in zip(ours, empty, strict=True)]
    say(f"help {median(wall):.2f} times the empty one ({median(cpu):.2f} by CPU), first line {median(lines):.2f} s")
    return Section(
        "Start",
        ["", "seconds", "CPU seconds", "aim"],
        [
            _row("pgcli --help", ours, ""),
            _row("--help of an empty Typer application", empty, ""),
            ["the first / the second", spread(wall, 2), spread(cpu, 2), "1.4"],
            _row("completion of `pgcli train algo=pp`", completion, "0.3"),
            ["first line of `pgcli train algo=ppo env=cartpole`", spread(lines, 2), "", "4"],
        ],
        [f"Medians of {len(ours)} processes, {len(lines)} for the first line [smallest, largest]."],
        {"help": _both(ours), "empty": _both(empty), "completion": _both(completion), "first_line": lines},
    )


def helped() -> Finished:
    return finish([*PGCLI, "--help"])


def empty_help() -> Finished:
    return finish([sys.executable, str(HERE / "empty_app.py"), "--help"])


def completed() -> Finished:
    run = finish(PGCLI, **COMPLETION)
    if "algo=ppo" not in run.output:
        sys.exit(f"`pgcli train algo=pp` was not completed: {run.output}")
    return run


def first_line() -> float:
    """Seconds from the start of a training to its first row of figures."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        process = start([*PGCLI, "train", "algo=ppo", "env=cartpole"], folder=Path(folder))
        assert process.stdout
        seen = ""
        for line in process.stdout:
            seen += line
            if line.startswith("step "):
                seconds = time.perf_counter() - begun
                process.terminate()
                process.communicate()
                return seconds
    sys.exit(f"no training line was printed:\n{seen}")


def _row(name: str, runs: list[Finished], aim: str) -> list[str]:
    return [name, spread([run.wall for run in runs], 2), spread([run.cpu for run in runs], 2), aim]


def _both(runs: list[Finished]) -> dict[str, list[float]]:
    return {"wall": [run.wall for run in runs], "cpu": [run.cpu for run in runs]}
