"""From a config to the parts of an experiment, paired or refused. Nothing is written here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pkgutil import iter_modules
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils import vector_to_parameters

from pgcli import algorithms, processes
from pgcli.collectors.asynchronous import GradientCollector
from pgcli.collectors.completions import Decoding
from pgcli.collectors.dataset import DatasetCollector
from pgcli.collectors.episodes import EpisodeCollector, Player, Stepping
from pgcli.collectors.informative import InformativeGroups
from pgcli.collectors.learned_reward import Judge, LearnedReward
from pgcli.collectors.population import PopulationCollector
from pgcli.collectors.preferences import (
    CheckedData,
    DataCollector,
    HeldOutPairs,
    JudgedCollector,
    LabelledData,
    Law,
    PairData,
    Pairs,
    dataset,
    given_pairs,
    write,
)
from pgcli.collectors.reference import Referenced
from pgcli.collectors.replay import ReplayCollector
from pgcli.collectors.revisions import RevisionCollector
from pgcli.collectors.steps import SegmentCollector
from pgcli.collectors.transitions import TransitionCollector
from pgcli.environments.normalise import statistics, use_statistics, wrap
from pgcli.errors import InputError
from pgcli.experiment.config import ExperimentConfig
from pgcli.experiment.evaluation import SUCCESS
from pgcli.options import built_in_folder, options
from pgcli.registry import find, has_class
from pgcli.seeding import derive, episode_seeds, numpy_generator
from pgcli.types import Algorithm, Collector, Continuous, Gradients, Needs, Rollout, Spec, State, Stochastic, TextSpec


@dataclass
class Parts:
    """Everything that the loop turns, ready to turn."""

    config: ExperimentConfig
    device: Any
    spec: Spec
    policy: Any
    behaviour: Callable[[], Any]
    """Who acts while training: the policy, unless the algorithm makes something else of it."""
    algorithm: Algorithm
    collector: Collector
    environment: Any
    unit: str
    """What a step is: `steps` or `tokens`."""
    close: Callable[[], None]
    """Lets the environments go."""
    evaluator: Player
    """Plays episodes that training never sees, with whatever statistics training has gathered."""
    frozen: dict[str, Any]
    """Modules that never learn here: the `reference` policy, the `reward` model. By name, those that are used."""
    standard: Rollout | None = None
    """What the reference makes of the evaluation's prompts, once it was asked."""

    def state_dict(self) -> State:
        state = {
            "policy": self.policy.state_dict(),
            "algorithm": self.algorithm.state_dict(),
            "collector": self.collector.state_dict(),
            "frozen": {name: module.state_dict() for name, module in self.frozen.items()},
        }
        # The state of a stepped environment is its collector's; that of a task, where it has any, stands by itself.
        if isinstance(self.spec, TextSpec) and hasattr(self.environment, "state_dict"):
            state["task"] = self.environment.state_dict()
        return state

    def load_state_dict(self, state: State) -> None:
        self.policy.load_state_dict(state["policy"])
        self.algorithm.load_state_dict(state["algorithm"])
        self.collector.load_state_dict(state["collector"])
        if "task" in state:
            self.environment.load_state_dict(state["task"])
        for name, module in self.frozen.items():
            module.load_state_dict(state["frozen"][name])


class Trained(NamedTuple):
    """Another run, as far as this one builds on it."""

    config: ExperimentConfig
    policy: State


@dataclass(frozen=True)
class Sources:
    """The runs that a config names, read."""

    init: State | None = None
    reference: Trained | None = None
    reward: Trained | None = None
    begun: bool = False
    """The run's own checkpoint holds what is frozen: nothing need be made that it will overwrite."""


def build(config: ExperimentConfig, sources: Sources = Sources()) -> Parts:
    """Config -> device, environment, policy, algorithm, collector.

    Args:
        sources: what `init`, `reference` and `reward` name. Parameters that the initial policy lacks (a critic, say)
            keep their initialisation.

    Raises InputError for parts that do not fit together.
    """
    algorithm_class: Any = find("algo", config.algo.name)
    environment_class: Any = find("env", config.env.name)
    world = WORLDS[environment_class.world]
    way = _pair(config, algorithm_class, world)

    _check_samples(config, environment_class)
    if processes.size() > 1 and world.unit != "tokens":
        raise InputError(
            f"torchrun shares out the rows of a text task; env={config.env.name} is stepped by one process"
        )
    environment = world.make(environment_class, config, world.rows(config, way))
    judge = None
    if sources.reward is not None:
        judge = _judge(config, environment, sources.reward, world)
        environment = LearnedReward(
            environment, judge, combination=config.judge.combine, pessimism=config.judge.pessimism
        )
    _check_actions(config, algorithm_class, environment.spec, world)

    policy = _policy(config, environment.spec, algorithm_class.needs(config.algo))
    if sources.init is not None:
        _initialise(policy, sources.init, f"init={config.init}")
    size = sum(p.numel() for p in policy.parameters())
    device: Any = find("device", config.device.name)(config.device, parameters=size)
    policy = policy.to(device.torch)
    frozen = {}
    if _refers(config, algorithm_class):
        frozen["reference"] = _reference(config, environment.spec, sources, policy).to(device.torch)
    elif way in world.comparing:
        frozen["writer"] = _reference(config, environment.spec, sources, policy).to(device.torch)

    if judge is not None:
        frozen["reward"] = judge.to(device.torch)
        if not sources.begun:
            writer = frozen.get("writer", frozen.get("reference", policy))
            _calibrate(config, environment, judge, writer, device.torch)

    algorithm = algorithm_class(
        policy, config.algo, total_steps=config.total_steps, seed=derive(config.seed, "minibatches")
    )
    collector: Collector
    if way in world.comparing:
        writer = frozen.get("reference", frozen.get("writer"))
        collector = world.comparing[way](environment, config, device.torch, writer)
    else:
        collector = world.collectors[way](environment, config, device.torch)
        if "reference" in frozen:
            collector = Referenced(collector, frozen["reference"])
    evaluator = world.evaluator(environment_class, config, environment, device.torch)
    if "writer" in frozen:
        evaluator = HeldOutPairs(
            Decoding(environment, device=device.torch),
            frozen["writer"],
            _law(config),
            algorithm_class.reads(config.algo),
        )
    close = partial(_close, collector, world.close, environment, evaluator)
    behaviour = getattr(algorithm, "behaviour", lambda: policy)
    return Parts(
        config, device, environment.spec, policy, behaviour, algorithm, collector, environment, world.unit, close,
        evaluator, frozen,
    )  # fmt: skip


def _refers(config: ExperimentConfig, algorithm_class: Any) -> bool:
    """Whether the algorithm compares its policy with a frozen one."""
    return getattr(algorithm_class, "refers", lambda algo: False)(config.algo)


def warnings(config: ExperimentConfig) -> list[str]:
    """What an algorithm has to say of settings that it runs all the same."""
    return getattr(find("algo", config.algo.name), "warnings", lambda algo: [])(config.algo)


def _reference(config: ExperimentConfig, spec: Spec, sources: Sources, policy: Any) -> Any:
    """A frozen distribution over actions: that of the run `reference`, or what training starts from.

    A policy that trains little of itself offers a `twin`, which has that little again and shares the rest.
    """
    if sources.reference is not None:  # it may be of another size
        reference = _policy(sources.reference.config.model_copy(update={"seed": config.seed}), spec, Stochastic())
        _initialise(reference, sources.reference.policy, f"reference={config.reference}")
        return reference.requires_grad_(False)
    twin = policy.twin() if hasattr(policy, "twin") else None
    reference = twin or _policy(config, spec, Stochastic())
    if sources.init is not None:
        _initialise(reference, sources.init, f"init={config.init}")
    return reference.requires_grad_(False)


def _judge(config: ExperimentConfig, task: Any, trained: Trained, world: World) -> Judge:
    """The reward model that a config names, frozen; refused where it cannot judge this task's texts."""
    name = f"reward={config.reward}"
    if world is not WORLDS["text"]:
        raise InputError(f"{name} judges texts; env={config.choices['env']} is stepped and has its own reward")
    algorithm_class: Any = find("algo", trained.config.algo.name)
    if not hasattr(algorithm_class, "reads"):
        raise InputError(
            f"{name} is a run of {trained.config.algo.name}, not of a reward model: "
            "algo=reward_model, outcome_reward or process_reward trains one"
        )
    own = find("env", trained.config.env.name)(trained.config.env)
    if _vocabulary(own) != _vocabulary(task):
        raise InputError(f"{name} reads the vocabulary of env={trained.config.env.name}, not that of {config.env.name}")
    reading = algorithm_class.reads(trained.config.algo)
    if reading == "process" and not hasattr(task, "step_labels"):
        raise InputError(f"{name} judges steps, and env={config.choices['env']} does not say where one ends")
    needs = algorithm_class.needs(trained.config.algo)
    if config.judge.stop_disagreement is not None and needs.members == 1:
        raise InputError(f"judge.stop_disagreement: {name} has one member, which cannot disagree: algo.ensemble=4")
    scorer = _policy(trained.config, task.spec, needs)
    _initialise(scorer, trained.policy, name)
    return Judge(scorer, reading, members=needs.members)


def _vocabulary(task: Any) -> list[str]:
    return [task.decode([token]) for token in range(task.spec.vocabulary)]


def _calibrate(config: ExperimentConfig, task: Any, judge: Judge, writer: Any, device: torch.device) -> None:
    """On completions of training prompts by the reference, so that a reward keeps its unit in a run that goes on from
    another; without one by the initial policy (where that judges: by who writes its pairs).
    """
    seeds = episode_seeds(config.seed, "calibration", range(config.judge.calibration))
    written = write(Decoding(task, device=device), writer, seeds, numpy_generator(config.seed, "calibration"))
    judge.calibrate(task, written.texts, written.gold)


def _close(collector: Any, close_world: Callable[[Any, Any], None], environment: Any, evaluator: Any) -> None:
    if hasattr(collector, "close"):  # it has processes of its own
        collector.close()
    close_world(environment, evaluator)


# ---------------------------------------------------------------- the two worlds


@dataclass(frozen=True)
class World:
    """How an environment's world produces what algorithms ask for. The one place that knows both."""

    unit: str
    make: Callable[[Any, ExperimentConfig, int], Any]
    rows: Callable[[ExperimentConfig, str], int]
    evaluator: Callable[[Any, ExperimentConfig, Any, torch.device], Player]
    close: Callable[[Any, Any], None]
    collectors: dict[str, Callable[[Any, ExperimentConfig, torch.device], Collector]]
    comparing: dict[str, Callable[[Any, ExperimentConfig, torch.device, Any], Collector]]
    """Those that a frozen policy has a part in, which is their last argument."""

    @property
    def offers(self) -> list[str]:
        return [*self.collectors, *self.comparing]


def _rows(config: ExperimentConfig, way: str) -> int:
    """How many environments are stepped side by side."""
    algo: Any = config.algo
    match way:
        case "segments" | "replay" | "transitions":
            return algo.num_envs
        case "gradients":
            return 1  # it only tells what there is to observe and to do: the workers have their own
        case "episodes":
            return algo.num_episodes
        case "population":
            return algo.rows
    return algo.num_groups * algo.group_size


def _make_control(environment_class: Any, config: ExperimentConfig, rows: int) -> Any:
    return wrap(environment_class(config.env, rows), config.env.normalise)


def _control_evaluator(environment_class: Any, config: ExperimentConfig, training: Any, device: torch.device) -> Player:
    return _Following(_make_control(environment_class, config, config.eval.episodes), training, device)


class _Following(Stepping):
    """Plays in an environment of its own, normalised by what the training environment has seen so far."""

    def __init__(self, env: Any, training: Any, device: torch.device) -> None:
        super().__init__(env, device=device)
        self.training = training

    def play(
        self, policy: Any, seeds: list[int], generator: np.random.Generator | None, *, held_out: bool = False
    ) -> Rollout:
        use_statistics(self.env, statistics(self.training))
        return super().play(policy, seeds, generator, held_out=held_out)


def _close_control(environment: Any, evaluator: Any) -> None:
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


def _whole(player: Callable[[Any, ExperimentConfig, torch.device], Player], *, grouped: bool) -> Any:
    """Whole episodes of a world's player: single ones, or groups."""

    def collector(environment: Any, config: ExperimentConfig, device: torch.device) -> Collector:
        algo: Any = config.algo
        groups, size = (algo.num_groups, algo.group_size) if grouped else (algo.num_episodes, 1)
        episodes = EpisodeCollector(
            player(environment, config, device), num_groups=groups, group_size=size, seed=config.seed
        )
        polls = getattr(algo, "max_polls", 1)
        return episodes if polls == 1 else InformativeGroups(episodes, num_groups=groups, max_polls=polls)

    return collector


def _gradients(environment: Any, config: ExperimentConfig, device: torch.device) -> Collector:
    del environment, device  # a worker has its own, on the processor
    algo: Any = config.algo
    if config.env.normalise.observations:
        raise InputError(
            f"env.normalise.observations: each worker of algo={config.algo.name} would have statistics of its own; "
            "algo=a2c normalises for all its environments"
        )
    return GradientCollector(partial(Worker, config), num_workers=algo.num_workers)


class Worker:
    """In a process of its own: environments, a copy of the policy, and the algorithm whose loss it differentiates."""

    def __init__(self, config: ExperimentConfig, number: int) -> None:
        torch.set_num_threads(config.device.threads)
        algo: Any = config.algo
        algorithm_class: Any = find("algo", algo.name)
        self.environment = _make_control(find("env", config.env.name), config, algo.num_envs)
        self.policy = _policy(config, self.environment.spec, algorithm_class.needs(algo))
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
    return PopulationCollector(environment, num_episodes=algo.num_episodes, seed=config.seed)


def _check_rewarded(task: Any, config: ExperimentConfig) -> None:
    if config.reward is None and not getattr(task, "has_reward", True):
        raise InputError(
            f"algo={config.choices['algo']} learns from a reward, and env={config.choices['env']} has none: "
            "name a function, env.reward=my_rewards.py:score, or a trained judge, reward=<run>"
        )


def _decoding(task: Any, config: ExperimentConfig, device: torch.device) -> Player:
    _check_rewarded(task, config)
    return Decoding(task, device=device, distributions=_refers(config, find("algo", config.algo.name)))


def _dataset(task: Any, config: ExperimentConfig, device: torch.device) -> Collector:
    algo: Any = config.algo
    source = task.corpus if algo.source == "corpus" else task.demonstrations
    source([0])  # a task that has none says so now
    return DatasetCollector(
        source, end=task.spec.end, rows=algo.num_demonstrations, seed=config.seed, device=device,
        reply_length=task.spec.reply_length,
    )  # fmt: skip


def _law(config: ExperimentConfig) -> Law:
    if not hasattr(config.env, "label_scale"):
        raise InputError(
            f"algo={config.choices['algo']} compares completions; env={config.choices['env']} does not say how: "
            "its settings have no pairs, label_scale and label_flip"
        )
    return Law(config.env.label_scale, config.env.label_flip)


def _written_pairs(task: Any, config: ExperimentConfig, device: torch.device, writer: Any) -> Callable[[], Pairs]:
    if given_pairs(task, held_out=False) is None:
        _check_rewarded(task, config)
    decoding, law = Decoding(task, device=device), _law(config)
    return lambda: dataset(decoding, writer, law, pairs=config.env.pairs, seed=config.seed)


def _pairs(task: Any, config: ExperimentConfig, device: torch.device, writer: Any) -> Collector:
    algo: Any = config.algo
    make = _written_pairs(task, config, device, writer)
    return DataCollector(lambda: PairData(make()), rows=algo.num_pairs, seed=config.seed)


def _labelled(task: Any, config: ExperimentConfig, device: torch.device, writer: Any) -> Collector:
    algo: Any = config.algo
    make = _written_pairs(task, config, device, writer)
    return DataCollector(lambda: LabelledData(make(), writer), rows=algo.num_completions, seed=config.seed)


def _checked(task: Any, config: ExperimentConfig, device: torch.device, writer: Any) -> Collector:
    algo: Any = config.algo
    name = config.choices["env"]
    if algo.labels == "process" and not hasattr(task, "step_labels"):
        raise InputError(f"algo={config.choices['algo']} learns which steps are right; env={name} does not check steps")
    if SUCCESS not in task.COMPONENTS:
        raise InputError(f"algo={config.choices['algo']} learns what is right; env={name} has no {SUCCESS}")
    decoding = Decoding(task, device=device)

    def make() -> CheckedData:
        seeds = 2 * episode_seeds(config.seed, "pairs", range(config.env.pairs))
        written = write(decoding, writer, seeds, numpy_generator(config.seed, "checked"))
        return CheckedData(task, written, algo.labels)

    return DataCollector(make, rows=algo.num_completions, seed=config.seed)


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


WORLDS = {
    "control": World(
        unit="steps",
        make=_make_control,
        rows=_rows,
        evaluator=_control_evaluator,
        close=_close_control,
        collectors={
            "segments": _segments,
            "episodes": _whole(_player, grouped=False),
            "groups": _whole(_player, grouped=True),
            "gradients": _gradients,
            "population": _population,
            "replay": _replay,
            "transitions": _transitions,
        },
        comparing={},
    ),
    "text": World(
        unit="tokens",
        make=lambda environment_class, config, rows: environment_class(config.env),
        rows=lambda config, way: 0,
        evaluator=lambda environment_class, config, task, device: Decoding(task, device=device),
        close=lambda task, evaluator: None,
        collectors={
            "episodes": _whole(_decoding, grouped=False),
            "groups": _whole(_decoding, grouped=True),
            "demonstrations": _dataset,
        },
        comparing={
            "pairs": _pairs,
            "labelled": _labelled,
            "judged": _judged,
            "checked": _checked,
            "revisions": _revisions,
        },
    ),
}


# ---------------------------------------------------------------- what fits, and what is refused


def _pair(config: ExperimentConfig, algorithm_class: Any, world: World) -> str:
    """What the algorithm will learn from: the first of its ways that the world offers, or the one asked for."""
    wanted = getattr(config.algo, "collect", "auto")
    ways = [wanted] if wanted != "auto" else algorithm_class.collects
    for way in ways:
        if way in world.offers:
            return way
    raise InputError(
        f"algo={config.algo.name} learns from {' or '.join(ways)}, "
        f"env={config.env.name} offers {', '.join(world.offers)}: try algo={_fitting(world)}"
    )


def _policy(config: ExperimentConfig, spec: Spec, needs: Needs) -> Any:
    """Freshly initialised, as the seed says."""
    generator = torch.Generator().manual_seed(derive(config.seed, "policy"))
    return _policy_class(config, needs).make(spec, config.policy, needs, generator)


def _policy_class(config: ExperimentConfig, needs: Needs) -> Any:
    """The policy that was chosen, if it can be what the algorithm asks for."""
    chosen: Any = find("policy", config.policy.name)
    if type(needs) in chosen.offers:
        return chosen
    known: dict[str, Any] = {
        name: find("policy", name) for name in options("policy", [built_in_folder()]) if has_class("policy", name)
    }
    others = [name for name, other in known.items() if type(needs) in other.offers]
    raise InputError(
        f"algo={config.choices['algo']} needs {needs.meaning}, which policy={config.policy.name} does not offer; "
        f"try policy={' or policy='.join(others)}"
    )


def _fitting(world: World, kind: str | None = None) -> str:
    """The built-in algorithms that can learn in a world, from actions of a kind: `ddpg, ppo or sac`."""
    names = [module.name for module in iter_modules(algorithms.__path__) if not module.name.startswith("_")]
    classes: dict[str, Any] = {name: find("algo", name) for name in names}
    fit = [
        name for name, found in classes.items()
        if set(found.collects) & set(world.offers) and (kind is None or kind in found.actions)
    ]  # fmt: skip
    return " or ".join(filter(None, [", ".join(fit[:-1]), fit[-1]]))


def _check_actions(config: ExperimentConfig, algorithm_class: Any, spec: Spec, world: World) -> None:
    kind = "continuous" if isinstance(getattr(spec, "actions", None), Continuous) else "discrete"
    if kind not in algorithm_class.actions:
        raise InputError(
            f"algo={config.choices['algo']} is for {' or '.join(algorithm_class.actions)} actions; "
            f"those of env={getattr(config.env, 'id', config.env.name)} are {kind}: try algo={_fitting(world, kind)}"
        )


def _check_samples(config: ExperimentConfig, environment_class: Any) -> None:
    if config.eval.samples > 1 and SUCCESS not in getattr(environment_class, "COMPONENTS", {}):
        raise InputError(
            f"eval.samples={config.eval.samples}: pass@k counts {SUCCESS}, which env={config.choices['env']} has not; "
            "leave it at 1"
        )


def _initialise(policy: Any, given: State, source: str) -> None:
    """Parameters that are not given keep their initialisation. A policy that can start from another kind of weights
    says in `adopt` what it takes of them.
    """
    own = policy.state_dict()
    if hasattr(policy, "adopt"):
        given = policy.adopt(given)
    else:
        given = {name: value for name, value in given.items() if name in own or not name.startswith("critic")}
    wrong = [name for name, value in given.items() if name not in own or own[name].shape != value.shape]
    if wrong or not given:
        raise InputError(
            f"{source}: its policy does not fit this one ({wrong[0] if wrong else 'nothing'} differs); "
            "train with the same policy and env settings"
        )
    policy.load_state_dict(given, strict=False)
