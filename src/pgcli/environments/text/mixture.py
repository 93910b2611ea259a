"""A mixture of text tasks by weight, as reasoning-gym's composite data set: one policy learns all of them.

    prompt      <add> 7 + 5 =           <reverse> t o a d =         <sort> 5 2 0 2 =
    completion  7 5 2 1 : 1 2 <end>     d a o t <end>               0 2 2 5 <end>

In place of <bos> a prompt begins with its task, so that the same letters can be asked by two of them. The vocabulary is
the union of the tasks' symbols. Which task a prompt is of is a function of its seed, as everything else; it is held out
if its task holds it out.

Each task scores its own rows, by its own settings: a completion longer than its task's limit is scored as if that limit
had cut it. What is no symbol of the task is as wrong as padding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BeforeValidator, Field, create_model
from torch import Tensor
from torch.nn.functional import pad

from pgcli.environments.text import _settings
from pgcli.environments.text._settings import Outcome
from pgcli.environments.text.tokenizers import SPECIALS
from pgcli.errors import InputError
from pgcli.functional.masked import last_of, masked_sum
from pgcli.registry import find
from pgcli.seeding import keys_of, uniforms
from pgcli.settings import Settings
from pgcli.types import Observations, TextSpec, Written

BOS, END, PAD = SPECIALS
LABEL = re.compile(r"[A-Za-z]\w*")
STREAM = int.from_bytes(b"mixture", "big")
"""Turns a seed into another one, so that the task is independent of the prompt that the seed draws within it."""
SUCCESS = "exact_match"
COMPONENTS = {
    "reward": "the reward of the completion's own task",
    SUCCESS: "share of completions that their own tasks call right",
    "<task>_<component>": "each component of each task, over that task's completions: sort_exact_match",
}


@dataclass(frozen=True)
class Part:
    """One task of a mixture. Tokens are its own, or the mixture's."""

    label: str
    task: Any
    first: int
    """The mixture's token with which its prompts begin."""
    to_mixture: Tensor
    """(own vocabulary,): the mixture's token of each."""
    to_own: Tensor
    """(the mixture's vocabulary,): its own token of each; padding for a symbol that it has not."""
    components: tuple[str, ...]
    stepwise: bool
    """Whether it rewards token by token."""
    padded: bool
    """Whether its prompts differ in length."""


class Mixture:
    class Config(Outcome):
        name: str = Field(description="name of this environment")
        tasks: Any = Field(description="tasks by name, each with its `weight` and settings; null leaves a task out")

    world = "text"
    OPTIONS = "tasks"
    """The setting whose entries are other options; what they do not set comes from those options' files."""
    COMPONENTS: dict[str, str] = COMPONENTS

    @classmethod
    def model_of(cls, settings: Mapping[str, Any]) -> type[Config]:
        """The `Config` of these settings: in it, each task has the settings of its own class, and a weight.

        Raises InputError for what cannot be mixed.
        """
        entries = settings.get(cls.OPTIONS)
        if not isinstance(entries, Mapping):
            raise InputError("`env.tasks` must be settings by task, {sort: {weight: 2}, reverse: {}}")
        names: dict[str, str] = {}
        for label, entry in entries.items():
            names[str(label)] = str(entry.get("name", label) if isinstance(entry, Mapping) else label)
        for label, name in names.items():
            if reason := _why_not(label, name):
                raise InputError(f"`env.tasks.{label}`: {reason}")
        if len(names) < 2:
            raise InputError(f"`env.tasks` has {len(names) or 'no'} task, and a mixture two or more")
        return _model(tuple(sorted(names.items())))

    def __init__(self, config: Any) -> None:
        self.config = config
        chosen = {label: getattr(config.tasks, label) for label in type(config.tasks).model_fields}
        weights = np.array([entry.weight for entry in chosen.values()])
        weights /= weights.max()  # their sum may be more than a float can be
        self.shares = (weights / weights.sum()).cumsum()
        tasks = {label: find("env", entry.name)(entry) for label, entry in chosen.items()}
        words = {label: _words(label, task) for label, task in tasks.items()}
        symbols = sorted({word for own in words.values() for word in own} - {*SPECIALS})
        self.names = [*symbols, END, PAD, *(f"<{label}>" for label in tasks)]
        self.numbers = {name: number for number, name in enumerate(self.names)}
        self.spec = TextSpec(
            vocabulary=len(self.names),
            prompt_length=max(task.spec.prompt_length for task in tasks.values()),
            completion_length=max(task.spec.completion_length for task in tasks.values()),
            end=self.numbers[END],
            pad=self.numbers[PAD],
        )
        self.parts = [self._part(label, task, words[label]) for label, task in tasks.items()]
        self.stepwise = any(part.stepwise for part in self.parts)
        self.COMPONENTS = {name: COMPONENTS[name] for name in ("reward", SUCCESS)} | {
            f"{part.label}_{name}": f"{part.task.COMPONENTS[name]} (of {part.label})"
            for part in self.parts for name in part.components
        }  # fmt: skip
        if all(hasattr(part.task, "step_labels") for part in self.parts):
            self.step_labels = self._step_labels

    def _part(self, label: str, task: Any, words: list[str]) -> Part:
        first = self.numbers[f"<{label}>"]
        to_mixture = torch.tensor([first if word == BOS else self.numbers[word] for word in words])
        to_own = torch.full((len(self.names),), task.spec.pad).scatter(0, to_mixture, torch.arange(len(words)))
        observations, actions = task.demonstrations([0])
        parts = task.rewards(observations, actions, torch.ones_like(actions, dtype=torch.bool))
        stepwise, padded = parts["reward"].dim() == 2, "lengths" in observations
        return Part(label, task, first, to_mixture, to_own, tuple(parts), stepwise, padded)

    # ------------------------------------------------------------ texts

    def prompts(self, seeds: Sequence[int], *, held_out: bool) -> Observations:
        """Each seed draws its task by weight, and that task's prompt."""
        prompt = torch.full((len(seeds), self.spec.prompt_length), self.spec.pad)
        lengths = torch.zeros(len(seeds), dtype=torch.int64)
        for part, rows, own in self._shared_out(seeds):
            asked = part.task.prompts(own, held_out=held_out)
            prompt[rows], lengths[rows] = self._asked(part, asked)
        return {"prompt": prompt, "lengths": lengths}

    def demonstrations(self, seeds: Sequence[int]) -> Written:
        shape = len(seeds), self.spec.prompt_length
        prompt, lengths = torch.full(shape, self.spec.pad), torch.zeros(len(seeds), dtype=torch.int64)
        actions = torch.full((len(seeds), self.spec.completion_length), self.spec.pad)
        for part, rows, own in self._shared_out(seeds):
            asked, answers = part.task.demonstrations(own)
            prompt[rows], lengths[rows] = self._asked(part, asked)
            actions[rows, : answers.shape[1]] = part.to_mixture[answers]
        return Written({"prompt": prompt, "lengths": lengths}, actions)

    def corpus(self, seeds: Sequence[int]) -> Written:
        """The tasks' own texts; each begins with its task."""
        found = [(rows, part.to_mixture, part.task.corpus(own)) for part, rows, own in self._shared_out(seeds)]
        first = torch.zeros((len(seeds), 1), dtype=torch.int64)
        longest = max(text.actions.shape[1] for _, _, text in found)
        actions = torch.full((len(seeds), longest), self.spec.pad)
        for rows, to_mixture, text in found:
            first[rows] = to_mixture[text.observations["prompt"]]
            actions[rows, : text.actions.shape[1]] = to_mixture[text.actions]
        return Written({"prompt": first}, actions)

    def _shared_out(self, seeds: Sequence[int]) -> list[tuple[Part, Tensor, list[int]]]:
        """The tasks that seeds draw, with the rows and the seeds that draw each."""
        noise = uniforms(keys_of([seed ^ STREAM for seed in seeds]), 1)[:, 0]
        # The last share may be a rounding error short of 1.
        drawn = np.minimum(np.searchsorted(self.shares, noise), len(self.parts) - 1)
        rows = [np.flatnonzero(drawn == number) for number in range(len(self.parts))]
        return [
            (part, torch.from_numpy(own), [seeds[row] for row in own.tolist()])
            for part, own in zip(self.parts, rows, strict=True) if len(own)
        ]  # fmt: skip

    def _asked(self, part: Part, asked: Observations) -> tuple[Tensor, Tensor]:
        """A task's prompts as the mixture's, (n, P), and their lengths, (n,)."""
        prompt = part.to_mixture[asked["prompt"]]
        n, own = prompt.shape
        lengths = asked["lengths"] if part.padded else torch.full((n,), own)
        return pad(prompt, (self.spec.prompt_length - own, 0), value=self.spec.pad), lengths

    def encode(self, text: str) -> list[int]:
        tasks = [f"<{part.label}>" for part in self.parts]
        found = re.findall("|".join([*tasks, "."]), text, re.DOTALL)
        unknown = sorted({symbol for symbol in found if symbol not in self.numbers})
        if unknown:
            raise InputError(
                f"not among the {self.spec.end} characters of the vocabulary, nor {', '.join(tasks)}: "
                f"{', '.join(map(repr, unknown))}"
            )
        return [self.numbers[symbol] for symbol in found]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self.names[token] for token in tokens)

    # ------------------------------------------------------------ rewards

    def rewards(self, observations: Observations, completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        nothing = torch.full((len(completions),), torch.nan, device=completions.device)
        found = {name: nothing.clone() for name in self.COMPONENTS}
        steps = torch.zeros(completions.shape, device=completions.device)
        for part, rows, *own in self._read(observations, completions, mask):
            parts = part.task.rewards(*own)
            limit = own[-1].shape[1]
            if part.stepwise:
                steps[rows, :limit] = parts["reward"]
                parts |= {"reward": masked_sum(parts["reward"], own[-1], dim=1)}
            else:
                steps[rows, last_of(mask[rows])] = parts["reward"]
            for name in part.components:
                found[f"{part.label}_{name}"][rows] = parts[name]
            for name in ("reward", SUCCESS):
                found[name][rows] = parts[name]
        return found | ({"reward": steps} if self.stepwise else {})

    def settle(
        self, observations: Observations, completions: Tensor, mask: Tensor, earned: Tensor
    ) -> dict[str, Tensor]:
        """What a trained reward is worth after each task's limits, as `_settings.settle`."""
        reward = earned.clone()
        for part, rows, _, written, own in self._read(observations, completions, mask):
            settled = _settings.settle(part.task.config, part.task.spec, written, own, earned[rows])
            reward[rows] = settled["reward"]
        return {"reward": reward}

    def _step_labels(self, observations: Observations, completions: Tensor, mask: Tensor) -> Tensor:
        """(N, T), as in `chain`; there if all tasks have them."""
        labels = torch.full(completions.shape, torch.nan, device=completions.device)
        for part, rows, *own in self._read(observations, completions, mask):
            labels[rows, : own[-1].shape[1]] = part.task.step_labels(*own)
        return labels

    def _read(
        self, observations: Observations, completions: Tensor, mask: Tensor
    ) -> list[tuple[Part, Tensor, Observations, Tensor, Tensor]]:
        """Each task's rows, (n,), and their observations, completions and mask as the task reads them.

        Raises ValueError for a prompt that is not of the form of its task's, or names no task.
        """
        prompt, lengths = observations["prompt"], observations["lengths"]
        first = prompt.gather(1, prompt.shape[1] - lengths[:, None]).squeeze(1)
        if (first <= self.spec.pad).any():
            raise ValueError("a prompt begins with its task")
        found = []
        for part in self.parts:
            rows = (first == part.first).nonzero().squeeze(1)
            if not len(rows):
                continue
            spec, to_own = part.task.spec, part.to_own.to(prompt.device)
            asked = {"prompt": to_own[prompt[rows, -spec.prompt_length :]], "lengths": lengths[rows]}
            known = (asked["prompt"] != spec.pad).sum(1) == asked["lengths"]
            if not (known & (part.padded | (asked["lengths"] == spec.prompt_length))).all():
                raise ValueError(f"not the form of a prompt of {part.label}")
            limit = spec.completion_length
            found.append((
                part, rows, asked if part.padded else {"prompt": asked["prompt"]},
                to_own[completions[rows, :limit]], mask[rows, :limit],
            ))  # fmt: skip
        return found


def _words(label: str, task: Any) -> list[str]:
    """What each of a task's tokens says; raises InputError if that is more than one character."""
    spec: TextSpec = task.spec
    words = [task.decode([token]) for token in range(spec.vocabulary)]
    words[spec.end], words[spec.pad] = END, PAD
    if spec.reply_length or BOS not in words or any(len(word) > 1 and word not in SPECIALS for word in words):
        raise InputError(f"`env.tasks.{label}`: a mixture is of tasks of one turn that spell their texts after a {BOS}")
    return words


# ---------------------------------------------------------------- settings


def _why_not(label: str, name: str) -> str | None:
    """Why a task cannot be mixed; None if it can, as far as its class says."""
    found: Any = find("env", name)
    if not LABEL.fullmatch(label) or hasattr(Settings, label) or f"<{label}>" in SPECIALS:
        return "cannot be the name of a task; take another, and say which task it is by `name`"
    if found.world != "text":
        return f"env={name} is no text task"
    if hasattr(found, "model_of"):
        return "a mixture is of tasks, not of mixtures"
    if hasattr(found, "replies"):
        return f"a mixture is of tasks of one turn, and {name} has two"
    if hasattr(found, "complete"):
        return f"a mixture is of tasks that score a prompt by its tokens alone, and {name} knows more of it"
    if SUCCESS not in found.COMPONENTS:
        return f"a mixture is of tasks whose completions are right or wrong, and {name} has no {SUCCESS}"
    return None


def _refuse(value: Any) -> Any:
    del value
    raise ValueError("it is set for the whole mixture, not for one of its tasks")


@lru_cache  # two configs with the same tasks have one class, so that they can be compared
def _model(names: tuple[tuple[str, str], ...]) -> type[Mixture.Config]:
    """(label, name of a task) each, sorted, so that their order in a file changes nothing -> the `Config`."""
    # What belongs to the whole is not read of a part.
    fields: Any = {
        name: (Annotated[Any, BeforeValidator(_refuse)], Field(default=None, exclude=True))
        for name in Outcome.model_fields
    }
    about = "the task's share of the prompts, relative to the other weights"
    fields["weight"] = (float, Field(gt=0, default=1.0, description=about))
    tasks: dict[str, Any] = {label: find("env", name) for label, name in names}
    groups: Any = {label: (create_model("Entry", __base__=task.Config, **fields), ...) for label, task in tasks.items()}
    inner = create_model("Tasks", __base__=Settings, **groups)
    whole = Field(description=Mixture.Config.model_fields["tasks"].description)
    return create_model("Config", __base__=Mixture.Config, tasks=(inner, whole))
