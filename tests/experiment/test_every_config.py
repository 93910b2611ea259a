"""Every algorithm with every environment of `conf/`: it trains, or it is refused in one line. Nothing in between.

An option that is a YAML file over another's module is tried on one environment of each kind.
"""

from pathlib import Path

import pytest
import torch
import yaml

from pgcli.errors import InputError, RunError
from pgcli.experiment import loop
from pgcli.experiment.build import build
from pgcli.experiment.config import compose
from pgcli.registry import find
from pgcli.types import Continuous

CONF = Path(__file__).parents[2] / "conf"


def options(group):
    return sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml"))


ENVIRONMENTS = [name for name in options("env") if name not in ("gymnasium", "jsonl")]
SEARCHES = {"es", "ga", "nelder_mead"}
REAL_ONLY = {"ddpg", "sac", "td3"}
DIRECT = {"dpo", "cdpo", "ipo", "simpo", "orpo", "dpo_norm", "apo_zero", "apo_down", "online_dpo", "kto"}
CHECKING = {"outcome_reward", "process_reward"}
TEXT_ONLY = {"pretrain", "sft", "revise", "reward_model", *CHECKING, *DIRECT}
CONTROL_ONLY = {"a3c", "dqn", "q_learning", "sarsa", *SEARCHES, *REAL_ONLY}
SMALL = {
    "num_envs": 2, "num_steps": 4, "num_episodes": 2, "num_groups": 2, "group_size": 2, "num_demonstrations": 2,
    "epochs": 2, "minibatches": 2, "value_epochs": 2, "value_minibatches": 2, "num_workers": 1,
    "gradient_steps": 2, "batch_size": 4, "capacity": 50, "learning_starts": 6,
    "num_pairs": 2, "num_prompts": 2, "num_completions": 2, "ensemble": 2, "max_polls": 2,
}  # fmt: skip


def small(algo, env):
    words = [f"algo={algo}", f"env={env}", "device=cpu", "eval.episodes=2"]
    fields = type(compose(words).algo).model_fields
    return [*words, *(f"algo.{key}={value}" for key, value in SMALL.items() if key in fields)]


def why_not(algo, env):
    """What the refusal says, where one is due: some need what a text task has not, one what nothing else has."""
    config = compose([f"algo={algo}", f"env={env}"])
    text = find("env", config.env.name).world == "text"
    if (algo in TEXT_ONLY and not text) or (algo in CONTROL_ONLY and text):
        return "learns from"
    if algo == "revise" and env != "assistant":
        return "has none: try env=assistant"
    if text:
        chosen = find("env", config.env.name)
        if algo == "process_reward" and not hasattr(chosen, "step_labels"):
            return "does not check steps"
        return "has no exact_match" if algo in CHECKING and "exact_match" not in chosen.COMPONENTS else None
    environment = find("env", config.env.name)(config.env, 1)
    environment.close()
    if algo == "nelder_mead" and env in {"probe_image", "frozen_lake", "taxi", "cliff_walk"}:
        return "at most 50 parameters"
    kind = "continuous" if isinstance(environment.spec.actions, Continuous) else "discrete"
    if kind not in find("algo", config.algo.name).actions:
        return "actions"
    if type(find("algo", config.algo.name).needs(config.algo)) not in find("policy", config.policy.name).offers:
        return "does not offer"
    if config.policy.name == "tabular" and environment.spec.states is None:
        return "policy=tabular reads countable states"
    return None


def is_row(group, option):
    """Whether it is a file over the module of another option."""
    return yaml.safe_load((CONF / group / f"{option}.yaml").read_text()).get("name", "") != option


TYPICAL = ("cartpole", "pendulum", "frozen_lake", "story", "chain")
PAIRS = [
    (algo, env)
    for algo in options("algo")
    for env in ENVIRONMENTS
    if env in TYPICAL or not (is_row("algo", algo) or is_row("env", env))
]


@pytest.mark.parametrize(("algo", "env"), PAIRS)
def test_every_pair_is_built_and_learns_twice_or_is_refused(algo, env):
    words = small(algo, env)
    if "max_episode_steps" in type(compose(words).env).model_fields:
        words.append("env.max_episode_steps=6")
    if "pairs" in type(compose(words).env).model_fields:
        words.append("env.pairs=4")
    try:
        parts = build(compose(words))
    except InputError as error:
        assert "\n" not in str(error)
        assert why_not(algo, env) in str(error)
        return
    assert why_not(algo, env) is None, "it should have been refused"
    before = [p.clone() for p in parts.policy.parameters()]
    if algo == "maxrl" and env in ("pendulum", "story"):  # only the rewards themselves say that they are negative
        with pytest.raises(RunError, match="maxrl is for rewards of 0 or 1"):
            parts.algorithm.update(parts.collector.collect(parts.behaviour()))
        return
    for _ in range(2):
        metrics = parts.algorithm.update(parts.collector.collect(parts.behaviour()))
    declared = find("algo", parts.config.algo.name).METRICS
    assert set(metrics) <= set(declared), "every metric is declared with its meaning"
    assert all(torch.isfinite(p).all() for p in parts.policy.parameters())
    teaches = {"cartpole", "pendulum"}  # elsewhere equal returns may teach nothing
    if "population" in parts.algorithm.collects:
        teaches = {"pendulum"}  # in six steps no candidate lets the pole fall
    if "groups" not in parts.algorithm.collects and env in teaches:
        assert any(not torch.equal(a, b) for a, b in zip(before, parts.policy.parameters(), strict=True))
    parts.close()


@pytest.mark.parametrize("algo", ["trpo", "npg", "ppo"])
def test_a_method_that_needs_a_distribution_refuses_a_policy_without_one(algo):
    with pytest.raises(InputError, match=f"algo={algo} needs a distribution over actions, which policy=rule does not"):
        build(compose([f"algo={algo}", "env=cartpole", "policy=rule"]))


def test_every_tuned_file_belongs_to_an_algorithm_and_composes():
    for path in (CONF / "tuned").glob("*_*.yaml"):
        if path.stem in options("policy"):
            continue
        algo = max((name for name in options("algo") if path.stem.startswith(f"{name}_")), key=len)
        env = next(e for e in ENVIRONMENTS if compose([f"algo={algo}", f"env={e}"]).choices["tuned"] == path.stem)
        assert compose([f"algo={algo}", f"env={env}", "tuned=none"]) != compose([f"algo={algo}", f"env={env}"])


@pytest.mark.parametrize("policy", ["transformer", "hf", "hf_lora"])
def test_a_language_model_has_a_rate_of_its_own_for_every_method_that_was_made_for_small_networks(policy):
    named = ["policy.path=models/x"] if policy.startswith("hf") else []
    for algo in ("reinforce", "vanilla_pg", "rloo", "grpo", "dapo", "raft"):
        config = compose([f"algo={algo}", "env=jsonl", "env.path=x", f"policy={policy}", *named])
        assert config.choices["tuned"] == policy
        assert config.algo.learning_rate <= 5e-4
        assert compose([f"algo={algo}", "env=cartpole"]).choices["tuned"] in ("none", f"{algo}_cartpole")
    sections = yaml.safe_load((CONF / "tuned" / f"{policy}.yaml").read_text())["algo"]
    assert len({section["name"] for section in sections}) == len(sections)
    assert all(find("algo", section["name"]) for section in sections)


def test_every_metric_of_the_loop_has_a_meaning():
    for metrics in (loop.METRICS, *(find("algo", compose([f"algo={a}"]).algo.name).METRICS for a in options("algo"))):
        for key, meaning in metrics.items():
            assert key.count("/") == 1, key
            assert len(meaning) > 10, key


@pytest.mark.parametrize("device", ["cuda", "cuda:3", "mps"])
def test_a_device_that_is_not_there_is_refused(device):
    if (torch.cuda.is_available() and device.startswith("cuda")) or (
        device == "mps" and torch.backends.mps.is_available()
    ):
        pytest.skip("this machine has one")
    with pytest.raises(InputError, match=f"device={device.partition(':')[0]}.*device=cpu"):
        build(compose([f"device={device}"]))
