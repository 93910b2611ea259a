"""What each method of preferences does with a batch of which everything is known."""

import math

import pytest
import torch
from torch import nn

from pgcli.algorithms.dpo import DPO
from pgcli.algorithms.kto import KTO
from pgcli.algorithms.outcome_reward import OutcomeReward
from pgcli.algorithms.raft import RAFT
from pgcli.algorithms.reward_model import RewardModel, bootstrap
from pgcli.experiment.config import compose
from pgcli.functional.distributions import categorical
from pgcli.types import ABSENT, Checked, Completions, Evaluation, Labelled, Preferences, Rollout

LOG3 = math.log(3)


class Table(nn.Module):
    """log pi of each of three tokens, whatever came before; the reference is uniform."""

    unit = "sequence"
    has_critic = False

    def __init__(self, *logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, observations, actions):
        return Evaluation(*categorical(self.logits.expand(*actions.shape, 3), actions), ABSENT)

    def once_differentiable(self):
        return self


class Judges(nn.Module):
    """Each member scores a text by its last token's entry in a table of its own."""

    def __init__(self, *tables):
        super().__init__()
        self.tables = nn.Parameter(torch.tensor(tables))

    def forward(self, observations, actions):
        return self.tables[:, actions]

    def once_differentiable(self):
        return self


def completions(*rows, uniform=3):
    """Tokens 0, 1, 2; -1 is padding."""
    given = torch.tensor(rows)
    mask = given >= 0
    reference = torch.where(mask, -math.log(uniform), 0.0)
    return Completions({"prompt": torch.zeros(len(rows), 1)}, given.clamp(min=0), mask, reference)


def settings(algo, *words):
    return compose([f"algo={algo}", "env=sort", "tuned=none", *(f"algo.{word}" for word in words)]).algo


def of(algorithm, policy, algo, *words):
    return algorithm(policy, settings(algo, *words), total_steps=1000, seed=0)


def pairs(*rows, numbers=None):
    half = len(rows) // 2
    return Preferences(completions(*rows), torch.arange(half) if numbers is None else numbers, torch.ones(half))


# ---------------------------------------------------------------- DPO


def terms(algo, policy, batch, *words):
    loss, found = of(DPO, policy, algo, *words).loss(policy, batch, None)
    return float(loss.detach()), {name: float(value) for name, value in found.items()}


def test_dpo_sums_log_ratios_over_tokens_and_leaves_padding_out():
    # pi = (3/5, 1/5, 1/5), ref = 1/3 each: log-ratios log 9/5 and log 3/5. Preferred: 0 0; rejected: 1.
    policy = Table(LOG3, 0.0, 0.0)
    h = 0.5 * (2 * math.log(9 / 5) - math.log(3 / 5))
    loss, found = terms("dpo", policy, pairs([0, 0], [1, -1]), "beta=0.5")
    assert loss == pytest.approx(-math.log(1 / (1 + math.exp(-h))), abs=1e-6)
    assert found["preferences/margin"] == pytest.approx(h, abs=1e-6)
    assert found["preferences/chosen_log_ratio"] == pytest.approx(2 * math.log(9 / 5), abs=1e-6)
    assert found["preferences/rejected_log_ratio"] == pytest.approx(math.log(3 / 5), abs=1e-6)
    assert found["preferences/accuracy"] == 1


def test_normalised_by_length_a_completion_of_two_tokens_counts_like_one_of_one():
    policy = Table(LOG3, 0.0, 0.0)
    h = 0.5 * (math.log(9 / 5) - math.log(3 / 5))
    loss, _ = terms("dpo_norm", policy, pairs([0, 0], [1, -1]), "beta=0.5")
    assert loss == pytest.approx(-math.log(1 / (1 + math.exp(-h))), abs=1e-6)


def test_ipo_is_summed_unless_it_says_otherwise():
    # The summed margin is 2 log 9/5 - log 3/5, the averaged one log 3; the target is 1 / (2 * 0.5) = 1.
    policy = Table(LOG3, 0.0, 0.0)
    summed, _ = terms("ipo", policy, pairs([0, 0], [1, -1]), "beta=0.5")
    averaged, _ = terms("ipo", policy, pairs([0, 0], [1, -1]), "beta=0.5", "length_normalised=true")
    assert summed == pytest.approx((2 * math.log(9 / 5) - math.log(3 / 5) - 1) ** 2, abs=1e-5)
    assert averaged == pytest.approx((LOG3 - 1) ** 2, abs=1e-5)


def test_simpo_and_orpo_do_not_look_at_the_reference():
    policy = Table(LOG3, 0.0, 0.0)
    batch = pairs([0, 0], [1, -1])
    other = Preferences(batch.texts._replace(reference_log_probs=torch.randn(2, 2)), batch.numbers, batch.gold)
    for algo in ("simpo", "orpo"):
        assert terms(algo, policy, batch)[0] == terms(algo, policy, other)[0]
    # simpo: beta 2, gamma 1: 2 (log 3/5 - log 1/5) - 1
    assert terms("simpo", policy, batch)[0] == pytest.approx(math.log(1 + math.exp(1 - 2 * LOG3)), abs=1e-6)
    # orpo: odds 3/2 and 1/4, so log 6; and the likelihood of the preferred one, -log 3/5
    expected = -math.log(3 / 5) + 0.1 * math.log(7 / 6)
    loss, found = terms("orpo", policy, batch)
    assert loss == pytest.approx(expected, abs=1e-6)
    assert found["preferences/log_odds_ratio"] == pytest.approx(math.log(6), abs=1e-6)
    assert "preferences/log_odds_ratio" not in terms("simpo", policy, batch)[1]


def test_log_ratios_are_reported_as_sums_whatever_the_loss_compares():
    policy = Table(LOG3, 0.0, 0.0)
    for algo in ("dpo_norm", "simpo", "orpo"):
        _, found = terms(algo, policy, pairs([0, 0], [1, -1]))
        assert found["preferences/chosen_log_ratio"] == pytest.approx(2 * math.log(9 / 5), abs=1e-6)
        assert found["preferences/rejected_log_ratio"] == pytest.approx(math.log(3 / 5), abs=1e-6)


def test_the_implicit_reward_is_what_the_loss_compares():
    # As above: log-ratios 2 log 9/5 and log 3/5; averaged log-probs log 3/5 and log 1/5.
    policy, texts = Table(LOG3, 0.0, 0.0), completions([0, 0], [1, -1])
    for name, algorithm, expected in (
        ("dpo", DPO, [2 * math.log(9 / 5), math.log(3 / 5)]),
        ("dpo_norm", DPO, [math.log(9 / 5), math.log(3 / 5)]),
        ("simpo", DPO, [math.log(3 / 5), math.log(1 / 5)]),
        ("kto", KTO, [2 * math.log(9 / 5), math.log(3 / 5)]),
    ):
        found = of(algorithm, policy, name, "beta=0.5").implicit_reward(policy, texts)
        torch.testing.assert_close(found, 0.5 * torch.tensor(expected))


def test_the_loss_of_averages_is_refused_for_sums():
    with pytest.raises(Exception, match="the loss simpo is one of averaged log-probs"):
        settings("simpo", "length_normalised=false")


@pytest.mark.parametrize("algo", ["dpo", "cdpo", "ipo", "simpo", "orpo", "dpo_norm", "apo_zero"])
def test_every_member_of_the_family_learns_to_prefer_the_preferred(algo):
    policy = Table(0.0, 0.0, 0.0)
    method = of(DPO, policy, algo, "learning_rate=0.05")
    for _ in range(30):
        metrics = method.update(pairs([0, 0], [0, 0], [1, 1], [2, 1]))
    assert metrics["preferences/accuracy"] == 1
    assert policy.logits[0] > policy.logits[1]


def test_dpo_of_labels_that_are_right_three_times_in_four_ends_at_their_log_odds():
    # Tokens 0 and 1, one token each: 0 is preferred 3 of 4 times. DPO's optimum: beta * (log-ratio margin) = log 3.
    policy = Table(0.0, 0.0, 0.0)
    method = of(DPO, policy, "dpo", "beta=0.5", "learning_rate=0.05", "max_grad_norm=null")
    for _ in range(400):
        method.update(pairs([0], [0], [0], [1], [1], [1], [1], [0]))
    assert float(0.5 * (policy.logits[0] - policy.logits[1]).detach()) == pytest.approx(LOG3, abs=0.01)


# ---------------------------------------------------------------- KTO


def labelled(rows, desirable, mismatched):
    return Labelled(completions(*rows), torch.tensor(desirable), completions(*mismatched))


def test_ktos_reference_point_comes_from_the_mismatched_pairs_and_not_from_the_labelled_ones():
    # Labelled completions have log-ratios log 9/5 and log 3/5, the mismatched ones log 9/5 both: z = log 9/5.
    policy = Table(LOG3, 0.0, 0.0)
    batch = labelled([[0], [1]], [True, False], [[0], [0]])
    method = of(KTO, policy, "kto", "beta=1")
    loss, found = method.loss(policy, method.prepare(batch), None)
    assert float(found["kto/reference_point"]) == pytest.approx(math.log(9 / 5), abs=1e-6)
    # gains 0 and log 1/3: 1 - 1/2 and 1 - sigmoid(log 3) = 1/4; a shuffle of the labelled ones would give log 27/25 / 2
    assert loss.item() == pytest.approx((1 / 2 + 1 / 4) / 2, abs=1e-6)


def test_no_gradient_flows_through_ktos_reference_point():
    policy = Table(LOG3, 0.0, 0.0)
    slopes = []
    for mismatched in ([[0], [0]], [[0], [0]]):
        batch = labelled([[1], [1]], [True, False], mismatched)
        method = of(KTO, policy, "kto", "beta=1")
        loss, _ = method.loss(policy, method.prepare(batch), None)
        slopes.append(torch.autograd.grad(loss, policy.logits)[0])
    # Both have the gain g = log 1/3: d/dg of (sigmoid(-g) + sigmoid(g)) / 2 is 0, so nothing is left but z's gradient.
    assert slopes[0].abs().max() < 1e-6


def test_ktos_reference_point_is_that_of_all_rows_in_microbatches_too():
    policy = Table(LOG3, 0.0, 0.0)
    rows = ([[0], [1], [0]], [True, False, True], [[0], [0], [1]])
    found = {}
    for words in ((), ("microbatch=1",)):
        method = of(KTO, policy, "kto", "beta=1", *words)
        found[words] = float(method.prepare(labelled(*rows)).reference_point)
        metrics = method.update(labelled(*rows))
        assert metrics["kto/reference_point"] == pytest.approx(found[words], abs=1e-6)
        policy = Table(LOG3, 0.0, 0.0)
    assert found[()] == pytest.approx((2 * math.log(9 / 5) + math.log(3 / 5)) / 3, abs=1e-6)
    assert found["microbatch=1",] == pytest.approx(found[()], abs=1e-6)


def test_kto_reports_each_side_by_its_own_mean_and_counts_right_what_is_beyond_the_reference_point():
    # Log-ratios log 9/5, log 3/5 and log 3/5; z is the mean of log 9/5, log 3/5 and log 9/5, above log 3/5 and 0.
    policy = Table(LOG3, 0.0, 0.0)
    batch = labelled([[0], [1], [1]], [True, False, True], [[0], [1], [0]])
    _, found = of(KTO, policy, "kto", "beta=0.5").loss(policy, of(KTO, policy, "kto").prepare(batch), None)
    high, low = math.log(9 / 5), math.log(3 / 5)
    assert float(found["kto/reference_point"]) > max(0, low)
    assert float(found["preferences/accuracy"]) == pytest.approx(2 / 3)
    assert float(found["preferences/chosen_log_ratio"]) == pytest.approx((high + low) / 2, abs=1e-6)
    assert float(found["preferences/chosen_reward"]) == pytest.approx(0.5 * (high + low) / 2, abs=1e-6)
    assert float(found["preferences/rejected_reward"]) == pytest.approx(0.5 * low, abs=1e-6)
    assert float(found["preferences/margin"]) == pytest.approx(0.5 * ((high + low) / 2 - low), abs=1e-6)


def test_kto_says_nothing_of_a_side_of_which_there_is_no_completion():
    policy = Table(LOG3, 0.0, 0.0)
    method = of(KTO, policy, "kto")
    found = method.update(labelled([[0], [1]], [True, True], [[0], [0]]))
    assert "preferences/chosen_reward" in found
    assert not found.keys() & {"preferences/rejected_reward", "preferences/rejected_log_ratio", "preferences/margin"}
    found = method.update(labelled([[0], [1]], [False, False], [[0], [0]]))
    assert "preferences/rejected_reward" in found
    assert "preferences/chosen_reward" not in found


def test_kto_counts_a_desirable_completion_right_only_beyond_the_reference_point():
    # Shares 5/10, 4/10, 1/10: log-ratios log 3/2, which is z, and log 6/5, above 0 and not beyond z.
    policy = Table(math.log(5.0), math.log(4.0), 0.0)
    batch = labelled([[1]], [True], [[0]])
    method = of(KTO, policy, "kto")
    _, found = method.loss(policy, method.prepare(batch), None)
    assert float(found["kto/reference_point"]) == pytest.approx(math.log(3 / 2), abs=1e-6)
    assert float(found["preferences/accuracy"]) == 0


def test_kto_learns_from_labels_of_single_completions():
    policy = Table(0.0, 0.0, 0.0)
    method = of(KTO, policy, "kto", "learning_rate=0.05")
    for _ in range(30):
        metrics = method.update(labelled([[0], [1], [0]], [True, False, True], [[1], [0], [2]]))
    assert policy.logits[0] > policy.logits[2] > policy.logits[1]
    assert metrics["preferences/accuracy"] == 1


# ---------------------------------------------------------------- reward models


def test_a_reward_model_reads_the_last_real_token():
    # Preferred: 2 0; rejected: 1, padded with 0. Scores 5 (not 7) and 5 - log 3.
    judges = Judges([5.0, 5.0 - LOG3, 7.0])
    loss, found = of(RewardModel, judges, "reward_model").loss(judges, pairs([2, 0], [1, -1]), None)
    assert loss.item() == pytest.approx(-math.log(3 / 4), abs=1e-6)
    assert float(found["preferences/disagreement"]) == 0


def test_members_disagree_about_margins_not_about_scores():
    # The second member scores everything higher by 7: both margins are 2. The third one's margin is 5.
    same, other = Judges([3.0, 1.0, 0.0], [10.0, 8.0, 7.0]), Judges([3.0, 1.0, 0.0], [6.0, 1.0, 0.0])
    for judges, expected in ((same, 0.0), (other, 1.5)):
        _, found = of(RewardModel, judges, "reward_model", "ensemble=2").loss(judges, pairs([0], [1]), None)
        assert float(found["preferences/disagreement"]) == pytest.approx(expected)
        assert float(found["preferences/margin"]) == pytest.approx((2 + (2 if expected == 0 else 5)) / 2)


def test_members_see_samples_of_their_own_the_same_ones_each_epoch():
    weights = bootstrap(torch.arange(5000), 3, seed=1)
    assert weights.shape == (3, 5000)
    assert torch.equal(weights[:, 7:9], bootstrap(torch.tensor([7, 8]), 3, seed=1))
    assert not torch.equal(weights[0], weights[1])
    # Poisson of mean 1: mean and variance 1, and a share of exp(-1) is never drawn.
    assert weights.double().mean(1).tolist() == pytest.approx([1, 1, 1], abs=0.06)
    assert weights.double().var(1).tolist() == pytest.approx([1, 1, 1], abs=0.12)
    assert (weights == 0).double().mean().item() == pytest.approx(math.exp(-1), abs=0.02)
    assert bootstrap(torch.arange(4), 1, seed=1).tolist() == [[1, 1, 1, 1]]


def test_a_member_learns_as_if_it_were_alone():
    # The first pair only the first member has drawn, and so on: a gradient reaches a member from its own sample alone.
    numbers = torch.arange(64)
    weights = bootstrap(numbers, 2, seed=0)
    only = numbers[(weights[0] > 0) & (weights[1] == 0)][:1]
    judges = Judges([0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    loss, _ = of(RewardModel, judges, "reward_model", "ensemble=2").loss(judges, pairs([0], [1], numbers=only), None)
    loss.backward()
    # -log sigmoid(0) has the slope -1/2, times how often the pair was drawn.
    assert judges.tables.grad[0].tolist() == [-0.5 * weights[0, only].item(), 0.5 * weights[0, only].item(), 0]
    assert judges.tables.grad[1].tolist() == [0, 0, 0]


def test_an_outcome_model_learns_from_known_tokens_alone():
    judges = Judges([LOG3, 100.0, -100.0])
    known = torch.tensor([[False, True], [True, False]])
    right = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    batch = Checked(completions([1, 0], [0, 2]), right, known)
    loss, found = of(OutcomeReward, judges, "outcome_reward").loss(judges, batch, None)
    # sigmoid(log 3) = 3/4, once right and once wrong
    assert loss.item() == pytest.approx((-math.log(3 / 4) - math.log(1 / 4)) / 2, abs=1e-6)
    assert float(found["correctness/accuracy"]) == 0.5
    assert float(found["correctness/right"]) == pytest.approx(0.75)
    assert float(found["correctness/wrong"]) == pytest.approx(0.75)
    other = Judges([0.0, LOG3, 0.0])  # 1/2 and 3/4: token 0 is the right one of one row and the wrong one of the other
    mixed = Checked(completions([1, 0], [1, 2]), right, known)
    _, found = of(OutcomeReward, other, "outcome_reward").loss(other, mixed, None)
    assert float(found["correctness/right"]) == pytest.approx(0.5)
    assert float(found["correctness/wrong"]) == pytest.approx(0.75)
    wrong = Checked(completions([1, 0], [1, 2]), torch.zeros(2, 2), known)
    assert "correctness/right" not in of(OutcomeReward, other, "outcome_reward").update(wrong)


# ---------------------------------------------------------------- RAFT


def rollout(returns, groups):
    actions = torch.tensor([[0, 0], [1, 0], [2, 0], [0, 0]])
    mask = torch.tensor([[1, 1], [1, 0], [1, 0], [1, 1]], dtype=torch.bool)
    rewards = torch.zeros(4, 2)
    rewards[:, 0] = torch.tensor(returns)
    nothing = torch.zeros_like(mask)
    return Rollout(
        observations={"prompt": torch.zeros(4, 1)}, actions=actions, rewards=rewards, terminated=nothing,
        truncated=nothing, mask=mask, log_probs=torch.zeros(4, 2), groups=torch.tensor(groups),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("selection", "kept"),
    [("top_per_prompt", [False, True, True, False]), ("top_k_overall", [True, True, False, False])],
)
def test_what_raft_keeps(selection, kept):
    method = of(RAFT, Table(0.0, 0.0, 0.0), "raft", f"selection={selection}")
    assert method.select(torch.tensor([4.0, 5.0, 1.0, 0.0]), torch.tensor([0, 0, 1, 1])).tolist() == kept


def test_a_random_selection_takes_one_of_each_group_whatever_the_returns():
    method = of(RAFT, Table(0.0, 0.0, 0.0), "raft", "selection=random")
    groups = torch.arange(4000) // 4
    kept = method.select(torch.arange(4000.0), groups)
    assert kept.view(1000, 4).sum(1).tolist() == [1] * 1000
    assert kept.view(1000, 4).double().mean(0).tolist() == pytest.approx([0.25] * 4, abs=0.05)


def test_raft_imitates_what_it_kept_and_nothing_else():
    # Kept: row 1 (token 1) and row 2 (token 2): the mean NLL of two tokens under a uniform policy is log 3.
    policy = Table(0.0, 0.0, 0.0)
    method = of(RAFT, policy, "raft")
    metrics = method.update(rollout([0.0, 1.0, 1.0, 0.0], [0, 0, 1, 1]))
    assert metrics["loss/policy"] == pytest.approx(LOG3, abs=1e-6)
    assert metrics["selection/return"] == 1
    assert metrics["selection/gain"] == 0.5
    assert policy.logits[0] < 0 < policy.logits[1]
    assert policy.logits[1] == policy.logits[2]
