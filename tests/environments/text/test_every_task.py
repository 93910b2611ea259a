"""What holds for all tasks that an experiment names: prompts, the split, demonstrations, the corpus, speed."""

import time

import pytest
import torch

from pgcli.errors import InputError
from pgcli.types import TextSpec

TASKS = {
    "sort": ("env.digits=2",),
    "reverse": ("env.min_letters=1", "env.max_letters=2", "env.letters=9"),
    "add": ("env.digits=1",),
    "bracket": ("env.max_given=5",),
    "count_or_pad": ("env.letters=3",),
    "story": ("env.prompt_words=2",),
    "mixture": (
        "env.tasks={sort: {digits: 2}, reverse: {min_letters: 1, max_letters: 2, letters: 9}, add: {digits: 1}}",
    ),
}
"""With few enough prompts that some thousand seeds meet every one of them."""


def rows(observations):
    return {tuple(row) for row in observations["prompt"].tolist()}


def mask_of(actions, end):
    ends = actions == end
    return (ends.cumsum(1) - ends.long()) == 0


@pytest.mark.parametrize("name", [*TASKS, "oracle"])
def test_a_prompt_is_a_function_of_its_seed_alone(make, name):
    task = make(name)
    for held_out in (False, True):
        together = task.prompts([3, 1, 2], held_out=held_out)
        for key, value in together.items():
            alone = torch.cat([task.prompts([seed], held_out=held_out)[key] for seed in (3, 1, 2)])
            assert torch.equal(value, alone), key
            assert value.dtype == torch.int64


@pytest.mark.parametrize("name", TASKS)
def test_every_prompt_is_on_one_side_of_the_split_whatever_the_seeds(make, name):
    task = make(name, *TASKS[name])
    training = rows(task.prompts(range(8_000), held_out=False))
    held_out = rows(task.prompts(range(8_000), held_out=True))
    assert not training & held_out
    # One in twenty or one in ten of a hundred prompts or more, each side by a hash.
    assert 0.01 < len(held_out) / len(training | held_out) < 0.2
    assert rows(task.prompts(range(10**9, 10**9 + 500), held_out=True)) <= held_out
    assert rows(task.demonstrations(range(500)).observations) <= training


@pytest.mark.parametrize("name", [*TASKS, "oracle"])
def test_demonstrations_have_the_form_of_a_completion_and_the_top_reward(make, name):
    task = make(name, *(["env.errors=0"] if name == "count_or_pad" else []))  # whose teacher errs
    spec: TextSpec = task.spec
    observations, actions = task.demonstrations(range(300))
    assert actions.shape == (300, spec.completion_length)
    assert observations["prompt"].shape == (300, spec.prompt_length)
    mask = mask_of(actions, spec.end)
    assert (actions[~mask] == spec.pad).all()
    assert torch.equal(observations["prompt"], task.prompts(range(300), held_out=False)["prompt"])
    if name != "oracle":
        assert (actions == spec.end).any(1).all(), "ended properly"
    parts = task.rewards(observations, actions, mask)
    assert set(parts) <= set(task.COMPONENTS)
    assert all(part.dtype == torch.float32 for part in parts.values())
    if name not in {"story", "oracle"}:  # of which "the best" is another question
        assert (parts["reward"] == 1).all()


@pytest.mark.parametrize("name", [*TASKS, "oracle"])
def test_padding_is_on_the_left_of_prompts_whose_lengths_say_so(make, name):
    task = make(name)
    observations = task.prompts(range(200), held_out=False)
    prompt = observations["prompt"]
    lengths = observations.get("lengths", torch.full((200,), prompt.shape[1]))
    inside = torch.arange(prompt.shape[1]) >= prompt.shape[1] - lengths[:, None]
    assert (prompt[~inside] == task.spec.pad).all()
    assert (prompt[inside] != task.spec.pad).all()


@pytest.mark.parametrize("name", ["sort", "reverse", "add", "bracket", "count_or_pad", "mixture"])
def test_the_corpus_is_prompts_and_their_answers(make, name):
    task = make(name)
    asked, answers = task.demonstrations(range(50))
    first, text = task.corpus(range(50))
    lengths = asked.get("lengths", torch.full((50,), asked["prompt"].shape[1]))
    for row in range(50):
        prompt = asked["prompt"][row, -int(lengths[row]) :].tolist()
        answer = answers[row][answers[row] != task.spec.pad].tolist()
        assert first["prompt"][row].tolist() == prompt[:1]
        rest = [token for token in text[row].tolist() if token != task.spec.pad]
        assert rest == prompt[1:] + answer


@pytest.mark.parametrize("name", [*TASKS, "oracle"])
def test_text_reads_as_tokens_and_back_and_what_is_no_symbol_is_refused(make, name):
    task = make(name)
    observations = task.prompts([5], held_out=False)
    prompt = observations["prompt"][0, -int(observations.get("lengths", torch.tensor([0]))) :].tolist()
    text = task.decode(prompt if name == "oracle" else prompt[1:])  # the others begin with <bos>
    assert task.encode(text) == (prompt if name == "oracle" else prompt[1:])
    with pytest.raises(InputError):
        task.encode("#")


@pytest.mark.parametrize("name", [*TASKS, "oracle"])
def test_a_batch_of_256_takes_a_few_milliseconds(make, name):
    task = make(name)
    observations, actions = task.demonstrations(range(256))
    mask = mask_of(actions, task.spec.end)
    fastest = float("inf")
    for _ in range(5):
        begun = time.process_time()
        task.prompts(range(256), held_out=False)
        task.rewards(observations, actions, mask)
        fastest = min(fastest, time.process_time() - begun)
    assert fastest < 0.015  # 1 ms at most, on an idle core


@pytest.mark.parametrize("name", [*(name for name in TASKS if name != "mixture"), "oracle"])
def test_the_last_tokens_cost_where_a_buffer_is_set(make, name):
    task, free = make(name, "env.overlong_buffer=2"), make(name)
    observations, actions = free.demonstrations(range(300))
    mask = mask_of(actions, free.spec.end)
    found, plain = task.rewards(observations, actions, mask), free.rewards(observations, actions, mask)
    assert set(found) - set(plain) == {"overlong"}
    lengths = mask.sum(1)
    expected = torch.where(lengths == free.spec.completion_length, -1.0, 0.0)
    expected = torch.where(lengths == free.spec.completion_length - 1, -0.5, expected)
    torch.testing.assert_close(found["overlong"], expected)
    torch.testing.assert_close(found["reward"], plain["reward"] + expected)
