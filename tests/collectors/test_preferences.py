"""Pairs, their labels, and what is made of them, on a task whose every completion is known."""

import math
from itertools import chain
from typing import ClassVar

import numpy as np
import pytest
import torch

from pgcli.collectors.completions import Decoding
from pgcli.collectors.held_out import HeldOutLabels, HeldOutPairs, HeldOutPreferences
from pgcli.collectors.learned_reward import Judge, LearnedReward, worth
from pgcli.collectors.pairs import Answers, Law, agreement, compare, dataset
from pgcli.collectors.preferences import (
    CheckedData,
    DataCollector,
    JudgedCollector,
    LabelledData,
    PairData,
    other_prompts,
    taken_apart,
)
from pgcli.errors import InputError
from pgcli.types import ABSENT, Completions, Evaluation, TextSpec

CPU = torch.device("cpu")
END, PAD = 3, 4
SURE = Law(scale=1e-6, flip=0.0)


class Digits:
    """Prompts [0], [1], [2]; a completion's reward is its first token; at most three tokens, the end included."""

    spec = TextSpec(vocabulary=5, prompt_length=1, completion_length=3, end=END, pad=PAD)
    COMPONENTS: ClassVar = {"reward": "the first token"}

    def prompts(self, seeds, *, held_out):
        return {"prompt": torch.tensor([[seed % 3] for seed in seeds])}

    def rewards(self, observations, completions, mask):
        return {"reward": completions[:, 0].float()}

    def step_labels(self, observations, completions, mask):
        """Each token but the end is a step, and right if it is 2."""
        return torch.where(mask & (completions != END), (completions == 2).float(), torch.nan)

    def decode(self, tokens):
        return "".join("012.#"[token] for token in tokens)


class Uniform:
    """0, 1 or 2 first, all alike, then the end."""

    has_critic = False
    unit = "sequence"

    def prefill(self, observations):
        logits = torch.full((len(observations["prompt"]), 5), -torch.inf)
        logits[:, :3] = 0
        return logits, None

    def step(self, tokens, cache):
        logits = torch.full((len(tokens), 5), -torch.inf)
        logits[:, END] = 0
        return logits

    def __call__(self, observations, actions):
        log_probs = torch.zeros(actions.shape)
        log_probs[:, 0] = -math.log(3)
        return Evaluation(log_probs, torch.zeros(actions.shape), ABSENT)


def decoding():
    return Decoding(Digits(), device=CPU)


def answers(*firsts):
    actions = torch.tensor([[first, END, PAD] for first in firsts])
    texts = Completions({"prompt": torch.zeros(len(firsts), 1, dtype=torch.int64)}, actions, actions != PAD, ABSENT)
    return Answers(texts, actions[:, 0].float(), actions[:, 0].float())


# ---------------------------------------------------------------- labels


def test_labels_follow_the_law_of_bradley_and_terry():
    # A difference of 1 at scale 1 / log 3: the better one wins with probability 3/4.
    n = 20_000
    better, worse = answers(*[2] * n), answers(*[1] * n)
    noise = np.random.default_rng(0).random((n, 2))
    pairs = compare(better, worse, Law(scale=1 / math.log(3), flip=0.0), noise)
    assert agreement(pairs.gold) == pytest.approx(0.75, abs=0.01)
    assert pairs.predictable.unique().tolist() == pytest.approx([0.75])
    assert (pairs.preferred.actions[:, 0] - pairs.rejected.actions[:, 0]).tolist() == pairs.gold.tolist()
    # A tenth of them turned round: 0.1 + 0.8 * 3/4 = 0.7.
    pairs = compare(better, worse, Law(scale=1 / math.log(3), flip=0.1), noise)
    assert agreement(pairs.gold) == pytest.approx(0.7, abs=0.01)
    assert pairs.predictable.unique().tolist() == pytest.approx([0.7])


def test_where_there_is_no_difference_either_order_is_as_good():
    assert agreement(torch.tensor([1.0, 0.0, -2.0, 3.0])) == 0.625


def test_a_dataset_is_a_function_of_its_seed_and_of_who_wrote_it():
    first, again = (dataset(decoding(), Uniform(), SURE, pairs=60, seed=5) for _ in range(2))
    assert torch.equal(first.preferred.actions, again.preferred.actions)
    other = dataset(decoding(), Uniform(), SURE, pairs=60, seed=6)
    assert first.preferred.actions.tolist() != other.preferred.actions.tolist()


def test_pairs_of_the_same_completion_are_left_out():
    # One pair in three has the same first token twice.
    pairs = dataset(decoding(), Uniform(), SURE, pairs=900, seed=0)
    assert 500 < len(pairs.gold) < 700
    assert (pairs.preferred.actions[:, 0] > pairs.rejected.actions[:, 0]).all()
    torch.testing.assert_close(pairs.preferred.reference_log_probs[:, 0], torch.full((len(pairs.gold),), -math.log(3)))


def test_a_writer_that_always_writes_the_same_cannot_be_compared_with_itself():
    class Stubborn(Uniform):
        def prefill(self, observations):
            return super().prefill(observations)[0] + torch.tensor([0, -1e9, -1e9, 0, 0]), None

    with pytest.raises(InputError, match="both completions of every prompt are identical"):
        dataset(decoding(), Stubborn(), SURE, pairs=4, seed=0)


# ---------------------------------------------------------------- minibatches


def test_each_epoch_shows_every_pair_once_in_another_order_and_goes_on_after_a_restart():
    def collector():
        return DataCollector(lambda: PairData(dataset(decoding(), Uniform(), SURE, pairs=30, seed=0)), rows=7, seed=3)

    source = collector()
    size = len(PairData(dataset(decoding(), Uniform(), SURE, pairs=30, seed=0)))
    pieces = -(-size // 7)
    batches = [source.collect(None) for _ in range(2 * pieces)]
    numbers = [batch.numbers.tolist() for batch in batches]
    first, second = (list(chain(*numbers[part])) for part in (slice(0, pieces), slice(pieces, None)))
    assert sorted(first) == sorted(second) == list(range(size))
    assert first != second
    assert max(map(len, numbers)) - min(map(len, numbers)) <= 1
    assert [batch.metrics["preferences/epoch"] for batch in batches] == [1.0] * pieces + [2.0] * pieces
    later = collector()
    later.load_state_dict(source.state_dict())
    assert later.collect(None).numbers.tolist() == source.collect(None).numbers.tolist()


def test_a_batch_of_pairs_holds_the_preferred_ones_before_the_rejected():
    data = PairData(dataset(decoding(), Uniform(), SURE, pairs=30, seed=0))
    batch = data[torch.tensor([4, 2])]
    firsts = batch.texts.actions[:, 0]
    assert (firsts[:2] - firsts[2:]).tolist() == batch.gold.tolist()
    assert (batch.gold > 0).all()
    assert batch.steps == 8  # four texts of two tokens


# ---------------------------------------------------------------- KTO


def test_the_mismatched_completion_was_written_for_another_prompt():
    prompts = torch.tensor([[0], [0], [1], [1], [1], [2]])
    others = other_prompts(prompts)
    assert (prompts[others] != prompts).all()
    assert other_prompts(torch.zeros(3, 1)).tolist() == [1, 2, 0]


def test_labelled_data_are_the_pairs_taken_apart_each_beside_anothers_completion():
    class OfThePrompt(Uniform):
        """Gives each prompt's completions log-probs of their own, so that they can be told apart."""

        def __call__(self, observations, actions):
            found = super().__call__(observations, actions)
            return found._replace(log_probs=found.log_probs - observations["prompt"].float())

    pairs = dataset(decoding(), Uniform(), SURE, pairs=30, seed=0)
    data = LabelledData(*taken_apart(pairs), OfThePrompt())
    batch = data[torch.arange(len(data))]
    assert batch.desirable.tolist() == [True] * len(pairs.gold) + [False] * len(pairs.gold)
    assert torch.equal(batch.mismatched.observations["prompt"], batch.texts.observations["prompt"])
    # What the reference says of the mismatched pair is said of this prompt with the other's completion.
    expected = -math.log(3) - batch.texts.observations["prompt"][:, 0].float()
    torch.testing.assert_close(batch.mismatched.reference_log_probs[:, 0], expected)
    assert not torch.equal(batch.mismatched.actions, batch.texts.actions)


# ---------------------------------------------------------------- online


def test_judged_pairs_are_fresh_written_by_the_policy_and_resumed_where_they_were():
    def collector():
        return JudgedCollector(decoding(), Uniform(), Law(scale=0.5, flip=0.2), rows=5, seed=1)

    source = collector()
    first, second = source.collect(Uniform()), source.collect(Uniform())
    assert first.numbers.tolist() == [0, 1, 2, 3, 4]
    assert second.numbers.tolist() == [5, 6, 7, 8, 9]
    assert len(first.episodes) == 10
    assert first.metrics["kl/k1"] == pytest.approx(0.0, abs=1e-6)
    assert first.metrics["preferences/identical"] >= 0
    prompts = first.texts.observations["prompt"]
    assert torch.equal(prompts[:5], prompts[5:])
    later = collector()
    later.load_state_dict(source.state_dict())
    assert torch.equal(later.collect(Uniform()).texts.actions, source.collect(Uniform()).texts.actions)


def test_a_judged_completion_that_cannot_be_scored_is_no_episode():
    class Half(Digits):
        """No completion that begins with a 0 can be scored."""

        def rewards(self, observations, completions, mask):
            found = super().rewards(observations, completions, mask)["reward"]
            return {"reward": found.where(found != 0, torch.nan)}

    found = JudgedCollector(Decoding(Half(), device=CPU), Uniform(), SURE, rows=12, seed=1).collect(Uniform())
    assert len(found) < 12
    assert 12 < len(found.episodes) < 24
    assert not any(math.isnan(episode.total) for episode in found.episodes)


def test_judged_pairs_carry_the_log_probs_of_the_reference_and_not_of_who_wrote_them():
    class Unlikely(Uniform):
        """Gives a first token log-prob -5, and what follows it -1."""

        def __call__(self, observations, actions):
            found = super().__call__(observations, actions)
            log_probs = torch.full_like(found.log_probs, -1.0)
            log_probs[:, 0] = -5.0
            return found._replace(log_probs=log_probs)

    found = JudgedCollector(decoding(), Unlikely(), SURE, rows=4, seed=1).collect(Uniform())
    assert found.texts.reference_log_probs.tolist() == [[-5, -1, 0]] * 8  # nothing is said of padding
    # The writer's first token has -log 3, its end 0: -log 3 - 0 + 5 + 1.
    assert found.metrics["kl/k1"] == pytest.approx(6 - math.log(3), abs=1e-6)


# ---------------------------------------------------------------- held out


def test_held_out_preferences_are_measured_pair_by_pair_and_of_labels_across():
    # Scores 2, 1, 0 against 1, 1, 1: right, a tie and wrong; across, three right ones, three ties, three wrong ones.
    # Scores 2, 2 against 0, 1, 3, 3: across, 2 + 2 of 8 are right; margin 2 - 7/4.
    first, second = (lambda *rows: lambda: [answers(*row).texts for row in rows]), lambda t: t.actions[:, 0].float()
    pairs = HeldOutPreferences(first((2, 1, 0), (1, 1, 1)), paired=True).measure(second)
    assert pairs == {"eval/preference_accuracy": 0.5, "eval/preference_margin": 0}
    pairs = HeldOutPreferences(first((2, 1, 2), (0, 1, 1)), paired=True).measure(second)
    assert pairs["eval/preference_accuracy"] == pytest.approx(2.5 / 3)
    labels = HeldOutPreferences(first((2, 2), (0, 1, 3, 3)), paired=False).measure(second)
    assert labels == {"eval/preference_accuracy": 0.5, "eval/preference_margin": 0.25}


# ---------------------------------------------------------------- outcomes


def outcomes(*rewards):
    """Completions that earned these: the first of two tokens, the others of three; a fourth one is cut."""
    actions = torch.tensor([[0, END, PAD], *[[0, 1, END]] * (len(rewards) - 1)])
    actions[3:4, 2] = 1
    texts = Completions({"prompt": torch.zeros(len(rewards), 1)}, actions, actions != PAD, ABSENT)
    return CheckedData(Digits(), Answers(texts, torch.tensor(rewards), torch.tensor(rewards)), "outcome")


def test_an_outcome_is_known_at_the_last_token_and_only_of_what_could_be_scored():
    # Right, wrong, not scored, cut (-0.5: wrong), and right.
    data = outcomes(1.0, 0.0, math.nan, -0.5, 1.0)
    known = [[0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 1], [0, 0, 1]]
    assert data.known.tolist() == torch.tensor(known).bool().tolist()
    assert data.right[data.known].tolist() == [1, 0, 0, 1]
    batch = data[torch.tensor([0, 1, 2])]
    assert batch.known.sum() == 2
    assert batch.metrics == {"preferences/right": 0.5}


@pytest.mark.parametrize("reward", [0.01, 0.5, 0.99, 1.5, 7.0, -1.0])
def test_an_outcome_between_right_and_wrong_is_refused(reward):
    with pytest.raises(InputError, match="learns from rewards of 0 or 1; this task also gives parts of 1"):
        outcomes(1.0, 0.0, reward)


def test_a_judge_of_correctness_is_evaluated_label_by_label():
    class Halves(torch.nn.Module):
        """Two members, whose chances are 0.9 and 0.7 after a 2, 0.1 and 0.7 after any other token."""

        def forward(self, observations, actions):
            return torch.stack([torch.where(actions == 2, 0.9, 0.1), torch.full(actions.shape, 0.7)]).logit()

    # Steps 2 (right), 1 and 0 (wrong), then 2: the mean chances are 0.8, 0.4, 0.4, 0.8.
    steps = CheckedData(Digits(), Answers(texts([2, 1, END], [0, 2, END]), None, None), "process")
    player = HeldOutLabels(decoding(), lambda seeds: steps)
    found = player.play(Halves(), [0, 1], None, held_out=True)
    assert [episode.total for episode in found.episodes] == [1, 1, 1, 1]
    torch.testing.assert_close(found.aux["brier"].sort().values, torch.tensor([0.04, 0.04, 0.16, 0.16]))
    assert found.aux["right"].mean() == 0.5
    torch.testing.assert_close(found.aux["disagreement"].sort().values, torch.tensor([0.1, 0.1, 0.3, 0.3]))
    # An outcome is read at its last token: right after a 1 is missed, wrong after a 2 is taken for right.
    wrong, said = texts([0, 1, PAD], [0, 0, 2], [2, 0, 2], [1, PAD, PAD]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    outcomes = CheckedData(Digits(), Answers(wrong, said, said), "outcome")
    found = HeldOutLabels(decoding(), lambda seeds: outcomes).play(Halves(), [0], np.random.default_rng(0))
    assert sorted(episode.total for episode in found.episodes) == [0, 0, 1, 1]


def test_judges_are_evaluated_on_more_texts_than_a_policy_is_on_prompts():
    asked = []
    HeldOutLabels(decoding(), lambda seeds: asked.append(seeds) or outcomes(1.0, 0.0)).play(Reads(), [7, 8], None)
    assert asked[0][:2] == [7, 8]
    assert len(set(asked[0])) == 200
    written = HeldOutPairs(decoding(), Uniform(), SURE, "preference").play(Reads(), [7, 8], None, held_out=True)
    assert 100 < len(written.episodes) < 200  # one pair in three is the same text twice


# ---------------------------------------------------------------- judges


class Reads(torch.nn.Module):
    """Two members: the score of a text is, after each token, that token's number; and minus that."""

    def forward(self, observations, actions):
        return torch.stack([actions.float(), -actions.float()])


def texts(*rows):
    actions = torch.tensor(rows)
    return Completions({"prompt": torch.zeros(len(rows), 1)}, actions, actions != PAD, ABSENT)


def test_a_judge_is_read_at_the_last_real_token_and_not_at_the_padding():
    read = worth(Reads(), Digits(), texts([2, 1, END], [0, END, PAD]), "preference")
    assert read[..., -1].tolist() == [[END, END], [-END, -END]]
    read = worth(Reads(), Digits(), texts([2, 1, 2], [0, END, PAD]), "outcome")
    assert read[0, :, -1].tolist() == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-3))])


def test_a_process_model_multiplies_the_chances_of_the_steps_and_pays_each_what_it_changes():
    # Steps 2 and 1, then the end, which is none: sigmoid(2) sigmoid(1). A text without a step is worth nothing.
    two, one = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))
    read = worth(Reads(), Digits(), texts([2, 1, END], [END, PAD, PAD]), "process")[0]
    assert read[0].tolist() == pytest.approx([two, two * one, two * one])
    assert read[1].tolist() == [0, 0, 0]
    task = LearnedReward(Digits(), Judge(Reads(), "process", members=2), combination="mean", pessimism=0.0)
    found = task.rewards(*texts([2, 1, END], [END, PAD, PAD])[:3])
    assert found["reward"].shape == (2, 3)
    assert found["reward"].sum(1).tolist() == pytest.approx(found["proxy"].tolist())
    assert found["gold"].tolist() == [2, END]


class Spells(Digits):
    """A step ends with each 1, and nowhere else."""

    def step_labels(self, observations, completions, mask):
        return torch.where(mask & (completions == 1), 1.0, torch.nan)


class Chances(torch.nn.Module):
    """One member, whose chance that a step is right depends on where it ends: 0.9, 0.8, 0.5, 0.25."""

    def forward(self, observations, actions):
        return torch.tensor([0.9, 0.8, 0.5, 0.25]).logit().expand(1, *actions.shape)


@pytest.mark.parametrize(
    ("tokens", "paid"),
    [
        ([0, 1, 1, END], [1, -0.2, -0.4, 0]),  # two steps: 1, 0.8, 0.8 * 0.5, and the end is none
        ([0, 0, 1, END], [1, 0, -0.5, 0]),
        ([0, 0, END, PAD], [1, 0, -1, 0]),  # no step: what was not earned is taken back with the last token
        ([1, END, PAD, PAD], [0.9, 0, 0, 0]),
        ([0, 2, 0, 2], [1, 0, 0, -1]),  # no step, and no end
        ([END, PAD, PAD, PAD], [0, 0, 0, 0]),  # the first token is the last: 1 - 1
    ],
)
def test_a_process_judge_pays_each_token_what_it_changes_and_knows_nothing_of_later_ones(tokens, paid):
    task = LearnedReward(Spells(), Judge(Chances(), "process", members=1), combination="mean", pessimism=0.0)
    found = task.rewards(*texts(tokens)[:3])
    torch.testing.assert_close(found["reward"], torch.tensor([paid], dtype=torch.float32), atol=1e-6, rtol=0)
    assert found["proxy"].item() == pytest.approx(sum(paid), abs=1e-6)
    # Two ways to go on from a prefix that is not yet the whole of it: what the prefix was paid is the same.
    written = sum(token != PAD for token in tokens)
    for t in range(1, written):
        other = texts(tokens[:t] + [1] * (4 - t))
        torch.testing.assert_close(task.rewards(*other[:3])["reward"][0, :t], found["reward"][0, :t])


def test_calibration_gives_each_member_mean_0_and_deviation_1_and_the_gap_the_same_unit():
    given = texts([0, 0, 0], [1, 1, 1], [2, 2, 2])
    judge = Judge(Reads(), "preference", members=2)
    judge.calibrate(Digits(), given, torch.tensor([0.0, 10.0, 20.0]))
    assert judge.worth(Digits(), given)[..., -1].tolist() == [[-1, 0, 1], [1, 0, -1]]
    task = LearnedReward(Digits(), judge, combination="min", pessimism=0.0)
    found = task.rewards(*texts([2, 2, 2])[:3])
    assert found["proxy"].tolist() == [-1]
    assert found["disagreement"].tolist() == [1]
    # Its own reward is 2, eight below the mean of 10 and 0.8 deviations: -1 + 0.8.
    assert found["gap"].tolist() == pytest.approx([-0.2])


def test_the_unit_of_the_true_reward_is_that_of_what_could_be_scored():
    judge, given = Judge(Reads(), "preference", members=2), texts([0, 0, 0], [1, 1, 1], [2, 2, 2], [2, 2, 2])
    judge.calibrate(Digits(), given, torch.tensor([0.0, math.nan, 20.0, 10.0]))
    assert (judge.gold_mean, judge.gold_std) == (10, 10)


def test_a_judge_is_evaluated_against_labels_and_against_the_truth():
    class Likes(torch.nn.Module):
        """Scores every token by the first one: as the task does."""

        def forward(self, observations, actions):
            return actions[None, :, :1].float().expand(1, *actions.shape)

    class Noisy(Likes):
        def forward(self, observations, actions):
            return -super().forward(observations, actions)

    seeds = list(range(300))
    players = HeldOutPairs(decoding(), Uniform(), Law(scale=1 / math.log(3), flip=0.0), "preference")
    truth = players.play(Likes(), seeds, None, held_out=True)
    labels = players.play(Likes(), seeds, np.random.default_rng(0), held_out=True)
    assert {e.total for e in truth.episodes} == {1.0}
    # Differences of 1 and 2: labels agree with probability 3/4 and 9/10, four times in six and twice: 0.8.
    assert labels.aux["reward"].mean() == pytest.approx(0.8, abs=0.07)
    assert labels.aux["ceiling"].mean() == pytest.approx(0.8, abs=0.03)
    assert {e.total for e in players.play(Noisy(), seeds, None, held_out=True).episodes} == {0.0}


def test_pairs_whose_label_is_a_coin_say_nothing_of_a_judge():
    class Sometimes(Digits):
        """Only a 2 is rewarded: of 0 and 1 neither is better."""

        def rewards(self, observations, completions, mask):
            return {"reward": (completions[:, 0] == 2).float()}

    class Likes(torch.nn.Module):
        def forward(self, observations, actions):
            return actions[None, :, :1].float().expand(1, *actions.shape)

    players = HeldOutPairs(Decoding(Sometimes(), device=CPU), Uniform(), SURE, "preference")
    for noise in (None, np.random.default_rng(0)):
        found = players.play(Likes(), list(range(60)), noise, held_out=True)
        assert {episode.total for episode in found.episodes} == {1.0}
        assert (found.actions[:, 0] == 2).all()


def test_a_judge_is_evaluated_on_prompts_that_are_held_out():
    class Halves(Digits):
        """[2] is held out, [0] and [1] are for training."""

        def prompts(self, seeds, *, held_out):
            return {"prompt": torch.tensor([[2 if held_out else seed % 2] for seed in seeds])}

    class Reading(torch.nn.Module):
        def forward(self, observations, actions):
            read.append(observations["prompt"])
            return actions[None, :, :1].float().expand(1, *actions.shape)

    read = []
    halves = Decoding(Halves(), device=CPU)
    played = HeldOutPairs(halves, Uniform(), SURE, "preference").play(Reading(), list(range(20)), None, held_out=True)
    assert {*played.observations["prompt"].flatten().tolist(), *torch.cat(read).flatten().tolist()} == {2}
    trained = dataset(halves, Uniform(), SURE, pairs=40, seed=0)
    assert set(trained.preferred.observations["prompt"].flatten().tolist()) == {0, 1}
