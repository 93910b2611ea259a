"""The whole program in one function: collect, update, evaluate, write, until the budget is spent."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from pgcli import processes
from pgcli.collectors import completions, episodes, held_out, informative, preferences, reference, revisions
from pgcli.collectors.learned_reward import has_reward
from pgcli.experiment import evaluation, gradients
from pgcli.experiment.build import Parts
from pgcli.experiment.signals import StopRequest
from pgcli.runs.console import Console
from pgcli.runs.writer import RunWriter
from pgcli.types import Episode, Metrics, Sample, State

METRICS = (
    evaluation.METRICS
    | completions.METRICS
    | episodes.METRICS
    | reference.METRICS
    | gradients.METRICS
    | informative.METRICS
    | preferences.METRICS
    | held_out.METRICS
    | revisions.METRICS
    | {
        "rollout/return_mean": "mean undiscounted return of the training episodes that ended since the last row",
        "rollout/length_mean": "mean length of the training episodes that ended since the last row, in actions",
        "rollout/episodes": "number of training episodes that ended since the last row",
        "time/collect": "seconds spent on collecting since the last row; a3c: with the workers' backward passes",
        "time/update": "seconds spent on updating since the last row",
        "time/evaluate": "seconds spent on evaluating since the last row",
        "time/write": "seconds spent on writing since the last row",
        "time/steps_per_second": "actions per second of collecting and updating since the last row",
        "time/collect_steps_per_second": "actions per second of collecting alone since the last row",
        "time/update_steps_per_second": "actions per second of updating alone since the last row",
    }
)
CONFIRMING_EPISODES = 100


@dataclass
class Progress:
    """Progress of a run, saved in every checkpoint, so that a resumed run does everything at the same steps."""

    steps: int = 0
    """Actions taken so far (for demonstrations: tokens trained on)."""
    updates: int = 0
    evaluated: int = 0
    """The multiple of eval.every at the last evaluation."""
    logged: int = 0
    """The multiple of log_every at the last row."""
    saved: int = 0
    """The multiple of checkpoint.every at the last checkpoint."""
    best: float = -math.inf
    """The best stochastic return of an evaluation at which a checkpoint was written, to mark it."""
    solved: dict[str, float] | None = None
    """The confirming evaluation, after stop_at was reached."""
    doubtful: float | None = None
    """The disagreement of the reward model's members that exceeded judge.stop_disagreement, if it did."""
    seconds: float = 0.0
    """Time spent training, including before a resume."""


def run_loop(parts: Parts, writer: RunWriter, console: Console, progress: Progress, stop: StopRequest) -> None:
    """Train `parts` until the budget is spent, stop_at is reached and confirmed, the reward model's members disagree by
    more than judge.stop_disagreement, or a signal asks to stop.

    Leaves a checkpoint of the final state, and the outcome in `progress`.
    """
    config = parts.config
    clock = Clock(parts.device, progress.steps)
    pending = Pending()
    ended = progress.steps >= config.total_steps or progress.solved is not None or progress.doubtful is not None
    if not ended and hasattr(parts.collector, "start"):  # a collector with worker processes
        parts.collector.start(parts.policy)
    while not ended:
        with clock("collect"):
            rollout = parts.collector.collect(parts.behaviour())
        with clock("update"):
            metrics = parts.algorithm.update(rollout)
        progress.steps += rollout.steps
        progress.updates += 1
        told = getattr(rollout, "metrics", {})
        pending.add(metrics | told, rollout.episodes)
        if (limit := config.judge.stop_disagreement) is not None and told.get("reward/disagreement", 0) > limit:
            progress.doubtful = told["reward/disagreement"]

        evaluated: Metrics = {}
        samples: list[Sample] = []
        spent = progress.steps >= config.total_steps
        # Read the stop flag once per iteration: a later signal is handled after the next update, with its own row and
        # checkpoint.
        asked = processes.anybody(stop.requested)
        if _due(progress.steps, config.eval.every, progress.evaluated) or spent or progress.doubtful is not None:
            with clock("evaluate"):
                evaluated, samples = _evaluate(parts, progress)
        ended = spent or asked or progress.solved is not None or progress.doubtful is not None
        with clock("write"):
            writer.episodes(progress.steps, rollout.episodes)
            writer.samples(progress.steps, samples)
            checkpoint = _due(progress.steps, config.checkpoint.every, progress.saved) or ended
            if checkpoint or evaluated or _due(progress.steps, config.log_every, progress.logged):
                progress.logged = progress.steps // config.log_every
                row = pending.take() | evaluated | clock.take(progress)
                writer.log(progress.steps, progress.updates, row)
                console.log({"step": progress.steps, "update": progress.updates, **row})
                console.samples(samples)
            if checkpoint:
                save(parts, writer, progress, evaluated)


def save(parts: Parts, writer: RunWriter, progress: Progress, evaluated: Metrics) -> None:
    progress.saved = progress.steps // parts.config.checkpoint.every
    latest = evaluated.get("eval/return_mean", -math.inf)
    is_best = latest > progress.best
    progress.best = max(progress.best, latest)
    writer.save(progress.steps, parts.state_dict() | {"progress": asdict(progress)}, best=is_best)


def restore(parts: Parts, state: State) -> Progress:
    """Put a checkpoint's state into freshly built parts."""
    parts.load_state_dict(state)
    return Progress(**state["progress"])


def _evaluate(parts: Parts, progress: Progress) -> tuple[Metrics, list[Sample]]:
    """Both evaluations, greedy and stochastic, and sample texts. A greedy return that reaches stop_at must be confirmed
    by a hundred fresh episodes.
    """
    config = parts.config
    progress.evaluated = progress.steps // config.eval.every
    metrics, rollout = evaluation.evaluate_both(
        parts.evaluator, parts.policy, episodes=config.eval.episodes, seed=config.seed, stream="evaluate",
        samples=config.eval.samples, reference=parts.frozen.get("reference"),
    )  # fmt: skip
    paid = has_reward(parts.environment) or config.reward is not None
    if "reference" in parts.frozen and rollout.aux and paid:
        if parts.standard is None:
            parts.standard = evaluation.play_once(
                parts.evaluator, parts.frozen["reference"],
                episodes=config.eval.episodes, seed=config.seed, stream="evaluate", greedy=False,
            )  # fmt: skip
        metrics["eval/win_rate"] = evaluation.win_rate(rollout, parts.standard)
    metrics |= parts.preferred()
    if config.eval.gradients:
        metrics |= gradients.measure(parts, config.eval.gradients)
    samples = parts.evaluator.describe(rollout, config.eval.texts)
    if config.stop_at is None or metrics.get("eval/greedy_return_mean", -math.inf) < config.stop_at:
        return metrics, samples
    fresh = evaluation.play(
        parts.evaluator, parts.policy,
        episodes=CONFIRMING_EPISODES, seed=config.seed, stream=f"confirm-{progress.steps}", greedy=True,
    )  # fmt: skip
    if fresh.mean >= config.stop_at:
        progress.solved = {"greedy_return_mean": fresh.mean, "episodes": float(CONFIRMING_EPISODES)}
    return metrics, samples


def _due(steps: int, every: int, last: int) -> bool:
    return steps // every > last


class Pending:
    """Metrics and episodes since the last row."""

    def __init__(self) -> None:
        self.metrics: list[Metrics] = []
        self.finished: list[Episode] = []

    def add(self, metrics: Metrics, episodes: Sequence[Episode]) -> None:
        self.metrics.append(metrics)
        self.finished += episodes

    def take(self) -> Metrics:
        """Means over the updates and over the episodes; without episodes there are no returns in the row.

        A key that only some updates have (those of a delayed actor, say), or that is NaN in some of them because it is
        not defined there, is averaged over the others.
        """
        found: dict[str, list[float]] = {}
        for metrics in self.metrics:
            for key, value in metrics.items():
                defined = found.setdefault(key, [])
                if not math.isnan(value):
                    defined.append(value)
        row = {key: sum(values) / len(values) if values else math.nan for key, values in found.items()}
        if self.finished:
            row["rollout/return_mean"] = sum(e.total for e in self.finished) / len(self.finished)
            row["rollout/length_mean"] = sum(e.length for e in self.finished) / len(self.finished)
        row["rollout/episodes"] = float(len(self.finished))
        self.metrics, self.finished = [], []
        return row


class Clock:
    """Splits the time into collect, update, evaluate and write."""

    def __init__(self, device: Any, steps: int) -> None:
        self.device = device
        self.spent = dict.fromkeys(("collect", "update", "evaluate", "write"), 0.0)
        self.steps = steps

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.device.synchronise()
        self.spent[part] += time.perf_counter() - start

    def take(self, progress: Progress) -> Metrics:
        """The split since the last call; adds it to the run's total."""
        row = {f"time/{part}": seconds for part, seconds in self.spent.items()}
        steps, collecting, updating = progress.steps - self.steps, self.spent["collect"], self.spent["update"]
        row["time/steps_per_second"] = steps / (collecting + updating)
        row["time/collect_steps_per_second"] = steps / collecting
        row["time/update_steps_per_second"] = steps / updating
        progress.seconds += sum(self.spent.values())
        self.steps = progress.steps
        self.spent = dict.fromkeys(self.spent, 0.0)
        return row
