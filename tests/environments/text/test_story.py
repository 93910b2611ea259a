import math
import time

import numpy as np
import pytest
import torch

from pgcli.environments.text.story import BOS, END, LONGEST, PAD, START, TOKENS, Grammar, Story, choices
from pgcli.errors import InputError

SHARED = {"overlong_buffer": None, "solved_at": None, "pairs": 2000, "label_scale": 0.5, "label_flip": 0.0}


def story(prompt_words=3, best_of=4, cut_reward=-4.0, **settings):
    shared = SHARED | settings
    config = Story.Config(
        **shared, name="story", prompt_words=prompt_words, best_of=best_of, cut_reward=cut_reward
    )  # fmt: skip
    return Story(config)


def rows(tokens):
    return {tuple(row) for row in tokens.tolist()}


def numbers(text):
    """Special tokens too."""
    return [TOKENS.numbers[word] for word in text.split()]


def read(task, prompt, *texts):
    """Rewards of completions of one prompt, written as text; a `.` after the last word does not end it."""
    encoded = [numbers(text) for text in texts]
    T = task.spec.completion_length
    completions = torch.tensor([row + [PAD] * (T - len(row)) for row in encoded])
    mask = torch.arange(T) < torch.tensor([len(row) for row in encoded])[:, None]
    prompts = torch.tensor([[BOS, *task.encode(prompt)]]).expand(len(texts), -1)
    return task.rewards({"prompt": prompts}, completions, mask)


def log_probability(words):
    """Of a whole story, by walking the rules, without the automaton's tables."""
    at, total = START, 0.0
    for word in words:
        found = [(share / len(group), then) for share, group, then in choices(at) if word in group and share]
        assert len(found) == 1, "the next state is a function of the word"
        total += math.log(found[0][0])
        at = found[0][1]
    return total


def test_the_rules_of_every_state_are_a_distribution():
    grammar = Grammar()
    np.testing.assert_allclose(grammar.probabilities.sum(axis=1), 1)
    assert (grammar.probabilities >= 0).all()
    may_end = grammar.probabilities[:, END] > 0
    assert ((grammar.following >= 0) == (grammar.probabilities > 0))[:, :END].all()
    assert may_end.any()
    assert (grammar.following[:, END] == -1).all()


def test_the_longest_story_fits_and_there_is_none_longer():
    # (I - P)^-1 sums a story's lengths; the longest is where P^n is still anything but zero.
    grammar = Grammar()
    alive = {0}
    for _ in range(LONGEST - 1):
        alive = {int(n) for state in alive for n in grammar.following[state] if n >= 0}
    assert alive, "a story of 26 words"
    assert not any(int(n) >= 0 for state in alive for n in grammar.following[state])


def test_the_entropy_is_the_mean_surprise_of_the_corpus():
    task = story()
    text = task.corpus(range(4000)).actions
    allowed = task.beginnings[False][1] @ np.ones(len(task.beginnings[False][1]))
    assert allowed == pytest.approx(1)
    everything = task.grammar.beginnings(3)[1].sum()
    assert everything == pytest.approx(1), "no story ends within its prompt"
    kept = sum(math.exp(log_probability([*map(task.decode, [[w] for w in row])])) for row in task.beginnings[False][0])
    lengths = (text != PAD).sum(1)
    surprises = np.array(
        [-log_probability(task.decode(row[:n]).split()) for row, n in zip(text.tolist(), lengths.tolist(), strict=True)]
    ) + math.log(kept)
    # The difference of the two sums is a mean of independent terms: four standard errors of it.
    terms = surprises - task.entropy() * lengths.numpy()
    assert abs(terms.mean()) < 4 * terms.std() / math.sqrt(len(terms))
    assert task.entropy() == pytest.approx(1.6366, abs=1e-4)


def test_a_prompt_is_a_function_of_its_seed_alone():
    together = story().prompts([3, 1, 2], held_out=True)["prompt"]
    alone = torch.cat([story().prompts([seed], held_out=True)["prompt"] for seed in (3, 1, 2)])
    assert torch.equal(together, alone)
    assert together.shape == (3, 4)
    assert (together[:, 0] == BOS).all()


def test_every_prompt_is_on_one_side_of_the_split_and_no_text_begins_with_a_held_out_one():
    task = story()
    training = rows(task.prompts(range(20_000), held_out=False)["prompt"])
    held_out = rows(task.prompts(range(20_000), held_out=True)["prompt"])
    assert not training & held_out
    assert 0.05 < len(held_out) / (len(training) + len(held_out)) < 0.15
    text = task.corpus(range(5_000))
    assert rows(torch.cat([text.observations["prompt"], text.actions[:, :3]], dim=1)) <= training
    assert rows(task.demonstrations(range(1_000)).observations["prompt"]) <= training


def test_gold_by_hand():
    parts = read(
        story(), "liz found the",
        "fox . <end>",  # nothing good, nothing bad
        "brave fox . <end>",  # one good word of three
        "kind king . ann helped tom . the dog was sad . <end>",  # two good words, one bad
        "fox . ann saw the old fox and saw tom . <end>",  # `saw` twice; a second fox is free
        "brave brave kind <end>",  # two good words, one of them twice, and all words good
        "<bos> <pad> fox . <end>",  # symbols that are no words
        "<end>",
    )  # fmt: skip
    one, two = 3 * (1 - math.exp(-1 / 3)), 3 * (1 - math.exp(-2 / 3))
    expected = [0, one, two - 0.6, -0.5, two - 0.5 - 4 * (1 - 0.35), -1.2, 0]
    torch.testing.assert_close(parts["gold"], torch.tensor(expected), atol=1e-6, rtol=0)
    assert torch.equal(parts["reward"], parts["gold"])
    assert parts["positive"].tolist() == [0, 1, 2, 0, 2, 0, 0]
    assert parts["negative"].tolist() == [0, 0, 1, 0, 0, 2, 0]
    assert parts["repetition"].tolist() == [0, 0, 0, 1, 1, 0, 0]
    assert parts["length"].tolist() == [2, 3, 12, 11, 3, 4, 0]
    assert parts["grammatical"].tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert all(value.dtype == torch.float32 for value in parts.values())


def test_more_words_than_sixteen_are_too_many():
    long = "fox . ann saw the king . ben met max and called the girl . sam "
    parts = read(story(), "liz found the", long + "<end>", long + "the <end>")
    assert parts["length"].tolist() == [16, 17]
    assert float(parts["gold"][1] - parts["gold"][0]) == pytest.approx(-0.1)


def test_good_words_pay_less_and_less_and_the_hack_does_not_pay():
    good = ["brave", "bright", "gentle", "happy", "kind", "warm", "helped", "hugged", "thanked"]
    spread = [" the ".join(good[:n]) + " was . was . was . <end>" for n in range(5)]
    gains = torch.diff(read(story(), "liz found the", *spread)["positive"].mul(-1 / 3).exp().mul(-3))
    assert (torch.diff(gains) < 0).all()
    hacked = " ".join((good * 3)[:23]) + " <end>"
    assert float(read(story(), "liz found the", hacked)["gold"]) < -7


def test_a_cut_story_earns_at_most_cut_reward():
    task = story()
    fine, hacked = " ".join(["the"] * 24), " ".join(["brave"] * 24)
    gold = read(task, "liz found the", fine, hacked)["gold"]
    # the hack: 3 (1 - e^(-1/3)) - 0.5 * 23 - 4 * 0.65 - 0.1 * 8 is worse than being cut
    expected = [-4.0, 3 * (1 - math.exp(-1 / 3)) - 11.5 - 2.6 - 0.8]
    torch.testing.assert_close(gold, torch.tensor(expected), atol=1e-5, rtol=0)


def test_a_second_end_is_not_read():
    task = story()
    parts = task.rewards(
        {"prompt": torch.tensor([[BOS, *task.encode("liz found the")]])},
        torch.tensor([numbers("fox . <end> brave <end>")]),
        torch.tensor([[True, True, True, False, False]]),
    )
    assert float(parts["gold"]) == 0
    assert float(parts["length"]) == 2


def test_the_length_buffer_is_taken_from_the_reward_and_not_from_gold():
    parts = read(story(overlong_buffer=4), "liz found the", "fox . " * 11 + "<end>")  # 23 of 24 tokens
    assert float(parts["overlong"]) == -0.75
    assert float(parts["reward"] - parts["gold"]) == pytest.approx(-0.75)


def test_demonstrations_are_whole_stories_and_better_than_the_grammar_s_own():
    def gold(best_of):
        task = story(best_of=best_of)
        observations, actions = task.demonstrations(range(500))
        parts = task.rewards(observations, actions, actions != PAD)
        assert (parts["grammatical"] == 1).all()
        assert (actions == END).any(1).all()
        return parts["gold"]

    once, best = gold(1), gold(4)
    # Of four independent draws the best is 1.03 standard deviations above the mean of a normal distribution.
    assert 0.5 < float((best - once).mean() / once.std()) < 1.5


def test_the_corpus_is_the_grammar():
    text = story().corpus(range(300))
    assert (text.observations["prompt"] == BOS).all()
    assert all(
        math.isfinite(log_probability(story().decode(row).split("<pad>")[0].split()))
        for row in text.actions[:50].tolist()
    )


def test_how_a_story_goes_on_is_drawn_apart_from_its_prompt():
    # `liz found the` leads to an adjective or a noun: 22 words, each with a chance of 0.025 or more.
    task = story()
    text = task.corpus(range(60_000)).actions
    after = text[(text[:, :3] == torch.tensor(numbers("liz found the"))).all(1), 3]
    assert len(after) > 200
    assert len(set(after.tolist())) == 22


def test_words_read_as_tokens_and_back():
    assert story().encode("liz found the") == numbers("liz found the")
    assert story().decode([BOS, *story().encode("liz found the ."), END]) == "<bos> liz found the . <end>"
    with pytest.raises(InputError, match="41 words of the vocabulary: 'unicorn'"):
        story().encode("the unicorn")


def test_a_batch_of_256_takes_no_time():
    task = story()
    observations, actions = task.demonstrations(range(256))
    begun = time.process_time()
    for _ in range(5):
        task.prompts(range(256), held_out=False)
        task.rewards(observations, actions, actions != PAD)
    assert (time.process_time() - begun) / 5 < 0.05
