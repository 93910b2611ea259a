"""The token-level process, and that batched decoding is the same process played faster."""

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from pgcli.collectors.completions import Decoding, choose
from pgcli.environments.tokens import Tokens
from pgcli.experiment.config import compose
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


@pytest.mark.parametrize(
    ("words", "ending"),
    [
        (["env=sort", "env.digits=3"], 2),
        (["env=story"], 0),
        (["env=oracle"], 0),
        (["env=chain"], 0),
        (["env=guess"], 2),
    ],
    ids=["sort", "story", "oracle", "chain", "guess"],
)
@torch.no_grad()
def test_stepping_and_decoding_write_receive_and_end_the_same_under_the_same_noise(words, ending):
    """`ending` is added to the end token's logit, so that completions end at many lengths, and some do not."""
    what, config = task(*words)
    policy = Transformer.make(what.spec, config.policy, Stochastic(), torch.Generator().manual_seed(0))
    bonus = torch.nn.functional.one_hot(torch.tensor(what.spec.end), what.spec.vocabulary) * ending
    without = policy._logits
    policy._logits = lambda hidden, *times: without(hidden, *times) + bonus
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
        torch.testing.assert_close({name: float(rollout.aux[name][i]) for name in told}, told, atol=1e-6, rtol=0)
    assert rollout.mask.sum(1).unique().numel() > 2, "else nothing was shown"
    assert rollout.terminated.any()
    assert rollout.truncated.any()


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
