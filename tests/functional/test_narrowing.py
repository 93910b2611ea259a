import pytest
import torch

from pgcli.functional.narrowing import narrow

SHARES = torch.tensor([0.1, 0.4, 0.3, 0.2])


def kept(**how):
    return narrow(SHARES.log(), **how).isfinite().tolist()


def test_top_k_keeps_the_likeliest():
    assert kept(top_k=1) == [False, True, False, False]
    assert kept(top_k=3) == [False, True, True, True]
    assert kept(top_k=9) == [True] * 4
    assert narrow(torch.zeros(3), top_k=2).isfinite().all(), "nothing tells ties apart"


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.01, [False, True, False, False]),  # one always stays
        (0.39, [False, True, False, False]),
        (0.41, [False, True, True, False]),  # 0.4 falls short of it; with the next one it is reached
        (0.75, [False, True, True, True]),
        (0.95, [True, True, True, True]),
        (1.0, [True, True, True, True]),
    ],
)
def test_top_p_keeps_the_fewest_that_together_have_so_much(p, expected):
    assert kept(top_p=p) == expected


def test_what_stays_keeps_its_proportions_and_the_order_is_temperature_k_p():
    # At temperature 1/2 shares are squared: 0.01, 0.16, 0.09, 0.04. Of the first two, 0.64 and 0.36 are left.
    shares = torch.softmax(narrow(SHARES.log(), temperature=0.5, top_k=2), -1)
    torch.testing.assert_close(shares, torch.tensor([0, 0.64, 0.36, 0]))
    # top_p counts among what top_k left: 0.64 >= 0.6 there, while 0.16 / 0.3 = 0.53 would fall short of it.
    assert kept(temperature=0.5, top_k=2, top_p=0.6) == [False, True, False, False]
    assert kept(temperature=0.5, top_p=0.6) == [False, True, True, False]


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (1.0, [False, True, False, False]),  # the likeliest always stays
        (0.74, [False, True, True, False]),  # 0.3 / 0.4 = 0.75
        (0.76, [False, True, False, False]),
        (0.2, [True, True, True, True]),  # 0.1 / 0.4 = 0.25
        (0.3, [False, True, True, True]),
    ],
)
def test_min_p_keeps_what_is_so_many_times_as_likely_as_the_likeliest(p, expected):
    assert kept(min_p=p) == expected


def test_each_row_is_narrowed_by_itself():
    logits = torch.stack([SHARES.log(), SHARES.flip(0).log()])[None]
    found = narrow(logits, top_p=0.5)
    assert found.shape == (1, 2, 4)
    assert found.isfinite().tolist() == [[[False, True, True, False], [False, True, True, False]]]
    assert narrow(logits, top_k=1).isfinite().tolist() == [[[False, True, False, False], [False, False, True, False]]]
