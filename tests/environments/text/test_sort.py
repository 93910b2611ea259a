import numpy as np
import pytest
import torch

from pgcli.environments.text._split import is_held_out
from pgcli.environments.text.sort import BOS, END, EQUALS, PAD, Sort
from pgcli.errors import InputError

SHARED = {"overlong_buffer": None, "solved_at": 0.9, "pairs": 2000, "label_scale": 0.25, "label_flip": 0.0}


def sort(digits=6, cut_reward=0.0):
    return Sort(Sort.Config(**SHARED, name="sort", digits=digits, cut_reward=cut_reward))


def rows(tokens):
    return {tuple(row) for row in tokens.tolist()}


def mask_of(completions):
    """1 up to and including the first end token."""
    return torch.tensor([[END not in row[:t] for t in range(len(row))] for row in completions.tolist()])


def test_a_prompt_is_a_function_of_its_seed_alone():
    together = sort().prompts([3, 1, 2], held_out=True)["prompt"]
    alone = torch.cat([sort().prompts([seed], held_out=True)["prompt"] for seed in (3, 1, 2)])
    assert torch.equal(together, alone)


def test_a_prompt_is_bos_digits_equals():
    task = sort()
    prompts = task.prompts(range(200), held_out=False)["prompt"]
    assert prompts.shape == (200, task.spec.prompt_length) == (200, 8)
    assert prompts.dtype == torch.int64
    assert (prompts[:, 0] == BOS).all()
    assert (prompts[:, -1] == EQUALS).all()
    assert prompts[:, 1:-1].min() == 0
    assert prompts[:, 1:-1].max() == 9


def test_every_prompt_is_on_one_side_of_the_split_whatever_the_seeds():
    # Two digits make a hundred prompts: with 5,000 draws a side, every one of them turns up, and on one side only.
    task = sort(digits=2)
    training = rows(task.prompts(range(5_000), held_out=False)["prompt"])
    held_out = rows(task.prompts(range(5_000), held_out=True)["prompt"])
    assert len(training) + len(held_out) == len(training | held_out) == 100
    assert rows(task.prompts(range(10**9, 10**9 + 1_000), held_out=True)["prompt"]) <= held_out


def test_one_prompt_in_twenty_is_held_out():
    # Standard error over all 10^6 numbers: sqrt(0.05 * 0.95 / 10^6) = 0.00022; four of them.
    assert is_held_out(np.arange(10**6, dtype=np.uint64)).mean() == pytest.approx(0.05, abs=0.00088)


@pytest.mark.parametrize("held_out", [False, True])
def test_digits_are_uniform_at_every_position(held_out):
    digits = sort().prompts(range(20_000), held_out=held_out)["prompt"][:, 1:-1]
    # Standard error of one of the 60 shares: sqrt(0.1 * 0.9 / 20,000) = 0.0021; four of them.
    shares = torch.stack([(digits == d).float().mean(dim=0) for d in range(10)])
    torch.testing.assert_close(shares, torch.full((10, 6), 0.1), atol=0.0085, rtol=0)


def test_the_verifier_pays_for_the_right_digits_and_the_end_and_for_nothing_else():
    task = sort(digits=3, cut_reward=-0.5)
    assert task.spec.completion_length == 4
    completions = torch.tensor(
        [
            [0, 5, 5, END],  # right
            [5, 0, 5, END],  # not in order
            [0, 5, 9, END],  # in order, but other digits
            [0, 5, END, PAD],  # a digit short
            [END, PAD, PAD, PAD],  # nothing
            [0, 5, PAD, END],  # a pad token that the policy chose
            [0, 5, 5, 5],  # right so far, cut before it ended
        ]
    )
    prompts = torch.tensor([[BOS, 5, 0, 5, EQUALS]]).expand(len(completions), -1)
    rewards = task.rewards({"prompt": prompts}, completions, mask_of(completions))
    assert rewards["reward"].tolist() == [1, 0, 0, 0, 0, 0, -0.5]
    assert rewards["exact_match"].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert all(component.dtype == torch.float32 for component in rewards.values())


def test_demonstrations_are_right_answers():
    task = sort()
    observations, answers = task.demonstrations(range(50))
    assert torch.equal(observations["prompt"], task.prompts(range(50), held_out=False)["prompt"])
    assert answers.tolist() == [[*sorted(row[1:-1]), END] for row in observations["prompt"].tolist()]
    assert (task.rewards(observations, answers, mask_of(answers))["reward"] == 1).all()


def test_the_corpus_is_prompts_and_their_answers():
    observations, text = sort(digits=3).corpus(range(20))
    asked, answers = sort(digits=3).demonstrations(range(20))
    assert observations["prompt"].tolist() == [[BOS]] * 20
    assert text.tolist() == torch.cat([asked["prompt"][:, 1:], answers], dim=1).tolist()


def test_text_reads_as_tokens_and_what_is_no_symbol_is_refused():
    assert sort().encode("509=") == [5, 0, 9, EQUALS]
    with pytest.raises(InputError, match="digits and `=`, not 'x'"):
        sort().encode("50x")


def test_pad_is_not_the_end_and_both_are_in_the_vocabulary():
    spec = sort().spec
    assert (spec.vocabulary, spec.end, spec.pad) == (14, 12, 13)


def test_tokens_read_as_text():
    assert sort(digits=3).decode([BOS, 5, 0, 9, EQUALS, 0, 5, 9, END, PAD]) == "<bos>509=059<end><pad>"
