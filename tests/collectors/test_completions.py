import numpy as np
import torch

from pgcli.collectors.completions import Decoding
from pgcli.collectors.dataset import DatasetCollector
from pgcli.collectors.episodes import EpisodeCollector
from pgcli.types import Evaluation, TextSpec, Written

CPU = torch.device("cpu")
END, PAD = 3, 4


class Copy:
    """Prompts [0] and [1]; the right answer to [i] is i, end. Reward 1 for it, -1 if the limit of 3 tokens cut it."""

    spec = TextSpec(vocabulary=5, prompt_length=1, completion_length=3, end=END, pad=PAD)

    def prompts(self, seeds, *, held_out):
        return {"prompt": torch.tensor([[seed % 2] for seed in seeds])}

    def rewards(self, observations, completions, mask):
        right = (completions[:, 0] == observations["prompt"][:, 0]) & (completions[:, 1] == END)
        cut = ~(completions == END).any(1)
        return {"reward": torch.where(cut, -1.0, right.float()), "right": right.float()}

    def demonstrations(self, seeds):
        asked = self.prompts(seeds, held_out=False)
        return Written(asked, torch.cat([asked["prompt"], torch.tensor([[END, PAD]] * len(seeds))], dim=1))


class Echo:
    """Repeats an even prompt and ends; never ends after an odd one. V(s_t) = 10 * (t + 1)."""

    has_critic = True

    def prefill(self, observations):
        self.prompt, self.t = observations["prompt"][:, 0], 0
        return self._logits(), None

    def step(self, tokens, cache):
        self.t += 1
        return self._logits()

    def _logits(self):
        ends = (self.t > 0) & (self.prompt == 0)
        return 50.0 * torch.nn.functional.one_hot(torch.where(ends, END, self.prompt), 5).float()

    def __call__(self, observations, actions):
        values = 10.0 * torch.arange(1, actions.shape[1] + 1).expand(actions.shape)
        return Evaluation(torch.zeros_like(values), torch.zeros_like(values), values)


def test_the_reward_stands_on_the_last_token_and_a_cut_is_not_an_end():
    rollout = Decoding(Copy(), device=CPU).play(Echo(), [0, 1], None)
    assert rollout.actions.tolist() == [[0, END, PAD], [1, 1, 1]]
    assert rollout.mask.tolist() == [[True, True, False], [True, True, True]]
    assert rollout.rewards.tolist() == [[0, 1, 0], [0, 0, -1]]
    assert rollout.terminated.tolist() == [[False, True, False], [False, False, False]]
    assert rollout.truncated.tolist() == [[False, False, False], [False, False, True]]
    assert [tuple(e) for e in rollout.episodes] == [(1.0, 2, 0), (-1.0, 3, 1)]
    assert rollout.aux["right"].tolist() == [1, 0]


def test_nothing_is_bootstrapped_behind_the_last_token():
    rollout = Decoding(Copy(), device=CPU).play(Echo(), [0, 1], None)
    kept = torch.where(rollout.mask, rollout.next_values, -1)
    assert kept.tolist() == [[20, 0, -1], [20, 30, 0]]


def test_completions_of_one_prompt_are_a_group():
    source = EpisodeCollector(Decoding(Copy(), device=CPU), num_groups=2, group_size=3, seed=0)
    rollout = source.collect(Echo())
    assert rollout.groups.tolist() == [0, 0, 0, 1, 1, 1]
    prompts = rollout.observations["prompt"][:, 0]
    assert len(set(prompts[:3].tolist())) == len(set(prompts[3:].tolist())) == 1


def test_demonstrations_end_with_the_end_token_and_go_on_after_a_restart():
    first = DatasetCollector(Copy().demonstrations, end=END, rows=4, seed=0, device=CPU)
    rollout = first.collect(None)
    assert rollout.mask.tolist() == [[True, True, False]] * 4
    assert rollout.actions[:, 0].tolist() == rollout.observations["prompt"][:, 0].tolist()
    assert rollout.log_probs is None
    second = DatasetCollector(Copy().demonstrations, end=END, rows=4, seed=0, device=CPU)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.collect(None).actions, second.collect(None).actions)


def test_a_sample_depends_on_its_noise_alone():
    class Uniform(Echo):
        def _logits(self):
            return torch.zeros(len(self.prompt), 5)

    a = Decoding(Copy(), device=CPU).play(Uniform(), [0, 1, 2], np.random.default_rng(0))
    b = Decoding(Copy(), device=CPU).play(Uniform(), [0, 1, 2], np.random.default_rng(0))
    assert torch.equal(a.actions, b.actions)
    torch.testing.assert_close(a.log_probs[a.mask], torch.full((int(a.mask.sum()),), -np.log(5.0), dtype=torch.float32))


def test_a_completion_is_described_without_its_padding_and_its_end():
    class Read(Copy):
        def decode(self, tokens):
            return " ".join(map(str, tokens))

    decoding = Decoding(Read(), device=CPU)
    rollout = decoding.play(Echo(), [0, 1], None)
    rollout.observations["prompt"] = torch.tensor([[PAD, PAD, 0], [PAD, 7, 1]])
    rollout.observations["lengths"] = torch.tensor([1, 2])
    ended, cut = decoding.describe(rollout, 5)
    assert (ended["prompt"], ended["completion"], ended["finished"], ended["tokens"]) == ("0", "0", True, 2)
    assert (cut["prompt"], cut["completion"], cut["finished"], cut["tokens"]) == ("7 1", "1 1 1", False, 3)
    assert (ended["reward"], ended["components"], cut["reward"]) == (1, {"right": 1}, -1)
    assert ended["log_prob"] == sum(ended["log_probs"]) == float(rollout.log_probs[0].sum())
    assert len(ended["log_probs"]) == 2
    assert len(decoding.describe(rollout, 1)) == 1


class Dialogue(Copy):
    """The task says 2 to what ends a first turn; reward 1 for a second end. Six tokens at most."""

    spec = TextSpec(vocabulary=5, prompt_length=1, completion_length=6, end=END, pad=PAD, reply_length=1)

    def rewards(self, observations, completions, mask):
        return {"reward": (((completions == END) & mask).sum(1) == 2).float()}

    def replies(self, observations, completions, mask):
        return torch.full((len(completions), 1), 2)


class Script(Echo):
    """Writes what its lines say, one line for each prompt. V(s_t) = 10 * (t + 1)."""

    LINES = torch.tensor([[0, END, 9, 0, END, 9], [0, 0, 0, 0, 0, END], [0, END, 9, 0, 0, 0]])

    def _logits(self):
        return 50.0 * torch.nn.functional.one_hot(self.LINES[self.prompt, self.t].clamp(max=4), 5).float()


def test_two_turns_end_with_the_second_end_token_and_nobody_chose_the_reply():
    task = Dialogue()
    task.prompts = lambda seeds, held_out: {"prompt": torch.tensor([[seed] for seed in seeds])}
    rollout = Decoding(task, device=CPU).play(Script(), [0, 1, 2], None)
    assert rollout.actions.tolist() == [[0, END, 2, 0, END, PAD], [0, 0, 0, 0, 0, END], [0, END, 2, 0, 0, 0]]
    chosen = [[1, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1]]
    assert rollout.mask.tolist() == torch.tensor(chosen).bool().tolist()
    assert rollout.terminated.nonzero().tolist() == [[0, 4]]
    assert rollout.truncated.nonzero().tolist() == [[1, 5], [2, 5]], "a first end at the limit is not the end"
    assert rollout.rewards.nonzero().tolist() == [[0, 4]]
    assert [episode.length for episode in rollout.episodes] == [4, 6, 5]
    assert rollout.steps == 15
    assert (rollout.log_probs[~rollout.mask] == 0).all()
    # After its first end token the policy next chooses at t = 3, where V = 40; nothing is behind the last token.
    assert rollout.values[0, :5].tolist() == [10, 20, 40, 40, 50]
    assert rollout.next_values[0, :5].tolist() == [20, 40, 40, 50, 0]
