import numpy as np
import torch

from pgcli.collectors.completions import Decoding
from pgcli.collectors.revisions import RevisionCollector
from pgcli.types import TextSpec

CPU = torch.device("cpu")
END, PAD = 4, 5


class Manners:
    """A request is 0 or 1. Rule 0 criticises the answer 0, rule 1 the answer 1; the answer 2 is as it should be."""

    spec = TextSpec(vocabulary=6, prompt_length=3, completion_length=2, end=END, pad=PAD)

    def __init__(self):
        self.asked = []

    def prompts(self, seeds, *, held_out):
        return {"prompt": torch.tensor([[seed % 2] for seed in seeds]), "lengths": torch.ones(len(seeds)).long()}

    def rewards(self, observations, completions, mask):
        return {"reward": completions[:, 0].float()}

    def criticise(self, observations, completions, mask, generator):
        generator.random()
        return torch.where(completions[:, 0] < 2, completions[:, 0], -1)

    def revision_prompts(self, observations, completions, mask, rules):
        assert (rules == completions[:, 0]).all()
        found = torch.stack([observations["prompt"][:, 0], completions[:, 0], rules], dim=1)
        self.asked += found.tolist()
        return {"prompt": found, "lengths": torch.full((len(rules),), 3)}


class Writer:
    """Answers a request with its own number; revises an answer to the next one."""

    has_critic = False

    def prefill(self, observations):
        prompt = observations["prompt"]
        self.token = prompt[:, 0] if prompt.shape[1] == 1 else prompt[:, 1] + 1
        return self._says(self.token), None

    def step(self, tokens, cache):
        return self._says(torch.full_like(tokens, END))

    @staticmethod
    def _says(tokens):
        return 90.0 * torch.nn.functional.one_hot(tokens, 6).float()


def collector(task, writer, rounds):
    return RevisionCollector(Decoding(task, device=CPU), task, writer, rows=8, rounds=rounds, seed=0)


def test_what_is_learned_is_the_last_revision_as_an_answer_to_the_request():
    task = Manners()
    rollout = collector(task, Writer(), rounds=1).collect(None)
    requests = rollout.observations["prompt"][:, 0]
    assert set(requests.tolist()) == {0, 1}
    assert rollout.observations["prompt"].shape == (8, 1)
    assert torch.equal(rollout.actions[:, 0], requests + 1)
    assert (rollout.actions[:, 1] == END).all()
    assert rollout.mask.all()
    assert {tuple(row) for row in task.asked} == {(0, 0, 0), (1, 1, 1)}
    assert rollout.log_probs is None


def test_a_second_round_revises_the_revision_where_it_is_still_criticised():
    task = Manners()
    rollout = collector(task, Writer(), rounds=3).collect(None)
    assert (rollout.actions[:, 0] == 2).all()
    assert {tuple(row) for row in task.asked} == {(0, 0, 0), (0, 1, 1), (1, 1, 1)}
    requests = rollout.observations["prompt"][:, 0].float()
    assert rollout.metrics["reward/reward"] == float(requests.mean())
    assert rollout.metrics["revisions/reward"] == 2
    assert rollout.metrics["revisions/criticised"] == rollout.metrics["revisions/improved"] == 1


def test_an_answer_of_which_nothing_is_said_stays_as_it_is():
    class Polite(Writer):
        def prefill(self, observations):
            assert observations["prompt"].shape[1] == 1, "nothing was to be revised"
            self.token = torch.full_like(observations["prompt"][:, 0], 2)
            return self._says(self.token), None

    rollout = collector(Manners(), Polite(), rounds=4).collect(None)
    assert (rollout.actions[:, 0] == 2).all()
    assert rollout.metrics["revisions/criticised"] == 0
    assert "revisions/improved" not in rollout.metrics


def test_the_policy_writes_where_nobody_else_is_there_to():
    rollout = collector(Manners(), None, rounds=1).collect(Writer())
    assert torch.equal(rollout.actions[:, 0], rollout.observations["prompt"][:, 0] + 1)


def test_it_goes_on_after_a_restart_as_if_there_had_been_none():
    class Undecided(Writer):
        @staticmethod
        def _says(tokens):
            return torch.zeros(len(tokens), 6)

    first, second = (collector(Manners(), Undecided(), rounds=2) for _ in range(2))
    first.collect(None)
    second.load_state_dict(first.state_dict())
    a, b = first.collect(None), second.collect(None)
    assert torch.equal(a.actions, b.actions)
    assert torch.equal(a.observations["prompt"], b.observations["prompt"])
    assert first.judging.random() == second.judging.random() != np.random.default_rng(0).random()
