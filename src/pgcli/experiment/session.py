"""`train`, `resume` and `evaluate`: make a run directory from a config, go on in one, evaluate its last checkpoint."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pgcli import processes
from pgcli.collectors.narrowed import narrowed
from pgcli.environments._slug import slug
from pgcli.errors import InputError, PgcliError, RunError
from pgcli.experiment import evaluation, gradients
from pgcli.experiment.build import Parts, build, untaught, warnings
from pgcli.experiment.config import ExperimentConfig, compose, dump, load
from pgcli.experiment.loop import Progress, restore, run_loop, save
from pgcli.experiment.signals import StopRequest, stop_requests
from pgcli.experiment.sources import located, moved_along, sources, vocabulary
from pgcli.registry import find
from pgcli.runs import checkpoint, provenance
from pgcli.runs.checkpoint import Loaded
from pgcli.runs.console import open_console
from pgcli.runs.reader import Run, checkpoint_step, find_run
from pgcli.runs.writer import RunWriter, write_config
from pgcli.types import State

EXTENSIBLE = ("total_steps", "stop_at", "judge.stop_disagreement")
"""Settings that a resumed run may change and still be the same experiment."""


@processes.joined()
def train(
    *overrides: str,
    config: Path | str | None = None,
    config_dirs: Iterable[Path | str] = (),
    run_dir: Path | str | None = None,
    trust: bool = False,
    quiet: bool = False,
    samples: bool = False,
) -> Run:
    """Train from scratch and return the finished run: `pgcli train OVERRIDES`.

    Args:
        config: the config.yaml of a run, to start from instead of `conf/`.
        config_dirs: further folders laid out like `conf/`.
        run_dir: the directory to create, instead of a fresh name under `runs_dir`.
        trust: let config files name user code to import.
        samples: show some completions of each evaluation.

    Raises InputError before anything is written, RunError after.
    """
    if config:
        settings = load(config, overrides, trust=trust)
    else:
        settings = compose(overrides, config_dirs=config_dirs, trust=trust)
    settings = located(settings)
    parts = build(settings, sources(settings, trust=trust))
    with _closing(parts), stop_requests() as stop:
        if settings.eval.gradients:
            gradients.check(parts)
        writer = _create(settings, parts, list(overrides), run_dir)
        _warn(writer, [*warnings(settings), *untaught(settings)])
        progress = Progress()
        with _failing(writer):
            save(parts, writer, progress, {})  # before the first action, so that a kill at any moment can be resumed
        return _run(parts, writer, progress, stop, quiet=quiet, samples=samples, note=parts.device.note)


def check(settings: ExperimentConfig, *, trust: bool = False) -> None:
    """Raises InputError for what `train` would refuse before it writes anything, but for its device and its folder."""
    settings = located(settings)
    # As if it had begun: a reward model need not get its unit.
    parts = build(_on_processor(settings), replace(sources(settings, trust=trust), begun=True))
    with _closing(parts):
        if settings.eval.gradients:
            gradients.check(parts)


@processes.joined()
def resume(
    run: Path | str,
    *overrides: str,
    fork: bool = False,
    trust: bool = False,
    quiet: bool = False,
    samples: bool = False,
    runs_dir: str = "runs",
) -> Run:
    """Go on with a run from its newest valid checkpoint: `pgcli resume RUN [total_steps=...]`.

    Args:
        run: its directory, or `latest`.
        overrides: `total_steps` and `stop_at`; with `fork` any setting.
        fork: go on in a new run directory, and leave this one as it is.
        samples: show some completions of each evaluation.

    Raises InputError if nothing can be resumed, or if the change would make it another experiment.
    """
    old = find_run(str(run), runs_dir)
    before, settings = (moved_along(load(old.path, words, trust=trust), old.path) for words in ((), overrides))
    if not fork:
        _check_extension(before, settings)
    _check_unfinished(old, before, settings, fork=fork)
    begun = _has_begun(old)
    parts = build(settings, sources(settings, begun=begun, trust=trust))
    with _closing(parts), stop_requests() as stop:
        _check_foundation(old, parts)
        if fork:
            loaded = checkpoint.load_newest(old.path / "checkpoints")
            progress = _restore_other(parts, loaded.state, overrides)
            writer = _create(settings, parts, list(overrides), None, parent=old)
        else:
            writer = _reopen(old.path)
            loaded = writer.load() if begun else Loaded(0, {}, ["killed before its first checkpoint: it begins again"])
        with _failing(writer):
            if not fork:
                progress = restore(parts, loaded.state) if begun else Progress()
            if settings.stop_at != before.stop_at:
                progress.solved = None
            if settings.judge.stop_disagreement != before.judge.stop_disagreement:
                progress.doubtful = None
            if fork:
                writer.inherit(old.path)
            lost = writer.rewind(loaded.step) or ()
            if processes.rank() == 0:
                write_config(writer.path, dump(settings))
            withdrawn = _withdrawn(old, parts)
            if withdrawn:
                writer.update_info(exact_resume="; ".join(withdrawn))
            _warn(writer, [*loaded.warnings, *lost, *withdrawn])
            writer.event(f"resumed at step {loaded.step:,}")
            if fork or not begun:
                save(parts, writer, progress, {})
        note = f"resumed at step {loaded.step:,}"
        return _run(parts, writer, progress, stop, quiet=quiet, samples=samples, note=note)


def evaluate(
    run: Path | str,
    *,
    episodes: int = 100,
    samples: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    trust: bool = False,
    runs_dir: str = "runs",
) -> dict[str, Any]:
    """Greedy and stochastic return of a run's last checkpoint over fresh episodes: `pgcli eval RUN`.

    Args:
        samples: stochastic completions of each prompt; 2 or more also give pass@k of a task with right answers.
        temperature, top_k, top_p, min_p: narrow what the stochastic policy writes.

    Returns: {"run", "step", "episodes", "greedy": {"mean", "std", "interval", "episodes", "prompts"}, "stochastic":
    {...}, "metrics": {...}}. Those that could be scored are counted; `prompts`: different ones, None in control. The
    interval is a 95 % interval of the mean over episodes of this one policy, of texts over prompts: it does not cover
    other seeds. The metrics are those of the stochastic policy's completions: components, lengths, pass@k; and of the
    policy without narrowing, KL to the reference and preferences on held-out pairs.
    """
    if episodes < 1:
        raise InputError(f"--episodes must be at least 1, not {episodes}")
    found = find_run(str(run), runs_dir)
    overrides = (f"eval.episodes={episodes}", f"eval.samples={samples}")
    with opened(found, *overrides, trust=trust) as (parts, step):
        player, policy, number = parts.evaluator, parts.policy, parts.config.seed if seed is None else seed
        given: dict[str, Any] = {"episodes": episodes, "seed": number, "stream": "fresh"}
        writer = narrowed(policy, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        greedy = evaluation.play(player, policy, **given, greedy=True)
        sampled, metrics, rollout = evaluation.play_sampled(player, writer, **given, samples=samples)
        if writer is policy and "reference" in parts.frozen:
            metrics |= evaluation.diverge(policy, parts.frozen["reference"], rollout)
        metrics |= parts.preferred()
    results = {"greedy": greedy, "stochastic": sampled}
    spelled = {
        name: {
            "mean": x.mean, "std": x.std, "interval": x.interval,
            "episodes": len(x.returns), "prompts": None if x.prompts is None else x.independent,
        }
        for name, x in results.items()
    }  # fmt: skip
    short = {key.removeprefix("eval/"): value for key, value in metrics.items()}
    return {"run": str(found.path), "step": step, "episodes": episodes, **spelled, "metrics": short}


@contextmanager
def opened(run: Run, *overrides: str, trust: bool = False) -> Iterator[tuple[Parts, int]]:
    """A run's parts in the state of its last checkpoint, and the checkpoint's step. Nothing is written.

    If this machine has no device like the run's, they are on the CPU.
    """
    settings = moved_along(load(run.path, overrides, trust=trust), run.path)
    if settings.added:
        _say([f"{run.path}: {_lacking(settings)}"])
    if not _has_device(settings):
        settings = _on_processor(settings)
    loaded = checkpoint.load_last(run.path / "checkpoints", memory=False)
    parts = build(settings, sources(settings, begun=True, trust=trust))
    with _closing(parts):
        _check_foundation(run, parts)
        restore(parts, loaded.state)
        yield parts, loaded.step


def _check_foundation(run: Run, parts: Parts) -> None:
    """Refuses a run whose adapters were trained on other weights than those that are there now."""
    before = run.info.get("foundation")
    if before is not None and before != getattr(parts.policy, "foundation", None):
        raise InputError(
            f"{parts.config.policy.path} has changed since {run.path} was begun, whose adapters belong to its weights"
        )


def _has_device(settings: ExperimentConfig) -> bool:
    """Whether this machine has the device that a config names."""
    device: Any = find("device", settings.device.name)
    try:
        device(settings.device, parameters=0)
    except InputError:
        return False
    return True


def _on_processor(settings: ExperimentConfig) -> ExperimentConfig:
    processor: Any = find("device", "cpu")
    return settings.model_copy(update={"device": processor.Config(name="cpu", threads=settings.device.threads)})


def _run(
    parts: Parts, writer: RunWriter, progress: Progress, stop: StopRequest, *, quiet: bool, samples: bool, note: str
) -> Run:
    """Run the loop with its run directory, console and signals; write to run.json how it ended."""
    settings = parts.config
    title = f"{settings.choices['algo']} on {_task(settings)}, seed {settings.seed}"
    if samples and parts.unit != "tokens":
        _warn(writer, [f"--samples shows completions, and env={settings.choices['env']} has no texts"])
    with _failing(writer):
        with open_console(
            title=title, total_steps=settings.total_steps, unit=parts.unit,
            quiet=quiet or processes.rank() > 0, samples=samples,
        ) as console:  # fmt: skip
            console.note(note)
            run_loop(parts, writer, console, progress, stop)
        if processes.rank() == 0:
            _finish(writer, progress, stop, settings)
        processes.tell("finished")
    return Run(writer.path)


def _finish(writer: RunWriter, progress: Progress, stop: StopRequest, settings: ExperimentConfig) -> None:
    last = Run(writer.path).rows()[-1:]  # no rows in a fork of a complete run
    summary = {key: value for row in last for key, value in row.items() if key.startswith("eval/")}
    summary |= {"steps": progress.steps, "seconds": round(progress.seconds, 3), "solved": progress.solved}
    if progress.doubtful is not None:
        summary["doubtful"] = progress.doubtful
    unfinished = progress.steps < settings.total_steps and not progress.solved and progress.doubtful is None
    if unfinished:
        number = stop.signal or signal.SIGTERM  # none came here: it came to another process of the run
        writer.finish("interrupted", signal.Signals(number).name, summary | {"signal": int(number)})
    else:
        writer.finish("completed", None, summary)


@contextmanager
def _failing(writer: RunWriter) -> Iterator[None]:
    """Records in run.json that a run ended by an error; its last good checkpoint stays."""
    try:
        yield
    except PgcliError as error:
        writer.finish("failed", str(error))
        if processes.rank() > 0:  # rank 0, which has the run, reports its error
            raise
        kind = type(error) if isinstance(error, RunError) else RunError  # there is a run by now: no input alone
        raise kind(f"{error}\nrun    {writer.path} (failed)") from error
    except BaseException as error:
        writer.finish("failed", f"{type(error).__name__}: {error}")
        error.add_note(f"run    {writer.path} (failed)")
        raise


@contextmanager
def _closing(parts: Parts) -> Iterator[None]:
    try:
        yield
    finally:
        parts.close()


def _create(
    settings: ExperimentConfig,
    parts: Parts,
    overrides: list[str],
    run_dir: Path | str | None,
    parent: Run | None = None,
) -> Any:
    """The writer of a new run: rank 0 creates it and tells the others its path."""
    if processes.rank() > 0:
        return Bystander(Path(processes.tell("")))
    info = {
        "argv": sys.argv,
        "choices": settings.choices,
        "device": parts.device.note,
        "processes": processes.size(),
        "threads": settings.device.threads,
        "unit": parts.unit,
        "exact_resume": _promise(parts),
        "foundation": getattr(parts.policy, "foundation", None),
        "vocabulary": vocabulary(parts.environment),
        "parent": parent.id if parent else None,
    }
    writer = RunWriter.create(
        settings.runs_dir, algo=settings.choices["algo"], slug=_slug(settings), seed=settings.seed, info=info,
        config=dump(settings), overrides=overrides, path=run_dir, parent=parent.path if parent else None,
    )  # fmt: skip
    processes.tell(str(writer.path))
    return writer


def _reopen(path: Path) -> Any:
    """The writer of a run that is resumed, after its files were repaired."""
    writer = RunWriter.reopen(path) if processes.rank() == 0 else Bystander(path)
    processes.tell("")
    return writer


class Bystander:
    """The interface of RunWriter without effect, for a process that writes nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> Loaded:
        return checkpoint.load_newest(self.path / "checkpoints")

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def _promise(parts: Parts) -> bool | str:
    """Whether a resumed run ends with exactly the bytes of an uninterrupted one; if not, the reason."""
    if parts.device.torch.type != "cpu":
        return f"not promised on {parts.device.torch}"
    workers = getattr(parts.config.algo, "num_workers", 1)
    if workers > 1:
        return f"not promised with {workers} workers: their gradients are applied in the order in which they come"
    return True


def _has_begun(run: Run) -> bool:
    """False for a run that was killed before its checkpoint of step 0: it has nothing but its config."""
    return bool(run.checkpoints()) or run.steps > 0


def _warn(writer: RunWriter, texts: Iterable[str]) -> None:
    """Write warnings to log.txt and to stderr, also with --quiet."""
    texts = list(texts)
    for text in texts:
        writer.event(text)
    _say(texts)


def _say(warnings: Iterable[str]) -> None:
    for text in warnings:
        if processes.rank() == 0:
            with suppress(OSError):  # a closed pipe is no reason to fail
                print(f"warning: {text}", file=sys.stderr)


def _restore_other(parts: Parts, state: State, overrides: Iterable[str]) -> Progress:
    """`restore` into parts that were built from other settings."""
    try:
        return restore(parts, state)
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the checkpoint does not fit {' '.join(overrides)}: begin a new run with it") from error


def _check_extension(before: ExperimentConfig, after: ExperimentConfig) -> None:
    """Refuse overrides that would make a resumed run another experiment, not just a longer one."""
    was, now = _leaves(dump(before)), _leaves(dump(after))
    changed = [key for key in was | now if was.get(key) != now.get(key) and key not in EXTENSIBLE]
    if changed:
        raise InputError(
            f"a resumed run cannot change {', '.join(changed)}: that is another experiment; add --fork for a new run"
        )
    if after.total_steps != before.total_steps and getattr(after.algo, "depends_on_total", False):
        raise InputError(
            f"total_steps: the {after.algo.schedule} schedule of this run depends on it, so that its updates so far "
            "would have been others; add --fork for a new run that starts from its checkpoint"
        )


def _check_unfinished(old: Run, before: ExperimentConfig, after: ExperimentConfig, *, fork: bool) -> None:
    """Refuse to resume a run that is complete; a run killed before writing its final status may resume to write it."""
    over = old.status == "completed"
    reached = max((checkpoint_step(path) for path in old.checkpoints()), default=0)
    if reached >= after.total_steps and (over or fork or after.total_steps != before.total_steps):
        has = f"all its {before.total_steps:,} steps"
        if after.total_steps != before.total_steps:
            has = f"{reached:,} steps already, and total_steps={after.total_steps} is not more"
        raise InputError(f"{old.path} has {has}; extend it with total_steps=...")
    if over and old.info["summary"].get("solved") and after.stop_at == before.stop_at:
        raise InputError(
            f"{old.path} reached stop_at={before.stop_at:g}; to go on, give it another: stop_at=... or stop_at=null"
        )
    limit = before.judge.stop_disagreement
    if over and "doubtful" in old.info["summary"] and after.judge.stop_disagreement == limit:
        raise InputError(
            f"{old.path} ended because its judges disagree by more than {limit:g}; to go on, give it another limit: "
            "judge.stop_disagreement=... or judge.stop_disagreement=null"
        )


def _leaves(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _withdrawn(old: Run, parts: Parts) -> list[str]:
    """Reasons why the rest of this run may differ from an uninterrupted one."""
    now = provenance.versions()
    changed = [f"{k} {v} -> {now.get(k)}" for k, v in old.info["versions"].items() if now.get(k) != v]
    cpu, here = old.info["machine"]["cpu"], provenance.machine()["cpu"]
    changed += [f"{cpu} -> {here}"] if cpu != here else []
    before = old.info.get("processes", 1)
    changed += [f"{before} -> {processes.size()} processes"] if before != processes.size() else []
    reasons = [f"not exact: resumed with {', '.join(changed)}"] if changed else []
    reasons += [f"not exact: {_lacking(parts.config)}"] if parts.config.added else []
    reasons += [f"not exact: {_promise(parts)}"] if _promise(parts) is not True else []
    for part in (parts.environment, parts.collector):
        mismatch = getattr(part, "replay_mismatch", None)
        reasons += [f"not exact: {mismatch}"] if mismatch else []
    return reasons


def _lacking(settings: ExperimentConfig) -> str:
    return f"the run's config lacks {', '.join(settings.added)}, taken from the files of this version"


def _slug(settings: ExperimentConfig) -> str:
    return slug(getattr(settings.env, "id", None) or settings.choices["env"])


def _task(settings: ExperimentConfig) -> str:
    return getattr(settings.env, "id", None) or settings.choices["env"]
