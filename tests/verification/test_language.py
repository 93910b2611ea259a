"""The oracle in language is what it says it is; and which of the methods' gradients are biased is said here."""

import pytest
import torch

from pgcli.verification import language as topic
from pgcli.verification import preferences
from pgcli.verification.text_oracle import PREFIXES, Whole, language, minimise, prefixes


@pytest.fixture(scope="module")
def rows():
    found = {}
    for check in topic.checks():
        found.setdefault(check.algo, {})[check.quantity.removeprefix("text: ")] = check
    return found


def test_each_row_is_exact(rows):
    assert [row for found in rows.values() for row in found.values() if not row.passed] == []
    assert all(row.tolerance <= 1e-8 for found in rows.values() for row in found.values())


def test_which_price_is_right_where_is_a_fact_of_each_method(rows):
    right = {"grad (J - beta KL)", "off-policy grad KL, k3_corrected"}
    wrong = {"biased, k2 in the reward", "biased, k3 in the reward", "off-policy biased grad KL, k2"}
    for algo in ("vanilla_pg", "reinforce", "rloo", "ppo", "ppo_kl", "cpi"):
        assert right | wrong <= set(rows[algo])
    for algo in ("grpo", "dr_grpo"):
        assert {"0.5 grad J", "0.5 grad (J - beta KL)"} < set(rows[algo])
    assert rows["rloo"]["beta grad KL, k1 in the loss"].exact == 0
    # On-policy the corrected k3 has k2's gradient in each completion; the published k3 is the noisiest by far.
    noise = {name: rows[""][f"variance, {name} in the loss"].exact for name in ("k2", "k3", "k3_corrected")}
    assert noise["k2"] == pytest.approx(noise["k3_corrected"])
    assert noise["k3"] > 5 * noise["k2"]
    # A group of two: its baseline takes more than half of the variance of a completion's gradient here.
    variance = {
        algo: found["variance of the gradient"].exact for algo, found in rows.items() if algo in ("rloo", "reinforce")
    }
    assert variance["rloo"] < variance["reinforce"] / 2
    assert set(rows["sft"]) == set(rows["pretrain"])


def test_of_the_family_only_dr_grpo_climbs_the_expected_reward(rows):
    family = [algo for algo, found in rows.items() if "as configured, ratio 1" in found]
    assert set(family) == {"grpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo", "maxrl"}
    degrees = {algo: float(rows[algo]["as configured, ratio 1"].note.partition(" ")[0]) for algo in family}
    assert degrees.pop("dr_grpo") == 0
    assert all(angle > 20 for angle in degrees.values())


def test_the_numbers_of_prefixes():
    # a = 0, b = 1, c = 2, <end> = 3. Of prompt 1: none, `b`, `bc`; and `a`, then behind the end.
    found = prefixes(torch.tensor([[1], [0]]), torch.tensor([[1, 2, 0], [0, 3, 3]]))
    assert found.tolist() == [[13, 13 + 1 + 1, 13 + 4 + 3 * 1 + 2], [0, 1, 0]]
    assert PREFIXES == 1 + 3 + 9


def test_a_distribution_over_completions_has_these_next_tokens():
    world = language()
    probabilities = torch.zeros(2, 40, dtype=torch.float64) + 1e-30
    rows = {
        tuple(row[mask].tolist()): i for i, (row, mask) in enumerate(zip(world.actions[:40], world.mask, strict=False))
    }
    probabilities[:, rows[3,]], probabilities[:, rows[0, 3]], probabilities[:, rows[0, 0, 1]] = 0.5, 0.125, 0.375
    pi = world.policy_of(probabilities.log())
    torch.testing.assert_close(pi[0], torch.tensor([0.5, 0, 0, 0.5], dtype=torch.float64))
    torch.testing.assert_close(pi[1], torch.tensor([0.75, 0, 0, 0.25], dtype=torch.float64))
    chances = torch.zeros(2, 40, dtype=torch.float64)
    chances[:, rows[3,]], chances[:, rows[0, 3]], chances[:, rows[0, 0, 1]] = 0.25, 0.0625, 0.1875  # of two prompts
    torch.testing.assert_close(world.chances(pi), chances.flatten())
    torch.testing.assert_close(world.value(pi), chances.flatten() @ world.rewards)


def test_descending_ends_at_the_minimum():
    # Cross-entropy with (0.7, 0.2, 0.1) from far away: the softmax of its logarithms, up to a shift.
    target = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    x = torch.tensor([-8.0, 3.0, 8.0], dtype=torch.float64, requires_grad=True)
    minimise(lambda: -(target * x.log_softmax(0)).sum(), x, within=1e-13)
    torch.testing.assert_close(x.detach().softmax(0), target, atol=1e-12, rtol=0)


def test_completions_as_a_whole_have_the_log_probs_of_their_tokens():
    world = language()
    policy = Whole(world, torch.randn(2, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    tokens = policy(world.observations, world.actions).log_probs
    whole = torch.where(world.mask, tokens, 0).sum(1)
    torch.testing.assert_close(whole, policy.log_probs.flatten())


# ---------------------------------------------------------------- what learns from comparisons


@pytest.fixture(scope="module")
def compared():
    found = {}
    for check in preferences.checks():
        found.setdefault(check.algo, {})[check.quantity.removeprefix("text: ")] = check
    return found


def test_each_row_of_preferences_is_exact(compared):
    assert [row for found in compared.values() for row in found.values() if not row.passed] == []


def test_whose_optimum_is_known_is_a_fact_of_each_method(compared):
    optimum, gradients = "KL(pi* || what it ends at)", {"grad of the loss", "grad of a batch's loss"}
    pi_star = {algo for algo, found in compared.items() if "its gradient at pi*" in found}
    assert pi_star == {"dpo", "cdpo", "dpo_norm", "online_dpo"}
    assert {algo for algo, found in compared.items() if optimum in found} == pi_star | {"ipo"}
    assert all(gradients <= set(compared[algo]) for algo in ("simpo", "orpo", "apo_zero", "apo_down", "reward_model"))
    assert "pi* = ref exp(r / beta) / Z" in compared["dpo"][optimum].note
    assert "the probabilities" in compared["outcome_reward"].keys() & compared["process_reward"].keys()
    assert compared["kto"]["grad of the loss, z below 0"].note.startswith("z = 0")


def test_the_pairs_of_a_population():
    world = language()
    pairs = preferences.compared(
        world, torch.full((80,), 1 / 80, dtype=torch.float64), preferences.bradley_terry(world)
    )
    # Two completions alike: 1 in 40. Either label of a pair is somewhere, and the better one is likelier preferred.
    assert float(pairs.weights.sum()) == pytest.approx(39 / 40)
    assert len(pairs.weights) == 2 * 40 * 39
    better = world.rewards[pairs.chosen] > world.rewards[pairs.rejected]
    assert float(pairs.weights[better].sum()) > 39 / 80
    assert (world.observations["prompt"][pairs.chosen] == world.observations["prompt"][pairs.rejected]).all()
