"""Writing a run directory.

    runs/20261120-165501_ppo_cartpole_s0_7f3a9c/
        run.json            what the run is, where it came from, how it ended
        config.yaml         resolved; overrides.txt: what was typed; git.diff: uncommitted changes
        metrics.jsonl       a row for each update, appended
        episodes.csv        finished training episodes, in Monitor's layout
        samples.jsonl       text tasks: some completions of each evaluation, with their log-probs and rewards
        log.txt             events, with the time
        checkpoints/        step-N/: the newest few, and the best
        metrics.discarded.jsonl, episodes.discarded.csv, samples.discarded.jsonl
                            rows after the checkpoint from which the run was resumed

It contains only relative paths of itself, so that it can be moved. A row goes to the operating system at once and is
made durable with the next checkpoint: a kill loses nothing, a power cut nothing up to the checkpoint that is resumed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from pgcli.errors import InputError, RunError
from pgcli.runs import checkpoint, files, lock, provenance
from pgcli.runs.checkpoint import Loaded
from pgcli.runs.reader import SCHEMA, Run, list_checkpoints, plain
from pgcli.types import Episode, Metrics, Sample, State

NAME_LIMIT = 40
"""Most characters of a part of a run's name, so that the name stays far below the 255 of a file name."""
EPISODE_COLUMNS = "r,l,t,step,seed"


class RunWriter:
    """Writes a run directory; one process only. Opened by `create` or `reopen`, released by `finish` or `close`."""

    def __init__(self, path: Path, info: dict[str, Any], keep: int) -> None:
        self.path = path
        self.keep = keep
        self._info = info
        self._intact: set[Path] = set()
        self._step = info["steps"]
        self._open: dict[str, int] = {}  # file name -> descriptor
        self._began = time.monotonic()
        self._held = True

    # ------------------------------------------------------------ opening

    @classmethod
    def create(
        cls,
        runs_dir: Path | str,
        *,
        algo: str,
        slug: str,
        seed: int,
        info: dict[str, Any],
        config: dict[str, Any],
        overrides: list[str],
        path: Path | str | None = None,
        parent: Path | None = None,
    ) -> RunWriter:
        """A new run directory, locked.

        Args:
            info: further entries of run.json.
            path: the directory to create, instead of one with a fresh name in `runs_dir`.
            parent: the run that this one goes on from.

        Raises InputError if it cannot be made, and leaves nothing behind.
        """
        folder = Path(path).parent if path else Path(runs_dir)
        made = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            made = _make_dir(Path(path)) if path else _make_fresh_dir(folder, algo, slug, seed)
            lock.acquire(made)
            full = _describe(made, slug, seed) | info
            full["parent"] = os.path.relpath(parent, made) if parent else None
            _fill(made, full, config, overrides)
            return cls(made, full, config["checkpoint"]["keep"])
        except OSError as error:
            if made:
                with contextlib.suppress(OSError):
                    files.remove(made)
            option = "--run-dir" if path else "runs_dir=..."
            raise InputError(
                f"cannot write to {path or folder}: {error.strerror or error}; choose another folder with {option}"
            ) from error

    @classmethod
    def reopen(cls, path: Path | str) -> RunWriter:
        """Open a run to continue it: then `load` its newest checkpoint and `rewind` to it.

        Raises InputError if it is not a run, or in use.
        """
        run = Run(path)
        keep = run.config["checkpoint"]["keep"]
        for name in ("metrics.jsonl", "episodes.csv"):
            if not (run.path / name).exists():
                raise InputError(f"{path} has lost its {name}, so that it cannot go on; it can be evaluated as it is")
        if not _has_head(run.path / "episodes.csv"):
            raise InputError(f"{path} has lost the head of its episodes.csv: pgcli resume {path} --fork begins another")
        try:
            lock.acquire(run.path)
        except OSError as error:
            raise InputError(f"cannot write to {path}: {error.strerror}") from error
        with _writing(run.path):
            files.sweep(run.path)
            checkpoint.sweep(run.path / "checkpoints")
            info = Run(run.path).info  # read again: another process may have written it before we had the lock
            return cls(run.path, info, keep)

    def load(self) -> Loaded:
        """The newest intact checkpoint. Raises InputError, and releases the run, if there is none."""
        try:
            loaded = checkpoint.load_newest(self.path / "checkpoints")
        except InputError:
            self.close()
            raise
        self._intact.add(self.path / "checkpoints" / f"step-{loaded.step:09d}")
        return loaded

    def inherit(self, parent: Path) -> None:
        """Copy the rows of the run that this one forks from, so that its curve is complete. Then `rewind`."""
        with _writing(self.path):
            for name in ("metrics.jsonl", "episodes.csv", "samples.jsonl"):
                if (parent / name).exists() and (name != "episodes.csv" or _has_head(parent / name)):
                    files.replace(self.path / name, (parent / name).read_bytes())

    def rewind(self, step: int) -> list[str]:
        """Move the rows written after `step` aside, so that the continued run has every step once.

        Returns: a sentence, if rows up to `step` are not there.
        """
        with _writing(self.path):
            checkpoint.set_aside(self.path / "checkpoints", step)
            kept = _cut(self.path / "metrics.jsonl", step, header=0, step_of=lambda line: json.loads(line)["step"])
            _cut(self.path / "episodes.csv", step, header=2, step_of=lambda line: int(line.split(",")[3]))
            if (self.path / "samples.jsonl").exists():
                _cut(self.path / "samples.jsonl", step, header=0, step_of=lambda line: json.loads(line)["step"])
            self._close_files()  # the open ones have been replaced
        self._step = step
        # `wall` counts the seconds in which the run was running, not those in between.
        self._began = time.monotonic() - (json.loads(kept[-1])["wall"] if kept else 0.0)
        self.update_info(status="running", reason=None, ended=None, steps=step)
        last = json.loads(kept[-1])["step"] if kept else 0  # a checkpoint comes after the row of its step
        if last < step:
            return [f"{self.path / 'metrics.jsonl'} has lost its rows of the steps {last:,} to {step:,}"]
        return []

    # ------------------------------------------------------------ writing

    @property
    def wall(self) -> float:
        """Seconds that the run has been running, over all its processes."""
        return time.monotonic() - self._began

    def log(self, step: int, update: int, metrics: Metrics) -> None:
        """Append a row. Log all that belongs to `step` before saving it: a resumed run begins after its checkpoint."""
        row = {"step": step, "update": update, "wall": round(self.wall, 6)}
        row |= {key: value if type(value) is int else float(value) for key, value in metrics.items()}
        self._append("metrics.jsonl", f"{json.dumps(plain(row), allow_nan=False)}\n")
        self._step = step

    def episodes(self, step: int, episodes: list[Episode]) -> None:
        """Append episodes that finished in the rollout that ended at `step`."""
        if not episodes:
            return  # the usual case for methods that update every few steps
        wall = round(self.wall, 6)
        rows = [f"{float(episode.total)!r},{episode.length},{wall},{step},{episode.seed}\n" for episode in episodes]
        self._append("episodes.csv", "".join(rows))

    def samples(self, step: int, samples: list[Sample]) -> None:
        """Append sample completions of the evaluation at `step`."""
        rows = [plain({"step": step} | sample) for sample in samples]
        if rows:
            lines = [json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows]
            self._append("samples.jsonl", "".join(lines))

    def event(self, text: str) -> None:
        """Append a line to log.txt."""
        self._append("log.txt", f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}\n")

    def save(self, step: int, state: State, *, best: bool = False) -> Path:
        """Write a checkpoint, then remove those no longer kept. If writing fails, the last good one remains."""
        with _writing(self.path):
            files.fsync(self.path / "metrics.jsonl")
            files.fsync(self.path / "episodes.csv")
            if (self.path / "samples.jsonl").exists():
                files.fsync(self.path / "samples.jsonl")
            path = checkpoint.write(self.path / "checkpoints", step, state, best=best)
            self._intact.add(path)
            checkpoint.prune(path.parent, self.keep, self._intact)
        self._step = step
        return path

    def update_info(self, **fields: Any) -> None:
        """Change run.json, atomically."""
        self._info |= fields
        with _writing(self.path):
            files.replace(self.path / "run.json", _json(self._info))

    # ------------------------------------------------------------ closing

    def finish(self, status: str, reason: str | None = None, summary: dict[str, Any] | None = None) -> None:
        """Record how the run ended (`completed`, `failed`, `interrupted`), and release it."""
        try:
            self.update_info(
                status=status,
                reason=reason,
                ended=datetime.now(UTC).isoformat(),
                steps=self._step,
                summary=summary or {},
            )
        except RunError:
            # A full disk must not hide why the run failed; left as `running`, its status reads as `died`.
            if status == "completed":
                raise
        finally:
            self.close()

    def close(self) -> None:
        """Release the run. Does nothing the second time."""
        if self._held:
            self._held = False
            self._close_files()
            lock.release(self.path)

    def _append(self, name: str, text: str) -> None:
        with _writing(self.path):
            if name not in self._open:
                self._open[name] = files.open_append(self.path / name)
            files.append(self._open[name], text.encode())

    def _close_files(self) -> None:
        while self._open:
            files.close(self._open.popitem()[1])


def write_config(path: Path, config: dict[str, Any]) -> None:
    """The resolved config of the run at `path`, which a resumed run may extend."""
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    files.replace(path / "config.yaml", text.encode())


def slugify(name: str) -> str:
    """`my_package:MyEnv-v0` -> `my_package-myenv-v0`: safe in a file name, and not too long."""
    return re.sub(r"[^a-z0-9_]+", "-", name.lower())[:NAME_LIMIT].strip("-_") or "unnamed"


def _make_dir(path: Path) -> Path:
    try:
        files.make_dir(path)
    except FileExistsError as error:
        if not path.is_dir():
            raise InputError(f"{path} is a file: name a folder to be made") from error
        resume = f", or go on with it by `pgcli resume {path}`" if (path / "run.json").exists() else ""
        raise InputError(f"{path} exists already: name another{resume}") from error
    return path


def _make_fresh_dir(folder: Path, algo: str, slug: str, seed: int) -> Path:
    while True:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        path = folder / f"{stamp}_{slugify(algo)}_{slugify(slug)}_s{seed}_{secrets.token_hex(3)}"
        with contextlib.suppress(FileExistsError):  # another run has this name
            files.make_dir(path)
            return path


def _describe(path: Path, slug: str, seed: int) -> dict[str, Any]:
    return {
        "schema": SCHEMA, "id": path.name, "status": "running", "reason": None, "slug": slug, "seed": seed,
        "created": datetime.now(UTC).isoformat(), "ended": None, "steps": 0, "summary": {},
        "versions": provenance.versions(), "machine": provenance.machine(),
    }  # fmt: skip


def _fill(path: Path, info: dict[str, Any], config: dict[str, Any], overrides: list[str]) -> None:
    """Write all files, run.json last: with it the folder becomes a run."""
    info["git"], diff = provenance.git(Path.cwd())
    if diff:
        files.write(path / "git.diff", diff)
    monitor = {"t_start": time.time(), "env_id": config["env"].get("id") or info["slug"]}
    files.make_dir(path / "checkpoints")
    write_config(path, config)
    files.write(path / "overrides.txt", _text(overrides).encode())
    files.write(path / "metrics.jsonl", b"")
    files.write(path / "episodes.csv", f"#{json.dumps(monitor)}\n{EPISODE_COLUMNS}\n".encode())
    files.replace(path / "run.json", _json(info))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns an OSError (a full or removed disk) into a RunError of one line."""
    try:
        yield
    except OSError as error:
        kept = "; its last good checkpoint is kept" if list_checkpoints(path / "checkpoints") else ""
        raise RunError(f"cannot write to {path}: {error.strerror or error}{kept}") from error


def _has_head(episodes: Path) -> bool:
    """Whether a file of episodes has its first two lines, without which its rows mean nothing."""
    with contextlib.suppress(OSError), episodes.open("rb") as file:
        return [file.readline(), file.readline()][1] == f"{EPISODE_COLUMNS}\n".encode()
    return False


def _cut(path: Path, step: int, *, header: int, step_of: Callable[[str], int]) -> list[str]:
    """Move the rows after `step`, and unreadable ones, to NAME.discarded.SUFFIX. Returns those that stay."""
    discarded = path.with_name(f"{path.stem}.discarded{path.suffix}")
    lines = path.read_text("utf-8", errors="replace").split("\n")[:-1]  # an incomplete last line is dropped
    head = lines[:header]
    kept: list[str] = []
    later: list[str] = []
    for line in lines[header:]:
        try:
            stays = step_of(line) <= step
        except (ValueError, KeyError, TypeError, IndexError):
            stays = False
        (kept if stays else later).append(line)
    # Discarded rows are written first: after a kill in between, a row may be discarded twice, but never lost.
    if later:
        before = discarded.read_text("utf-8", errors="replace") if discarded.exists() else _text(head)
        files.replace(discarded, (before + _text(later)).encode())
    files.replace(path, _text(head + kept).encode())
    return kept


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _json(info: dict[str, Any]) -> bytes:
    return (json.dumps(plain(info), indent=1, allow_nan=False) + "\n").encode()
