import pytest
import torch

from pgcli.environments.text.reverse import BOS, END, EQUALS, PAD, TOKENS
from pgcli.errors import InputError


def test_the_verifier_pays_for_the_word_backwards_and_the_end_and_for_nothing_else(make, read):
    task = make("reverse", "env.max_letters=5", "env.cut_reward=-0.5")
    parts = read(
        task, "toad=",
        "daot<end>",  # right
        "toad<end>",  # forwards
        "dao<end>",  # a letter short
        "daott<end>",  # a letter too many
        "<end>",  # nothing
        "<pad>daot<end>",  # a padding that the policy chose
        "daot<bos>t",  # right so far, cut before it ended
        "daot<end>d",  # what stands after the end is not read
        tokens=TOKENS,
    )  # fmt: skip
    assert parts["reward"].tolist() == [1, 0, 0, 0, 0, 0, -0.5, 1]
    assert parts["exact_match"].tolist() == [1, 0, 0, 0, 0, 0, 0, 1]
    assert parts["letters_right"].tolist() == [1, 0.0, 0.75, 1, 0, 0, 1, 1]


def test_words_have_all_lengths_alike_and_all_letters_alike(make):
    observations = make("reverse").prompts(range(20_000), held_out=False)
    prompt, lengths = observations["prompt"], observations["lengths"]
    # Standard error of one of 8 shares: sqrt(1/8 * 7/8 / 20,000) = 0.0023; four of them. The held-out words are one in
    # twenty of each length, but for the 17,576 of three letters, where that is a twentieth give or take 0.0016.
    shares = torch.stack([(lengths == n + 2).double().mean() for n in range(3, 11)])
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / 8), atol=0.01, rtol=0)
    letters = prompt[(prompt != PAD) & (prompt != BOS) & (prompt != EQUALS)]
    assert letters.min() == 0
    assert letters.max() == 25
    shares = torch.bincount(letters) / len(letters)
    # 130,000 letters: sqrt(1/26 * 25/26 / 130,000) = 0.00053; five of them, for 26 shares.
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / 26), atol=0.0027, rtol=0)


def test_an_answer_is_as_long_as_its_word(make):
    observations, answers = make("reverse").demonstrations(range(50))
    for prompt, answer in zip(observations["prompt"].tolist(), answers.tolist(), strict=True):
        word = [token for token in prompt if token not in {PAD, BOS, EQUALS}]
        assert answer == [*word[::-1], END] + [PAD] * (10 - len(word))


def test_bounds_that_leave_no_length_are_refused(make):
    with pytest.raises(InputError, match="min_letters 5 is above max_letters 4"):
        make("reverse", "env.min_letters=5", "env.max_letters=4")
