import numpy as np
import pytest
import torch

from pgcli.experiment.build import build
from pgcli.experiment.config import compose
from pgcli.policies import writing
from pgcli.policies.reading import read, read_once
from pgcli.policies.trunk import Trunk, TrunkSettings, _rotary

P, T, GROUPS, END, PAD, VOCABULARY = 5, 6, (2, 3, 1), 8, 7, 9
N = sum(GROUPS)


@pytest.fixture
def trunk():
    """In float64, where only a slip is larger than the tolerance; its gains are not one, as they are in a new one."""
    generator = torch.Generator().manual_seed(0)
    made = Trunk(VOCABULARY, P + T + 1, TrunkSettings(width=24, layers=3, heads=2, hidden=20), generator).double()
    for gains in (p for p in made.parameters() if p.dim() == 1):
        torch.nn.init.normal_(gains, generator=generator)
    torch.set_default_dtype(torch.float64)
    made.rotary = _rotary(P + T + 1, 12)
    torch.set_default_dtype(torch.float32)
    return made


def written(trunk, *, padding=None, leaving=None):
    """What `read_once` is asked for after some rows were written: (prompts, following, last, padding), and (N, T + 1)
    bool, the positions of which something is read.

    leaving: step -> the rows that end with the next token and leave the cache after this step.
    """
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(PAD, (len(GROUPS), P), generator=generator)
    following = torch.randint(PAD, (N, T), generator=generator)
    asked = torch.ones(N, T + 1, dtype=torch.bool)
    padding = None if padding is None else torch.tensor(padding)
    counts = torch.tensor(GROUPS)
    with torch.inference_mode():
        _, cache = writing.prefill(trunk, torch.eye(24, dtype=torch.float64), prompts, padding)
        cache.expand(counts)
        cache.keep_pass(steps=T, end=END)
        rows = torch.arange(N)
        for t in range(T):
            writing.step(following[rows, t], cache)
            gone = (leaving or {}).get(t, ())
            for row in gone:
                following[row, t + 1 :], asked[row, t + 2 :] = PAD, False
                following[row, t + 1 : t + 2] = END
            kept = [i for i, row in enumerate(rows.tolist()) if row not in gone]
            if not kept:
                break
            if gone:
                cache.keep(torch.tensor(kept))
                rows = rows[kept]
    paddings = None if padding is None else padding.repeat_interleave(counts)
    return (prompts.repeat_interleave(counts, 0), following, T + 1, paddings), asked


@pytest.mark.parametrize("padding", [None, (0, 0, 0), (0, 2, 4)], ids=["none", "zero", "ragged"])
@pytest.mark.parametrize(
    ("leaving", "positions"),
    [({}, N * T), ({1: (1, 4), 3: (0, 2)}, 6 + 6 + 4 + 4 + 2 + 2), ({0: (0, 1, 2), 2: (5, 3)}, 6 + 3 + 3 + 1 + 1 + 1),
     ({3: (0, 1, 2, 3, 4, 5)}, 4 * 6)],
    ids=["all to the limit", "some leave", "one is left", "all leave"],
)  # fmt: skip
def test_what_was_written_has_the_hidden_states_and_the_gradient_of_reading_it(
    trunk, padding, leaving, positions, monkeypatch
):
    asked, needed = written(trunk, padding=padding, leaving=leaving)
    assert trunk.record.positions == positions
    upstream = torch.randn(N, T + 1, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    upstream *= needed[..., None]
    found = []
    for reader in (read, read_once):
        trunk.zero_grad()
        if reader is read_once:
            monkeypatch.delattr("pgcli.policies.reading.passed")  # nothing is read again
        hidden = reader(trunk, *asked)
        (hidden * upstream).sum().backward()
        found.append([(hidden.detach() * needed[..., None]), *(p.grad.clone() for p in trunk.parameters())])
    for own, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, own, atol=1e-11, rtol=1e-9)
    assert trunk.record is None


@pytest.mark.parametrize("leaving", [{}, {1: (1, 4), 3: (0, 2)}, {3: (0, 1, 2, 3, 4, 5)}])
def test_without_a_graph_it_has_the_hidden_states_and_stays(trunk, leaving, monkeypatch):
    asked, needed = written(trunk, leaving=leaving)
    expected = read(trunk, *asked).detach()
    with torch.no_grad(), monkeypatch.context() as patched:
        patched.delattr("pgcli.policies.reading.passed")
        hidden = read_once(trunk, *asked)
    torch.testing.assert_close(hidden * needed[..., None], expected * needed[..., None], atol=1e-11, rtol=1e-9)
    assert trunk.record is not None


def test_the_logits_of_a_step_are_those_of_reading(trunk):
    (prompts, following, *_), _ = written(trunk)
    head = torch.randn(VOCABULARY, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = read(trunk, prompts, following, T + 1, None) @ head.t()
    with torch.inference_mode():
        logits, cache = writing.prefill(trunk, head, prompts, None)
        for t in range(T):
            torch.testing.assert_close(logits, expected[:, t], atol=1e-11, rtol=1e-9)
            logits = writing.step(following[:, t], cache)
    torch.testing.assert_close(logits, expected[:, T], atol=1e-11, rtol=1e-9)


def other_token(asked, trunk):
    asked[1][2, 3] = (asked[1][2, 3] + 1) % PAD


def other_prompt(asked, trunk):
    asked[0][0, 0] = (asked[0][0, 0] + 1) % PAD


def other_padding(asked, trunk):
    asked[3] = torch.tensor([1, 1, 0, 0, 0, 0])


def other_rows(asked, trunk):
    asked[0], asked[1] = asked[0][:4], asked[1][:4]


def other_order(asked, trunk):
    asked[0], asked[1] = asked[0].flip(0), asked[1].flip(0)


def without_the_last_prompt_position(asked, trunk):
    asked[2] = T


def other_parameters(asked, trunk):
    with torch.no_grad():
        trunk.blocks[1].down.view(-1)[5] += 1e-9


@pytest.mark.parametrize(
    "change",
    [other_token, other_prompt, other_padding, other_rows, other_order, without_the_last_prompt_position,
     other_parameters],
)  # fmt: skip
def test_anything_else_is_read(trunk, change):
    asked = list(written(trunk)[0])
    change(asked, trunk)
    trunk.zero_grad()
    hidden = read_once(trunk, *asked)
    assert trunk.record is None
    torch.testing.assert_close(hidden, read(trunk, *asked), atol=1e-11, rtol=1e-9)


def test_other_padding_is_another_prompt(trunk):
    asked = list(written(trunk, padding=(0, 2, 4))[0])
    asked[3] = torch.tensor([0, 0, 1, 1, 1, 4])
    hidden = read_once(trunk, *asked)
    torch.testing.assert_close(hidden, read(trunk, *asked), atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("end", [4, None], ids=["for one token", "to the limit"])
def test_what_follows_a_row_that_was_left_before_its_end_is_read(trunk, end):
    asked = list(written(trunk, leaving={2: (1,)})[0])
    asked[1][1, 3] = 0  # it goes on, where the one that was written had ended
    if end is not None:
        asked[1][1, end] = END
    hidden = read_once(trunk, *asked)
    torch.testing.assert_close(hidden, read(trunk, *asked), atol=1e-11, rtol=1e-9)


def test_rows_that_are_too_long_for_the_node_are_not_recorded(trunk, monkeypatch):
    monkeypatch.setattr("pgcli.policies.writing.SHORT", P + T - 1)
    written(trunk)
    assert trunk.record is None


def test_rows_may_be_kept_in_another_order(trunk):
    generator = torch.Generator().manual_seed(1)
    prompts, following = (torch.randint(PAD, (3, n), generator=generator) for n in (P, T))
    with torch.inference_mode():
        _, cache = writing.prefill(trunk, torch.eye(24, dtype=torch.float64), prompts, None)
        cache.keep_pass(steps=T, end=END)
        rows = torch.arange(3)
        for t in range(T):
            writing.step(following[rows, t], cache)
            if t == 2:
                rows = torch.tensor([2, 0, 1])
                cache.keep(rows)
    hidden = read_once(trunk, prompts, following, T + 1, None)
    torch.testing.assert_close(hidden, read(trunk, prompts, following, T + 1, None), atol=1e-11, rtol=1e-9)


# ---------------------------------------------------------------- from a task to a gradient


def parts(*settings):
    grpo = "algo=grpo", "algo.num_groups=6", "algo.group_size=4", "algo.epochs=1", "algo.minibatches=1"
    return build(compose(["env=bracket", "policy=nano", "tuned=none", *grpo, *settings]))


def test_the_gradient_of_completions_is_the_same_with_and_without_a_record(monkeypatch):
    made = parts()
    rollout = made.collector.collect(made.policy)
    lengths = rollout.mask.sum(1)
    assert lengths.min() < made.policy.trunk.record.steps <= lengths.max()  # rows have left
    batch = made.algorithm.prepare(rollout)
    batch.advantages = torch.randn(batch.advantages.shape, generator=torch.Generator().manual_seed(0))
    with monkeypatch.context() as patched:
        patched.delattr("pgcli.policies.reading.passed")  # nothing is read again
        recorded = made.algorithm.updater.policy_gradient(made.algorithm.loss, batch)
    assert made.policy.trunk.record is None
    again = made.algorithm.updater.policy_gradient(made.algorithm.loss, batch)
    torch.testing.assert_close(recorded, again, atol=1e-6, rtol=1e-4)
    assert again.norm() > 0.01


@pytest.mark.parametrize(
    ("settings", "kept"),
    [((), True), (("algo.epochs=3",), True), (("algo.minibatches=2",), False), (("algo.microbatch=8",), False)],
)
def test_a_record_is_kept_only_where_a_step_reads_the_whole_batch(settings, kept):
    made = parts(*settings)
    made.collector.collect(made.policy)
    assert (made.policy.trunk.record is not None) == kept


def test_values_need_no_pass_of_their_own_whatever_the_minibatches(monkeypatch):
    words = "env=bracket", "policy=nano", "tuned=none", "algo=ppo", "algo.num_episodes=12", "algo.minibatches=3"
    made = build(compose(words))
    torch.nn.init.normal_(made.policy.critic, generator=torch.Generator().manual_seed(0))
    with monkeypatch.context() as patched:
        patched.delattr(Trunk, "forward")
        patched.setattr("pgcli.policies.reading._plan", None)
        rollout = made.collector.collect(made.policy)
    made.policy.trunk.record = None
    expected = made.policy(rollout.observations, rollout.actions).values
    torch.testing.assert_close(rollout.values[rollout.mask], expected[rollout.mask], atol=1e-5, rtol=1e-4)
    assert rollout.values[rollout.mask].std() > 0.1


@pytest.mark.parametrize("algo", ["grpo", "ppo"])
def test_evaluation_keeps_no_record(algo):
    made = build(compose([f"algo={algo}", "env=bracket", "policy=nano", "tuned=none"]))
    made.evaluator.play(made.policy, [1, 2, 3], np.random.default_rng(0), held_out=True)
    assert made.policy.trunk.record is None
