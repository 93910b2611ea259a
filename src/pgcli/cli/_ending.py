"""The last lines of `train` and `resume`: the result, the run directory, the next commands."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pgcli.runs import Run


def one_of_many() -> bool:
    """Whether this is a process of `torchrun` other than rank 0, which prints for all."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0"


def end(run: "Run", *, as_json: bool) -> None:
    """Print how a run ended. Exits with 128 + the signal (130, 143) if one stopped it."""
    summary = run.info["summary"]
    try:
        if one_of_many():
            pass
        elif as_json:
            typer.echo(json.dumps({"run": str(run.path), "status": run.status, **summary}))
        else:
            typer.echo(f"{_outcome(run)}\nrun    {run.path}\nnext   {_next(run)}")
    except BrokenPipeError:  # `| head`: no reader is left, but the run did not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if run.status == "interrupted":
        raise typer.Exit(128 + summary["signal"])


def _outcome(run: "Run") -> str:
    from pgcli.runs.numbers import number

    summary = run.info["summary"]
    task = run.config["env"].get("id") or run.choices["env"]
    spent = f"{summary['steps']:,} {run.info['unit']} in {summary['seconds']:.1f} s"
    if summary["solved"]:
        fresh = summary["solved"]
        return (
            f"solved {task} after {spent}: "
            f"greedy return {number(fresh['greedy_return_mean'])} over {fresh['episodes']:.0f} fresh episodes"
        )
    if "doubtful" in summary:
        spent += f", as the reward model's members disagree by {summary['doubtful']:.2f}"
    verb = "interrupted" if run.status == "interrupted" else "finished"
    sentence = f"{verb} {run.choices['algo']} on {task} after {spent}"
    if "eval/return_mean" not in summary:  # interrupted between two evaluations
        return sentence
    kinds = ("return", "greedy_return")  # no greedy one where none of its texts could be scored
    means = [number(summary[key]) for kind in kinds if (key := f"eval/{kind}_mean") in summary]
    if "eval/brier" in summary:
        return f"{sentence}: right about {means[0]} of held-out labels, Brier score {number(summary['eval/brier'])}"
    if "eval/margin" in summary:
        return f"{sentence}: agrees with {means[0]} of held-out labels, with the true reward in {means[1]} of pairs"
    said = [", greedy ".join([f"return {means[0]}", *means[1:]])]
    if "eval/preference_accuracy" in summary:
        said = [
            *(said if _rewarded(run) else []),
            f"ranks {number(summary['eval/preference_accuracy'])} of held-out pairs as they are labelled",
        ]
    return f"{sentence}: {', '.join(said)}"


def _rewarded(run: "Run") -> bool:
    """A file of texts may have no reward."""
    return bool(run.config["env"].get("reward", True) or run.config.get("reward"))


OWN = ("algo", "env", "init", "reward", "seed", "stop_at", "runs_dir")
"""Settings of this one run; the first four are spelled anew."""
PLACES = ("env.", "policy=", "policy.", "device=", "device.")
"""Words that also another method needs to find the same model and texts."""


def _typed(run: "Run") -> list[str]:
    """The words with which the run was started, without those of this one run."""
    try:
        words = (run.path / "overrides.txt").read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    own = (*OWN, "env.id") if run.choices["env"] == "gymnasium" else OWN
    from pgcli.runs.reader import still_true

    return [still_true(run, word) for word in words if word.partition("=")[0] not in own]


def _rival(run: "Run", env: str, words: list[str], folders: list[str]) -> str | None:
    """An algorithm to compare this one with; None if the words do not fit it, or its budget there is another."""
    from pgcli.errors import InputError
    from pgcli.experiment.config import compose

    alternatives = ("rloo", "grpo") if run.info["unit"] == "tokens" else ("a2c", "ppo")
    other = next(name for name in alternatives if name != run.choices["algo"])
    try:
        budget = compose([f"algo={other}", f"env={env}", *words], config_dirs=folders, trust=True).total_steps
    except InputError:
        return None
    return other if budget == run.config["total_steps"] else None


def _named(key: str, path: Path | str) -> str:
    """`init=runs/sft`, as a shell and the grammar of overrides read it."""
    from pgcli.experiment.overrides import quoted
    from pgcli.options import short

    return shlex.quote(f"{key}={quoted(short(Path(path)))}")


def trusted(run: "Run") -> str:
    """What to type behind a run that names user code: nothing is imported because a file says so."""
    from pgcli.experiment.config import USER_CODE

    named = [str(run.config["env"].get(key.removeprefix("env."), "")) for key in USER_CODE]
    return " --trust" if any(":" in value for value in named) else ""


def _next(run: "Run") -> str:
    from pgcli.runs.reader import typed_options

    path, trust = shlex.quote(str(run.path)), trusted(run)
    if run.status == "interrupted":
        return f"pgcli resume {path}{trust}"
    algo, config = run.choices["algo"], run.config
    env = config["env"].get("id") if run.choices["env"] == "gymnasium" else run.choices["env"]
    words, typed = _typed(run), typed_options(run)
    folders = typed.get("--config-dir", [])
    options = "".join(f" --config-dir {shlex.quote(folder)}" for folder in folders)
    place = f"env={env}" + "".join(f" {shlex.quote(word)}" for word in words if word.startswith(PLACES))
    init = _named("init", run.path)
    start = f" {_named('init', config['init'])}" if config["init"] else ""
    judge = algo.endswith("_reward") or algo == "reward_model"
    rewarded = _rewarded(run)
    lines = [f"pgcli {'sample' if run.info['unit'] == 'tokens' and not judge else 'eval'} {path}{trust}"]
    code = " --trust" if "--trust" in typed else ""
    if algo == "pretrain":
        lines.append(f"pgcli train algo=sft {place} {init}{options}{code}")
    elif algo == "sft":
        lines += [f"pgcli train algo=grpo {place} {init}{options}{code}"] if rewarded else []
    elif judge:
        judged = f"{_named('reward', run.path)} algo.kl.coefficient=0.1"
        lines.append(f"pgcli train algo=ppo {place}{start} {judged}{options}{code or trust}")
    elif not run.info.get("parent") and "--config" not in typed:  # words were all that made it
        start += f" {_named('reward', config['reward'])}" if config.get("reward") else ""
        rival = _rival(run, env, words, folders) if rewarded else None
        both = f"{algo},{rival}" if rival else algo
        words = [f"algo={both}", f"env={env}", *map(shlex.quote, words)]
        code = code or (trust if config.get("reward") else "")
        lines.append(f"pgcli sweep {' '.join(words)}{start} 'seed=range(0,10)'{options}{code}")
    return "\n       ".join(lines)
