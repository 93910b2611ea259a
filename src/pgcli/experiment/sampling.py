"""`sample`: completions by a trained policy, with rewards and log-probs."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgcli.collectors.narrowed import narrowed
from pgcli.collectors.reference import view
from pgcli.errors import InputError
from pgcli.experiment.build import Parts
from pgcli.experiment.evaluation import diverge
from pgcli.experiment.session import opened
from pgcli.functional.masked import masked_sum
from pgcli.runs.reader import find_run
from pgcli.seeding import episode_seeds, numpy_generator
from pgcli.types import Observations, Rollout, Sample, TextTask

STREAM = "sample"


def sample(
    run: Path | str,
    prompt: str | None = None,
    *,
    n: int = 8,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    greedy: bool = False,
    best_of: int = 1,
    seed: int | None = None,
    trust: bool = False,
    runs_dir: str = "runs",
) -> dict[str, Any]:
    """Completions by a run's last checkpoint: `pgcli sample RUN --prompt TEXT`.

    Args:
        prompt: text to complete; None: n held-out prompts of the task, one completion of each.
        temperature, top_k, top_p, min_p: narrow the distribution that is sampled; by default it is the policy's.
        best_of: completions sampled for each one shown, which is the one of highest reward (the run's own reward).
        seed: of prompts and noise; the run's own by default.

    Returns: {"run", "step", "samples"}. `log_prob` is the policy's; `sampled_log_prob`, if it was narrowed, that of the
    distribution that was sampled. `kl`, to the run's reference if it has one, is exact in each state.
    """
    for name, value in (("-n", n), ("--best-of", best_of)):
        if value < 1:
            raise InputError(f"{name} must be 1 or more, not {value}")
    if greedy and ((temperature, top_k, top_p, min_p) != (1.0, None, None, None) or best_of > 1):
        raise InputError("greedy takes the likeliest token: leave out temperature, top-k, top-p, min-p and best-of")
    found = find_run(str(run), runs_dir)
    with opened(found, trust=trust) as (parts, step):
        _check_writes(parts, found.choices)
        player: Any = copy.copy(parts.evaluator)
        if prompt is not None:
            player.task = Asked(player.task, prompt, name=found.choices["env"])
        number = parts.config.seed if seed is None else seed
        seeds = [s for s in episode_seeds(number, STREAM, range(n)) for _ in range(best_of)]
        generator = None if greedy else numpy_generator(number, STREAM, "actions")
        writer = narrowed(parts.policy, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        rollout: Rollout = player.play(writer, seeds, generator, held_out=True)
        sampled = masked_sum(rollout.log_probs, rollout.mask, dim=1)
        if writer is not parts.policy:
            rollout.log_probs = torch.where(rollout.mask, view(parts.policy, rollout).log_probs, 0)
        if "reference" in parts.frozen:
            diverge(parts.policy, parts.frozen["reference"], rollout)
        samples: list[Sample] = player.describe(rollout, len(seeds))
    if writer is not parts.policy:
        samples = [one | {"sampled_log_prob": x} for one, x in zip(samples, sampled.tolist(), strict=True)]
    blocks = (samples[i : i + best_of] for i in range(0, len(samples), best_of))
    return {"run": str(found.path), "step": step, "samples": [max(block, key=_reward) for block in blocks]}


def _reward(sample: Sample) -> float:
    """The last of all if it could not be scored."""
    return -math.inf if math.isnan(sample["reward"]) else sample["reward"]


def _check_writes(parts: Parts, choices: dict[str, str]) -> None:
    if parts.unit != "tokens":
        raise InputError(f"env={choices['env']} has no texts: a run of it is looked at by `pgcli eval`")
    if not hasattr(parts.policy, "prefill") or not hasattr(parts.evaluator, "task"):
        raise InputError(f"a run of algo={choices['algo']} writes nothing: sample one that was trained with its scores")


class Asked:
    """A task with the user's prompt only. A start or end that all prompts of a built-in task share is added if missing;
    nothing is where the prompts are the user's own.
    """

    def __init__(self, task: TextTask, prompt: str, *, name: str) -> None:
        self._task, self._name = task, name
        tokens = task.encode(prompt)
        if not hasattr(task, "complete"):
            own = _unpadded(task.prompts(range(16), held_out=True))
            first, last = {p[0] for p in own}, {p[-1] for p in own}
            if len(first) == 1 and tokens[:1] != [*first]:
                tokens = [*first, *tokens]
            if len(last) == 1 and tokens[-1:] != [*last]:
                tokens = [*tokens, *last]
        limit = task.spec.prompt_length
        if len(tokens) > limit:
            raise InputError(f"the prompt has {len(tokens)} tokens, and {name} has room for {limit}")
        self._padded = "lengths" in task.prompts([0], held_out=True)
        self._length = len(tokens)
        self._prompt = torch.tensor([task.spec.pad] * (limit - len(tokens)) * self._padded + tokens)

    def prompts(self, seeds: Sequence[int], *, held_out: bool) -> Observations:
        del held_out
        prompts = {"prompt": self._prompt.expand(len(seeds), -1)}
        prompts |= {"lengths": torch.full((len(seeds),), self._length)} if self._padded else {}
        return self._task.complete(prompts, seeds) if hasattr(self._task, "complete") else prompts

    def rewards(self, observations: Observations, completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        try:
            return self._task.rewards(observations, completions, mask)
        except (RuntimeError, IndexError, ValueError) as error:
            own = _unpadded(self._task.prompts([0], held_out=True))[0]
            raise InputError(
                f"{self._name} cannot score completions of this prompt; one of its own is {self._task.decode(own)}"
            ) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def _unpadded(prompts: Observations) -> list[list[int]]:
    rows = prompts["prompt"]
    lengths = prompts["lengths"].tolist() if "lengths" in prompts else np.full(len(rows), rows.shape[1])
    return [row[len(row) - int(length) :].tolist() for row, length in zip(rows, lengths, strict=True)]
