"""A price on leaving a frozen reference: where it stands, what its gradient is of, and what is refused."""

from dataclasses import replace
from math import log

import pytest
import torch

from pgcli.collectors.reference import Referenced
from pgcli.errors import InputError
from pgcli.experiment import train
from pgcli.experiment.build import warnings
from pgcli.experiment.config import compose
from pgcli.functional.distributions import Categorical, categorical
from pgcli.runs.checkpoint import load_newest
from pgcli.types import ABSENT, Evaluation, Rollout

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


def test_what_is_logged_and_paid_is_the_beta_of_this_update_and_not_the_first_one():
    # KL 3 with target 2 and gain 0.1: each update multiplies beta by 1 + 0.1 * 0.2.
    policy = Table()
    one = algorithm("rloo", policy, *REWARD, "algo.kl.target=2", "algo.kl.gain=0.1")
    rollout = tree(policy)
    rollout = replace(rollout, reference_log_probs=rollout.log_probs - 1.5)  # two actions an episode
    for beta in (0.3, 0.306, 0.31212):
        torch.testing.assert_close(rollout.rewards - one.kl.rewards(rollout), torch.full((9, 2), 1.5 * beta).double())
        assert one.kl.finish(rollout) == pytest.approx({"kl/coefficient": beta, "kl/price": 3 * beta})


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


@pytest.mark.parametrize("name", ["grpo", "ppo"])
@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_k2_in_the_loss_is_right_for_one_gradient_step_a_batch_and_says_so_of_more(name, epochs, minibatches):
    words = [f"algo={name}", "env=sort", f"algo.epochs={epochs}", f"algo.minibatches={minibatches}"]
    words += ["algo.kl.placement=loss", "algo.kl.estimator=k2"]
    said, steps = warnings(compose([*words, "algo.kl.coefficient=0.1"])), epochs * minibatches
    assert len(said) == (steps > 1)
    assert all(f"of the {steps} gradient steps on a batch all but the first move away" in line for line in said)
    assert warnings(compose([*words, "algo.kl.coefficient=0"])) == [], "it costs nothing"


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


def test_the_divergence_is_that_of_the_policy_from_the_reference_and_not_the_other_way_round():
    # pi = (9/10, 1/10), ref = (1/2, 1/2). KL(pi || ref) = 0.9 log 1.8 + 0.1 log 0.2 = 0.368; reversed it is 0.511.
    class Even:
        unit = "sequence"

        def __call__(self, observations, actions):
            logits = torch.zeros(*actions.shape, 2)
            return Evaluation(*categorical(logits, actions), ABSENT, Categorical(logits))

    class Source:
        def collect(self, policy):
            """The likely action twice; the other one, and an action that is padding, where the policy is surer."""
            nothing = torch.zeros(2, 2, dtype=torch.bool)
            probabilities = torch.tensor([[[0.9, 0.1], [0.9, 0.1]], [[0.9, 0.1], [0.999, 0.001]]])
            return Rollout(
                observations=nothing, actions=torch.tensor([[0, 0], [1, 0]]), rewards=torch.zeros(2, 2),
                terminated=nothing, truncated=nothing, mask=torch.tensor([[True, True], [True, False]]),
                log_probs=torch.tensor([[0.9, 0.9], [0.1, 1.0]]).log(),
                distribution=Categorical(probabilities.log()), metrics={"before": 1.0},
            )  # fmt: skip

    rollout = Referenced(Source(), Even()).collect(None)
    torch.testing.assert_close(rollout.reference_log_probs, torch.tensor([[-log(2), -log(2)], [-log(2), 0.0]]))
    up, down = log(1.8), log(0.2)
    expected = {
        "before": 1.0,
        "kl/exact": 1.5 * (0.9 * up + 0.1 * down),  # three actions in two episodes
        "kl/k1": (2 * up + down) / 2,
        "kl/k2": (2 * up**2 / 2 + down**2 / 2) / 2,
        "kl/k3": (2 * (1 / 1.8 - 1 + up) + (1 / 0.2 - 1 + down)) / 2,
    }
    assert rollout.metrics == pytest.approx(expected, abs=1e-6)


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
