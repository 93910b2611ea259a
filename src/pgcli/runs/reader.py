"""Reading a run directory. No torch, and NumPy only when arrays are asked for, so that `pgcli runs` answers at once."""

from __future__ import annotations

import json
import math
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgcli.errors import InputError
from pgcli.runs import lock

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 1
"""Schema of run.json and of the files beside it; a checkpoint has its own."""
WORDS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
"""Spelling in metrics.jsonl and run.json of numbers that JSON does not have."""


class Run:
    """A run directory; run.json is read when it is opened. Wherever a path is asked for, the run will do."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.info = _read_info(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)

    __str__ = __fspath__

    @property
    def id(self) -> str:
        return self.info["id"]

    @property
    def status(self) -> str:
        """`running`, `completed`, `failed`, `interrupted`; or `died`: it was killed before it could write that."""
        status = self.info["status"]
        return "died" if status == "running" and not lock.in_use(self.path) else status

    @property
    def choices(self) -> dict[str, str]:
        return self.info["choices"]

    @property
    def slug(self) -> str:
        return self.info["slug"]

    @property
    def seed(self) -> int:
        return self.info["seed"]

    @property
    def steps(self) -> int:
        """Actions trained so far; of a running or killed run, those of the last row."""
        if self.info["ended"]:
            return self.info["steps"]
        path = self.path / "metrics.jsonl"
        last = _parse(path, _lines(path)[-1:])
        return last[0]["step"] if last else self.info["steps"]

    @cached_property
    def config(self) -> dict[str, Any]:
        import yaml

        path = self.path / "config.yaml"
        try:
            # The C parser is several times faster, but missing in some builds of PyYAML.
            found = yaml.load(path.read_text("utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
        # It begins with single values and ends with the groups, so that one cut short lacks those.
        if not isinstance(found, dict) or not all(isinstance(found.get(group), dict) for group in ("algo", "env")):
            raise InputError(f"{path} is damaged: it does not hold the settings of a run")
        return found

    def rows(self, key: str | None = None) -> list[dict[str, Any]]:
        """The metrics, oldest first; only those rows that have `key`, if one is given."""
        path = self.path / "metrics.jsonl"
        if key is None:
            return _parse(path, _lines(path))
        # Most keys are in few rows: skipping the others makes `compare` several times faster.
        text = _complete(path)
        if torn := _torn(text):  # it may have been one of them
            _parse_line(path, torn)
        return _parse(path, _lines_with(text, json.dumps(key)))

    def points(self, key: str) -> tuple[list[int], list[float]]:
        """The steps at which `key` was logged, and its values."""
        rows = self.rows(key)
        return [row["step"] for row in rows], [row[key] for row in rows]

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """`points` as arrays, (K,) int64 and (K,) float64."""
        import numpy as np

        steps, values = self.points(key)
        return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)

    def episodes(self) -> dict[str, np.ndarray]:
        """Finished training episodes, a column each: `r` return, `l` length, `t` seconds, `step`, `seed`."""
        import numpy as np

        lines = _lines(self.path / "episodes.csv")[1:]  # without the first line, JSON in Monitor's layout
        names = lines[0].split(",") if lines else []
        rows = [line.split(",") for line in lines[1:]]
        if any(len(row) != len(names) for row in rows):
            raise InputError(f"{self.path / 'episodes.csv'} is damaged: its rows differ in length")
        kinds = {"r": np.float64, "t": np.float64}
        return {
            name: np.array([row[i] for row in rows], dtype=str).astype(kinds.get(name, np.int64))
            for i, name in enumerate(names)
        }

    def samples(self) -> list[dict[str, Any]]:
        """Completions of evaluations, oldest first, with their `step`; none in control."""
        path = self.path / "samples.jsonl"
        return _parse(path, _lines(path))

    def checkpoints(self) -> list[Path]:
        """Checkpoints, oldest first. Whether one is intact is checked only when it is read."""
        return list_checkpoints(self.path / "checkpoints")


def typed_options(run: Run) -> dict[str, list[str]]:
    """The options with which a run was started that say where configs are, and that code may be imported:
    {"--config-dir": ["mine"], "--trust": [""]}.
    """
    words = run.info.get("argv", [])
    found: dict[str, list[str]] = {}
    for word, following in zip(words, [*words[1:], ""], strict=False):
        option, equals, value = word.partition("=")
        if option in ("--config-dir", "--config", "--trust"):
            found.setdefault(option, []).append(value if equals else following)
    return found


def still_true(run: Run, word: str) -> str:
    """A word with which a run was started, or what has become of it: `resume` may have extended the run."""
    key, _, value = word.partition("=")
    now = run.config.get("total_steps")
    return f"{key}={now}" if key == "total_steps" and now and value.replace("_", "") != str(now) else word


def list_checkpoints(folder: Path) -> list[Path]:
    found = folder.glob("step-*") if folder.is_dir() else []
    return sorted((path for path in found if re.fullmatch(r"step-\d{9,}", path.name)), key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def find_run(text: str, runs_dir: Path | str = "runs") -> Run:
    """The run that a user means: a path, the id of a run in `runs_dir`, or `latest`."""
    if text == "latest":
        runs = list_runs(runs_dir)
        if not runs:
            raise InputError(f"there is no run in {runs_dir}: start one with `pgcli train`, or name a run directory")
        return runs[-1]
    inside = Path(runs_dir) / text
    return Run(inside if not Path(text).exists() and inside.is_dir() else text)


def list_runs(runs_dir: Path | str = "runs") -> list[Run]:
    """The runs in a folder, oldest first. `scan_runs` also returns those that could not be read."""
    return scan_runs(runs_dir)[0]


def scan_runs(runs_dir: Path | str) -> tuple[list[Run], list[str]]:
    """The runs in a folder, oldest first, and a sentence for each that is damaged or of another schema."""
    runs, problems = [], []
    for path in sorted(Path(runs_dir).glob("*/run.json")):
        try:
            runs.append(Run(path.parent))
        except InputError as error:
            problems.append(str(error))
    return sorted(runs, key=lambda run: run.info["created"]), problems


def plain(value: Any) -> Any:
    """The tree with NaN and infinities as names, which JSON can hold. Dropping them would hide why a run went wrong."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _read_info(path: Path) -> dict[str, Any]:
    file = path / "run.json"
    try:
        info = json.loads(file.read_text("utf-8"), object_hook=_numbers)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} is not a run directory: it has no run.json") from error
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged: it is not JSON") from error
    if not isinstance(info, dict) or "schema" not in info:
        raise InputError(f"{path} is not a run directory: its run.json names no schema")
    if info["schema"] != SCHEMA:
        raise InputError(
            f"{path} has schema {info['schema']}, and this pgcli reads schema {SCHEMA}: use the one that made it"
        )
    missing = {"id", "status", "choices", "slug", "seed", "created", "ended", "steps"} - info.keys()
    if missing:
        raise InputError(f"{file} is damaged: it has no {', '.join(sorted(missing))}")
    return info


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {key: WORDS.get(value, value) if isinstance(value, str) else value for key, value in row.items()}


def _lines(path: Path) -> list[str]:
    return _complete(path).split("\n")[:-1]


def _torn(text: str) -> str | None:
    """The first line that does not end as an object of JSON does: rows are appended, so it is the end that is lost."""
    if text.count("}\n") == text.count("\n"):  # of thousands of rows, in no time
        return None
    return next(line for line in text.split("\n") if not line.endswith("}"))


def _lines_with(text: str, word: str) -> list[str]:
    lines = []
    found = text.find(word)
    while found >= 0:
        end = text.find("\n", found)
        lines.append(text[text.rfind("\n", 0, found) + 1 : end])
        found = text.find(word, end)
    return lines


def _complete(path: Path) -> str:
    """The complete lines of a file that another process may be appending to; an incomplete last line is left out."""
    try:
        text = path.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return text[: text.rfind("\n") + 1]


def _parse(path: Path, lines: list[str]) -> list[dict[str, Any]]:
    text = ",".join(lines)
    try:
        rows = json.loads(f"[{text}]")  # one call for all lines is twice as fast as one call for each
    except ValueError:
        rows = [_parse_line(path, line) for line in lines]
    if '"NaN"' in text or 'Infinity"' in text:
        rows = [_numbers(row) for row in rows]
    return rows


def _parse_line(path: Path, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise InputError(f"{path} is damaged: `{line[:60]}` is not a row of JSON") from error
