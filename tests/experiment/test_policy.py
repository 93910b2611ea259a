"""Where training begins is decided by the seed and the config alone."""

import math

import pytest
import torch

from pgcli import train
from pgcli.errors import InputError
from pgcli.experiment.build import build, untaught
from pgcli.experiment.config import compose


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("policy", ["mlp", "gru"])
def test_a_policy_does_not_depend_on_how_many_threads_torch_had(threads, policy):
    found = []
    for number in (1, 2, 4):
        threads(number)
        parts = build(compose(["algo=ppo", "env=cartpole", f"policy={policy}", "device=cpu"]))
        assert torch.get_num_threads() == 1, "device.threads"
        found.append(parts.policy.state_dict())
    for other in found[1:]:
        assert all(torch.equal(other[name], value) for name, value in found[0].items())


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        (["algo=grpo", "env=sort"], True),
        (["algo=raft", "env=story"], True),
        (["algo=grpo", "env=sort", "init=runs/taught"], False),
        (["algo=grpo", "env=sort", "policy.path=models/mine"], False),
        (["algo=sft", "env=sort"], False),
        (["algo=grpo", "env=cartpole"], False),
    ],
)
def test_who_has_learned_nothing_is_told_that_rewards_will_be_rare(words, warned):
    assert any("begins with random weights" in line for line in untaught(compose(words))) == warned


CARTPOLE = "and env=cartpole has vectors of the shape (4,); try "


@pytest.mark.parametrize(
    ("algo", "policy", "env", "line"),
    [
        ("ppo", "cnn", "cartpole", f"policy=cnn reads images, {CARTPOLE}"),
        ("ppo", "mlp", "probe_image", "policy=mlp reads vectors, and env=probe_image has images of "),
        ("ppo", "mlp_256", "sort", "policy=mlp_256 reads vectors, and env=sort has texts; try policy=transformer"),
        ("ppo", "rule", "sort", "algo=ppo needs "),
        ("ppo", "tiny", "cartpole", f"policy=tiny reads texts, {CARTPOLE}"),
        ("ppo", "tabular", "cartpole", f"policy=tabular reads countable states, {CARTPOLE}"),
        ("q_learning", "tabular", "cartpole", "policy=tabular reads countable states, and "),
        ("q_learning", "mlp", "cartpole", "which policy=mlp does not offer; try algo=dqn"),
        ("sac", "cnn", "pendulum", "which policy=cnn does not offer; try policy=mlp"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused_with_those_that_would(algo, policy, env, line):
    with pytest.raises(InputError) as refused:
        build(compose([f"algo={algo}", f"policy={policy}", f"env={env}", "tuned=none", "device=cpu"]))
    text = str(refused.value)
    assert line in text
    assert "\n" not in text
    suggested = text.rpartition("; try ")[2].split(" or ")
    assert suggested
    for word in suggested:  # each of them is one that does
        words = {"algo": algo, "env": env} | dict([word.split("=")])
        build(compose([f"{key}={value}" for key, value in words.items()] + ["tuned=none", "device=cpu"]))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["algo=dqn", "env=cartpole", "total_steps=500"], "algo.learning_starts=1000: nothing would be learned in "),
        (["algo=td3", "env=pendulum", "policy.distribution=gaussian"], "policy.distribution=gaussian has no effect"),
        (["algo=es", "env=pendulum", "policy.distribution=squashed_gaussian"], "has no effect with algo=es"),
        (["algo=grpo", "env=story", "judge.stop_disagreement=0.1"], "judge.* is how a trained reward is used, and "),
        (["algo=ppo", "env=story", "judge.combine=min"], "judge.* is how a trained reward is used, and "),
        (["algo=ppo", "env=cartpole", "algo.kl.coefficient=0.1", "algo.kl.target=2"], "add algo.collect=episodes"),
        (["algo=ppo", "env=cartpole", "policy=gru", "algo.kl.measure=true"], "add algo.collect=episodes"),
        (
            ["algo=ppo", "env=cartpole", "policy=gru", "algo.num_envs=1", "algo.minibatches=4"],
            "a batch has 1 (algo.num_envs); take at most as many",
        ),
        (["algo=grpo", "env=sort", "algo.num_groups=1", "algo.group_size=2", "algo.minibatches=3"], "a batch has 2 ("),
    ],
)
def test_what_would_have_no_effect_or_another_than_it_says_is_refused(words, line):
    with pytest.raises(InputError) as refused:
        build(compose([*words, "tuned=none", "device=cpu"]))
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_reference_reads_what_the_policy_does(tmp_path):
    small = (
        "algo=ppo", "env=cartpole", "tuned=none", "device=cpu", "algo.collect=episodes", "total_steps=50",
        "eval.episodes=2",
    )  # fmt: skip
    taught = train(*small, "policy=gru", "policy.hidden=8", run_dir=tmp_path / "gru", quiet=True)
    measured = (*small, "algo.kl.measure=true", f"reference={taught.path}")
    with pytest.raises(InputError, match="only the reference has a memory"):
        train(*measured, run_dir=tmp_path / "mlp", quiet=True)
    assert not (tmp_path / "mlp").exists()
    with pytest.raises(
        InputError, match=rf"^reference={taught.path}: its policy=gru reads vectors, and env=sort has t"
    ):
        train("algo=ppo", "env=sort", *measured[2:4], *measured[5:], run_dir=tmp_path / "text", quiet=True)
    run = train(*measured, "policy=gru", "policy.hidden=16", run_dir=tmp_path / "larger", quiet=True)
    assert math.isfinite(run.rows()[-1]["kl/k1"])


def test_a_run_begins_only_from_a_policy_that_means_the_same(tmp_path):
    def taught(name, *words):
        small = ("tuned=none", "policy=nano", "eval.episodes=2", "total_steps=60", "algo.num_demonstrations=4")
        return train("algo=sft", *small, *words, run_dir=tmp_path / name, quiet=True).path

    def file(name, letters):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f'{{"prompt": "{x}", "completion": "{x}"}}\n' for x in letters))
        return ("env=jsonl", f"env.path={path}", "env.tokenizer=character", "env.completion_length=3")

    first = taught("first", "env=sort", "policy.layers=1")
    taught("same", "env=sort", "policy.layers=1", f"init={first}")
    taught("abc", *file("abc", "abcd"))
    taught("abc2", *file("more", "dcba"), f"init={tmp_path / 'abc'}")
    refused = {
        r"init=.*first has policy.heads=2, and here it is 4": (
            "env=sort",
            "policy.layers=1",
            "policy.heads=4",
            f"init={first}",
        ),
        r"does not fit this one \(it has no trunk.blocks.1": ("env=sort", "policy.layers=2", f"init={first}"),
        r"init=.*abc: its tokens are not those of env=jsonl": (*file("xyz", "wxyz"), f"init={tmp_path / 'abc'}"),
    }
    for message, words in refused.items():
        with pytest.raises(InputError, match=message):
            taught("refused", *words)
        assert not (tmp_path / "refused").exists()
