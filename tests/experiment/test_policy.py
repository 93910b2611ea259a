"""Where training begins is decided by the seed and the config alone."""

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
