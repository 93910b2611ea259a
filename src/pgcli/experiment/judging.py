"""The reward model that a config names: loaded from its run, checked against the task, and calibrated."""

from __future__ import annotations

from typing import Any

import torch

from pgcli.collectors.completions import Decoding
from pgcli.collectors.learned_reward import Judge, has_reward
from pgcli.collectors.pairs import write
from pgcli.errors import InputError
from pgcli.experiment.config import ExperimentConfig
from pgcli.experiment.policy import initialise, make_policy
from pgcli.experiment.sources import Trained, words
from pgcli.registry import find
from pgcli.seeding import episode_seeds, numpy_generator
from pgcli.types import TextSpec


def make_judge(config: ExperimentConfig, task: Any, trained: Trained) -> Judge:
    """The reward model that a config names, frozen. Raises InputError if it cannot judge this task's texts."""
    name = f"reward={config.reward}"
    if not isinstance(task.spec, TextSpec):
        raise InputError(f"{name} judges texts; env={config.choices['env']} is stepped and has its own reward")
    algorithm_class: Any = find("algo", trained.config.algo.name)
    if not hasattr(algorithm_class, "reads"):
        raise InputError(
            f"{name} is a run of {trained.config.algo.name}, not of a reward model: "
            "algo=reward_model, outcome_reward or process_reward trains one"
        )
    own = find("env", trained.config.env.name)(trained.config.env)
    if words(own) != words(task):
        raise InputError(f"{name} reads the vocabulary of env={trained.config.env.name}, not that of {config.env.name}")
    reading = algorithm_class.reads(trained.config.algo)
    if reading == "process" and not hasattr(task, "step_labels"):
        raise InputError(f"{name} judges steps, and env={config.choices['env']} does not say where one ends")
    needs = algorithm_class.needs(trained.config.algo)
    if config.judge.stop_disagreement is not None and needs.members == 1:
        raise InputError(f"judge.stop_disagreement: {name} has one member, which cannot disagree: algo.ensemble=4")
    scorer = make_policy(trained.config, task.spec, needs)
    initialise(scorer, trained.policy, name)
    return Judge(scorer, reading, members=needs.members)


def calibrate(config: ExperimentConfig, task: Any, judge: Judge, writer: Any, device: torch.device) -> None:
    """Sets the judge's mean and scale on completions of training prompts by the reference policy (without one, by the
    initial policy), so that a run which goes on from another is paid in the same unit.
    """
    seeds = episode_seeds(config.seed, "calibration", range(config.judge.calibration))
    written = write(Decoding(task, device=device), writer, seeds, numpy_generator(config.seed, "calibration"))
    judge.calibrate(task, written.texts, written.gold if has_reward(task) else None)
