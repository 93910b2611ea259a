import pytest
import torch

from pgcli.collectors.completions import decode
from pgcli.policies.transformer import Transformer
from pgcli.types import TextSpec

SPEC = TextSpec(vocabulary=6, prompt_length=4, completion_length=7, end=4, pad=5)
LIMITS = {"length": SPEC.completion_length, "end": SPEC.end, "pad": SPEC.pad}


def transformer(seed=0, temperature=1.0):
    config = Transformer.Config(
        name="transformer",
        width=32,
        layers=2,
        heads=4,
        hidden=64,
        temperature=temperature,
        critic="shared",
        path=None,
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


def step_by_step(policy, prompt, noise, reply=None):
    """The token-level MDP, as defined: the state is the prompt and all tokens so far, read afresh for each action.

    pi(v | state) is the module's own log-prob of v as the last of the actions; nothing is remembered from step to step.
    reply: what the task says after the first end token, a function of the prompt and the tokens so far.
    """
    written, log_probs, forced = [], [], []
    for t in range(SPEC.completion_length):
        if forced:
            written.append(forced.pop(0))
            log_probs.append(torch.tensor(0.0))
            continue
        continuations = torch.tensor([[*written, v] for v in range(SPEC.vocabulary)])
        log_pi = policy({"prompt": prompt.expand(SPEC.vocabulary, -1)}, continuations).log_probs[:, -1]
        below = log_pi.double().exp().cumsum(0)
        token = int(log_pi.argmax() if noise is None else (below < noise[t]).sum())
        written.append(token)
        log_probs.append(log_pi[token])
        if token == SPEC.end:
            if reply is None:
                break
            forced, reply = reply(prompt[0].tolist(), written), None
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


@torch.no_grad()
def test_an_end_token_in_the_prompt_is_a_token_like_any_other():
    policy, n = transformer(), 24
    prompt = prompts(n)
    prompt[:, 0] = SPEC.end  # as what a first speaker said would stand there
    prompt[::2, -1] = SPEC.end
    decoded = decode(policy, {"prompt": prompt}, noise=uniform(n, SPEC.completion_length), **LIMITS)
    for i in range(n):
        tokens, log_probs = step_by_step(policy, prompt[i : i + 1], uniform(n, SPEC.completion_length)[i])
        assert decoded.actions[i, : len(tokens)].tolist() == tokens
        assert decoded.mask[i].tolist() == [t < len(tokens) for t in range(SPEC.completion_length)]
        assert decoded.ended[i] == (tokens[-1] == SPEC.end)
        torch.testing.assert_close(decoded.log_probs[i, : len(tokens)], log_probs, atol=1e-5, rtol=0)
    assert decoded.mask[:, 0].all(), "nobody had finished before the first token"
    assert decoded.mask.sum(1).unique().numel() >= 4
    # It is read: a prompt whose first token is padding is another one.
    padded = {"prompt": prompt, "lengths": torch.full((n,), SPEC.prompt_length - 1)}
    read, unread = (policy(given, decoded.actions).log_probs[:, 0] for given in ({"prompt": prompt}, padded))
    torch.testing.assert_close(decoded.log_probs[:, 0], read, atol=1e-5, rtol=0)
    assert ((read - unread).abs() > 1e-4).all()


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


def grouped(n, size):
    return prompts(n // size).repeat_interleave(size, 0)


def assert_same(a, b):
    """Tokens exactly, log-probs but for the order in which a product adds up."""
    assert torch.equal(a.actions, b.actions)
    assert torch.equal(a.mask, b.mask)
    assert torch.equal(a.ended, b.ended)
    torch.testing.assert_close(a.log_probs, b.log_probs, atol=3e-6, rtol=0)


@pytest.mark.parametrize("when", [1.0, 0.5])
def test_rows_that_leave_the_cache_change_nothing(monkeypatch, when):
    policy, noise = transformer(), uniform(96, SPEC.completion_length)
    monkeypatch.setattr("pgcli.collectors.completions.COMPACT", 0)
    whole = decode(policy, {"prompt": prompts(96)}, noise=noise, keep_logits=True, **LIMITS)
    widths, step = [], policy.step
    monkeypatch.setattr("pgcli.collectors.completions.COMPACT", when)
    monkeypatch.setattr(policy, "step", lambda tokens, cache: widths.append(len(tokens)) or step(tokens, cache))
    compacted = decode(policy, {"prompt": prompts(96)}, noise=noise, keep_logits=True, **LIMITS)
    assert_same(compacted, whole)
    torch.testing.assert_close(compacted.logits, whole.logits, atol=1e-5, rtol=0)
    assert len(set(widths)) > 1, "rows did leave"
    if when == 1:  # as soon as they are done: what is read is what is written, and no more
        assert widths == whole.mask.sum(0)[1:].tolist()


def test_a_group_s_prompt_is_read_once_and_gives_what_reading_it_for_each_row_gives(monkeypatch):
    policy, noise = transformer(), uniform(48, SPEC.completion_length)
    lengths = torch.tensor([4, 4, 2, 4, 1, 4]).repeat_interleave(8)  # one of another length is another prompt
    observations = {"prompt": torch.cat([grouped(24, 8), grouped(24, 8)]), "lengths": lengths}
    alone = [decode(policy, {k: v[i : i + 1] for k, v in observations.items()}, noise=noise[i : i + 1], **LIMITS)
             for i in range(48)]  # fmt: skip
    read, prefill = [], policy.prefill
    monkeypatch.setattr(policy, "prefill", lambda given: read.append(len(given["prompt"])) or prefill(given))
    together = decode(policy, observations, noise=noise, **LIMITS)
    assert read == [6]
    for i, row in enumerate(alone):
        assert_same(type(together)(*(x[i : i + 1] for x in together[:4])), row)


def test_a_decoder_whose_cache_cannot_be_moved_writes_the_same():
    # Table's cache is None: its prompts are read for every row, and finished rows stay.
    table = Table([[0.0, 1.0, 0.5, -1.0]] * 4)
    noise = uniform(64, 4)
    decoded = decode(table, {"prompt": torch.zeros(64, 1, dtype=torch.int64)}, length=4, end=1, pad=3, noise=noise)
    each = [decode(table, nothing(1), length=4, end=1, pad=3, noise=noise[i : i + 1]) for i in range(64)]
    assert torch.equal(decoded.actions, torch.cat([one.actions for one in each]))
    assert decoded.mask.sum(1).unique().numel() > 2


def answer(prompt, written):
    """What a task says to a first turn: its length and the prompt's first token."""
    return [len(written) % 4, prompt[0]]


def answers(observations, actions, mask):
    lengths = mask.sum(1)
    return torch.stack([lengths % 4, observations["prompt"][:, 0]], dim=1)


@torch.no_grad()
def test_a_second_turn_follows_the_task_s_reply_and_has_read_it(monkeypatch):
    monkeypatch.setattr("pgcli.collectors.completions.COMPACT", 1.0)
    policy, n, T = transformer(temperature=3.0), 64, SPEC.completion_length  # so that end tokens are not rare
    noise = uniform(n, T)
    observations = {"prompt": grouped(n, 4)}
    decoded = decode(policy, observations, noise=noise, replies=answers, **LIMITS)
    seen = set()
    for i, prompt in enumerate(observations["prompt"]):
        tokens, log_probs = step_by_step(policy, prompt[None], noise[i], reply=answer)
        padding = T - len(tokens)
        assert decoded.actions[i].tolist() == tokens + [SPEC.pad] * padding
        found = decoded.log_probs[i, : len(tokens)]
        torch.testing.assert_close(found, log_probs, atol=1e-5, rtol=0)
        first = tokens.index(SPEC.end) if SPEC.end in tokens else T
        chosen = [t < len(tokens) and not first < t <= first + 2 for t in range(T)]
        assert decoded.mask[i].tolist() == chosen
        ended = first + 2 < len(tokens) - 1 and tokens[-1] == SPEC.end
        assert decoded.ended[i] == ended
        seen.add((min(first, T), ended))
    assert {ended for _, ended in seen} == {True, False}
    assert any(T - 3 <= first < T for first, _ in seen), "some first turns leave no room for a second"
    own = policy(observations, decoded.actions).log_probs
    torch.testing.assert_close(decoded.log_probs[decoded.mask], own[decoded.mask], atol=1e-5, rtol=0)
