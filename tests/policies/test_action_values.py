"""Networks and tables of Q(s, a), and the actions drawn from them."""

import copy

import numpy as np
import pytest
import torch

from pgcli.errors import InputError
from pgcli.experiment.config import compose
from pgcli.functional.temporal_difference import epsilon_greedy
from pgcli.policies.action_values import EpsilonGreedy
from pgcli.registry import find
from pgcli.types import ActionTable, ActionValues, Continuous, ControlSpec, Discrete, Stochastic, TextSpec

VECTOR = ControlSpec((4,), Discrete(3))
IMAGE = ControlSpec((1, 8, 8), Discrete(3))
COUNTED = ControlSpec((5,), Discrete(3), states=5)
REAL = ControlSpec((4,), Continuous(-np.ones(2), np.ones(2)))
TEXT = TextSpec(vocabulary=9, prompt_length=2, completion_length=2, end=1, pad=0)


def make(name, spec, needs, *words):
    config = compose([f"policy={name}", *(f"policy.{word}" for word in words)]).policy
    return find("policy", name).make(spec, config, needs, torch.Generator().manual_seed(3))


def network(name="mlp", *words):
    """Away from its initialisation."""
    policy = make(name, {"mlp": VECTOR, "cnn": IMAGE}[name], ActionValues(), *words)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return policy


def inputs(policy_name, n=32):
    shape = {"mlp": VECTOR, "cnn": IMAGE}[policy_name].observation_shape
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(2))


ARCHITECTURES = [("mlp", "activation=tanh"), ("mlp", "activation=relu", "hidden=[7]"), ("cnn",)]


@pytest.mark.parametrize("words", ARCHITECTURES)
def test_the_sampler_acts_by_the_module_s_own_values(words):
    policy, x = network(*words), inputs(words[0])
    actions, outputs = policy.sampler().act(x.numpy(), None)
    with torch.no_grad():
        own = policy(x)
    torch.testing.assert_close(torch.from_numpy(outputs), own, atol=1e-5, rtol=0)
    assert actions.tolist() == own.argmax(-1).tolist()


@pytest.mark.parametrize("words", ARCHITECTURES)
def test_the_fast_values_of_a_gradient_step_are_those_of_the_module_and_so_is_their_gradient(words):
    policy, x = network(*words), inputs(words[0])
    weights = torch.randn(32, 3, generator=torch.Generator().manual_seed(4))
    values, gradients = [], []
    for evaluate in (policy, policy.once_differentiable()):
        values.append(evaluate(x))
        policy.zero_grad()
        (values[-1] * weights).sum().backward()
        gradients.append([p.grad for p in policy.parameters()])
    torch.testing.assert_close(values[0], values[1])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_the_fast_gradients_add_up():
    policy, x = network(), inputs("mlp")
    evaluate = policy.once_differentiable()

    def gradients(*losses):
        policy.zero_grad()
        for loss in losses:
            loss.backward(retain_graph=True)
        return [p.grad for p in policy.parameters()]

    whole = evaluate(x)
    expected = gradients(whole.sum())
    pieces = gradients(evaluate(x[:10]).sum(), evaluate(x[10:]).sum())
    columns = gradients(whole[:, 0].sum(), whole[:, 1:].sum())  # of one evaluation, one after the other
    torch.testing.assert_close(pieces, expected)
    torch.testing.assert_close(columns, expected)


def test_a_copy_has_weights_of_its_own():
    policy, x = network(), inputs("mlp")
    other = copy.deepcopy(policy)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    for evaluate in (other, other.once_differentiable()):
        assert not evaluate(x).any()
    assert not other.sampler().act(x.numpy(), None)[1].any()
    assert policy(x).any()


def frequencies(values, epsilon, n=40_000):
    sampler = EpsilonGreedy(lambda observations: np.repeat([values], len(observations), 0), len(values), epsilon)
    noise = sampler.noise(np.random.default_rng(0), (n,))
    actions, outputs = sampler.act(np.zeros((n, 1), dtype=np.float32), noise)
    log_probs = sampler.log_probs(torch.tensor(outputs), torch.from_numpy(actions))
    return np.bincount(actions, minlength=len(values)) / n, actions, log_probs


@pytest.mark.parametrize(
    ("values", "epsilon", "expected"),
    [
        ([1.0, 3.0, 2.0], 0.3, [0.1, 0.8, 0.1]),
        ([1.0, 3.0, 2.0], 0.0, [0, 1, 0]),
        ([1.0, 3.0, 2.0], 1.0, [1 / 3] * 3),
        ([2.0, 2.0, 1.0, 2.0], 0.2, [0.05 + 0.8 / 3] * 2 + [0.05, 0.05 + 0.8 / 3]),  # ties evenly
        ([0.0] * 4, 0.0, [0.25] * 4),
    ],
)
def test_epsilon_greedy_samples_have_its_frequencies(values, epsilon, expected):
    found, actions, log_probs = frequencies(values, epsilon)
    assert found == pytest.approx(expected, abs=0.01)  # four standard errors
    assert epsilon_greedy(torch.tensor(values), epsilon).tolist() == pytest.approx(expected)
    torch.testing.assert_close(log_probs.exp().double(), torch.tensor(expected, dtype=torch.float64)[actions])


def test_a_policy_that_explores_is_the_same_policy_with_an_epsilon():
    policy, x = network(), inputs("mlp", 2000)
    sampler = policy.exploring(1.0).sampler()
    actions, _ = sampler.act(x.numpy(), sampler.noise(np.random.default_rng(0), (2000,)))
    assert np.bincount(actions) / 2000 == pytest.approx([1 / 3] * 3, abs=0.045)
    sampler = policy.exploring(0.0).sampler()
    actions, _ = sampler.act(x.numpy(), sampler.noise(np.random.default_rng(0), (2000,)))
    assert actions.tolist() == policy(x).argmax(-1).tolist()


# ---------------------------------------------------------------- tables


def one_hot(*states):
    return torch.eye(5)[list(states)]


def test_a_table_begins_with_one_value_everywhere_and_each_state_has_its_own_row():
    policy = make("tabular", COUNTED, ActionTable(), "initial_value=2.5")
    assert policy(one_hot(0, 4)).tolist() == [[2.5] * 3] * 2
    [table] = policy.parameters()
    with torch.no_grad():
        table[4] = torch.tensor([1.0, 9.0, 5.0])
    assert policy(one_hot(4, 0)).tolist() == [[1, 9, 5], [2.5] * 3]
    actions, outputs = policy.sampler().act(one_hot(4, 4).numpy(), None)
    assert (actions.tolist(), outputs.tolist()) == ([1, 1], [[1, 9, 5]] * 2)


def test_the_softmax_of_a_table_is_uniform_at_first_and_moves_state_by_state():
    policy = make("tabular", COUNTED, Stochastic(critic=True), "initial_value=0.5")
    log_probs = policy(one_hot(0, 1), torch.tensor([0, 2])).log_probs
    assert log_probs.exp().tolist() == pytest.approx([1 / 3] * 2)
    assert policy.values(one_hot(0, 1)).tolist() == [0.5, 0.5]
    with torch.no_grad():
        policy.actor.table[1] = torch.tensor([0.0, 0.0, 1.0])
    e = np.e
    assert policy(one_hot(0, 1), torch.tensor([0, 2])).log_probs.exp().tolist() == pytest.approx([1 / 3, e / (2 + e)])
    sampler = policy.sampler()
    _, outputs = sampler.act(one_hot(1).numpy(), sampler.noise(np.random.default_rng(0), (1,)))
    assert outputs.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("name", "spec", "needs", "words"),
    [
        ("tabular", ControlSpec((5,), REAL.actions, states=5), Stochastic(), "continuous"),
        ("mlp", REAL, ActionValues(), "continuous"),
    ],
)
def test_what_a_policy_cannot_be_is_refused(name, spec, needs, words):
    with pytest.raises(InputError, match=words) as refused:
        make(name, spec, needs)
    assert "\n" not in str(refused.value)
