"""A price on leaving a frozen reference: where it stands, what its gradient is of, and what is refused."""

from dataclasses import replace

import pytest
import torch

from pgcli.errors import InputError
from pgcli.experiment import train
from pgcli.experiment.build import warnings
from pgcli.experiment.config import compose
from pgcli.runs.checkpoint import load_newest

from .test_identities import Table, algorithm, policy_gradient_of, tree

BETA = 0.3
UNBIASED = {
    "vanilla_pg": ["algo.gamma=1"],
    "reinforce": ["algo.gamma=1", "algo.baseline=none"],
    "ppo": ["algo.gamma=1", "algo.gae_lambda=1", "algo.aggregation=sequence_sum", "algo.normalise_advantages=none"],
    "grpo": ["algo.advantage=centred", "algo.aggregation=sequence_sum", "algo.entropy_coefficient=0"],
    "rloo": [],
}
SCALE = {"rloo": 9 / 8}
"""Leaving one of nine out scales what is centred."""
REWARD = ["algo.kl.placement=reward", "algo.kl.estimator=k1", f"algo.kl.coefficient={BETA}"]


def referenced(policy, reference, behaviour=None):
    """The enumerated tree, with the log-probs of a reference."""
    rollout = tree(behaviour or policy)
    with torch.no_grad():
        rollout.reference_log_probs = reference(rollout.observations, rollout.actions).log_probs
    return rollout


def per_state_gradient(policy, reference, rollout):
    """sum over the visits of a state times grad KL(pi || ref) there: pi (log pi - log ref - KL) for a softmax."""
    pi, log_ratio = policy.logits.softmax(-1), policy.logits.log_softmax(-1) - reference.logits.log_softmax(-1)
    each = pi * (log_ratio - (pi * log_ratio).sum(-1, keepdim=True))
    visits = torch.zeros(len(pi), dtype=pi.dtype)
    visits.index_add_(0, rollout.observations.flatten(), rollout.weights[:, None].expand_as(rollout.mask).flatten())
    return (visits[:, None] * each).detach()


@pytest.mark.parametrize("name", UNBIASED)
def test_k1_in_the_reward_climbs_the_return_less_beta_times_the_kl_of_whole_episodes(name):
    policy, reference = Table(), Table(seed=1)
    rollout = referenced(policy, reference)
    log_probs = policy(rollout.observations, rollout.actions).log_probs.sum(1)
    worth = rollout.rewards.sum(1) - BETA * (log_probs - rollout.reference_log_probs.sum(1))
    (exact,) = torch.autograd.grad((log_probs.exp() * worth).sum(), [policy.logits])
    one = algorithm(name, policy, *UNBIASED[name], *REWARD)
    found = policy_gradient_of(one, policy, rollout)
    torch.testing.assert_close(found, -exact * SCALE.get(name, 1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", UNBIASED)
@pytest.mark.parametrize(("estimator", "moved"), [("k2", False), ("k3_corrected", False), ("k3_corrected", True)])
def test_in_the_loss_it_adds_beta_times_the_gradient_of_the_kl_at_the_states_visited(name, estimator, moved):
    behaviour, reference = Table(), Table(seed=1)
    policy = Table(seed=2) if moved else behaviour
    rollout = referenced(policy, reference, behaviour)
    gradients = []
    for beta in (0.0, BETA):
        words = ["algo.kl.placement=loss", f"algo.kl.estimator={estimator}", f"algo.kl.coefficient={beta}"]
        one = algorithm(name, behaviour, *UNBIASED[name], "algo.entropy_coefficient=0", *words)
        total, _ = one.loss(policy, one.prepare(rollout), None)
        gradients.append(torch.autograd.grad(total, [policy.logits])[0])
    exact = BETA * per_state_gradient(policy, reference, rollout)
    torch.testing.assert_close(gradients[1] - gradients[0], exact, atol=1e-12, rtol=0)


def test_the_price_is_taken_from_each_action_and_the_rollout_keeps_its_rewards():
    # beta 0.3; log pi = -1, log ref = -3 and -0.5: prices 0.6 and -0.15. The third action is padding.
    policy = Table()
    rollout = tree(policy)
    three = {
        "rewards": torch.tensor([[0.0, 1.0, 0.0]]),
        "log_probs": torch.tensor([[-1.0, -1.0, 7.0]]),
        "reference_log_probs": torch.tensor([[-3.0, -0.5, float("nan")]]),
        "mask": torch.tensor([[True, True, False]]),
    }
    rollout = replace(rollout, **three)
    one = algorithm("rloo", policy, *REWARD)
    torch.testing.assert_close(one.kl.rewards(rollout), torch.tensor([[-0.6, 1.15, 0.0]]))
    assert rollout.rewards.tolist() == [[0, 1, 0]]
    assert one.kl.finish(rollout) == pytest.approx({"kl/coefficient": BETA, "kl/price": 0.45})


@pytest.mark.parametrize(("kl", "coefficient"), [(3.0, 0.306), (2.2, 0.303), (2.0, 0.3), (0.5, 0.294)])
def test_a_target_adapts_beta_for_the_next_update(kl, coefficient):
    # target 2, gain 0.1: errors 0.5 and -0.75 are clipped at 0.2, 0.1 is not: 0.3 * (1 + 0.1 * error).
    policy = Table()
    one = algorithm("rloo", policy, *REWARD, "algo.kl.target=2", "algo.kl.gain=0.1")
    rollout = tree(policy)
    rollout = replace(rollout, reference_log_probs=rollout.log_probs - kl / 2)  # two actions an episode
    assert one.kl.finish(rollout)["kl/coefficient"] == BETA
    assert one.kl.coefficient == pytest.approx(coefficient)
    other = algorithm("rloo", policy, *REWARD, "algo.kl.target=2")
    other.load_state_dict(one.state_dict())
    assert other.kl.coefficient == one.kl.coefficient


@pytest.mark.parametrize(
    ("placement", "estimator", "says"),
    [
        ("loss", "k1", "k1 in the loss has an expected gradient of zero.*k3_corrected"),
        ("reward", "k2", "k2 in the reward has the gradient of E.*estimator=k1"),
        ("reward", "k3", "k3 in the reward has the gradient of KL.*estimator=k1"),
        ("reward", "k3_corrected", "k3_corrected in the reward is k3 there.*estimator=k1"),
    ],
)
@pytest.mark.parametrize("name", ["ppo", "dr_grpo"])
def test_an_estimator_whose_gradient_is_wrong_where_it_stands_is_refused_unless_it_is_asked_for(
    name, placement, estimator, says
):
    words = [f"algo={name}", "env=sort", f"algo.kl.placement={placement}", f"algo.kl.estimator={estimator}"]
    compose(words)  # it costs nothing: nothing to refuse
    with pytest.raises(InputError, match=f"`algo.kl` is refused: {says}") as refused:
        compose([*words, "algo.kl.coefficient=0.1"])
    assert "\n" not in str(refused.value)
    config = compose([*words, "algo.kl.coefficient=0.1", "algo.kl.allow_biased=true"])
    assert f"{estimator} in the {placement}" in warnings(config)[0]


def test_grpo_s_published_penalty_runs_and_names_its_bias():
    config = compose(["algo=grpo", "env=sort", "algo.kl.coefficient=0.04", "algo.kl.estimator=k3"])
    (said,) = warnings(config)
    assert "k3 in the loss has the gradient of KL(reference || policy)" in said
    assert warnings(compose(["algo=grpo", "env=sort", "algo.kl.coefficient=0.04"])) == []


def test_a_discounted_price_in_the_reward_says_that_it_is_not_the_kl_of_episodes():
    words = ["algo=ppo", "env=cartpole", "tuned=none", "algo.kl.coefficient=0.1"]
    assert "gamma 0.99 and lambda 0.95" in warnings(compose(words))[0]
    assert warnings(compose([*words, "algo.gamma=1", "algo.gae_lambda=1"])) == []


def test_a_target_needs_a_price_to_adapt():
    with pytest.raises(InputError, match="a target adapts the coefficient by factors: start above 0"):
        compose(["algo=rloo", "env=sort", "algo.kl.target=3"])


@pytest.mark.parametrize("word", ["algo.top_p=0.9", "policy.top_k=5", "top_k=3", "algo.min_p=0.1"])
def test_truncated_sampling_is_refused_with_its_reason(word):
    with pytest.raises(InputError, match=r"which tokens the truncation leaves.*belongs to `pgcli sample`"):
        compose(["algo=grpo", "env=sort", word])


def test_the_kl_is_measured_without_a_price_and_a_run_can_be_the_reference(tmp_path):
    small = ["env=cartpole", "device=cpu", "eval.episodes=2", "policy.hidden=[8]", "tuned=none"]
    first = train("algo=ppo", *small, "total_steps=1024", "algo.learning_rate=0.01", run_dir=tmp_path / "a", quiet=True)
    words = ["algo=grpo", *small, "algo.num_groups=2", "algo.group_size=2", "total_steps=100", "algo.kl.measure=true"]
    second = train(*words, f"init={first.path}", run_dir=tmp_path / "b", quiet=True)
    assert second.rows()[0]["kl/k1"] == pytest.approx(0, abs=1e-4), "the reference is what training began with"
    third = train(*words, f"reference={first.path}", run_dir=tmp_path / "c", quiet=True)
    assert third.rows()[0]["kl/k3"] > 1e-3
    frozen = load_newest(third.path / "checkpoints").state["frozen"]["reference"]
    trained = load_newest(first.path / "checkpoints").state["policy"]
    assert all(torch.equal(frozen[key], trained[key]) for key in frozen)
