"""The token-level process, and that batched decoding is the same process played faster."""

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from pgcli.collectors.completions import Decoding, choose
from pgcli.environments.tokens import Tokens
from pgcli.experiment.config import compose
from pgcli.functional.distributions import Categorical
from pgcli.policies.transformer import Transformer
from pgcli.registry import find
from pgcli.seeding import uniforms
from pgcli.types import Stochastic


def task(*words):
    config = compose([*words, "algo=reinforce"])
    return find("env", config.env.name)(config.env), config


def play(env, policy, seed, noise):
    """One episode by the module's own forward pass over all tokens so far, nothing remembered between them."""
    state, _ = env.reset(seed=seed)
    steps = []
    while True:
        prompt = torch.from_numpy(state["prompt"])[None, -int(state["length"]) :]
        written = torch.from_numpy(state["completion"])[None, : int(state["written"])]
        asked = torch.cat([written, written.new_zeros(1, 1)], dim=1)  # its last action is not read
        logits = policy({"prompt": prompt}, asked).distribution.logits[:, -1]
        token, log_prob = choose(logits, noise[int(state["written"])][None])
        position = int(state["written"])
        state, reward, terminated, truncated, told = env.step(token.numpy()[0])
        steps.append((position, int(token), float(log_prob), reward, terminated, truncated))
        if terminated or truncated:
            return steps, state, told


class Ending:
    """A policy with something added to its logits."""

    has_critic = False

    def __init__(self, policy, bonus):
        self.policy, self.bonus = policy, bonus

    def prefill(self, observations):
        logits, cache = self.policy.prefill(observations)
        return logits + self.bonus, cache

    def step(self, tokens, cache):
        return self.policy.step(tokens, cache) + self.bonus

    def __call__(self, observations, actions):
        found = self.policy(observations, actions)
        return found._replace(distribution=Categorical(found.distribution.logits + self.bonus))


@pytest.mark.parametrize(
    ("words", "ending"),
    [
        (["env=sort", "env.digits=3"], 2),
        (["env=story"], 0),
        (["env=oracle"], 0),
        (["env=chain"], 0),
        (["env=guess"], 2),
        (["env=mixture"], 2),
    ],
    ids=["sort", "story", "oracle", "chain", "guess", "mixture"],
)
@torch.no_grad()
def test_stepping_and_decoding_write_receive_and_end_the_same_under_the_same_noise(words, ending):
    """`ending` is added to the end token's logit, so that completions end at many lengths, and some do not."""
    what, config = task(*words)
    policy = Transformer.make(what.spec, config.policy, Stochastic(), torch.Generator().manual_seed(0))
    bonus = torch.nn.functional.one_hot(torch.tensor(what.spec.end), what.spec.vocabulary) * ending
    policy = Ending(policy, bonus)
    seeds = list(range(100, 132))
    rollout = Decoding(what, device=torch.device("cpu")).play(policy, seeds, np.random.default_rng(5))
    T = what.spec.completion_length
    keys = np.random.default_rng(5).integers(2**63, size=len(seeds), dtype=np.uint64)
    noise = torch.from_numpy(uniforms(keys, T))
    env = Tokens(what)
    for i, seed in enumerate(seeds):
        steps, state, told = play(env, policy, seed, noise[i])
        at, tokens, log_probs, rewards, terminated, truncated = (list(column) for column in zip(*steps, strict=True))
        assert rollout.mask[i].nonzero().squeeze(1).tolist() == at
        assert rollout.actions[i, at].tolist() == tokens
        torch.testing.assert_close(rollout.log_probs[i, at], torch.tensor(log_probs), atol=1e-5, rtol=0)
        assert rollout.actions[i].tolist() == state["completion"].tolist(), "and the task replied the same"
        torch.testing.assert_close(rollout.rewards[i, at], torch.tensor(rewards), atol=1e-6, rtol=0)
        assert rollout.terminated[i, at].tolist() == terminated
        assert rollout.truncated[i, at].tolist() == truncated
        torch.testing.assert_close(
            {name: float(rollout.aux[name][i]) for name in told}, told, atol=1e-6, rtol=0, equal_nan=True
        )
    assert rollout.mask.sum(1).unique().numel() > 2, "else nothing was shown"
    assert rollout.terminated.any()
    assert rollout.truncated.any()


def test_stepping_and_decoding_pay_each_step_of_a_process_with_the_same_token():
    what, _ = task("env=chain", "env.reward_kind=process", "env.cut_reward=-0.5", "env.min_steps=3", "env.max_steps=3")
    prompts = what.prompts([7], held_out=False)
    pad, end, separator = what.spec.pad, what.spec.end, what.encode(";")[0]
    (right,) = what._answers(prompts).tolist()  # d ; d ; d <end>
    wrong = [*right[:2], (right[2] + 1) % 10, *right[3:]]
    cut = [*right[:5], separator]
    early = [*right[:3], end, pad, pad]
    third = 1 / 3
    scripts = [
        (right, [0, third, 0, third, 0, third]),
        (wrong, [0, third, 0, 0, 0, third]),
        (cut, [0, third, 0, third, 0, -0.5 - 2 * third]),  # the limit takes what was earned, with the last token
        (early, [0, third, 0, 0, 0, 0]),
    ]

    class Writes:
        """What it was told to, a text for each row."""

        has_critic = False

        def prefill(self, observations):
            self.t = 0
            return self._logits(), None

        def step(self, tokens, cache):
            self.t += 1
            return self._logits()

        def _logits(self):
            told = torch.tensor([tokens[self.t] for tokens, _ in scripts])
            return 50.0 * torch.nn.functional.one_hot(told, what.spec.vocabulary).float()

    rollout = Decoding(what, device=torch.device("cpu")).play(Writes(), [7] * 4, None)
    env = Tokens(what)
    for i, (tokens, paid) in enumerate(scripts):
        env.reset(seed=7)
        written = [token for token in tokens if token != pad]
        received = [env.step(np.int64(token))[1:4] for token in written]
        rewards, terminated, truncated = (list(column) for column in zip(*received, strict=True))
        assert rewards == pytest.approx(paid[: len(written)], abs=1e-6)
        assert rollout.actions[i].tolist() == tokens
        torch.testing.assert_close(rollout.rewards[i], torch.tensor(paid, dtype=torch.float32), atol=1e-6, rtol=0)
        assert rollout.terminated[i, : len(written)].tolist() == terminated
        assert rollout.truncated[i, : len(written)].tolist() == truncated
    assert rollout.truncated.any(1).tolist() == [False, False, True, False]
    assert rollout.aux["reward"].tolist() == pytest.approx([sum(paid) for _, paid in scripts], abs=1e-6)


@pytest.mark.parametrize("words", [["env=sort"], ["env=guess"]], ids=lambda words: words[0])
def test_it_is_a_gymnasium_environment(words):
    env = Tokens(task(*words)[0])
    check_env(env, skip_render_check=True)
    first, again = env.reset(seed=7)[0], env.reset(seed=7)[0]
    assert first["prompt"].tolist() == again["prompt"].tolist()


def test_the_right_answer_is_rewarded_with_its_end_token_and_a_cut_one_with_the_last_place():
    what, _ = task("env=sort", "env.digits=2", "env.cut_reward=-0.5")
    env = Tokens(what)
    state, _ = env.reset(seed=3)
    digits = sorted(int(token) for token in state["prompt"][1:-1])
    received = [env.step(np.int64(token))[1:4] for token in [*digits, what.spec.end]]
    assert received == [(0.0, False, False), (0.0, False, False), (1.0, True, False)]
    with pytest.raises(ResetNeeded):
        env.step(np.int64(0))
    env.reset(seed=3)
    assert [env.step(np.int64(digits[0]))[1:4] for _ in range(3)][-1] == (-0.5, False, True)
