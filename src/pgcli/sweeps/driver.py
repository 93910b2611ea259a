"""Entry points of sweeps: start a new one, resume an interrupted one, or complete one with given runs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pgcli.environments._slug import slug
from pgcli.errors import InputError, RunError
from pgcli.runs import lock
from pgcli.sweeps import ledger, schedule
from pgcli.sweeps.ledger import Planned, Sweep, Trial
from pgcli.sweeps.schedule import Command, OnChange

if TYPE_CHECKING:
    from pgcli.experiment.config import ExperimentConfig

Check: TypeAlias = "Callable[[ExperimentConfig], None]"


def run_command(sweep: Sweep, trial: Trial, resumed: bool) -> list[str]:
    """The command line of one run: `pgcli train` with a given directory, or `pgcli resume`."""
    words = [sys.executable, "-m", "pgcli"]
    trust = ["--trust"] if sweep.trust else []
    if resumed:
        return [*words, "resume", str(sweep.run_path(trial)), *trust]
    folders = [word for folder in sweep.config_dirs for word in ("--config-dir", folder)]
    return [*words, "train", *trial.overrides, "--run-dir", str(sweep.run_path(trial)), *folders, *trust]


def sweep(
    *overrides: str,
    workers: int = 1,
    sweeps_dir: Path | str = "sweeps",
    config_dirs: Iterable[Path | str] = (),
    trust: bool = False,
    check: Check | None = None,
    on_change: OnChange | None = None,
    command: Command = run_command,
) -> Sweep:
    """Run every combination of the overrides (`algo=ppo,a2c`, `seed=range(0,5)`) in a process, `workers` at a time.

    All are composed before anything is written, and one of each kind is given to `check`, which raises InputError for
    what a run would refuse. `on_change` is called many times a second with the sweep's state.
    """
    import pgcli
    from pgcli.experiment.overrides import expand

    _check_workers(workers)
    folders = [str(folder) for folder in config_dirs]
    combinations = expand(overrides)
    plan, configs = _plan(combinations, folders, trust)
    _check_parts(configs, check or _ignore)
    planned = ledger.create(
        Path(sweeps_dir),
        plan,
        overrides=overrides,
        config_dirs=folders,
        trust=trust,
        version=pgcli.__version__,
    )
    with _held(planned.path):
        schedule.run(planned, workers=workers, command=command, on_change=on_change or _ignore)
    return planned


def complete(
    path: Path | str,
    combinations: list[list[str]],
    *,
    workers: int = 1,
    config_dirs: Iterable[Path | str] = (),
    trust: bool = False,
    on_change: OnChange | None = None,
    command: Command = run_command,
) -> Sweep:
    """Complete these runs in the sweep directory `path`: it is created if needed, missing runs are added, begun ones
    are resumed, and finished ones are left alone.

    Returns: the sweep with these runs only, in the order given.
    """
    import pgcli

    path = Path(path)
    _check_workers(workers)
    folders = [str(folder) for folder in config_dirs]
    planned, _ = _plan(combinations, folders, trust)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make a sweep in {path.parent}: {error.strerror}") from error
    with _held(path):
        if not (path / ledger.PLAN).exists():  # only now, or the second of two at once would empty the first one's plan
            ledger.create(
                path.parent, [], overrides=[], config_dirs=folders, trust=trust, version=pgcli.__version__,
                name=path.name,
            )  # fmt: skip
        ledger.mend(path)
        sweep = ledger.load(path)
        known = {tuple(trial.overrides) for trial in sweep.trials}
        ledger.extend(sweep, [plan for plan in planned if tuple(plan.overrides) not in known])
        by_words = {tuple(trial.overrides): trial for trial in sweep.trials}
        chosen = replace(sweep, trials=[by_words[tuple(words)] for words in combinations], trust=trust)
        schedule.run(chosen, workers=workers, command=command, on_change=on_change or _ignore)
    return chosen


def resume_sweep(
    path: Path | str,
    *,
    workers: int = 1,
    trust: bool = False,
    on_change: OnChange | None = None,
    command: Command = run_command,
) -> Sweep:
    """Resume a sweep: finished runs stay, half-done ones are resumed, failed ones are tried once more."""
    path = Path(path)
    _check_workers(workers)
    ledger.load(path)  # raises an error if it is not a sweep, before a lock is put into it
    with _held(path):
        ledger.mend(path)
        sweep = ledger.load(path)  # again: another driver may have ended while we waited for the lock
        sweep.trust = trust  # only if given now: a file cannot grant it
        _refuse_user_code(sweep)
        schedule.run(sweep, workers=workers, command=command, on_change=on_change or _ignore)
    return sweep


def _ignore(_: object) -> None:
    """An `on_change` or a `check` that does nothing."""


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Allows one driver at a time; turns an OSError into a RunError of one line."""
    try:
        lock.acquire(path)
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror}") from error
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: {error.strerror or error}; go on with: pgcli sweep --resume {path}") from error
    finally:
        lock.release(path)


def _check_workers(workers: int) -> None:
    if workers < 1:
        raise InputError(f"--workers must be 1 or more, not {workers}")


def _name(config: ExperimentConfig) -> str:
    """The run's part of its directory's name: `ppo_cartpole_s0`."""
    environment = slug(str(getattr(config.env, "id", None) or config.choices["env"]))
    return re.sub(r"[^\w.-]+", "-", f"{config.choices['algo']}_{environment}_s{config.seed}")[:80]


def _plan(
    combinations: list[list[str]], folders: list[str], trust: bool
) -> tuple[list[Planned], list[ExperimentConfig]]:
    """Every run composed, before anything is written."""
    from pgcli.experiment.config import compose

    configs = [compose(words, config_dirs=folders, trust=trust) for words in combinations]
    _refuse_twins(combinations, configs)
    return [
        Planned(_name(config), words, config.total_steps) for words, config in zip(combinations, configs, strict=True)
    ], configs


def _check_parts(configs: Iterable[ExperimentConfig], check: Check) -> None:
    """Whether algorithm, environment and policy fit together: once for all runs that differ in a seed or in how large a
    number is, a learning rate say.
    """
    distinct = {json.dumps([_kinds(config.model_dump(mode="json")), config.choices]): config for config in configs}
    for config in distinct.values():
        check(config)


def _kinds(settings: Any) -> Any:
    """The settings without the seed; of a real number, whether it is 0."""
    if isinstance(settings, dict):
        return {key: _kinds(value) for key, value in settings.items() if key != "seed"}
    return bool(settings) if isinstance(settings, float) else settings


def _refuse_twins(combinations: Sequence[list[str]], configs: Sequence[ExperimentConfig]) -> None:
    """Refuses identical runs: in a comparison they would count as two independent ones."""
    seen: dict[str, int] = {}
    for n, config in enumerate(configs):
        settings = config.model_dump(mode="json", exclude={"runs_dir"})  # a sweep has a folder of its own
        first = seen.setdefault(json.dumps([settings, config.choices["algo"], config.choices["env"]]), n)
        if first != n:
            words = ledger.labels([list(words) for words in combinations])
            raise InputError(f"two runs of this sweep are the same: `{words[first]}` and `{words[n]}`; leave one out")


def user_code(sweep: Sweep) -> str | None:
    """The first word by which a sweep names some."""
    from pgcli.experiment.overrides import parse

    words = (word for trial in sweep.trials for word in parse(trial.overrides))
    found = (text for key, value, text in words if key in ("env", "env.id", "env.reward") and ":" in str(value))
    return next(found, None)


def _refuse_user_code(sweep: Sweep) -> None:
    """`env=my_package:MyEnv-v0` was typed once; here a file says it, and a file may come from anywhere."""
    if not sweep.trust and (text := user_code(sweep)):
        raise InputError(f"{sweep.path} names user code to import, {text}: pass --trust if you trust it")
