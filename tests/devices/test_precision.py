"""An Apple GPU has no float64, so that what runs on a device must do without. Here the CPU is told that it has none."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pgcli.collectors import completions, pairs, revisions
from pgcli.collectors.completions import choose
from pgcli.collectors.narrowed import narrowed
from pgcli.environments.text import _constitution, assistant
from pgcli.experiment import evaluation
from pgcli.experiment.build import build
from pgcli.experiment.config import compose
from pgcli.functional import narrowing
from pgcli.functional.precision import widest

TRANSFORMER = ("policy.width=8", "policy.heads=2", "policy.layers=1", "policy.hidden=8")
TEXT = ("tuned=none", "eval.episodes=4", *TRANSFORMER)
PAIRS = (*TEXT, "env.pairs=4")


class WithoutFloat64(TorchDispatchMode):
    """Raises where an operation gives float64, unless it only takes an array of NumPy's."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        wide = [x for x in tree_leaves(found) if isinstance(x, torch.Tensor) and x.dtype == torch.float64]
        if wide and func is not torch.ops.aten.lift_fresh.default:
            raise TypeError(f"{func} gives float64")
        return found


@pytest.fixture
def narrow(monkeypatch):
    for module in (completions, revisions, pairs, assistant, _constitution, narrowing):
        monkeypatch.setattr(module, "widest", lambda device: torch.float32)


def test_only_an_apple_graphics_processor_has_nothing_wider_than_float32():
    assert widest(torch.device("mps")) == torch.float32
    assert widest(torch.device("cpu")) == widest(torch.device("cuda", 1)) == torch.float64


@pytest.mark.parametrize(
    "words",
    [
        ("algo=ppo", "env=assistant", "algo.num_episodes=4", *TEXT),
        ("algo=revise", "env=assistant", "algo.num_prompts=4", *TEXT),
        ("algo=online_dpo", "env=story", "algo.num_pairs=4", *PAIRS),
        ("algo=kto", "env=story", "algo.num_completions=4", *PAIRS),
        ("algo=process_reward", "env=chain", "algo.num_completions=4", *PAIRS),
        ("algo=grpo", "env=guess", "algo.num_groups=2", "algo.group_size=2", *TEXT),
        ("algo=ppo", "env=pendulum", "algo.num_steps=8", "policy.distribution=squashed_gaussian"),
        ("algo=sac", "env=pendulum", "algo.learning_starts=8", "algo.batch_size=4"),
    ],
    ids=lambda words: f"{words[0][5:]}-{words[1][4:]}",
)
def test_collecting_and_learning_do_without_float64(narrow, words):
    parts = build(compose([*words, "device=cpu"]))
    with WithoutFloat64():
        for _ in range(2):
            parts.algorithm.update(parts.collector.collect(parts.behaviour()))
    parts.close()


def test_leaving_out_what_cannot_be_scored_does_without_float64(narrow, monkeypatch):
    parts = build(compose(["algo=grpo", "env=sort", "device=cpu", "algo.num_groups=2", "algo.group_size=3", *TEXT]))
    rewards = parts.environment.rewards

    def some(*given):
        found = rewards(*given)
        found["reward"][0] = torch.nan
        return found

    monkeypatch.setattr(parts.environment, "rewards", some)
    with WithoutFloat64():
        rollout = parts.collector.collect(parts.policy)
    assert len(rollout.mask) == 5


def test_evaluating_and_narrowed_sampling_do_without_float64(narrow):
    parts = build(compose(["algo=ppo", "env=story", "device=cpu", *TEXT]))
    policy = narrowed(parts.policy, temperature=0.7, top_k=9, top_p=0.9, min_p=0.01)
    with WithoutFloat64():
        rollout = evaluation.play_once(parts.evaluator, policy, episodes=4, seed=0, stream="x", greedy=False)
    assert rollout.mask.any(1).all()


def test_the_narrowest_noise_still_names_a_token():
    logits = torch.tensor([[0.0, 1.0, -torch.inf]]).expand(2, -1)
    noise = torch.tensor([1e-30, 1.0])  # a float64 just below 1 rounds to 1
    tokens, log_probs = choose(logits, noise)
    assert tokens.tolist() == [0, 1]
    assert torch.isfinite(log_probs).all()
