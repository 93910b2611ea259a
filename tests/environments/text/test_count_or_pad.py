import math

import pytest
import torch

from pgcli.environments.text.count_or_pad import END, FILLER, TOKENS


def test_right_is_the_number_then_fillers_then_the_end(make, read):
    parts = read(
        make("count_or_pad", "env.limit=6", "env.cut_reward=-0.5"), "baacabacb?a=",
        "4<end>",
        "4...<end>",
        "4....<end>",
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
    for prompt, answer in zip(observations["prompt"][:100].tolist(), actions[:100].tolist(), strict=True):
        text, asked = TOKENS.decode(prompt).rstrip("=").split("?")
        assert answer[0] == text.count(asked)
    fillers = (actions == FILLER).sum(1).double()
    assert (actions == END).any(1).all()
    # Geometric with mean 6: its deviation is sqrt(42) = 6.5, so the mean's 0.046; at most 46 fit, which takes 0.006.
    assert float(fillers.mean()) == pytest.approx(6, abs=0.2)
    assert float((fillers == 0).double().mean()) == pytest.approx(1 / 7, abs=0.01)


def test_without_fillers_a_demonstration_is_the_number_and_the_end(make):
    _, actions = make("count_or_pad", "env.fillers=0").demonstrations(range(50))
    assert (actions[:, 1] == END).all()
