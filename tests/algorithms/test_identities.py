"""What one method is in terms of another, and what its gradient is of: each held with the algorithms' own `loss`."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn
from torch.func import functional_call

from pgcli.experiment.config import compose
from pgcli.functional.distributions import Categorical, categorical
from pgcli.registry import find
from pgcli.types import Evaluation, Rollout

ACTIONS, LENGTH = 3, 2


class Table(nn.Module):
    """A softmax policy and a value for each state of a tree: the state is how many actions and which came before."""

    unit, has_critic = "sequence", True

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(torch.randn(1 + ACTIONS, ACTIONS, dtype=torch.float64, generator=generator))
        self.critic = nn.Parameter(torch.randn(1 + ACTIONS, dtype=torch.float64, generator=generator))

    def forward(self, observations, actions):
        log_probs, entropy = categorical(self.logits[observations], actions)
        return Evaluation(log_probs, entropy, self.critic[observations], Categorical(self.logits[observations]))

    def once_differentiable(self):
        return self


def tree(policy, *, groups=None):
    """All nine action sequences, each weighted by its probability, with a reward for every node."""
    actions = torch.tensor(list(product(range(ACTIONS), repeat=LENGTH)))
    observations = torch.stack([torch.zeros(len(actions), dtype=torch.int64), 1 + actions[:, 0]], dim=1)
    generator = torch.Generator().manual_seed(7)
    first, second = (
        torch.randn(ACTIONS, dtype=torch.float64, generator=generator),
        torch.randn(9, dtype=torch.float64, generator=generator),
    )
    rewards = torch.stack([first[actions[:, 0]], second], dim=1)
    with torch.no_grad():
        log_probs, _, values, *_ = policy(observations, actions)
    ends = torch.zeros_like(rewards, dtype=torch.bool)
    ends[:, -1] = True
    return Rollout(
        observations=observations, actions=actions, rewards=rewards, terminated=ends, truncated=torch.zeros_like(ends),
        mask=torch.ones_like(ends), log_probs=log_probs, values=values,
        next_values=torch.cat([values[:, 1:], values[:, :1]], dim=1), weights=log_probs.sum(1).exp(),
        groups=torch.zeros(len(actions), dtype=torch.int64) if groups is None else groups,
    )  # fmt: skip


def exact_gradient(policy):
    """grad J of J = sum over sequences of pi(sequence) R(sequence), by differentiating the sum itself."""
    rollout = tree(policy)
    log_probs = policy(rollout.observations, rollout.actions).log_probs.sum(1)
    (gradient,) = torch.autograd.grad((log_probs.exp() * rollout.rewards.sum(1)).sum(), [policy.logits])
    return gradient


def algorithm(name, policy, *words):
    config = compose([f"algo={name}", "env=cartpole", "tuned=none", *words])
    return find("algo", config.algo.name)(policy, config.algo, total_steps=100, seed=0)


def policy_gradient_of(one, policy, rollout):
    """The gradient of the policy term alone, at the behaviour parameters."""
    batch = one.prepare(rollout)
    _, terms = one.loss(policy, batch, None)
    (gradient,) = torch.autograd.grad(terms["loss/policy"], [policy.logits])
    return gradient


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vanilla_pg", ["algo.gamma=1"]),
        ("reinforce", ["algo.gamma=1", "algo.baseline=none"]),
        ("reinforce", ["algo.gamma=1", "algo.baseline=value"]),  # any V(s) is a valid baseline
        ("a2c", ["algo.gamma=1", "algo.gae_lambda=1", "algo.aggregation=sequence_sum"]),
        (
            "ppo",
            ["algo.gamma=1", "algo.gae_lambda=1", "algo.aggregation=sequence_sum", "algo.normalise_advantages=none"],
        ),
    ],
)
def test_the_enumerated_loss_has_the_gradient_of_the_expected_return(name, words):
    policy = Table()
    one = algorithm(name, policy, *words)
    torch.testing.assert_close(
        policy_gradient_of(one, policy, tree(policy)), -exact_gradient(policy), atol=1e-12, rtol=0
    )


def test_one_step_bootstrapping_by_a_wrong_value_is_biased():
    # The counterpart: with lambda = 0 a critic that is wrong shows in the gradient.
    policy = Table()
    one = algorithm("a2c", policy, "algo.gamma=1", "algo.gae_lambda=0", "algo.aggregation=sequence_sum")
    assert (policy_gradient_of(one, policy, tree(policy)) + exact_gradient(policy)).abs().max() > 0.01


def test_ppo_s_first_gradient_is_a2c_s():
    policy = Table()
    words = ["algo.gamma=0.9", "algo.gae_lambda=0.7", "algo.entropy_coefficient=0.1", "algo.value_coefficient=0.3"]
    ppo = algorithm("ppo", policy, *words, "algo.normalise_advantages=none")
    a2c = algorithm("a2c", policy, *words)
    gradients = []
    for one in (ppo, a2c):
        total, _ = one.loss(policy, one.prepare(tree(policy)), None)
        gradients.append(torch.autograd.grad(total, list(policy.parameters())))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-12, rtol=0)


def test_centred_grpo_is_rloo_times_k_minus_1_over_k():
    policy = Table()
    rollout = replace(tree(policy), weights=None)  # one group of nine sampled episodes
    rloo = policy_gradient_of(algorithm("rloo", policy), policy, rollout)
    centred = ["algo.advantage=centred", "algo.aggregation=sequence_sum"]
    grpo = policy_gradient_of(algorithm("grpo", policy, *centred), policy, rollout)
    torch.testing.assert_close(grpo, rloo * 8 / 9, atol=1e-12, rtol=0)


def test_standardised_grpo_divides_each_group_by_its_own_deviation():
    policy = Table()
    rollout = replace(tree(policy), weights=None)
    words = ["algo.aggregation=sequence_sum"]
    centred = policy_gradient_of(algorithm("grpo", policy, *words, "algo.advantage=centred"), policy, rollout)
    standardised = policy_gradient_of(algorithm("grpo", policy, *words), policy, rollout)
    deviation = rollout.rewards.sum(1).std(correction=0)
    torch.testing.assert_close(standardised * deviation, centred, atol=1e-5, rtol=0)


def test_sft_is_the_cross_entropy_of_the_demonstrations():
    policy = Table()
    rollout = replace(tree(policy), weights=None, log_probs=None)
    one = algorithm("sft", policy)
    total, _ = one.loss(policy, one.prepare(rollout), None)
    logits = policy.logits[rollout.observations].flatten(0, 1)
    torch.testing.assert_close(total, nn.functional.cross_entropy(logits, rollout.actions.flatten()))


EVERY = ["vanilla_pg", "reinforce", "a2c", "a3c", "ppo", "rloo", "grpo", "sft", "npg", "trpo", "ppo_kl"]


@pytest.mark.parametrize("name", EVERY)
def test_padding_changes_no_loss_whatever_it_holds(name):
    policy = Table()
    one = algorithm(name, policy)
    rollout = replace(tree(policy), weights=None)

    def padded(x):
        if x is None or x.dim() < 2:
            return x
        empty = x.new_full((len(x), 3), 5) if x.is_floating_point() else x.new_zeros((len(x), 3))
        return torch.cat([x, empty], dim=1)

    longer = Rollout(**{k: padded(v) if isinstance(v, torch.Tensor) else v for k, v in vars(rollout).items()})
    longer.rewards = torch.where(longer.mask, longer.rewards, 0)  # as every collector leaves it
    results = []
    for each in (rollout, longer):
        total, _ = one.loss(policy, one.prepare(each), None)
        results.append((total.detach(), torch.autograd.grad(total, [policy.logits])))
    torch.testing.assert_close(results[1], results[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", EVERY)
def test_a_loss_is_a_function_of_the_parameters_that_are_bound_to_it(name):
    policy, other = Table(), Table(seed=1)
    one = algorithm(name, policy)
    batch = one.prepare(tree(policy))

    def bound(observations, actions):
        return functional_call(policy, dict(other.named_parameters()), (observations, actions))

    torch.testing.assert_close(one.loss(bound, batch, None)[0], one.loss(other, batch, None)[0])


@pytest.mark.parametrize("name", EVERY)
def test_preparing_a_batch_leaves_the_rollout_as_it_was(name):
    policy = Table()
    rollout = tree(policy)
    before = {k: v.clone() for k, v in vars(rollout).items() if isinstance(v, torch.Tensor)}
    algorithm(name, policy).prepare(rollout)
    for key, value in before.items():
        assert torch.equal(getattr(rollout, key), value), key


def test_a_natural_or_trust_region_method_climbs_what_a2c_climbs():
    policy = Table()
    words = ["algo.gamma=0.9", "algo.gae_lambda=0.7", "algo.normalise_advantages=false"]
    expected = policy_gradient_of(algorithm("a2c", policy, *words), policy, tree(policy))
    for name in ("npg", "trpo"):
        found = policy_gradient_of(algorithm(name, policy, *words), policy, tree(policy))
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_one_step_actor_critic_is_a2c_with_the_td_error():
    policy = Table()
    rollout = tree(policy)
    batch = algorithm("actor_critic", policy, "algo.gamma=0.9").prepare(rollout)
    following = torch.where(rollout.terminated, 0, rollout.next_values)
    torch.testing.assert_close(batch.advantages, rollout.rewards + 0.9 * following - rollout.values)


@pytest.mark.parametrize("clip", ["null", "0.2"])
def test_a_price_on_the_kl_adds_its_exact_gradient(clip):
    # KL(old || new) of a softmax has the gradient pi_new - pi_old with respect to the new logits.
    old, new = Table(), Table(seed=1)
    words = ["algo.normalise_advantages=none", f"algo.clip_range={clip}"]
    rollout = tree(old)
    gradients = []
    for beta in (0.0, 0.3):
        one = algorithm("ppo_kl", old, *words, "algo.kl_penalty.target=null", f"algo.kl_penalty.coefficient={beta}")
        total, _ = one.loss(new, one.prepare(rollout), None)
        gradients.append(torch.autograd.grad(total, [new.logits])[0])
    root = rollout.weights.sum()
    second = torch.zeros(ACTIONS, dtype=torch.float64).index_add_(0, rollout.actions[:, 0], rollout.weights)
    share = torch.cat([root[None], second])[:, None] / LENGTH
    apart = new.logits.softmax(-1) - old.logits.softmax(-1)
    torch.testing.assert_close(gradients[1] - gradients[0], (0.3 * share * apart).detach(), atol=1e-12, rtol=0)


def test_without_clip_and_price_it_is_the_bare_surrogate():
    old, new = Table(), Table(seed=1)
    rollout = tree(old)
    one = algorithm("cpi", old, "algo.normalise_advantages=none", "algo.aggregation=sequence_sum")
    batch = one.prepare(rollout)
    ratio = (new(rollout.observations, rollout.actions).log_probs - rollout.log_probs).exp()
    expected = -(rollout.weights[:, None] * ratio * batch.advantages).sum()
    torch.testing.assert_close(one.loss(new, batch, None)[1]["loss/policy"], expected)


def test_the_best_constant_baseline_of_an_episode_comes_from_the_others():
    # Each episode's score and its products here by a gradient for every action by itself.
    policy = Table()
    rollout = replace(tree(policy), weights=None)
    one = algorithm("reinforce", policy, "algo.gamma=1", "algo.baseline=optimal")
    returns = rollout.rewards.flip(1).cumsum(1).flip(1)
    log_probs = policy(rollout.observations, rollout.actions).log_probs
    scores = torch.stack([
        torch.stack([torch.autograd.grad(x, [policy.logits], retain_graph=True)[0].flatten() for x in row])
        for row in log_probs
    ])  # fmt: skip
    s, z = scores.sum(1), (scores * returns[..., None]).sum(1)
    found = returns - one.prepare(rollout).advantages
    for i in range(len(returns)):
        others = [j for j in range(len(returns)) if j != i]
        exact = sum(s[j] @ z[j] for j in others) / sum(s[j] @ s[j] for j in others)
        torch.testing.assert_close(found[i], exact.expand(LENGTH), atol=1e-6, rtol=0)  # 1/9 is float32


def test_the_best_constant_baseline_of_a_lone_episode_is_none():
    policy = Table()
    rollout = replace(tree(policy), weights=None)
    lone = Rollout(**{k: v[:1] if isinstance(v, torch.Tensor) else v for k, v in vars(rollout).items()})
    one = algorithm("reinforce", policy, "algo.gamma=1", "algo.baseline=optimal")
    torch.testing.assert_close(one.prepare(lone).advantages, lone.rewards.flip(1).cumsum(1).flip(1))
