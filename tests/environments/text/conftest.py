import pytest
import torch

from pgcli.experiment.config import compose
from pgcli.registry import find


@pytest.fixture
def make():
    """A task, as an experiment would make it."""

    def make(name, *words):
        return find("env", name)(compose([f"env={name}", *words]).env)

    return make


@pytest.fixture
def read():
    """Rewards of completions of one prompt, written by hand.

    They end where they say `<end>`; one that fills the limit is cut. A `<pad>` before the end is one that the policy
    chose.
    """

    def read(task, prompt, *texts, tokens):
        limit, width = task.spec.completion_length, task.spec.prompt_length
        written = [_numbers(text, tokens) for text in texts]
        assert all(len(row) <= limit and (tokens.end in row or len(row) == limit) for row in written)
        completions = torch.tensor([row + [tokens.pad] * (limit - len(row)) for row in written])
        ends = completions == tokens.end
        asked = [tokens.bos, *tokens.encode(prompt)]
        observations = {
            "prompt": torch.tensor([[tokens.pad] * (width - len(asked)) + asked]).expand(len(texts), -1),
            "lengths": torch.full((len(texts),), len(asked)),
        }
        return task.rewards(observations, completions, (ends.cumsum(1) - ends.long()) == 0)

    return read


def _numbers(text, tokens):
    found = []
    while text:
        name = next(name for name in tokens.names if text.startswith(name))
        found.append(tokens.numbers[name])
        text = text[len(name) :]
    return found
