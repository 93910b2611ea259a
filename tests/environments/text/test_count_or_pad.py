import math

import pytest
import torch

from pgcli.environments.text.count_or_pad import END, SURE, TOKENS, UNSURE


def test_right_is_the_number_then_fillers_then_the_end(make, read):
    parts = read(
        make("count_or_pad", "env.letters=9", "env.limit=6", "env.cut_reward=-0.5"), "baacabacb?a=",
        "4<end>",
        "4...<end>",
        "4..,,<end>",
        "4.....",  # cut
        "3<end>",  # wrong
        "3...<end>",
        ".4<end>",  # a filler first
        "44<end>",  # a number twice
        "4.4<end>",
        "4.<pad><end>",  # a padding that the policy chose
        "<end>",
        "4.<end>4",  # what stands after the end is not read
        tokens=TOKENS,
    )  # fmt: skip
    assert parts["exact_match"].tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert parts["reward"].tolist() == [1, 1, 1, -0.5, 0, 0, 0, 0, 0, 0, 0, 1]
    nan = math.nan
    right = torch.tensor([2, 5, 6, 6, nan, nan, nan, 3, 4, 4, nan, 3])
    wrong = torch.tensor([nan, nan, nan, nan, 2, 5, 3, nan, nan, nan, 1, nan])
    torch.testing.assert_close(parts["length_right"], right, equal_nan=True)
    torch.testing.assert_close(parts["length_wrong"], wrong, equal_nan=True)


def test_demonstrations_count_and_have_as_many_fillers_as_they_should_on_average(make):
    observations, actions = make("count_or_pad").demonstrations(range(20_000))
    right = []
    for prompt, answer in zip(observations["prompt"][:2_000].tolist(), actions[:2_000].tolist(), strict=True):
        text, asked = TOKENS.decode(prompt).rstrip("=").split("?")
        right.append(answer[0] == text.count(asked))
        assert 0 <= answer[0] <= 6
        assert (UNSURE if right[-1] else SURE) not in answer
    # Standard error of a share of 0.7: sqrt(0.21 / 2,000) = 0.0102; four of them.
    assert sum(right) / len(right) == pytest.approx(0.7, abs=0.041)
    fillers = ((actions == SURE) | (actions == UNSURE)).sum(1).double()
    assert (actions == END).any(1).all()
    # Geometric with mean 4: its deviation is sqrt(20) = 4.5, so the mean's 0.032; four of them. At most 46 fit.
    assert float(fillers.mean()) == pytest.approx(4, abs=0.13)
    # Standard error of the share of a fifth without any: sqrt(0.16 / 20,000) = 0.0028; four of them.
    assert float((fillers == 0).double().mean()) == pytest.approx(1 / 5, abs=0.0115)


def test_without_fillers_a_demonstration_is_the_number_and_the_end(make):
    _, actions = make("count_or_pad", "env.fillers=0").demonstrations(range(50))
    assert (actions[:, 1] == END).all()
