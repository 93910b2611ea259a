from itertools import product

import pytest
import torch

from pgcli.environments.text.bracket import END, PAD, TOKENS
from pgcli.errors import InputError


def balanced(text):
    """By striking out pairs until there is none."""
    while "()" in text or "[]" in text:
        text = text.replace("()", "").replace("[]", "")
    return not text


def test_right_is_what_balances_the_text_at_the_right_length(make, read):
    task = make("bracket", "env.brackets=8", "env.min_given=2", "env.cut_reward=-0.5")
    assert task.spec.completion_length == 7
    parts = read(
        task, "([",
        "])()[]<end>",  # right
        "([]])<end>",  # one bracket is left open
        "])()<end>",  # balanced, but six
        "])()[]]",  # cut
        "([)])]<end>",  # closed in the wrong order
        "])()[]<end>",  # the first answer again
        ")]()[]<end>",  # closes what is not the last to be open
        "])<pad>()[<end>",  # a symbol that is no bracket
        "(())])<end>",  # another right answer
        "<end>",
        tokens=TOKENS,
    )  # fmt: skip
    assert parts["exact_match"].tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 1, 0]
    assert parts["reward"].tolist() == [1, 0, 0, -0.5, 0, 1, 0, 0, 1, 0]
    assert parts["balanced"].tolist() == [1, 0, 1, 0, 0, 1, 0, 0, 1, 0]
    assert parts["distinct"].tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 1, 0]


def test_a_symbol_among_right_brackets_is_wrong_too(make, read):
    task = make("bracket", "env.brackets=4", "env.min_given=1", "env.max_given=3")
    parts = read(task, "([]", ")<end>", "<pad>)<end>", "<bos>)<end>", ")<end>(", tokens=TOKENS)
    assert parts["exact_match"].tolist() == [1, 0, 0, 1]
    assert parts["distinct"].tolist() == [1, 0, 0, 0]


def test_the_same_answer_to_two_prompts_is_two_answers(make):
    task = make("bracket", "env.brackets=4", "env.min_given=2", "env.max_given=2")
    prompts = torch.tensor([[TOKENS.bos, *TOKENS.encode(text)] for text in ("()", "[]", "()")])
    completions = torch.tensor([[*TOKENS.encode("()"), END]] * 3)
    parts = task.rewards({"prompt": prompts}, completions, torch.ones(3, 3, dtype=torch.bool))
    assert parts["distinct"].tolist() == [1, 1, 0]


def test_every_text_is_judged_as_by_striking_out_pairs(make):
    task = make("bracket", "env.brackets=6", "env.min_given=1", "env.max_given=1")
    answers = ["".join(letters) for letters in product("([)]", repeat=5)]
    completions = torch.tensor([[*TOKENS.encode(text), END] for text in answers])
    prompts = torch.tensor([[TOKENS.bos, TOKENS.encode("(")[0]]]).expand(len(answers), -1)
    mask = torch.ones_like(completions, dtype=torch.bool)
    found = task.rewards({"prompt": prompts}, completions, mask)["exact_match"].tolist()
    assert found == [float(balanced(f"({text}")) for text in answers]
    # Of Catalan(3) = 5 shapes, each pair of either kind but the first.
    assert sum(found) == 5 * 2**2


def test_every_beginning_can_be_completed_and_all_are_listed(make):
    task = make("bracket", "env.brackets=6", "env.min_given=1", "env.max_given=4")
    listed = [TOKENS.decode(row.tolist()) for table, _ in task.beginnings.values() for row in torch.from_numpy(table)]
    whole = [text for text in map("".join, product("([)]", repeat=6)) if balanced(text)]
    assert len(whole) == 5 * 2**3
    assert sorted(listed) == sorted({text[:n] for text in whole for n in (1, 2, 3, 4)})


def test_demonstrations_are_many_and_any_of_them_may_come(make):
    task = make("bracket", "env.brackets=6", "env.min_given=1", "env.max_given=1")
    _, actions = task.demonstrations(range(3_000))
    answers = {tuple(row) for row in actions.tolist()}
    given = len(task.beginnings[False][0])
    assert len(answers) <= 2 * 5 * 2**2
    assert len(answers) == given * 5 * 2**2, "every right answer to every training prompt"
    assert not (actions == PAD).any()


def test_an_odd_number_of_brackets_is_refused(make):
    with pytest.raises(InputError, match="brackets 7 must be even"):
        make("bracket", "env.brackets=7")
