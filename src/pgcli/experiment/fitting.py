"""What fits together, and what is refused: each refusal is one line, and comes before anything is written."""

from __future__ import annotations

import math
from pkgutil import iter_modules
from typing import Any

from pgcli import algorithms, processes
from pgcli.collectors.learned_reward import Judge
from pgcli.errors import InputError
from pgcli.experiment.config import ExperimentConfig
from pgcli.experiment.evaluation import SUCCESS
from pgcli.experiment.sources import Trained, Weights, vocabulary
from pgcli.experiment.worlds import World
from pgcli.registry import find
from pgcli.types import Continuous, Needs, Spec

SAMPLED = ("segments", "episodes", "groups")
"""Ways of collecting whose rollouts hold the policy's own actions."""


def way_of_collecting(config: ExperimentConfig, algorithm_class: Any, world: World) -> str:
    """The way of collecting: the first of the algorithm's ways that the world offers, or the one in `algo.collect`."""
    wanted = getattr(config.algo, "collect", "auto")
    ways = [wanted] if wanted != "auto" else algorithm_class.collects
    for way in ways:
        if way in world.offers:
            return way
    raise InputError(
        f"algo={config.algo.name} learns from {' or '.join(ways)}, "
        f"env={config.env.name} offers {', '.join(world.offers)}: try algo={_suitable(world)}"
    )


def _suitable(world: World, kind: str | None = None, *, countable: bool = True) -> str:
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


def check_actions(config: ExperimentConfig, algorithm_class: Any, spec: Spec, world: World) -> None:
    kind = "continuous" if isinstance(getattr(spec, "actions", None), Continuous) else "discrete"
    if kind not in algorithm_class.actions:
        raise InputError(
            f"algo={config.choices['algo']} is for {' or '.join(algorithm_class.actions)} actions; "
            f"those of env={getattr(config.env, 'id', config.env.name)} are {kind}: "
            f"try algo={_suitable(world, kind, countable=getattr(spec, 'states', None) is not None)}"
        )


def check_samples(config: ExperimentConfig, environment_class: Any) -> None:
    if config.eval.samples > 1 and SUCCESS not in getattr(environment_class, "COMPONENTS", {}):
        raise InputError(
            f"eval.samples={config.eval.samples}: pass@k counts {SUCCESS}, which env={config.choices['env']} does not "
            "have; leave it at 1"
        )


def check_settings(config: ExperimentConfig, way: str) -> None:
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


def starts_from_judge(config: ExperimentConfig) -> bool:
    """Whether the critic is made of the reward model that the config names."""
    return getattr(config.policy, "critic", None) == "reward_model"


def check_critic(config: ExperimentConfig, needs: Needs, trained: Trained | None, judge: Judge | None) -> None:
    """Raises InputError if the critic is to start from a reward model, and none is needed or none can be made of it."""
    if not starts_from_judge(config):
        return
    setting, other = "policy.critic=reward_model", "take policy.critic=shared or separate"
    if not getattr(needs, "critic", False):
        raise InputError(f"{setting}: algo={config.choices['algo']} has no critic with these settings; leave it out")
    if config.reward is None:
        raise InputError(f"{setting}: there is no reward model: name its run with reward=, or {other}")
    if trained is None or judge is None:  # only what needs no critic is built without the runs that a config names
        return
    if judge.reading != "preference":
        raise InputError(
            f"{setting}: the rewards of reward={config.reward} are probabilities, which no linear head can start as; "
            f"name a run of algo=reward_model, or {other}"
        )
    theirs = trained.config.policy.name
    if theirs != config.policy.name:
        raise InputError(
            f"{setting}: reward={config.reward} has policy={theirs}, of which policy={config.policy.name} can make no "
            f"critic; {other}"
        )


ROWS = {"segments": ("num_envs",), "episodes": ("num_episodes",), "groups": ("num_groups", "group_size")}
"""Way of collecting -> the settings whose product is the number of rows of a batch."""


def check_minibatches(config: ExperimentConfig, way: str, policy: Any) -> None:
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


def check_reference(config: ExperimentConfig, way: str, policy: Any, reference: Any) -> None:
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


def check_processes(config: ExperimentConfig, world: World) -> None:
    if processes.size() > 1 and world.unit != "tokens":
        raise InputError(
            f"torchrun shares out the rows of a text task; env={config.env.name} is stepped by one process"
        )


def check_compares(config: ExperimentConfig, way: str, world: World) -> None:
    if way not in (*SAMPLED, *world.comparing, "demonstrations"):
        raise InputError(
            f"reference={config.reference}: algo={config.choices['algo']} does not compare its policy with another; "
            "leave it out"
        )


UNSHAPED = ("heads", "activation")
"""Settings of a policy without which parameters of the same shapes are another function."""


def check_init(config: ExperimentConfig, given: Weights, environment: Any) -> None:
    """Raises InputError if the shapes of the parameters would fit, and what they mean would not."""
    if given.vocabulary not in (None, vocabulary(environment)):
        raise InputError(f"init={config.init}: its tokens are not those of env={config.choices['env']}")
    for name in UNSHAPED:
        there, here = given.settings.get(name), getattr(config.policy, name, None)
        if None not in (there, here) and there != here:
            raise InputError(f"init={config.init} has policy.{name}={there}, and here it is {here}")
