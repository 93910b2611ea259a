"""Where training begins is decided by the seed and the config alone."""

import pytest
import torch

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
