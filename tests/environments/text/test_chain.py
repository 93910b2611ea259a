import numpy as np
import pytest
import torch

from pgcli.environments.text.chain import BOS, END, PAD, Chain, is_held_out
from pgcli.errors import InputError
from pgcli.experiment.config import compose

NAN = float("nan")


def chain(**settings):
    defaults = {
        "min_steps": 3, "max_steps": 6, "reward_kind": "outcome", "cut_reward": 0.0, "solved_at": 0.9,
        "overlong_buffer": None, "pairs": 10, "label_scale": 1.0, "label_flip": 0.0,
    }  # fmt: skip
    return Chain(Chain.Config(name="chain", **defaults | settings))


def texts(task, observations):
    return [task.decode(row[row != PAD].tolist()) for row in observations["prompt"]]


def asked(task, *expressions):
    """Prompts of these expressions."""
    rows = [[BOS, *task.encode(text + "=")] for text in expressions]
    padded = [[PAD] * (task.spec.prompt_length - len(row)) + row for row in rows]
    return {"prompt": torch.tensor(padded), "lengths": torch.tensor([len(row) for row in rows])}


def answered(task, *texts, length=None):
    """Completions, `.` for the end, and their masks."""
    length = length or task.spec.completion_length
    rows = [[END if c == "." else task.encode(c)[0] for c in text] for text in texts]
    completions = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    return completions, torch.arange(length) < torch.tensor([[len(row)] for row in rows])


def test_expressions_are_worked_off_from_left_to_right_modulo_ten():
    task = chain(min_steps=1)
    #  7+5 = 12, 12-3 = 9, 9*2 = 18      3*7 = 21      1-9 = -8 = 2 (mod 10)
    expressions, right = ["7+5-3*2", "3*7", "1-9+1"], ["2;9;8<end>", "1<end>", "2;3<end>"]
    found = task._answers(asked(task, *expressions))
    assert [task.decode(row[row != PAD].tolist()) for row in found] == right


def test_a_prompt_is_bos_an_expression_and_equals_padded_on_the_left():
    task = chain()
    observations = task.prompts(range(400), held_out=False)
    prompts, lengths = observations["prompt"], observations["lengths"]
    assert prompts.shape == (400, task.spec.prompt_length) == (400, 15)
    assert set(lengths.tolist()) == {9, 11, 13, 15}
    for row, length in zip(prompts.tolist(), lengths.tolist(), strict=True):
        assert row[: 15 - length] == [PAD] * (15 - length)
        text = task.decode(row[15 - length :])
        assert text.startswith("<bos>")
        inner = text.removeprefix("<bos>")
        assert inner.endswith("=")
        assert all(c in "123456789" for c in inner[:-1:2])
        assert all(c in "+-*" for c in inner[1:-1:2])


def test_a_prompt_is_a_function_of_its_seed_alone():
    together = chain().prompts([3, 1, 2], held_out=True)["prompt"]
    alone = torch.cat([chain().prompts([seed], held_out=True)["prompt"] for seed in (3, 1, 2)])
    assert torch.equal(together, alone)


def test_every_expression_is_on_one_side_of_the_split_whatever_the_seeds():
    # One step: 9 * 27 = 243 expressions. In 20,000 draws a side each turns up, and on one side only.
    task = chain(min_steps=1, max_steps=1)
    training = set(texts(task, task.prompts(range(20_000), held_out=False)))
    held_out = set(texts(task, task.prompts(range(20_000), held_out=True)))
    assert not training & held_out
    assert len(training) + len(held_out) == 243


def test_one_expression_in_twenty_is_held_out():
    # Standard error over 10^6: sqrt(0.05 * 0.95 / 10^6) = 0.00022; four of them.
    codes = np.arange(10**6, dtype=np.uint64)
    assert is_held_out(codes, np.full(10**6, 4)).mean() == pytest.approx(0.05, abs=0.00088)


def test_steps_are_labelled_where_they_end_by_what_they_should_be():
    task = chain()
    # 7+5-3*2: 2, 9, 8
    completions, mask = answered(
        task,
        "2;9;8.",  # right
        "2;4;8.",  # a wrong step, and the answer all the same
        "2;9;8;8.",  # a step too many: the third should have ended it
        "2;9.",  # ends a step early
        "8.",  # the answer without its reason
        "22;9;8.",  # a step of two digits
        ";9;8.",  # a step of none
        "2;9;8",  # cut before it ended
    )
    expected = [
        [NAN, 1, NAN, 1, NAN, 1],
        [NAN, 1, NAN, 0, NAN, 1],
        [NAN, 1, NAN, 1, NAN, 0, NAN, 0],
        [NAN, 1, NAN, 0],
        [NAN, 0],
        [NAN, NAN, 0, NAN, 1, NAN, 1],
        [0, NAN, 1, NAN, 1],
        [NAN, 1, NAN, 1, NAN],
    ]
    observations = asked(task, *["7+5-3*2"] * len(completions))
    labels = task.step_labels(observations, completions, mask)
    padded = torch.tensor([row + [NAN] * (12 - len(row)) for row in expected])
    torch.testing.assert_close(labels, padded, equal_nan=True)


def test_the_outcome_pays_for_the_answer_and_the_components_say_what_led_to_it():
    task = chain(cut_reward=-0.5)
    completions, mask = answered(task, "2;9;8.", "2;4;8.", "8.", "2;9;7.", "2;9.", ".", "2;9;8;8;8;8;")
    found = task.rewards(asked(task, *["7+5-3*2"] * 7), completions, mask)
    third = 1 / 3
    assert found["reward"].tolist() == [1, 1, 1, 0, 0, 0, -0.5]
    assert found["answer"].tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert found["exact_match"].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert found["right_answer_wrong_reason"].tolist() == [0, 1, 1, 0, 0, 0, 0]
    torch.testing.assert_close(
        found["steps_right"], torch.tensor([1, 2 * third, 0, 2 * third, third, 0, 2 * third]), atol=1e-6, rtol=0
    )


def test_the_process_pays_for_each_right_step_where_it_ends():
    task = chain(reward_kind="process", cut_reward=-0.5)
    completions, mask = answered(task, "2;9;8.", "2;4;8.", "2;9;8;8;8;8;")
    reward = task.rewards(asked(task, *["7+5-3*2"] * 3), completions, mask)["reward"]
    third = 1 / 3
    expected = torch.zeros(3, 12)
    expected[0, [1, 3, 5]] = third
    expected[1, [1, 5]] = third
    expected[2, [1, 3]] = third
    expected[2, 11] = -0.5 - 2 * third  # the limit takes what was earned: it is worth cut_reward in all
    torch.testing.assert_close(reward, expected)


def test_a_step_is_worth_the_share_of_its_own_expression_whatever_stands_beside_it():
    # Three steps, one and two: 7+5 = 2, 9, 8; 3*7 = 1; 1-9 = 2, 2+1 = 3.
    task = chain(reward_kind="process", min_steps=1)
    completions, mask = answered(task, "2;9;8.", "1.", "2;4.")
    found = task.rewards(asked(task, "7+5-3*2", "3*7", "1-9+1"), completions, mask)
    expected = torch.zeros(3, 12)
    expected[0, [1, 3, 5]] = 1 / 3
    expected[1, 1] = 1
    expected[2, 1] = 1 / 2
    torch.testing.assert_close(found["reward"], expected)
    assert found["steps_right"].tolist() == [1, 1, 0.5]
    assert found["exact_match"].tolist() == [1, 1, 0]


def test_demonstrations_are_right_and_so_is_what_pretraining_reads():
    task = chain()
    observations, answers = task.demonstrations(range(200))
    mask = (answers == END).cumsum(1) - (answers == END).long() == 0
    found = task.rewards(observations, answers, mask)
    assert (found["exact_match"] == 1).all()
    assert (found["reward"] == 1).all()
    prompt, text = task.corpus(range(200))
    assert prompt["prompt"].tolist() == [[BOS]] * 200
    whole = [task.decode([BOS, *row[row != PAD].tolist()]) for row in text]
    assert whole == [a + b for a, b in zip(texts(task, observations), map(clean(task), answers), strict=True)]
    assert ((text == END).sum(1) == 1).all()


def clean(task):
    return lambda row: task.decode(row[row != PAD].tolist())


def test_a_length_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="min_steps 5 is above max_steps 4"):
        compose(["algo=sft", "env=chain", "env.min_steps=5", "env.max_steps=4"])
