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
    means = [number(summary[f"eval/{kind}_mean"]) for kind in ("return", "greedy_return")]
    return f"{sentence}: return {means[0]}, greedy {means[1]}"


PLACES = ("policy=", "policy.path=", "env.path=", "env.reward=")


def _places(run: "Run") -> list[str]:
    """The typed words that another run needs to find the same model and texts."""
    try:
        words = (run.path / "overrides.txt").read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return []
    return [shlex.quote(word) for word in words if word.startswith(PLACES)]


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
    path, trust = shlex.quote(str(run.path)), trusted(run)
    if run.status == "interrupted":
        return f"pgcli resume {path}{trust}"
    algo, config = run.choices["algo"], run.config
    env = config["env"].get("id") if run.choices["env"] == "gymnasium" else run.choices["env"]
    env += "".join(f" {word}" for word in _places(run))
    init = _named("init", run.path)
    start = f" {_named('init', config['init'])}" if config["init"] else ""
    judge = algo.endswith("_reward") or algo == "reward_model"
    rewarded = bool(config["env"].get("reward", True) or config.get("reward"))  # a file of texts may have none
    lines = [f"pgcli {'sample' if run.info['unit'] == 'tokens' and not judge else 'eval'} {path}{trust}"]
    if algo == "pretrain":
        lines.append(f"pgcli train algo=sft env={env} {init}")
    elif algo == "sft":
        lines += [f"pgcli train algo=grpo env={env} {init}"] if rewarded else []
    elif judge:
        lines.append(
            f"pgcli train algo=ppo env={env}{start} {_named('reward', run.path)} algo.kl.coefficient=0.1{trust}"
        )
    else:
        start += f" {_named('reward', config['reward'])}" if config.get("reward") else ""
        alternatives = ("rloo", "grpo") if run.info["unit"] == "tokens" else ("a2c", "ppo")
        other = next(name for name in alternatives if name != algo)
        both = f"{algo},{other}" if rewarded else algo
        lines.append(
            f"pgcli sweep algo={both} env={env}{start} 'seed=range(0,10)'{trust if config.get('reward') else ''}"
        )
    return "\n       ".join(lines)
