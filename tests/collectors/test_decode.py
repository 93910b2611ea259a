import pytest
import torch

from pgcli.collectors.completions import decode
from pgcli.policies.transformer import Transformer
from pgcli.types import TextSpec

SPEC = TextSpec(vocabulary=6, prompt_length=4, completion_length=7, end=4, pad=5)
LIMITS = {"length": SPEC.completion_length, "end": SPEC.end, "pad": SPEC.pad}


def transformer(seed=0):
    config = Transformer.Config(
        name="transformer", width=32, layers=2, heads=4, hidden=64, temperature=1.0, critic="shared"
    )
    return Transformer(SPEC, config, critic=True, generator=torch.Generator().manual_seed(seed))


def prompts(n):
    return torch.randint(4, (n, SPEC.prompt_length), generator=torch.Generator().manual_seed(1))


def uniform(*shape, seed=2):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nothing(n):
    return {"prompt": torch.zeros(n, 1, dtype=torch.int64)}


class Table:
    """A decoder with the logits of step t in row t, (T, V), whatever was written before."""

    def __init__(self, logits):
        self.logits, self.reads = torch.tensor(logits), 0

    def prefill(self, observations):
        self.reads = 1
        return self.logits[0].expand(len(observations["prompt"]), -1), None

    def step(self, tokens, cache):
        self.reads += 1
        return self.logits[self.reads - 1].expand(len(tokens), -1)


def step_by_step(policy, prompt, noise):
    """The token-level MDP, as defined: the state is the prompt and all tokens so far, read afresh for each action.

    pi(v | state) is the module's own log-prob of v as the last of the actions; nothing is remembered from step to step.
    """
    written, log_probs = [], []
    for t in range(SPEC.completion_length):
        continuations = torch.tensor([[*written, v] for v in range(SPEC.vocabulary)])
        log_pi = policy({"prompt": prompt.expand(SPEC.vocabulary, -1)}, continuations).log_probs[:, -1]
        below = log_pi.double().exp().cumsum(0)
        token = int(log_pi.argmax() if noise is None else (below < noise[t]).sum())
        written.append(token)
        log_probs.append(log_pi[token])
        if token == SPEC.end:
            break
    return written, torch.stack(log_probs)


@pytest.mark.parametrize("sampled", [True, False], ids=["sampled", "greedy"])
@torch.no_grad()
def test_batched_decoding_writes_what_the_token_level_process_writes_under_the_same_noise(sampled):
    policy, n = transformer(), 48
    noise = uniform(n, SPEC.completion_length) if sampled else None
    decoded = decode(policy, {"prompt": prompts(n)}, noise=noise, **LIMITS)
    for i, prompt in enumerate(prompts(n)):
        tokens, log_probs = step_by_step(policy, prompt[None], None if noise is None else noise[i])
        padding = SPEC.completion_length - len(tokens)
        assert decoded.actions[i].tolist() == tokens + [SPEC.pad] * padding
        assert decoded.mask[i].tolist() == [True] * len(tokens) + [False] * padding
        torch.testing.assert_close(decoded.log_probs[i, : len(tokens)], log_probs, atol=1e-5, rtol=0)
    if sampled:  # else nothing was shown: some end at the limit, some before it, at several lengths
        assert decoded.mask.sum(dim=1).unique().numel() >= 4


def test_log_probs_are_those_that_the_policy_gives_the_finished_completions():
    policy = transformer()
    decoded = decode(policy, {"prompt": prompts(256)}, noise=uniform(256, SPEC.completion_length), **LIMITS)
    own = policy({"prompt": prompts(256)}, decoded.actions).log_probs
    torch.testing.assert_close(decoded.log_probs[decoded.mask], own[decoded.mask], atol=1e-5, rtol=0)
    assert not decoded.log_probs.requires_grad


def test_tokens_have_the_policy_s_frequencies():
    # softmax(log 1, log 2, log 5, log 2) = (0.1, 0.2, 0.5, 0.2); standard error at most sqrt(0.25 / 40,000) = 0.0025.
    n = 40_000
    table = Table([[1.0, 2.0, 5.0, 2.0]])
    table.logits = table.logits.log()
    decoded = decode(table, nothing(n), length=1, end=9, pad=8, noise=uniform(n, 1))
    shares = torch.bincount(decoded.actions[:, 0]) / n
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.5, 0.2]), atol=0.01, rtol=0)
    torch.testing.assert_close(
        decoded.log_probs[:, 0], shares.new_tensor([0.1, 0.2, 0.5, 0.2]).log()[decoded.actions[:, 0]]
    )


def test_the_end_is_an_action_and_what_follows_is_not():
    # Greedy: 0, then the end (2), though later rows would prefer 1. log softmax(0, 0, 2) of the end: 2 - log(2 + e^2).
    table = Table([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 9.0, 0.0], [0.0, 9.0, 0.0]])
    decoded = decode(table, nothing(2), length=4, end=2, pad=7, noise=None)
    assert decoded.actions.tolist() == [[0, 2, 7, 7]] * 2
    assert decoded.mask.tolist() == [[True, True, False, False]] * 2
    # log softmax(1, 0, 0)[0] = 1 - log(e + 2) = -0.551445; 2 - log(2 + e^2) = -log(1 + 2 e^-2) = -0.239545.
    expected = torch.tensor([[-0.551445, -0.239545, 0.0, 0.0]] * 2)
    torch.testing.assert_close(decoded.log_probs, expected, atol=1e-6, rtol=0)
    assert table.reads == 2, "all had finished: there was nothing left to read"


def test_a_finished_row_stays_padded_while_another_goes_on():
    # Noise decides: row 0 ends at once, row 1 never does and is cut by the limit.
    table = Table([[0.0, 0.0, 0.0]] * 3)
    noise = torch.tensor([[0.9, 0.5, 0.5], [0.5, 0.5, 0.5]])  # of three equal shares the last, or the one in the middle
    decoded = decode(table, nothing(2), length=3, end=2, pad=7, noise=noise)
    assert decoded.actions.tolist() == [[2, 7, 7], [1, 1, 1]]
    assert decoded.mask.tolist() == [[True, False, False], [True, True, True]]
    assert (decoded.log_probs[0, 1:] == 0).all()


def test_a_row_is_a_function_of_its_prompt_and_its_noise_alone():
    policy, noise = transformer(), uniform(64, SPEC.completion_length)
    together = decode(policy, {"prompt": prompts(64)}, noise=noise, **LIMITS)
    some = torch.tensor([40, 3, 17])
    alone = decode(policy, {"prompt": prompts(64)[some]}, noise=noise[some], **LIMITS)
    assert torch.equal(alone.actions, together.actions[some])
    torch.testing.assert_close(alone.log_probs, together.log_probs[some], atol=1e-5, rtol=0)
