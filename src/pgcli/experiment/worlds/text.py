"""Language: tasks whose prompts are completed, many in a batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pgcli.collectors.completions import Decoding
from pgcli.collectors.dataset import DatasetCollector
from pgcli.collectors.episodes import Player
from pgcli.collectors.held_out import LEAST, HeldOutLabels, HeldOutPairs, HeldOutPreferences
from pgcli.collectors.learned_reward import has_reward
from pgcli.collectors.pairs import (
    Answers,
    Law,
    Pairs,
    dataset,
    given_labels,
    given_pairs,
    pick,
    read_labels,
    read_texts,
    write,
)
from pgcli.collectors.preferences import (
    CheckedData,
    DataCollector,
    JudgedCollector,
    LabelledData,
    PairData,
    taken_apart,
)
from pgcli.collectors.revisions import RevisionCollector
from pgcli.errors import InputError
from pgcli.experiment.config import ExperimentConfig
from pgcli.experiment.evaluation import SUCCESS
from pgcli.experiment.policy import refers
from pgcli.experiment.worlds._world import World, whole
from pgcli.registry import find
from pgcli.seeding import derive, episode_seeds, numpy_generator
from pgcli.types import Collector, Completions, Written


def _decoding(task: Any, config: ExperimentConfig, device: torch.device) -> Player:
    _check_rewarded(task, config)
    algo: Any = config.algo
    one_pass = getattr(algo, "minibatches", 1) == 1 and getattr(algo, "microbatch", None) is None
    return Decoding(task, device=device, distributions=refers(config), keep_pass=one_pass)


def _dataset(task: Any, config: ExperimentConfig, device: torch.device) -> Collector:
    algo: Any = config.algo
    source = task.corpus if algo.source == "corpus" else task.demonstrations
    source([0])  # a task without them raises its error now
    count = None
    if hasattr(task, "listed"):
        count, source = task.count(algo.source), partial(task.listed, algo.source)
    return DatasetCollector(
        source, end=task.spec.end, rows=algo.num_demonstrations, seed=config.seed, device=device,
        reply_length=task.spec.reply_length, count=count,
    )  # fmt: skip


def _written_pairs(task: Any, config: ExperimentConfig, device: torch.device, writer: Any) -> Callable[[], Pairs]:
    if given_pairs(task, held_out=False) is None:
        if config.reward is None and hasattr(task, "given_pairs") and not has_reward(task):
            labels = ", or with completion and label" if config.algo.name == "kto" else ""
            raise InputError(
                f"algo={config.choices['algo']} learns from pairs, and {config.env.path} has no rows with chosen and "
                f"rejected{labels}: add some, or name a function to label what the policy writes, "
                "env.reward=my_rewards.py:score"
            )
        _check_rewarded(task, config)
    decoding, law = Decoding(task, device=device), _law(config)
    return lambda: dataset(decoding, writer, law, pairs=config.env.pairs, seed=config.seed)


def _pairs(task: Any, config: ExperimentConfig, device: torch.device, writer: Any) -> Collector:
    algo: Any = config.algo
    make = _written_pairs(task, config, device, writer)
    return DataCollector(lambda: PairData(make()), rows=algo.num_pairs, seed=config.seed)


def _labelled(task: Any, config: ExperimentConfig, device: torch.device, writer: Any) -> Collector:
    algo: Any = config.algo
    given = given_labels(task, held_out=False)
    texts: Callable[[], tuple[Completions, Tensor]]
    if given is None:
        pairs = _written_pairs(task, config, device, writer)
        texts = lambda: taken_apart(pairs())  # noqa: E731
    else:
        texts = partial(read_labels, Decoding(task, device=device), writer, *given)
    return DataCollector(lambda: LabelledData(*texts(), writer), rows=algo.num_completions, seed=config.seed)


def _checked(task: Any, config: ExperimentConfig, device: torch.device, writer: Any) -> Collector:
    algo: Any = config.algo
    name = config.choices["env"]
    if algo.labels == "process" and not hasattr(task, "step_labels"):
        raise InputError(f"algo={config.choices['algo']} learns which steps are right; env={name} does not check steps")
    if SUCCESS not in task.COMPONENTS:
        raise InputError(f"algo={config.choices['algo']} learns what is right; env={name} has no {SUCCESS}")
    if algo.labels == "outcome":
        given_labels(task, held_out=True)  # a file that holds none of its labels out is refused now
    make = partial(_labels_of, Decoding(task, device=device), config, writer)
    seeds = 2 * episode_seeds(config.seed, "pairs", range(config.env.pairs))
    return DataCollector(lambda: make(seeds, config.seed), rows=algo.num_completions, seed=config.seed)


def _labels_of(
    decoding: Decoding, config: ExperimentConfig, writer: Any, seeds: list[int], seed: int, *, held_out: bool = False
) -> CheckedData:
    """The task's own labels of outcomes, if it has some; or else completions of the seeds' prompts, and the task's
    labels of them.
    """
    algo: Any = config.algo
    given = given_labels(decoding.task, held_out=held_out) if algo.labels == "outcome" else None
    if given is None:
        written = write(decoding, writer, seeds, numpy_generator(seed, "checked"), held_out=held_out)
    else:
        texts, right = read_labels(decoding, writer, *given)
        written = Answers(texts, right.float(), right.float())
    return CheckedData(decoding.task, written, algo.labels)


def _judged(task: Any, config: ExperimentConfig, device: torch.device, reference: Any) -> Collector:
    algo: Any = config.algo
    _check_rewarded(task, config)
    decoding = Decoding(task, device=device, distributions=True)
    return JudgedCollector(decoding, reference, _law(config), rows=algo.num_pairs, seed=config.seed)


def _revisions(task: Any, config: ExperimentConfig, device: torch.device, reference: Any) -> Collector:
    algo: Any = config.algo
    if not hasattr(task, "criticise"):
        raise InputError(
            f"algo={config.choices['algo']} revises what a constitution criticises, "
            f"and env={config.choices['env']} has none: try env=assistant"
        )
    writer = reference if algo.writer == "initial" else None
    return RevisionCollector(
        Decoding(task, device=device), task, writer, rows=algo.num_prompts, rounds=algo.rounds, seed=config.seed
    )


def held_out_preferences(
    task: Any, config: ExperimentConfig, device: torch.device, reference: Any
) -> HeldOutPreferences | None:
    """Evaluates a policy that is its own reward model on what it does not learn of the task's labels or pairs."""
    algorithm_class: Any = find("algo", config.algo.name)
    labels = pairs = None
    with suppress(InputError):  # it has some, but none is held out
        labels = given_labels(task, held_out=True) if "labelled" in algorithm_class.collects else None
        pairs = given_pairs(task, held_out=True) if labels is None else None
    if labels is not None:
        texts, right = labels
        sides = (texts, right), (texts, ~right)
    elif pairs is not None:
        differ = (pairs[0].actions != pairs[1].actions).any(1)
        sides = (pairs[0], differ), (pairs[1], differ)
    else:
        return None

    def some(texts: Written, among: Tensor) -> Written:
        rows = among.nonzero().squeeze(1)
        order = numpy_generator(config.seed, "held out").permutation(len(rows))  # the same on either side of pairs
        return pick(texts, rows[torch.from_numpy(order[: max(config.eval.episodes, LEAST)])])

    if not all(among.any() for _, among in sides):
        return None
    read = partial(read_texts, Decoding(task, device=device), reference)
    return HeldOutPreferences(lambda: [read(some(*side)) for side in sides], paired=labels is None)


def judge_evaluator(task: Any, config: ExperimentConfig, device: torch.device, writer: Any) -> Player:
    """Evaluates a judge on texts written by `writer`; the algorithm's `reads` says what its scores mean."""
    algorithm_class: Any = find("algo", config.algo.name)
    decoding = Decoding(task, device=device)
    if "checked" in algorithm_class.collects:
        make = partial(_labels_of, decoding, config, writer, held_out=True)
        return HeldOutLabels(decoding, lambda seeds: make(seeds, derive(seeds[0], "held out")))
    return HeldOutPairs(decoding, writer, _law(config), algorithm_class.reads(config.algo))


def _law(config: ExperimentConfig) -> Law:
    if not hasattr(config.env, "label_scale"):
        raise InputError(
            f"algo={config.choices['algo']} compares completions; env={config.choices['env']} does not say how: "
            "its settings have no pairs, label_scale and label_flip"
        )
    return Law(config.env.label_scale, config.env.label_flip)


def _check_rewarded(task: Any, config: ExperimentConfig) -> None:
    if config.reward is None and not has_reward(task):
        raise InputError(
            f"algo={config.choices['algo']} learns from a reward, and env={config.choices['env']} has none: "
            "name a function, env.reward=my_rewards.py:score, or a trained judge, reward=<run>"
        )


TEXT = World(
    unit="tokens",
    make=lambda environment_class, config, rows: environment_class(config.env),
    rows=lambda config, way: 0,
    evaluator=lambda environment_class, config, task, device: Decoding(task, device=device),
    close=lambda task, evaluator: None,
    collectors={
        "episodes": whole(_decoding, grouped=False),
        "groups": whole(_decoding, grouped=True),
        "demonstrations": _dataset,
    },
    comparing={
        "pairs": _pairs,
        "labelled": _labelled,
        "judged": _judged,
        "checked": _checked,
        "revisions": _revisions,
    },
)
