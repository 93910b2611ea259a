from itertools import product

import pytest
import torch

from pgcli.environments.text.oracle import END, Oracle, enumerate_completions
from pgcli.errors import InputError

SHARED = {"overlong_buffer": None, "solved_at": None, "pairs": 2000, "label_scale": 0.1, "label_flip": 0.0}


def oracle(prompts=2, table_seed=0, cut_reward=1.0, **settings):
    shared = SHARED | settings
    return Oracle(Oracle.Config(**shared, name="oracle", prompts=prompts, table_seed=table_seed, cut_reward=cut_reward))


def by_hand(vocabulary, length, end):
    """Every completion as Python would list it: stop at the first end, pad with it."""
    found = set()
    for words in product(range(vocabulary), repeat=length):
        stop = words.index(end) + 1 if end in words else length
        found.add((words[:stop] + (end,) * (length - stop), stop))
    return found


@pytest.mark.parametrize(("vocabulary", "length", "end"), [(4, 3, 3), (2, 4, 0), (3, 1, 2)])
def test_the_enumeration_has_every_completion_once(vocabulary, length, end):
    actions, mask = enumerate_completions(vocabulary, length, end)
    found = [(tuple(row), kept) for row, kept in zip(actions.tolist(), mask.sum(1).tolist(), strict=True)]
    assert len(found) == len(set(found))
    assert set(found) == by_hand(vocabulary, length, end)
    assert all(row == sorted(row, reverse=True) for row in mask.long().tolist()), "the mask is a prefix"


def test_there_are_forty_completions_and_their_probabilities_sum_to_one():
    # A policy that gives every token 1/4: a completion of n tokens has 4^-n.
    _, mask = enumerate_completions()
    assert len(mask) == 40
    assert float((0.25 ** mask.sum(1).double()).sum()) == 1


def test_the_reward_is_a_table_that_its_seed_draws():
    every = oracle().everything()
    assert len(every.rewards) == 80
    assert len(set(every.rewards.tolist())) == 80, "an entry for each prompt and completion"
    assert (every.rewards > 0).all()
    assert (every.rewards < 1).all()
    assert abs(float(every.rewards.mean()) - 0.5) < 4 * (1 / 12 / 80) ** 0.5
    assert torch.equal(every.rewards, oracle().everything().rewards)
    assert not torch.equal(every.rewards, oracle(table_seed=1).everything().rewards)
    assert float(every.prompt_probabilities.sum()) == pytest.approx(40)  # each prompt's forty share its half


def test_what_is_played_earns_what_the_enumeration_says():
    task = oracle()
    every = task.everything()
    parts = task.rewards(every.observations, every.actions, every.mask)
    assert torch.equal(parts["reward"], every.rewards)
    assert parts["best"].view(2, 40).sum(1).tolist() == [1, 1]
    best = every.rewards.view(2, 40).argmax(1) + torch.tensor([0, 40])
    assert parts["best"][best].tolist() == [1, 1]


def test_what_stands_after_the_end_changes_nothing():
    task, mask = oracle(), torch.tensor([[True, True, False]])
    prompt = {"prompt": torch.tensor([[1]])}
    padded = task.rewards(prompt, torch.tensor([[0, END, END]]), mask)
    twice = task.rewards(prompt, torch.tensor([[0, END, 2]]), mask)
    assert padded["reward"] == twice["reward"]


def test_a_cut_completion_earns_no_more_than_the_setting_says():
    free, bounded = oracle().everything(), oracle(cut_reward=-1.0).everything()
    cut = ~((free.actions == END) & free.mask).any(1)
    assert int(cut.sum()) == 2 * 27
    assert (bounded.rewards[cut] == -1).all()
    assert torch.equal(bounded.rewards[~cut], free.rewards[~cut])


def test_the_last_tokens_are_punished_where_a_buffer_is_set():
    every, free = oracle(overlong_buffer=2).everything(), oracle().everything()
    expected = torch.tensor([0, 0, -0.5, -1])[every.mask.sum(1)]
    torch.testing.assert_close(every.rewards - free.rewards, expected)


def test_demonstrations_are_the_best_and_the_corpus_is_uniform():
    task = oracle()
    observations, actions = task.demonstrations(range(64))
    assert set(observations["prompt"][:, 0].tolist()) == {0, 1}
    mask = ((actions == END).cumsum(1) - (actions == END).long()) == 0
    assert (task.rewards(observations, actions, mask)["best"] == 1).all()
    text = task.corpus(range(20_000)).actions
    # Standard error of a share of 1/4: sqrt(3/16 / 20,000) = 0.0031; four of them.
    shares = torch.stack([(text[:, 0] == token).double().mean() for token in range(4)])
    torch.testing.assert_close(shares, torch.full_like(shares, 0.25), atol=0.0125, rtol=0)
    assert (text[text[:, 0] == END] == END).all()


def test_a_prompt_is_a_function_of_its_seed_alone_and_none_is_held_out():
    task = oracle(prompts=3)
    together = task.prompts([3, 1, 2], held_out=True)["prompt"]
    alone = torch.cat([task.prompts([seed], held_out=False)["prompt"] for seed in (3, 1, 2)])
    assert torch.equal(together, alone)


def test_text_reads_as_tokens_and_back():
    assert oracle().decode([*oracle().encode("cab"), END]) == "cab<end>"
    with pytest.raises(InputError, match="a, b and c, not 'd'"):
        oracle().encode("d")
