"""Run a study as a sweep that can be stopped and resumed, and put its results beside published ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from pgcli.errors import InputError
from pgcli.experiment.config import compose
from pgcli.experiment.overrides import with_runs
from pgcli.options import headline, options, search_path
from pgcli.runs import files
from pgcli.studies import definition, report
from pgcli.studies.definition import FOLDER, BestOf, Cell, Study
from pgcli.studies.outcome import Points, Reproduction, conclude
from pgcli.sweeps import Sweep, complete
from pgcli.sweeps.driver import run_command
from pgcli.sweeps.schedule import Command, OnChange


def reproduce(
    name: str,
    *,
    fraction: float = 1.0,
    seeds: int | None = None,
    workers: int = 1,
    only: Sequence[str] = (),
    studies_dir: Path | str = "studies",
    out: Path | str | None = None,
    config_dirs: Iterable[Path | str] = (),
    trust: bool = False,
    on_change: OnChange | None = None,
    command: Command = run_command,
) -> Reproduction:
    """Run or resume the study `name`, and write its report: `pgcli reproduce NAME`.

    Args:
        fraction: share of the published budget. With less than 1, a verdict does not apply to the published number.
        seeds: number of runs, with seeds 0 .. seeds - 1; the study's own number if None.
        only: environments, by name; all of them if empty.
        studies_dir: the runs go to a folder in it, named by the study (and the fraction, if it is not 1).
        out: folder of the report `<name>.md` and `<name>.svg`; the study's own if None.

    Raises InputError before anything is written.
    """
    study = definition.load(name, config_dirs)
    if not 0 < fraction <= 1:
        raise InputError(f"--fraction is a share of the budget, above 0 and at most 1, not {fraction:g}")
    if seeds is not None and seeds < 1:
        raise InputError(f"--seeds must be 1 or more, not {seeds}")
    definition.require(name, study)
    number = seeds or study.seeds
    chosen = definition.only(study, only)
    path = Path(studies_dir) / (name if fraction == 1 else f"{name}_{fraction:g}")
    folders = [str(folder) for folder in config_dirs]

    title = headline(options(FOLDER, search_path(folders))[name])

    def bring(words: list[list[str]]) -> Sweep:
        return complete(
            path, words, workers=workers, config_dirs=folders, trust=trust, on_change=on_change, command=command
        )

    stages = [[[*own, f"seed={seed}"] for seed in range(number)] for own in study.stages.values()]
    words = [_words(study, cell, seed, fraction) for cell in chosen for seed in range(number)]
    for combination in [*chain(*stages), *words]:  # all refusals come before the first run begins
        compose(combination, config_dirs=folders, trust=trust)
    if out is not None:  # the last thing that can be refused
        report.make(Path(out))
    made: list[dict[str, Path]] = [{} for _ in range(number)]  # of each seed, stage -> its run
    for stage, own in zip(study.stages, stages, strict=True):
        sweep = bring([with_runs(words, runs) for words, runs in zip(own, made, strict=True)])
        if sweep.having("planned", "interrupted", "failed"):
            return conclude(name, title, study, fraction=fraction, seeds=number, sweep=sweep, cells=[])
        for runs, trial in zip(made, sweep.trials, strict=True):
            runs[stage] = sweep.run_path(trial)
    words = [with_runs(own, made[i % number]) for i, own in enumerate(words)]
    found = conclude(name, title, study, fraction=fraction, seeds=number, sweep=bring(words), cells=chosen)
    if study.best_of and found.finished:
        found = replace(found, best=_best_of(study.best_of, path, made, folders))
    report.write(found, Path(out) if out is not None else path)
    return found


def _best_of(wanted: BestOf, path: Path, made: list[dict[str, Path]], folders: list[str]) -> dict[str, list[Points]]:
    """Reward model -> its points for each seed; computed points are stored beside the runs."""
    from pgcli.experiment.best_of import Point, best_of

    found: dict[str, list[Points]] = {}
    for reward in wanted.rewards:
        found[reward] = []
        for seed, runs in enumerate(made):
            file = path / f"best_of_{wanted.largest}_{reward}_s{seed}.json"
            if not file.exists():
                words = with_runs([*wanted.words, f"reward={reward}"], runs)
                settings = compose([*words, f"seed={seed}"], config_dirs=folders)
                points = best_of(settings, largest=wanted.largest, prompts=wanted.prompts)
                files.replace(file, json.dumps([point._asdict() for point in points]).encode())
            found[reward].append([Point(**point) for point in json.loads(file.read_text())])
    return found


def _words(study: Study, cell: Cell, seed: int, fraction: float) -> list[str]:
    total = max(1, round(cell.total_steps * fraction))
    every = max(1, total // study.evaluations)
    return [*cell.words, f"total_steps={total}", f"eval.every={every}", f"seed={seed}"]
