"""From a config to the parts of an experiment, paired or refused. Nothing is written here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pgcli.collectors.episodes import Player
from pgcli.collectors.held_out import HeldOutPreferences
from pgcli.collectors.learned_reward import Judge, LearnedReward
from pgcli.collectors.reference import Referenced
from pgcli.experiment import fitting
from pgcli.experiment.config import ExperimentConfig
from pgcli.experiment.judging import calibrate, make_judge
from pgcli.experiment.policy import initialise, make_policy, make_reference, refers
from pgcli.experiment.sources import NO_SOURCES, Sources
from pgcli.experiment.worlds import WORLDS, World
from pgcli.experiment.worlds.text import held_out_preferences, judge_evaluator
from pgcli.registry import complete, find
from pgcli.seeding import derive
from pgcli.types import Algorithm, Collector, Metrics, Rollout, Spec, State, Stochastic, TextSpec


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
    way = fitting.way_of_collecting(config, algorithm_class, world)

    fitting.check_samples(config, environment_class)
    fitting.check_settings(config, way)
    fitting.check_processes(config, world)
    environment = world.make(environment_class, config, world.rows(config, way))
    judge = None
    if sources.reward is not None:
        judge = make_judge(config, environment, sources.reward)
        environment = LearnedReward(
            environment, judge, combination=config.judge.combine, pessimism=config.judge.pessimism
        )
    fitting.check_actions(config, algorithm_class, environment.spec, world)

    needs = algorithm_class.needs(config.algo)
    fitting.check_critic(config, needs, sources.reward, judge)
    policy = make_policy(config, environment.spec, needs)
    fitting.check_minibatches(config, way, policy)
    if sources.init is not None:
        fitting.check_init(config, sources.init, environment)
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
        writer = frozen.get("writer", frozen.get("reference", policy))
        _begin_judging(config, environment, judge, writer, policy, begun=sources.begun)

    algorithm = algorithm_class(
        policy, config.algo, total_steps=config.total_steps, seed=derive(config.seed, "minibatches")
    )
    collector: Collector
    if way in world.comparing:
        writer = frozen.get("reference", frozen.get("writer"))
        collector = world.comparing[way](environment, config, device.torch, writer)
    else:
        collector = world.collectors[way](environment, config, device.torch)
        if "reference" in frozen and way in fitting.SAMPLED:
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
    fitting.check_compares(config, way, world)
    reference = make_reference(config, spec, sources, policy)
    fitting.check_reference(config, way, policy, reference)
    return reference


def _begin_judging(
    config: ExperimentConfig, environment: Any, judge: Judge, writer: Any, policy: Any, *, begun: bool
) -> None:
    """The judge gets its unit, and then the policy the critic that is made of it, if it has such a one."""
    if not begun:
        calibrate(config, environment, judge, writer, judge.mean.device)
    if fitting.starts_from_judge(config):
        policy.value_by(judge.scorer, judge.mean[0], judge.std[0])


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
    if environment.world != "text" or not fresh or not set(algorithm.collects) & set(fitting.SAMPLED):
        return []
    return [
        "without init= it begins with random weights, whose completions are hardly ever rewarded: teach it first "
        "(algo=sft), or name a run"
    ]


def _close(collector: Any, close_world: Callable[[Any, Any], None], environment: Any, evaluator: Any) -> None:
    if hasattr(collector, "close"):  # a collector with worker processes
        collector.close()
    close_world(environment, evaluator)
