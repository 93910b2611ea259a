"""Policies that are searched over: a crowd acts as its members do."""

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from pgcli.errors import InputError
from pgcli.experiment.build import build
from pgcli.experiment.config import compose
from pgcli.policies.acting import choose
from pgcli.policies.cnn import CNN
from pgcli.policies.linear import Linear
from pgcli.policies.mlp import MLP
from pgcli.policies.rule import Rule, RuleCrowd
from pgcli.types import Acting, Continuous, ControlSpec, Discrete, Stochastic

ACTIONS = {"two": Discrete(2), "three": Discrete(3), "real": Continuous(-np.ones(2), np.ones(2))}
WORDS = {
    "linear": (Linear, ["policy=linear"], (4,)),
    "linear on images": (Linear, ["policy=linear"], (1, 4, 3)),
    "mlp, tanh": (MLP, ["policy=mlp", "policy.hidden=[5,6]"], (4,)),
    "mlp, relu": (MLP, ["policy=mlp", "policy.hidden=[5,6]", "policy.activation=relu"], (4,)),
    "cnn": (CNN, ["policy=cnn", "policy.channels=[2,3]", "policy.dense=4"], (1, 8, 8)),
}


def make(name, actions):
    cls, words, shape = WORDS[name]
    spec = ControlSpec(shape, actions)
    return cls.make(spec, compose(words).policy, Acting(), torch.Generator().manual_seed(0)), shape


@pytest.mark.parametrize("actions", ACTIONS.values(), ids=ACTIONS)
@pytest.mark.parametrize("name", WORDS)
def test_a_crowd_acts_as_each_candidate_s_module(name, actions):
    policy, shape = make(name, actions)
    random = np.random.default_rng(0)
    size = sum(p.numel() for p in policy.parameters())
    candidates = random.normal(size=(6, size)).astype(np.float32)
    crowd = policy.crowd(candidates)
    # All at once, then fewer and fewer, unevenly, once more those that had left; and in any order.
    ascending = ([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5], [0, 1, 1, 2, 4, 5, 5], [1, 1, 1, 5], [5], [0, 2, 3])
    for seats in (*ascending, [5, 2, 3], [5, 1, 3], [4, 0, 5, 0, 4, 4, 2], [2, 0, 5]):
        crowd.seat(np.array(seats))
        for _ in range(2):
            observations = random.normal(size=(len(seats), *shape)).astype(np.float32)
            found = crowd.act(observations)
            for row, k in enumerate(seats):
                vector_to_parameters(torch.from_numpy(candidates[k].copy()), policy.parameters())
                with torch.no_grad():
                    outputs = policy.module(torch.from_numpy(observations[row : row + 1]))[0].numpy()
                if isinstance(actions, Discrete):
                    assert found[row] == outputs.argmax()
                    assert found.dtype == np.int64
                else:
                    assert found[row] == pytest.approx(outputs, rel=1e-4, abs=1e-4)
                    assert found.dtype == np.float32


def test_of_equal_outputs_the_first_action_is_chosen():
    outputs = np.array([[1, 2, 3, 0], [1, 3, 3, 0], [1, 3, 0, 1]], dtype=np.float32)
    assert choose(outputs, Discrete(3)).tolist() == [0, 1, 0, 2]
    assert choose(outputs[:2], Discrete(2)).tolist() == [0, 1, 0, 0]


def test_alone_it_acts_with_its_present_parameters_and_draws_nothing():
    policy, _ = make("linear", Discrete(2))
    x = np.ones((3, 4), dtype=np.float32)
    sampler = policy.sampler()
    assert sampler.noise(np.random.default_rng(0), (3,)) is None
    assert sampler.act(x, None)[0].tolist() == [0, 0, 0]
    with torch.no_grad():
        policy.module.bias[1] = 1
    assert policy.sampler().act(x[:2], None)[0].tolist() == [1, 1]


def test_a_linear_policy_begins_without_a_preference_and_has_a_critic_where_one_is_asked_for():
    config = compose(["policy=linear"]).policy
    for critic in (False, True):
        policy = Linear.make(ControlSpec((4,), Discrete(3)), config, Stochastic(critic=critic), torch.Generator())
        found = policy(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
        torch.testing.assert_close(found.log_probs, torch.full((5,), 1 / 3).log())
        assert (found.values is not None) == policy.has_critic == critic
    assert sum(p.numel() for p in policy.parameters()) == 3 * 5 + 5


@pytest.mark.parametrize("actions", ACTIONS.values(), ids=ACTIONS)
def test_a_linear_policy_s_sampler_draws_from_the_module_s_own_distribution(actions):
    config = compose(["policy=linear", "policy.initial_log_std=-0.5"]).policy
    policy = Linear.make(ControlSpec((4,), actions), config, Stochastic(), torch.Generator())
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    sampler = policy.sampler()
    taken, outputs = sampler.act(x, sampler.noise(np.random.default_rng(1), (64,)))
    drawn = sampler.log_probs(torch.from_numpy(outputs), torch.from_numpy(taken))
    torch.testing.assert_close(drawn, policy(torch.from_numpy(x), torch.from_numpy(taken)).log_probs, atol=1e-5, rtol=0)


def test_the_first_rule_that_holds_says_what_to_do():
    # Two features, two rules: if o_1 > 0.5: action 2; elif -o_0 > 0: action 0; else action 1.
    votes = [0, 3, -1, 2, 0, -9, 1, -2]  # (2, 4): the largest are +o_1 and -o_0
    said = [0, 0, 1, 5, 0, 0, 0, 2, 1]  # (3, 3)
    one = np.array([*votes, 0.5, 0.0, *said], dtype=np.float32)
    other = one.copy()
    other[8] = 5.0  # its first rule hardly ever holds
    crowd = RuleCrowd(2, 2, Discrete(3), np.stack([one, other]))
    crowd.seat(np.array([0, 0, 0, 0, 1]))
    observations = np.array([[-1, 1], [-1, 0.5], [0, 0], [1, 9], [-1, 1]], dtype=np.float32)
    assert crowd.act(observations).tolist() == [2, 0, 1, 2, 0]


def test_a_rule_may_say_real_actions():
    votes, thresholds = [1, 0, 0, 0], [0.0]  # if o_0 > 0
    crowd = RuleCrowd(1, 2, ACTIONS["real"], np.array([[*votes, *thresholds, 0.5, -1, 2, 3]], dtype=np.float32))
    crowd.seat(np.array([0, 0]))
    assert crowd.act(np.array([[1, 0], [0, 0]], dtype=np.float32)).tolist() == [[0.5, -1], [2, 3]]


def test_a_rule_s_parameters_are_in_the_order_that_its_crowd_reads():
    config = compose(["policy=rule"]).policy
    policy = Rule.make(ControlSpec((4,), Discrete(2)), config, Acting(), torch.Generator().manual_seed(0))
    assert [name for name, _ in policy.named_parameters()] == ["module.votes", "module.thresholds", "module.actions"]
    crowd = policy.sampler().crowd
    votes, thresholds, said = (p.detach().numpy() for p in policy.parameters())
    assert (crowd.features[:, 0] == votes.argmax(1) % 4).all()
    assert (crowd.thresholds[:, 0] == thresholds).all()
    assert (crowd.said[:, 0] == said.argmax(1)).all()
    assert len(parameters_to_vector(policy.parameters())) == 35


@pytest.mark.parametrize("algo", ["ppo", "reinforce", "a2c"])
def test_a_method_that_needs_a_gradient_refuses_a_rule_in_one_line(algo):
    with pytest.raises(InputError, match=rf"^algo={algo} needs .*policy=rule does not offer; try policy=.*$") as error:
        build(compose([f"algo={algo}", "policy=rule", "device=cpu"]))
    assert "\n" not in str(error.value)
