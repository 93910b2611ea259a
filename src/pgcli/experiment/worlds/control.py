"""Classic control: environments that are stepped, many side by side."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.utils import vector_to_parameters

from pgcli.collectors.asynchronous import GradientCollector
from pgcli.collectors.episodes import Player, Stepping
from pgcli.collectors.population import PopulationCollector
from pgcli.collectors.replay import ReplayCollector
from pgcli.collectors.steps import SegmentCollector
from pgcli.collectors.transitions import TransitionCollector
from pgcli.environments.normalise import reward_settings, statistics, use_statistics, wrap
from pgcli.errors import InputError
from pgcli.experiment.config import ExperimentConfig
from pgcli.experiment.policy import make_policy
from pgcli.experiment.worlds._world import World, whole
from pgcli.registry import find
from pgcli.seeding import derive
from pgcli.types import Collector, Gradients, Rollout, State


def _rows(config: ExperimentConfig, way: str) -> int:
    """Number of environments stepped side by side."""
    algo: Any = config.algo
    match way:
        case "segments" | "replay" | "transitions":
            return algo.num_envs
        case "gradients":
            return 1  # only for its observation and action spaces: the workers have environments of their own
        case "episodes":
            return algo.num_episodes
        case "population":
            return algo.rows
    return algo.num_groups * algo.group_size


def _make(environment_class: Any, config: ExperimentConfig, rows: int) -> Any:
    return wrap(environment_class(config.env, rows), config.env.normalise)


def _evaluator(environment_class: Any, config: ExperimentConfig, training: Any, device: torch.device) -> Player:
    return _Following(_make(environment_class, config, config.eval.episodes), training, device)


class _Following(Stepping):
    """Plays in an environment of its own, with the training environment's present normalisation statistics."""

    def __init__(self, env: Any, training: Any, device: torch.device) -> None:
        super().__init__(env, device=device)
        self.training = training

    def play(
        self, policy: Any, seeds: list[int], generator: np.random.Generator | None, *, held_out: bool = False
    ) -> Rollout:
        use_statistics(self.env, statistics(self.training))
        return super().play(policy, seeds, generator, held_out=held_out)


def _close(environment: Any, evaluator: Any) -> None:
    environment.close()
    evaluator.env.close()


def _player(environment: Any, config: ExperimentConfig, device: torch.device) -> Player:
    del config
    return Stepping(environment, device=device)


def _segments(environment: Any, config: ExperimentConfig, device: torch.device) -> Collector:
    algo: Any = config.algo
    return SegmentCollector(environment, num_steps=algo.num_steps, seed=config.seed, device=device)


def _transitions(environment: Any, config: ExperimentConfig, device: torch.device) -> Collector:
    algo: Any = config.algo
    return TransitionCollector(environment, looks_ahead=algo.looks_ahead, seed=config.seed, device=device)


def _replay(environment: Any, config: ExperimentConfig, device: torch.device) -> Collector:
    algo: Any = config.algo
    return ReplayCollector(
        environment, num_steps=algo.num_steps, learning_starts=algo.learning_starts, capacity=algo.capacity,
        seed=config.seed, device=device,
    )  # fmt: skip


def _gradients(environment: Any, config: ExperimentConfig, device: torch.device) -> Collector:
    del environment, device  # a worker makes its own environment, on the CPU
    algo: Any = config.algo
    normalise: Any = config.env.normalise
    # A single worker's statistics of observations are refused too: evaluations, in the main process, lack them.
    for name, refused in (("observations", True), ("rewards", algo.num_workers > 1)):
        if refused and getattr(normalise, name):
            raise InputError(
                f"env.normalise.{name}: each worker of algo={config.algo.name} would have statistics of its own; "
                "algo=a2c normalises for all its environments"
            )
    return GradientCollector(partial(Worker, config), num_workers=algo.num_workers)


class Worker:
    """In a worker process: environments, a copy of the policy, and the algorithm whose loss is differentiated."""

    def __init__(self, config: ExperimentConfig, number: int) -> None:
        torch.set_num_threads(config.device.threads)
        algo: Any = config.algo
        algorithm_class: Any = find("algo", algo.name)
        self.environment = _make(find("env", config.env.name), config, algo.num_envs)
        self.policy = make_policy(config, self.environment.spec, algorithm_class.needs(algo))
        self.algorithm = algorithm_class(self.policy, algo, total_steps=config.total_steps, seed=config.seed)
        self.collector = SegmentCollector(
            self.environment, num_steps=algo.num_steps, seed=derive(config.seed, "worker", number),
            device=torch.device("cpu"),
        )  # fmt: skip

    @property
    def replay_mismatch(self) -> str | None:
        return self.environment.replay_mismatch

    def gradients(self, parameters: np.ndarray) -> Gradients:
        vector_to_parameters(torch.from_numpy(parameters), self.policy.parameters())
        return self.algorithm.gradients(self.collector.collect(self.policy))

    def state_dict(self) -> State:
        return self.collector.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.collector.load_state_dict(state)

    def close(self) -> None:
        self.environment.close()


def _population(environment: Any, config: ExperimentConfig, device: torch.device) -> Collector:
    del device  # candidates act in NumPy
    algo: Any = config.algo
    if useless := reward_settings(config.env.normalise):
        raise InputError(
            f"env.normalise.{useless[0]} has no effect: algo={config.choices['algo']} compares the task's own returns; "
            "leave it out"
        )
    return PopulationCollector(environment, num_episodes=algo.num_episodes, seed=config.seed)


CONTROL = World(
    unit="steps",
    make=_make,
    rows=_rows,
    evaluator=_evaluator,
    close=_close,
    collectors={
        "segments": _segments,
        "episodes": whole(_player, grouped=False),
        "groups": whole(_player, grouped=True),
        "gradients": _gradients,
        "population": _population,
        "replay": _replay,
        "transitions": _transitions,
    },
    comparing={},
)
