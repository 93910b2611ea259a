"""The report of a pipeline: each stage, and its policies' completions of the same held-out prompts."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgcli.errors import InputError
from pgcli.pipelines.driver import Pipeline
from pgcli.runs import Run, files
from pgcli.runs.numbers import duration, number
from pgcli.runs.provenance import machine, versions
from pgcli.runs.reader import plain

if TYPE_CHECKING:
    from pgcli.experiment.build import Parts
    from pgcli.types import Rollout

REPORT = "report"
STREAM = "report"
COLUMNS = {
    "reward": "reward", "proxy": "proxy", "gold": "gold", "exact_match": "exact match", "finished": "finished",
    "kl": "KL", "win_rate": "wins",
}  # fmt: skip
"""Key of a row -> its heading; a column without values is left out."""
EXPLAINED = {
    "reward": "what the last stage is paid",
    "proxy": "the reward model's score, in deviations from the reference's mean",
    "gold": "the task's true reward",
    "finished": "share of completions that ended by themselves",
    "kl": "nats from {baseline}, exact in each state and summed; of the best of n, log n - (n - 1) / n",
    "win_rate": "share of prompts on which gold (else the reward) is higher than {baseline}'s, a tie is half",
}


def make(found: Pipeline) -> dict[str, Any]:
    """Measure, write report.md, report.json and, if a KL was logged, report.svg; return the numbers."""
    runs = found.runs()
    data: dict[str, Any] = {
        "pipeline": found.name, "title": found.title, "path": str(found.path), "command": command(found),
        "stages": [_stage(name, run) for name, run in runs.items()],
    }  # fmt: skip
    data |= _compare(found, runs) if found.finished else {}
    figure = _draw(found, runs, data)
    data["plot"] = figure.name if figure else None
    try:
        files.replace(found.path / f"{REPORT}.json", (json.dumps(plain(data), indent=1) + "\n").encode())
        files.replace(found.path / f"{REPORT}.md", markdown(found, data).encode())
    except OSError as error:
        raise InputError(f"cannot write the report to {found.path}: {error.strerror or error}") from error
    return data


def command(found: Pipeline) -> str:
    return shlex.join(["pgcli", "pipeline", found.file or found.name, *found.overrides])


def _stage(name: str, run: Run) -> dict[str, Any]:
    summary = run.info["summary"]
    evals = {key.removeprefix("eval/"): value for key, value in summary.items() if key.startswith("eval/")}
    return {
        "stage": name, "algo": run.choices["algo"], "env": run.choices["env"], "status": run.status, "run": name,
        "steps": run.steps, "unit": run.info.get("unit", "steps"), "seconds": summary.get("seconds"),
        "evaluation": evals,
    }  # fmt: skip


# ---------------------------------------------------------------- policies on the same prompts


def _compare(found: Pipeline, runs: dict[str, Run]) -> dict[str, Any]:
    """A row for each stage that writes texts, scored by the last stage's reward; and the baseline's best of n."""
    from pgcli.experiment.session import opened
    from pgcli.experiment.sources import vocabulary

    with ExitStack() as stack:
        parts = {name: stack.enter_context(opened(run, trust=found.trust))[0] for name, run in runs.items()}
        writers = {name: own for name, own in parts.items() if _writes(own)}
        if not writers:
            return {}
        # Those of the last one's task: another's policy does not know its prompts.
        tokens = {name: (own.environment.spec.vocabulary, vocabulary(own.environment)) for name, own in writers.items()}
        last = next(reversed(writers))
        return _measure(found, {name: own for name, own in writers.items() if tokens[name] == tokens[last]})


def _writes(parts: Parts) -> bool:
    return hasattr(parts.evaluator, "task") and hasattr(parts.policy, "prefill")


def _measure(found: Pipeline, writers: dict[str, Parts]) -> dict[str, Any]:
    from pgcli.experiment.evaluation import diverge
    from pgcli.seeding import episode_seeds, numpy_generator

    last = writers[next(reversed(writers))]
    player, seed = last.evaluator, last.config.seed
    seeds = episode_seeds(seed, STREAM, range(found.report.prompts))
    baseline = writers.get(found.report.baseline or "")
    played: dict[str, Rollout] = {}
    for name, parts in writers.items():
        # The same noise for each, so that only the policies differ.
        played[name] = player.play(parts.policy, seeds, numpy_generator(seed, STREAM, "actions"), held_out=True)
        if baseline is not None:
            diverge(parts.policy, baseline.policy, played[name])
    standard = played[found.report.baseline or ""] if baseline is not None else None
    rows = [
        {"policy": name, "n": 1} | _row(rollout, standard if name != found.report.baseline else None)
        for name, rollout in played.items()
    ]
    if baseline is not None and standard is not None and found.report.best_of:
        rows += _best_of(found, player, baseline, seeds, standard)
    texts = {name: player.describe(rollout, found.report.texts) for name, rollout in played.items()}
    shown = [
        {"prompt": samples[0]["prompt"], "completions": dict(zip(texts, samples, strict=True))}
        for samples in zip(*texts.values(), strict=True)
    ]
    return {"prompts": len(seeds), "baseline": found.report.baseline, "policies": rows, "texts": shown}


def _row(rollout: Rollout, standard: Rollout | None) -> dict[str, Any]:
    row = {name: float(rollout.aux[name].nanmean()) for name in COLUMNS if name in rollout.aux}
    row["finished"] = float(rollout.terminated.any(1).float().mean())
    _drop_doubles(row)
    if standard is not None:
        row |= _wins(_truth(rollout) - _truth(standard))
    return row


def _drop_doubles(row: dict[str, Any]) -> None:
    """Removes `reward` if it equals another column: a reward model's score, the true reward, or exact match."""
    if any(row.get(name) == row["reward"] for name in ("proxy", "gold", "exact_match")):
        del row["reward"]


def _truth(rollout: Rollout) -> Any:
    """(N,): each completion's gold reward if there is one, else its reward."""
    from pgcli.experiment.evaluation import GOLD

    return rollout.aux.get(GOLD, rollout.aux["reward"])


def _wins(difference: Any) -> dict[str, Any]:
    """The share of prompts on which one is better, a tie half, where both could be scored; with Student's interval
    over prompts.
    """
    from pgcli.analysis.statistics import Moments, mean_interval

    difference = difference[~difference.isnan()].cpu()
    wins = (difference > 0).double() + (difference == 0).double() / 2
    estimate = mean_interval(Moments(float(wins.mean()), float(wins.std()), len(wins)))
    low, high = estimate.low, estimate.high
    assert low is not None, "a report has two prompts or more"
    assert high is not None
    return {"win_rate": estimate.value, "win_rate_interval": [max(low, 0.0), min(high, 1.0)]}


def _best_of(
    found: Pipeline, player: Any, baseline: Parts, seeds: list[int], standard: Rollout
) -> Iterator[dict[str, Any]]:
    """The baseline's best of n by the last stage's reward: the gain of selection without training."""
    import torch

    from pgcli.functional.best_of_n import best_of_n, best_of_n_kl
    from pgcli.seeding import numpy_generator

    generator = numpy_generator(baseline.config.seed, STREAM, "best of n")
    most = max(found.report.best_of)
    rollouts = [player.play(baseline.policy, seeds, generator, held_out=True) for _ in range(most)]
    columns = {name: torch.stack([r.aux[name] for r in rollouts], 1) for name in rollouts[0].aux if name in COLUMNS}
    truth = torch.stack([_truth(rollout) for rollout in rollouts], 1)
    for n in found.report.best_of:
        row = {name: float(best_of_n(columns["reward"], values, n).nanmean()) for name, values in columns.items()}
        _drop_doubles(row)
        chosen = columns["reward"][:, :n].nan_to_num(nan=-torch.inf).argmax(1, keepdim=True)
        wins = _wins(truth.gather(1, chosen)[:, 0] - _truth(standard))
        name = f"best of {n} of {found.report.baseline}"
        yield {"policy": name, "n": n} | row | {"kl": best_of_n_kl(n)} | wins


# ---------------------------------------------------------------- the curve


def _draw(found: Pipeline, runs: dict[str, Run], data: dict[str, Any]) -> Path | None:
    """Proxy and gold (or the return) against the square root of the KL, over the stages' training."""
    import numpy as np

    from pgcli.analysis.plots import Scatter, draw_planes

    curves = {name: [row for row in run.rows("eval/kl") if "eval/return_mean" in row] for name, run in runs.items()}
    curves = {name: rows for name, rows in curves.items() if len(rows) > 1}
    if not curves:
        return None
    every = [row for rows in curves.values() for row in rows]
    keys = [key for key in ("eval/proxy", "eval/gold") if any(key in row for row in every)] or ["eval/return_mean"]
    start: dict[str, Any] = next(
        (row for row in data.get("policies", []) if row["policy"] == found.report.baseline), {}
    )
    best = sorted((row for row in data.get("policies", []) if row["n"] > 1), key=lambda row: row["kl"])
    panels = []
    for key in keys:
        short = key.removeprefix("eval/")
        paths = []
        for name, rows in curves.items():
            points = [(math.sqrt(max(row["eval/kl"], 0.0)), row[key]) for row in rows if key in row]
            if short in start and Path(runs[name].config["init"] or "").name == found.report.baseline:
                points.insert(0, (0.0, start[short]))
            paths.append((name, np.array(points)))
        if best and short in best[0]:
            name = f"best of n of {data['baseline']}"
            paths.append((name, np.array([(math.sqrt(row["kl"]), row[short]) for row in best])))
        paths = [(name, path) for name, path in paths if len(path)]
        panels.append(Scatter(short.replace("_", " "), "square root of KL (nats)", paths))
    file = found.path / f"{REPORT}.svg"
    draw_planes(panels, file, legend="")
    return file


# ---------------------------------------------------------------- tables


def stage_table(data: dict[str, Any]) -> list[list[str]]:
    stages = data["stages"]
    units, tasks = ({stage[key] for stage in stages} for key in ("unit", "env"))
    rows = [["stage", "method", units.pop() if len(units) == 1 else "actions", "time", "evaluation", "greedy"]]
    for stage in stages:
        evals = stage["evaluation"]
        method = f"{stage['algo']} on {stage['env']}" if len(tasks) > 1 else stage["algo"]
        time = "-" if stage["seconds"] is None else duration(stage["seconds"])
        rows.append(
            [
                stage["stage"], method, f"{stage['steps']:,}", time, _spell(evals.get("return_mean")),
                _spell(evals.get("greedy_return_mean")),
            ]
        )  # fmt: skip
    return rows


def policy_table(data: dict[str, Any]) -> list[list[str]]:
    policies = data.get("policies", [])
    keys = [key for key in COLUMNS if any(key in row for row in policies)]
    table = [["policy", *(COLUMNS[key] for key in keys)]]
    return [*table, *([row["policy"], *(_cell(row, key) for key in keys)] for row in policies)] if policies else []


def _cell(row: dict[str, Any], key: str) -> str:
    if key == "win_rate" and key in row:
        low, high = row["win_rate_interval"]
        return f"{row[key]:.2f} [{low:.2f}, {high:.2f}]"
    return _spell(row.get(key))


def _spell(value: float | None) -> str:
    return "-" if value is None else number(value)


def explanations(data: dict[str, Any]) -> list[str]:
    judged = [
        f"{stage['stage']}: evaluated by the share of held-out labels that it agrees with; "
        f"the true reward agrees with {stage['evaluation']['ceiling']:.2f} of them"
        for stage in data["stages"]
        if "ceiling" in stage["evaluation"]
    ]
    keys = {key for row in data.get("policies", []) for key in row}
    texts = [f"{COLUMNS[key]}: {text}" for key, text in EXPLAINED.items() if key in keys]
    return judged + [text.format(baseline=data["baseline"]) for text in texts]


def samples(data: dict[str, Any]) -> Iterator[str]:
    """Completions of the same prompts, policy by policy."""
    for shown in data.get("texts", []):
        yield shown["prompt"]
        width = max(map(len, shown["completions"]))
        for name, sample in shown["completions"].items():
            parts = {"reward": sample["reward"]} | sample["components"]
            known = [key for key in ("proxy", "gold") if key in parts] or ["reward"]
            numbers = "  ".join(f"{key} {number(parts[key]):>7}" for key in known)
            end = "" if sample["finished"] else " ... (cut)"
            yield f"  {name:{width}}  {numbers}   {sample['completion']}{end}"


def markdown(found: Pipeline, data: dict[str, Any]) -> str:
    lines = [f"# {found.title or found.name}", "", "```", data["command"], "```", ""]
    total = sum(stage["seconds"] or 0 for stage in data["stages"])
    host = machine()
    lines += [f"{duration(total)} of training on {host['cpu']}; torch {versions().get('torch', '?')}.", ""]
    lines += [*_markdown_table(stage_table(data)), ""]
    policies = policy_table(data)
    if policies:
        lines += [f"On {data['prompts']} held-out prompts, sampled with the same noise; 95% interval over prompts.", ""]
        lines += [*_markdown_table(policies), ""]
        lines += [*(f"- {text}" for text in explanations(data)), ""]
    if data["plot"]:
        lines += [f"![against the square root of KL]({data['plot']})", ""]
    if data.get("texts"):
        lines += ["## What they write", "", "```", *samples(data), "```", ""]
    return "\n".join(lines)


def _markdown_table(rows: list[list[str]]) -> list[str]:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return [head, "| --- |" + " ---: |" * (len(rows[0]) - 1), *body]
