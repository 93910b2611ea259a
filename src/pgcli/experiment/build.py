"""From a config to the parts of an experiment, paired or refused. Nothing is written here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pkgutil import iter_modules
from typing import Any

from pgcli import algorithms, processes
from pgcli.collectors.episodes import Player
from pgcli.collectors.held_out import HeldOutPreferences
from pgcli.collectors.learned_reward import LearnedReward
from pgcli.collectors.reference import Referenced
from pgcli.errors import InputError
from pgcli.experiment.config import ExperimentConfig
from pgcli.experiment.evaluation import SUCCESS
from pgcli.experiment.judging import calibrate, make_judge
from pgcli.experiment.policy import initialise, make_policy, make_reference, refers
from pgcli.experiment.sources import NO_SOURCES, Sources, Weights, vocabulary
from pgcli.experiment.worlds import WORLDS, World
from pgcli.experiment.worlds.text import held_out_preferences, judge_evaluator
from pgcli.registry import complete, find
from pgcli.seeding import derive
from pgcli.types import Algorithm, Collector, Continuous, Metrics, Rollout, Spec, State, Stochastic, TextSpec

SAMPLED = ("segments", "episodes", "groups")
"""Ways of collecting whose rollouts hold the policy's own actions."""


@dataclass
class Parts:
    """Everything that the training loop needs, ready to run."""

    config: ExperimentConfig
    device: Any
    spec: Spec
    policy: Any
    behaviour: Callable[[], Any]
    """The policy that acts in training: `policy`, unless the algorithm makes a behaviour policy of it."""
    algorithm: Algorithm
    collector: Collector
    environment: Any
    unit: str
    """The name of an action: `steps` or `tokens`."""
    close: Callable[[], None]
    """Closes the environments."""
    evaluator: Player
    """Plays episodes that training never sees, with the normalisation statistics of training."""
    frozen: dict[str, Any]
    """Frozen modules by name, if used: the `reference` policy, the `reward` model, the `writer` of a judge's pairs."""
    standard: Rollout | None = None
    """The reference's completions of the evaluation prompts, cached for the win rate."""
    preferences: HeldOutPreferences | None = None
    """Of a method that makes the policy its own reward model, on a task that has held-out pairs or labels."""

    def preferred(self) -> Metrics:
        """Whether the policy prefers what is held out as its labels do."""
        if self.preferences is None:
            return {}
        algorithm: Any = self.algorithm
        return self.preferences.measure(partial(algorithm.implicit_reward, self.policy))

    def state_dict(self) -> State:
        state = {
            "policy": self.policy.state_dict(),
            "algorithm": self.algorithm.state_dict(),
            "collector": self.collector.state_dict(),
            "frozen": {name: module.state_dict() for name, module in self.frozen.items()},
        }
        # The collector saves the state of a stepped environment; a text task with a state of its own is saved here.
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


def build(config: ExperimentConfig, sources: Sources = NO_SOURCES) -> Parts:
    """Config -> device, environment, policy, algorithm, collector.

    Args:
        sources: the runs named by `init`, `reference` and `reward`. Parameters that `init` lacks (a critic, say)
            keep their initialisation.

    Raises InputError for parts that do not fit together.
    """
    algorithm_class = complete("algo", config.algo.name)
    environment_class = complete("env", config.env.name)
    world = WORLDS[environment_class.world]
    way = _pair(config, algorithm_class, world)

    _check_samples(config, environment_class)
    _check_settings(config, way)
    _check_processes(config, world)
    environment = world.make(environment_class, config, world.rows(config, way))
    judge = None
    if sources.reward is not None:
        judge = make_judge(config, environment, sources.reward)
        environment = LearnedReward(
            environment, judge, combination=config.judge.combine, pessimism=config.judge.pessimism
        )
    _check_actions(config, algorithm_class, environment.spec, world)

    needs = algorithm_class.needs(config.algo)
    policy = make_policy(config, environment.spec, needs)
    _check_minibatches(config, way, policy)
    if sources.init is not None:
        _check_init(config, sources.init, environment)
        initialise(policy, sources.init, f"init={config.init}")
    device: Any = find("device", config.device.name)(config.device, parameters=network_size(policy))
    policy = policy.to(device.torch)
    frozen = {}
    if way in world.comparing and not isinstance(needs, Stochastic):  # a judge learns from texts of another policy
        frozen["writer"] = make_reference(config, environment.spec, sources, policy).to(device.torch)
    elif refers(config):
        frozen["reference"] = _reference(config, way, world, environment.spec, sources, policy).to(device.torch)

    if judge is not None:
        frozen["reward"] = judge.to(device.torch)
        if not sources.begun:
            writer = frozen.get("writer", frozen.get("reference", policy))
            calibrate(config, environment, judge, writer, device.torch)

    algorithm = algorithm_class(
        policy, config.algo, total_steps=config.total_steps, seed=derive(config.seed, "minibatches")
    )
    collector: Collector
    if way in world.comparing:
        writer = frozen.get("reference", frozen.get("writer"))
        collector = world.comparing[way](environment, config, device.torch, writer)
    else:
        collector = world.collectors[way](environment, config, device.torch)
        if "reference" in frozen and way in SAMPLED:
            collector = Referenced(collector, frozen["reference"])
    evaluator = world.evaluator(environment_class, config, environment, device.torch)
    if "writer" in frozen:
        evaluator = judge_evaluator(environment, config, device.torch, frozen["writer"])
    preferences = None
    if hasattr(algorithm, "implicit_reward") and "reference" in frozen:
        preferences = held_out_preferences(environment, config, device.torch, frozen["reference"])
    close = partial(_close, collector, world.close, environment, evaluator)
    behaviour = getattr(algorithm, "behaviour", lambda: policy)
    return Parts(
        config, device, environment.spec, policy, behaviour, algorithm, collector, environment, world.unit, close,
        evaluator, frozen, preferences=preferences,
    )  # fmt: skip


def _reference(config: ExperimentConfig, way: str, world: World, spec: Spec, sources: Sources, policy: Any) -> Any:
    """The reference, which reads what is collected for the policy."""
    _check_compares(config, way, world)
    reference = make_reference(config, spec, sources, policy)
    _check_reference(config, way, policy, reference)
    return reference


def network_size(policy: Any) -> int:
    """Number of parameters, with those that an adapter has frozen: they are buffers."""
    return sum(x.numel() for x in (*policy.parameters(), *policy.buffers()))


def warnings(config: ExperimentConfig) -> list[str]:
    """An algorithm's warnings about settings that it runs nevertheless."""
    return getattr(find("algo", config.algo.name), "warnings", lambda algo: [])(config.algo)


def untaught(config: ExperimentConfig) -> list[str]:
    """A warning where a language model is to learn from rewards that it will hardly ever earn."""
    algorithm: Any = find("algo", config.algo.name)
    environment: Any = find("env", config.env.name)
    fresh = config.init is None and getattr(config.policy, "path", None) is None
    if environment.world != "text" or not fresh or not set(algorithm.collects) & set(SAMPLED):
        return []
    return [
        "without init= it begins with random weights, whose completions are hardly ever rewarded: teach it first "
        "(algo=sft), or name a run"
    ]


def _close(collector: Any, close_world: Callable[[Any, Any], None], environment: Any, evaluator: Any) -> None:
    if hasattr(collector, "close"):  # a collector with worker processes
        collector.close()
    close_world(environment, evaluator)


# ---------------------------------------------------------------- what fits, and what is refused

UNSHAPED = ("heads", "activation")
"""Settings of a policy without which parameters of the same shapes are another function."""


def _check_init(config: ExperimentConfig, given: Weights, environment: Any) -> None:
    """Raises InputError if the shapes of the parameters would fit, and what they mean would not."""
    if given.vocabulary not in (None, vocabulary(environment)):
        raise InputError(f"init={config.init}: its tokens are not those of env={config.choices['env']}")
    for name in UNSHAPED:
        there, here = given.settings.get(name), getattr(config.policy, name, None)
        if None not in (there, here) and there != here:
            raise InputError(f"init={config.init} has policy.{name}={there}, and here it is {here}")


def _pair(config: ExperimentConfig, algorithm_class: Any, world: World) -> str:
    """The way of collecting: the first of the algorithm's ways that the world offers, or the one in `algo.collect`."""
    wanted = getattr(config.algo, "collect", "auto")
    ways = [wanted] if wanted != "auto" else algorithm_class.collects
    for way in ways:
        if way in world.offers:
            return way
    raise InputError(
        f"algo={config.algo.name} learns from {' or '.join(ways)}, "
        f"env={config.env.name} offers {', '.join(world.offers)}: try algo={_fitting(world)}"
    )


def _fitting(world: World, kind: str | None = None, *, countable: bool = True) -> str:
    """The built-in algorithms that can learn in a world, from actions of a kind: `ddpg, ppo or sac`.

    countable: whether its states can be counted; those that learn from single transitions keep a table of them.
    """
    names = [module.name for module in iter_modules(algorithms.__path__) if not module.name.startswith("_")]
    classes: dict[str, Any] = {name: find("algo", name) for name in names}
    fit = [
        name for name, found in classes.items()
        if set(found.collects) & set(world.offers)
        and (kind is None or kind in found.actions)
        and (countable or "transitions" not in found.collects)
    ]  # fmt: skip
    return " or ".join(filter(None, [", ".join(fit[:-1]), fit[-1]]))


def _check_actions(config: ExperimentConfig, algorithm_class: Any, spec: Spec, world: World) -> None:
    kind = "continuous" if isinstance(getattr(spec, "actions", None), Continuous) else "discrete"
    if kind not in algorithm_class.actions:
        raise InputError(
            f"algo={config.choices['algo']} is for {' or '.join(algorithm_class.actions)} actions; "
            f"those of env={getattr(config.env, 'id', config.env.name)} are {kind}: "
            f"try algo={_fitting(world, kind, countable=getattr(spec, 'states', None) is not None)}"
        )


def _check_samples(config: ExperimentConfig, environment_class: Any) -> None:
    if config.eval.samples > 1 and SUCCESS not in getattr(environment_class, "COMPONENTS", {}):
        raise InputError(
            f"eval.samples={config.eval.samples}: pass@k counts {SUCCESS}, which env={config.choices['env']} does not "
            "have; leave it at 1"
        )


def _check_settings(config: ExperimentConfig, way: str) -> None:
    """Raises InputError for settings of the algorithm that would have no effect, or another one than they say."""
    starts = getattr(config.algo, "learning_starts", 0)
    if starts >= config.total_steps:
        raise InputError(
            f"algo.learning_starts={starts}: nothing would be learned in total_steps={config.total_steps}; take fewer "
            "before, or more in all"
        )
    if config.reward is None and (config.judge.stop_disagreement is not None or config.judge.combine != "mean"):
        raise InputError("judge.* is how a trained reward is used, and there is none: name its run with reward=")
    if way == "segments" and getattr(getattr(config.algo, "kl", None), "target", None) is not None:
        raise InputError(
            "algo.kl.target is the KL of an episode, and a segment holds parts of several: add algo.collect=episodes"
        )


ROWS = {"segments": ("num_envs",), "episodes": ("num_episodes",), "groups": ("num_groups", "group_size")}
"""Way of collecting -> the settings whose product is the number of rows of a batch."""


def _check_minibatches(config: ExperimentConfig, way: str, policy: Any) -> None:
    """Raises InputError if a policy that learns from whole rows could not be given so many minibatches of them."""
    wanted = getattr(config.algo, "minibatches", 1)
    if policy.unit != "sequence" or way not in ROWS:
        return
    rows = math.prod(getattr(config.algo, name) for name in ROWS[way])
    if wanted > rows:
        named = " x ".join(f"algo.{name}" for name in ROWS[way])
        raise InputError(
            f"algo.minibatches={wanted}: this policy learns from whole rows, and a batch has {rows} ({named}); take at "
            "most as many minibatches"
        )


def _check_reference(config: ExperimentConfig, way: str, policy: Any, reference: Any) -> None:
    """Raises InputError if the reference cannot read what is collected for the policy."""
    if policy.unit != reference.unit:
        with_memory = "the policy" if policy.unit == "sequence" else "the reference"
        raise InputError(
            f"reference={config.reference}: only {with_memory} has a memory, so that the two read different "
            "observations; take one of a policy of the same kind"
        )
    if way == "segments" and reference.unit == "sequence":
        raise InputError(
            "a reference with a memory has to read an episode from its beginning, and a segment may begin in the "
            "middle: add algo.collect=episodes"
        )


def _check_processes(config: ExperimentConfig, world: World) -> None:
    if processes.size() > 1 and world.unit != "tokens":
        raise InputError(
            f"torchrun shares out the rows of a text task; env={config.env.name} is stepped by one process"
        )


def _check_compares(config: ExperimentConfig, way: str, world: World) -> None:
    if way not in (*SAMPLED, *world.comparing, "demonstrations"):
        raise InputError(
            f"reference={config.reference}: algo={config.choices['algo']} does not compare its policy with another; "
            "leave it out"
        )
