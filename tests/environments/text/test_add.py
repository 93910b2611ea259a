import pytest
import torch

from pgcli.environments.text.add import END, TOKENS


def test_a_teacher_writes_digits_and_carries_from_the_ones_on_and_then_the_sum(make):
    observations, answers = make("add").demonstrations(range(200))
    for prompt, answer in zip(observations["prompt"].tolist(), answers.tolist(), strict=True):
        a, b = (int(number) for number in TOKENS.decode(prompt).rstrip("=").split("+"))
        written, carry = "", 0
        for place in range(3):
            first, second = a // 10**place % 10, b // 10**place % 10
            carry, digit = divmod(first + second + carry, 10)
            written += f"{first}{second}{digit}{carry}"
        assert TOKENS.decode(answer) == f"{written}:{a + b:04d}"
        assert answer[-1] == END


@pytest.fixture
def cases():
    return [
        "561178614831:1361<end>",  # as a teacher writes it
        ":1361<end>",  # the answer alone
        "00:00:1361<end>",  # nonsense before the last `:`
        "561178614831:1371<end>",  # one digit of the answer is wrong
        "561178614831:361<end>",  # one digit of it is missing
        "5611786148311361<end>",  # no `:`
        "561178614831:<pad>361<end>",  # a padding that the policy chose
        "<end>",
        "1361<end>",  # too short for a `:` at its place
        "561178614831:13611",  # cut
        ":1361<end><end>",  # a second end is not read
    ]


def test_only_the_answer_behind_the_last_colon_is_verified(make, read, cases):
    parts = read(make("add", "env.cut_reward=-0.5"), "475+886=", *cases, tokens=TOKENS)
    assert parts["exact_match"].tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert parts["reward"].tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, -0.5, 1]
    assert parts["digits_right"].tolist() == [1, 1, 1, 0.75, 0, 0, 0.75, 0, 0, 0, 1]
    twelfths = torch.tensor([12, 0, 0, 12, 12, 12, 12, 0, 1, 12, 0]) / 12  # `1361`: its last 1 is where one belongs
    torch.testing.assert_close(parts["carries_right"], twelfths)


def test_a_share_of_the_reward_can_be_paid_for_digits(make, read, cases):
    parts = read(make("add", "env.partial=0.4"), "475+886=", *cases, tokens=TOKENS)
    torch.testing.assert_close(parts["reward"], torch.tensor([1, 1, 1, 0.3, 0, 0, 0.3, 0, 0, 0, 1]))


def test_carries_run_through(make, read):
    parts = read(make("add"), "999+001=", "910190019001:1000<end>", "910090009000:1000<end>", tokens=TOKENS)
    torch.testing.assert_close(parts["carries_right"], torch.tensor([1, 0.75]))
    assert parts["exact_match"].tolist() == [1, 1]
