"""A pipeline directory, and the loop over its stages.

    pipelines/<id>/pipeline.json    the plan: the words of each stage
                   <stage>/         run directories like any other
                   discarded/       stages that were killed before they were runs
                   report.md, report.json, report.svg

Its progress is read from its runs. So a killed pipeline goes on where it was: a finished stage is not repeated, one
that was begun is resumed from its last checkpoint.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pgcli.errors import InputError, PgcliError, RunError
from pgcli.experiment.overrides import with_runs
from pgcli.pipelines import definition
from pgcli.pipelines.definition import Report
from pgcli.runs import Run, files, lock

SCHEMA = 1
PLAN, DISCARDED = "pipeline.json", "discarded"


@dataclass
class Pipeline:
    """A pipeline directory and the state of its stages."""

    path: Path
    name: str
    title: str
    overrides: list[str]
    words: dict[str, list[str]]
    """Words of each stage, in order."""
    report: Report
    config_dirs: list[str] = field(default_factory=list)
    file: str | None = None
    """The user's own file that defines it, if it is not one of conf/."""
    trust: bool = False
    signal: int | None = None
    """The signal that stopped it early, if any."""

    def run_path(self, stage: str) -> Path:
        return self.path / stage

    def runs(self) -> dict[str, Run]:
        """The stages that have begun, and their runs."""
        return {
            stage: Run(self.run_path(stage)) for stage in self.words if (self.run_path(stage) / "run.json").exists()
        }

    @property
    def finished(self) -> bool:
        runs = self.runs()
        return len(runs) == len(self.words) and all(run.status == "completed" for run in runs.values())


OnStage = Callable[[int, str, bool], None]
"""Called with a stage's number, its name, and whether it had finished before."""


def pipeline(
    name: Path | str,
    *overrides: str,
    resume: bool = False,
    pipelines_dir: Path | str = "pipelines",
    config_dirs: Iterable[Path | str] = (),
    trust: bool = False,
    quiet: bool = True,
    samples: bool = False,
    on_stage: OnStage | None = None,
) -> Pipeline:
    """Run the stages of a pipeline one after the other: `pgcli pipeline NAME OVERRIDES`.

    Args:
        name: name of a file in `conf/pipeline/`, or the path of a `.yaml` file; or the directory of a pipeline, to
            resume it.
        overrides: `seed=1` for all stages, `sft.total_steps=1000` for one.
        resume: resume the newest pipeline of this name and these overrides.
        quiet, samples: as for `train`.

    Everything is checked before anything is written. Raises InputError for that, RunError for a stage that failed.
    """
    folders = [str(folder) for folder in config_dirs]
    if (Path(name) / PLAN).is_file():
        if overrides or folders:
            raise InputError(f"{name} remembers its stages: it takes no overrides and no --config-dir")
        found = load(Path(name))
    elif resume:
        found = newest(Path(pipelines_dir), str(name), list(overrides))
        if found.file is not None:
            _check_unchanged(found, folders, trust)
    else:
        found = _create(Path(pipelines_dir), str(name), list(overrides), folders, trust)
    found.trust = trust  # only if given now: a file cannot grant it
    with _held(found.path):
        for number, stage in enumerate(found.words):
            before = found.runs().get(stage)
            over = before is not None and before.status == "completed"
            if on_stage:
                on_stage(number, stage, over)
            if not over:
                run = _run(found, stage, before, quiet=quiet, samples=samples)
                if run.status == "interrupted":
                    found.signal = run.info["summary"]["signal"]
                    break
    return found


def _run(found: Pipeline, stage: str, before: Run | None, *, quiet: bool, samples: bool) -> Run:
    """Train or resume a stage."""
    from pgcli.experiment import resume, train

    path = found.run_path(stage)
    try:
        if before is not None:
            return resume(path, trust=found.trust, quiet=quiet, samples=samples)
        if path.exists():  # killed before it was a run
            (found.path / DISCARDED).mkdir(exist_ok=True)
            files.rename(path, found.path / DISCARDED / f"{stage}-{secrets.token_hex(3)}")
        words = with_runs(found.words[stage], {name: found.run_path(name) for name in found.words})
        return train(
            *words, run_dir=path, config_dirs=found.config_dirs, trust=found.trust, quiet=quiet, samples=samples
        )
    except PgcliError as error:
        raise type(error)(f"stage {stage}: {error}\nnext   pgcli pipeline {found.path}") from error


def _create(folder: Path, name: str, overrides: list[str], config_dirs: list[str], trust: bool) -> Pipeline:
    import pgcli

    spec, title = definition.load(name, config_dirs)
    words = definition.plan(spec, overrides, config_dirs=config_dirs, trust=trust)
    file = _own_file(name)
    name, now = Path(name).name.removesuffix(".yaml"), datetime.now(UTC)
    path = folder / f"{now:%Y%m%d-%H%M%S}_{name}_{secrets.token_hex(2)}"
    found = Pipeline(path, name, title, overrides, words, spec.report, config_dirs, file)
    content = {
        "schema": SCHEMA, "name": name, "file": file, "title": title, "created": now.isoformat(timespec="seconds"),
        "argv": sys.argv, "version": pgcli.__version__, "overrides": overrides, "config_dirs": config_dirs,
        "stages": [{"name": stage, "words": own} for stage, own in words.items()],
        "report": spec.report.model_dump(mode="json"),
    }  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.make_dir(path)
        files.replace(path / PLAN, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise InputError(f"cannot make a pipeline in {folder}: {error.strerror}") from error
    return found


def load(path: Path) -> Pipeline:
    """Read a pipeline directory and its plan."""
    try:
        plan: dict[str, Any] = json.loads((path / PLAN).read_text("utf-8"))
        if plan["schema"] != SCHEMA:
            raise InputError(f"{path} has schema {plan['schema']}, and this pgcli reads schema {SCHEMA}")
        stages = [definition.Stage(**stage) for stage in plan["stages"]]  # refuses names that lead elsewhere
        words = {stage.name: [*stage.words] for stage in stages}
        report = Report(**plan["report"])
        own = plan["name"], plan["title"], plan["overrides"], words, report, plan["config_dirs"], plan.get("file")
        return Pipeline(path, *own)
    except OSError as error:
        raise InputError(f"{path} is not a pipeline directory: it has no {PLAN}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path / PLAN} is damaged: it is not the plan of a pipeline") from error


def newest(folder: Path, name: str, overrides: list[str]) -> Pipeline:
    """The last one of this name, or of this file, with these overrides."""
    found, own = [load(file.parent) for file in sorted(folder.glob(f"*/{PLAN}"))], _own_file(name)
    same = [one for one in found if (one.file or one.name, one.overrides) == (own or name, overrides)]
    if not same:
        words = " ".join([name, *overrides])
        raise InputError(f"there is no `{words}` in {folder} to go on with: begin one with pgcli pipeline {words}")
    return same[-1]


def _own_file(name: str) -> str | None:
    return str(Path(name).expanduser().absolute()) if name.endswith(".yaml") else None


def _check_unchanged(found: Pipeline, config_dirs: list[str], trust: bool) -> None:
    """Refuses to go on with a pipeline whose file defines another one by now."""
    assert found.file is not None
    spec, _ = definition.load(found.file, config_dirs)
    words = definition.plan(spec, found.overrides, config_dirs=config_dirs, trust=trust)
    if (words, spec.report) != (found.words, found.report):
        raise InputError(
            f"{found.file} has changed since {found.path} was begun; as it was then, it goes on with "
            f"pgcli pipeline {found.path}"
        )


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Allows one driver at a time; turns an OSError into a RunError of one line."""
    try:
        lock.acquire(path)
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror}") from error
    try:
        files.sweep(path)
        yield
    except OSError as error:
        raise RunError(f"{path}: {error.strerror or error}; go on with: pgcli pipeline {path}") from error
    finally:
        lock.release(path)
