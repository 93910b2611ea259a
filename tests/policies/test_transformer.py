import itertools
import math

import pytest
import torch
from pydantic import ValidationError
from torch.func import functional_call

from pgcli.algorithms.ppo import PPO
from pgcli.errors import InputError
from pgcli.experiment.config import compose
from pgcli.experiment.policy import initialise
from pgcli.experiment.sources import Weights
from pgcli.policies import libraries
from pgcli.policies.libraries import InNumPy, InTorch
from pgcli.policies.products import LARGE, SMALL
from pgcli.policies.transformer import Transformer
from pgcli.policies.trunk import _rotary, _rotate
from pgcli.types import Scores, Stochastic, TextSpec

SORT = TextSpec(vocabulary=14, prompt_length=8, completion_length=7, end=12, pad=13)
TINY = TextSpec(vocabulary=3, prompt_length=2, completion_length=3, end=1, pad=2)


STORY = TextSpec(vocabulary=44, prompt_length=8, completion_length=28, end=2, pad=0)


def settings(width=64, layers=2, heads=4, hidden=192, temperature=1.0, kind="shared", path=None):
    return Transformer.Config(
        name="transformer", width=width, layers=layers, heads=heads, hidden=hidden,
        temperature=temperature, critic=kind, path=path,
    )  # fmt: skip


def transformer(spec=TINY, *, critic=True, seed=0, **sizes):
    config = settings(**sizes)
    policy = Transformer(spec, config, critic=critic, generator=torch.Generator().manual_seed(seed))
    if critic:  # a critic starts at zero, where no test could see what it reads
        torch.nn.init.normal_(policy.critic, generator=torch.Generator().manual_seed(seed))
    return policy


def scorer(members, seed=0, spec=TINY, **sizes):
    return Transformer.make(spec, settings(**sizes), Scores(members), torch.Generator().manual_seed(seed))


def of_judge(judges, mean=0.0, std=1.0, spec=TINY, seed=0):
    """A policy whose critic is made of a judge."""
    policy = Transformer(
        spec, settings(kind="reward_model"), critic=True, generator=torch.Generator().manual_seed(seed)
    )
    policy.value_by(judges.requires_grad_(False), torch.full((1, 1), mean), torch.full((1, 1), std))
    return policy


def tokens(spec, n, length, seed=0):
    return torch.randint(spec.vocabulary, (n, length), generator=torch.Generator().manual_seed(seed))


def test_the_default_has_108_608_parameters_and_a_critic_64_more():
    # Embedding and unembedding 2 * 14 * 64 = 1,792, last norm 64. A block: attention 4 * 64 * 64 = 16,384,
    # feed-forward 3 * 64 * 192 = 36,864, two norms 128, together 53,376. 1,792 + 64 + 2 * 53,376 = 108,608.
    sizes = [sum(p.numel() for p in transformer(SORT, critic=critic).parameters()) for critic in (False, True)]
    assert sizes == [108_608, 108_672]


def test_the_weights_come_from_the_generator_and_nowhere_else():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = transformer(seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = transformer(seed=5).state_dict(), transformer(seed=6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["trunk.embedding"], other["trunk.embedding"])


def test_the_probabilities_of_all_completions_sum_to_one():
    # 3^3 completions of one prompt. A log-prob read one position early or late would not be normalised over its action.
    policy = transformer()
    completions = torch.tensor(list(itertools.product(range(3), repeat=3)))
    prompt = torch.tensor([[0, 2]]).expand(27, -1)
    log_probs = policy({"prompt": prompt}, completions).log_probs
    assert log_probs.sum(dim=1).exp().sum().item() == pytest.approx(1, abs=1e-6)
    # Also action by action: the three that go on from one prefix are the rows that differ in that action alone.
    torch.testing.assert_close(log_probs[::9, 0].exp().sum(), torch.tensor(1.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(log_probs[:9:3, 1].exp().sum(), torch.tensor(1.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(log_probs[:3, 2].exp().sum(), torch.tensor(1.0), atol=1e-6, rtol=0)


def test_the_entropy_is_that_of_the_next_action():
    policy = transformer()
    completions = torch.tensor([[1, 0, v] for v in range(3)])
    seen = policy({"prompt": torch.tensor([[0, 2]]).expand(3, -1)}, completions)
    last = seen.log_probs[:, 2]
    torch.testing.assert_close(seen.entropy[:, 2], -(last.exp() * last).sum().expand(3), atol=1e-6, rtol=0)


def test_an_action_changes_nothing_before_it_and_everything_after_it():
    policy = transformer(SORT)
    prompt, actions = tokens(SORT, 1, 8), tokens(SORT, 1, 7, seed=1)
    changed = actions.clone()
    changed[0, 3] = (actions[0, 3] + 1) % SORT.vocabulary
    before, after = policy({"prompt": prompt}, actions), policy({"prompt": prompt}, changed)
    assert torch.equal(before.log_probs[0, :3], after.log_probs[0, :3])
    # V(s_t) and the entropy are read before action t: the change of action 3 is first seen at t = 4.
    for seen, changed_seen in ((before.values, after.values), (before.entropy, after.entropy)):
        assert torch.equal(seen[0, :4], changed_seen[0, :4])
        assert (seen[0, 4:] != changed_seen[0, 4:]).all()


def test_what_pads_a_finished_completion_changes_nothing_in_it():
    policy = transformer(SORT)
    prompt, actions = tokens(SORT, 4, 8), tokens(SORT, 4, 7, seed=1)
    actions[:, 2] = SORT.end
    padded, other = actions.clone(), actions.clone()
    padded[:, 3:], other[:, 3:] = SORT.pad, 0
    a, b = policy({"prompt": prompt}, padded), policy({"prompt": prompt}, other)
    for x, y in zip((*a[:3], *a.distribution), (*b[:3], *b.distribution), strict=True):
        assert torch.equal(x[:, :3], y[:, :3])


def test_every_token_of_the_prompt_is_read():
    policy = transformer(SORT)
    prompt, actions = tokens(SORT, 1, 8).repeat(9, 1), tokens(SORT, 1, 7, seed=1).expand(9, -1)
    for position in range(8):
        prompt[position, position] = (prompt[position, position] + 1) % SORT.vocabulary
    first = policy({"prompt": prompt}, actions).log_probs[:, 0]
    assert (first[:8] != first[8]).all()


def test_a_block_is_what_its_equations_say():
    S, H, D = 3, 2, 4
    policy = transformer(width=8, heads=2, layers=1, hidden=6)
    block, rotary = policy.trunk.blocks[0], policy.trunk.rotary[:, :S]
    x = torch.randn(1, S, 8, generator=torch.Generator().manual_seed(0))

    def norm(y):
        return y / y.square().mean(-1, keepdim=True).sqrt()  # the gains are one in a new policy

    projected = (norm(x[0]) @ block.qkv.T).view(1, S, 3, H, D)
    queries, keys = _rotate(projected[:, :, :2], rotary)[0].unbind(1)
    attended = torch.zeros(S, H, D)
    for p, head in itertools.product(range(S), range(H)):
        scores = torch.stack([queries[p, head] @ keys[j, head] / math.sqrt(D) for j in range(p + 1)])
        attended[p, head] = sum(w * projected[0, j, 2, head] for j, w in enumerate(scores.softmax(0)))
    middle = x[0] + attended.view(S, 8) @ block.out.T
    gate, up = (norm(middle) @ block.gate_up.T).split(6, dim=-1)
    expected = middle + (gate * gate.sigmoid() * up) @ block.down.T
    torch.testing.assert_close(block(x, rotary, S, None)[0][0], expected, atol=1e-5, rtol=0)


def test_a_rotation_by_hand():
    # Four dimensions are two pairs, (x0, x2) and (x1, x3), at frequencies 1 and 10,000^(-2/4) = 0.01.
    # At position 2, (1, 1, 0, 0) turns into (cos 2, cos 0.02, sin 2, sin 0.02); at position 0 it stays.
    x = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(1, 3, 1, 1, 4)
    turned = _rotate(x, _rotary(3, 4))[0, :, 0, 0]
    assert turned[0].tolist() == [1, 1, 0, 0]
    expected = [math.cos(2), math.cos(0.02), math.sin(2), math.sin(0.02)]
    torch.testing.assert_close(turned[2], torch.tensor(expected), atol=1e-6, rtol=0)


def test_attention_scores_depend_on_the_distance_alone():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(16, generator=generator).expand(1, 12, 1, 1, 16) for _ in range(2))
    rotary = _rotary(12, 16)
    queries, keys = _rotate(query, rotary)[0, :, 0, 0], _rotate(key, rotary)[0, :, 0, 0]
    scores = queries @ keys.T
    torch.testing.assert_close(scores[:-3, :-3], scores[3:, 3:], atol=1e-5, rtol=0)
    assert (scores[0, 1:] - scores[0, 0]).abs().min() > 1e-3


def test_parameters_can_be_bound_from_outside():
    policy, other = transformer(SORT), transformer(SORT, seed=1)
    inputs = ({"prompt": tokens(SORT, 4, 8)}, tokens(SORT, 4, 7, seed=1))
    bound = functional_call(policy, dict(other.named_parameters()), inputs)
    own = other(*inputs)
    for a, b in zip((*bound[:3], *bound.distribution), (*own[:3], *own.distribution), strict=True):
        assert torch.equal(a, b)


def test_a_new_critic_says_zero_and_leaves_the_trunk_alone():
    policy = Transformer(
        TINY, settings(width=16, layers=1, heads=2, hidden=16), critic=True, generator=torch.Generator().manual_seed(0)
    )
    values = policy({"prompt": tokens(TINY, 4, 2)}, tokens(TINY, 4, 3)).values
    assert values.shape == (4, 3)
    assert (values == 0).all()
    (values - 1).square().sum().backward()
    assert (policy.critic.grad != 0).any()
    assert all(p.grad is None or (p.grad == 0).all() for name, p in policy.named_parameters() if name != "critic")


def test_every_weight_learns():
    policy = transformer(SORT)
    seen = policy({"prompt": tokens(SORT, 8, 8)}, tokens(SORT, 8, 7, seed=1))
    (seen.log_probs.sum() + seen.values.sum()).backward()
    assert all((p.grad != 0).any() for p in policy.parameters())


def test_without_a_critic_there_are_no_values():
    policy = transformer(critic=False)
    assert not policy.has_critic
    assert policy({"prompt": tokens(TINY, 1, 2)}, tokens(TINY, 1, 3)).values is None


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValidationError, match="multiple of heads"):
        settings(width=64, layers=1, heads=3, hidden=64)


@pytest.mark.parametrize(("option", "size"), [("nano", 31_136), ("tiny", 112_448), ("small", 802_944)])
def test_the_presets_have_their_sizes_on_44_words(option, size):
    # Embedding and unembedding 2 * 44 * W, last norm W, a block 4 W^2 + 3 W hidden + 2 W:
    #   nano   2,816 + 32 + 2 * (4,096 + 9,984 + 64);  tiny 5,632 + 64 + 2 * 53,376;
    #   small 11,264 + 128 + 4 * (65,536 + 132,096 + 256).
    config = compose(["env=sort", f"policy={option}", "algo=reinforce"]).policy
    policy = Transformer.make(STORY, config, Stochastic(), torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in policy.parameters()) == size
    assert compose(["env=sort", "policy=tiny", "algo=sft"]).policy == compose(["env=sort", "algo=sft"]).policy


def test_the_temperature_divides_the_logits_wherever_they_are_read():
    # The same weights at temperature 1 and 2: the logits halve, and the log-probs are those of the halved logits.
    warm, hot = transformer(SORT), transformer(SORT, temperature=2.0)
    observations, actions = {"prompt": tokens(SORT, 4, 8)}, tokens(SORT, 4, 7, seed=1)
    logits = warm(observations, actions).distribution.logits
    found = hot(observations, actions)
    torch.testing.assert_close(found.distribution.logits, logits / 2, atol=1e-6, rtol=0)
    expected = torch.log_softmax(logits / 2, -1).gather(-1, actions[..., None])[..., 0]
    torch.testing.assert_close(found.log_probs, expected, atol=1e-5, rtol=0)
    first, cache = hot.prefill(observations)
    torch.testing.assert_close(first, logits[:, 0] / 2, atol=1e-5, rtol=0)
    torch.testing.assert_close(hot.step(actions[:, 0], cache), logits[:, 1] / 2, atol=1e-5, rtol=0)


def padded(spec, lengths):
    """A prompt of each length, alone, (1, n) each, and all of them padded on the left to the longest."""
    alone = [tokens(spec, 1, n, seed=n) for n in lengths]
    rows = torch.full((len(lengths), max(lengths)), spec.pad)
    for i, prompt in enumerate(alone):
        rows[i, -prompt.shape[1] :] = prompt
    return alone, {"prompt": rows, "lengths": torch.tensor(lengths)}


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_a_prompt_padded_on_the_left_is_read_as_if_it_were_alone(critic):
    policy, judges = transformer(SORT, kind=critic), scorer(2, spec=SORT)
    alone, together = padded(SORT, [3, 8, 1, 5])
    actions = tokens(SORT, 4, 7, seed=9)
    found, scores = policy(together, actions), judges(together, actions)
    for i, prompt in enumerate(alone):
        own = policy({"prompt": prompt}, actions[i : i + 1])
        for a, b in zip((*found[:3], *found.distribution), (*own[:3], *own.distribution), strict=True):
            torch.testing.assert_close(a[i : i + 1], b, atol=1e-5, rtol=0)
        expected = judges({"prompt": prompt}, actions[i : i + 1])
        torch.testing.assert_close(scores[:, i : i + 1], expected, atol=1e-5, rtol=0)
    # Nothing of what fills them up is read, whatever it is; NaN would show in the gradient too.
    together["prompt"] = torch.where(torch.arange(8) < 8 - together["lengths"][:, None], 0, together["prompt"])
    again = policy(together, actions)
    torch.testing.assert_close(again.log_probs, found.log_probs, atol=1e-6, rtol=0)
    again.log_probs.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


@pytest.mark.parametrize("library", [InNumPy, InTorch])
def test_step_by_step_padded_prompts_have_the_logits_of_one_pass(monkeypatch, library):
    monkeypatch.setattr("pgcli.policies.writing.library", lambda x: library)
    policy = transformer(SORT)
    _, observations = padded(SORT, [3, 8, 1, 5])
    actions = tokens(SORT, 4, 7, seed=9)
    expected = policy(observations, actions).distribution.logits
    logits, cache = policy.prefill(observations)
    assert cache.library is library
    for t in range(7):
        torch.testing.assert_close(logits, expected[:, t], atol=1e-5, rtol=0)
        if t < 6:
            logits = policy.step(actions[:, t], cache)


def test_a_separate_critic_has_a_trunk_of_its_own_that_starts_as_a_copy():
    policy = transformer(SORT, kind="separate")
    assert torch.equal(policy.critic_trunk.blocks[1].qkv, policy.trunk.blocks[1].qkv)
    inputs = ({"prompt": tokens(SORT, 4, 8)}, tokens(SORT, 4, 7, seed=1))
    shared = transformer(SORT)
    torch.testing.assert_close(policy(*inputs).values, shared(*inputs).values, atol=0, rtol=0)
    policy(*inputs).values.sum().backward()
    touched = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert touched == {name for name, _ in policy.named_parameters() if name.startswith("critic")}


def test_a_critic_made_of_a_judge_says_the_calibrated_score_of_what_was_written_before_the_action():
    judges = scorer(2, seed=5, spec=SORT, width=32, layers=1)  # of another size than the policy
    policy = of_judge(judges, mean=3.0, std=0.5, spec=SORT)
    prompt, actions = tokens(SORT, 4, 8), tokens(SORT, 4, 7, seed=1)
    values = policy({"prompt": prompt}, actions).values
    text = torch.cat([prompt, actions], 1)
    for t in range(7):
        seen = text[:, : 8 + t]
        score = judges({"prompt": seen[:, :-1]}, seen[:, -1:])[0, :, 0]  # of this text alone, after its last token
        torch.testing.assert_close(values[:, t], (score - 3) / 0.5, atol=1e-5, rtol=1e-5)


def test_a_critic_made_of_a_judge_learns_and_the_judge_does_not_move():
    judges = scorer(2, seed=5, spec=SORT)
    policy = of_judge(judges, mean=3.0, std=0.5, spec=SORT)
    plain = Transformer(SORT, settings(), critic=False, generator=torch.Generator().manual_seed(0))
    inputs = ({"prompt": tokens(SORT, 4, 8)}, tokens(SORT, 4, 7, seed=1))
    assert torch.equal(policy(*inputs).log_probs, plain(*inputs).log_probs)  # no random number was drawn for it
    policy(*inputs).values.sum().backward()
    critic = {name: p for name, p in policy.named_parameters() if name.startswith("critic")}
    assert {"critic", "critic_bias", "critic_trunk.norm"} < critic.keys()
    assert {name for name, p in policy.named_parameters() if p.grad is not None} == critic.keys()
    before = judges(*inputs)
    with torch.no_grad():
        for parameter in critic.values():
            parameter.add_(1)
    assert torch.equal(judges(*inputs), before)


def initialised(policy, given):
    initialise(policy, Weights(given.state_dict()), "init=runs/x")
    return policy


def test_a_policy_starts_from_another_s_trunk_whatever_critics_they_have():
    inputs = ({"prompt": tokens(TINY, 4, 2)}, tokens(TINY, 4, 3))
    plain, shared, separate = transformer(critic=False), transformer(), transformer(kind="separate", seed=3)
    judged = of_judge(scorer(1, seed=5), mean=2.0)
    for given in (plain, shared, separate, judged):
        for kind in ("shared", "separate"):
            policy = Transformer(TINY, settings(kind=kind), critic=True, generator=torch.Generator().manual_seed(9))
            found = initialised(policy, given)(*inputs)
            assert torch.equal(found.log_probs, given(*inputs).log_probs)
            if given is shared or (given is separate and kind == "separate"):
                assert torch.equal(found.values, given(*inputs).values)
            else:  # nothing that could be read from this trunk was given: it says nothing yet
                assert (found.values == 0).all()
            if kind == "separate" and given is not separate:
                assert torch.equal(policy.critic_trunk.embedding, given.trunk.embedding)
        policy = Transformer(TINY, settings(kind="reward_model"), critic=True, generator=torch.Generator())
        found = initialised(policy, given)(*inputs)  # before its critic is made, of this run's own judge
        assert torch.equal(found.log_probs, given(*inputs).log_probs)
        assert found.values is None


def test_an_ensemble_starts_from_one_trunk_with_different_heads():
    given, judges = transformer(), scorer(3, seed=7)
    heads = judges.heads.clone()
    initialised(judges, given)
    assert torch.equal(judges.heads, heads)
    assert all(torch.equal(member.blocks[0].down, given.trunk.blocks[0].down) for member in judges.members)
    inputs = ({"prompt": tokens(TINY, 4, 2)}, tokens(TINY, 4, 3))
    scores = judges(*inputs)
    assert scores.shape == (3, 4, 3)
    assert (scores[0] != scores[1]).all()
    again = initialised(scorer(3, seed=8), judges)
    assert torch.equal(again(*inputs), scores)


def test_a_score_has_read_the_action_it_stands_at_and_nothing_later():
    judges = scorer(2, spec=SORT)
    prompt, actions = {"prompt": tokens(SORT, 1, 8)}, tokens(SORT, 1, 7, seed=1)
    changed = actions.clone()
    changed[0, 3] = (actions[0, 3] + 1) % SORT.vocabulary
    before, after = judges(prompt, actions), judges(prompt, changed)
    assert torch.equal(before[:, 0, :3], after[:, 0, :3])
    assert (before[:, 0, 3:] != after[:, 0, 3:]).all()


@pytest.mark.parametrize(
    ("own", "given"),
    [(transformer(), transformer(width=32)), (transformer(), scorer(2)), (scorer(2), scorer(3)),
     (scorer(2), transformer(spec=SORT))],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_in_one_line(own, given):
    with pytest.raises(InputError, match=r"^init=runs/x: its policy does not fit this one \(\S+ differs\)") as refusal:
        initialised(own, given)
    assert "\n" not in str(refusal.value)


def test_decoding_is_numpy_s_where_it_can_be():
    assert libraries.library(torch.zeros(1)) is InNumPy
    assert libraries.library(torch.zeros(1, dtype=torch.bfloat16)) is InTorch
    assert libraries.library(torch.zeros(1, device="meta")) is InTorch
    with torch.autocast("cpu", torch.bfloat16):
        assert libraries.library(torch.zeros(1)) is InTorch


def test_parameters_adam_and_the_log_softmax_are_float32_under_bfloat16_autocast():
    policy = transformer(SORT, kind="separate")
    config = compose(["algo=ppo", "env=sort"]).algo
    algorithm = PPO(policy, config, total_steps=100, seed=0)
    observations, actions = {"prompt": tokens(SORT, 4, 8)}, tokens(SORT, 4, 7, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        seen = policy(observations, actions)
        first, _ = policy.prefill(observations)
        scores = scorer(1, spec=SORT)(observations, actions)
        (seen.log_probs.sum() + seen.values.sum()).backward()
    assert {x.dtype for x in (*seen[:3], *seen.distribution, first, scores)} == {torch.float32}
    # A log-softmax in bfloat16 would be normalised to three digits only.
    total = torch.log_softmax(seen.distribution.logits, -1).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)
    exact = policy(observations, actions)
    assert not torch.equal(exact.log_probs, seen.log_probs), "it did compute in bfloat16"
    algorithm.updater.adam.step(1e-6, algorithm.updater.adam.norm())
    state = algorithm.updater.adam.state_dict()
    assert {x.dtype for x in state.values() if torch.is_tensor(x) and x.is_floating_point()} == {torch.float32}
    assert {p.dtype for p in policy.parameters()} == {torch.float32}


@pytest.mark.parametrize("large", [False, True], ids=["torch's products", "NumPy's and oneDNN's"])
@pytest.mark.parametrize(
    ("needs", "kind"),
    [(Stochastic(critic=True), "separate"), (Stochastic(critic=True), "reward_model"), (Scores(2), "shared")],
    ids=["a policy", "a policy whose critic is made of a judge", "judges"],
)
def test_for_a_gradient_step_the_values_and_the_gradient_are_the_same(monkeypatch, large, needs, kind):
    monkeypatch.setattr("pgcli.policies.products.LARGE", 1 if large else LARGE)
    monkeypatch.setattr("pgcli.policies.products.SMALL", 1 if large else SMALL)
    policy = Transformer.make(SORT, settings(kind=kind), needs, torch.Generator().manual_seed(0))
    if kind == "reward_model":
        policy.value_by(scorer(1, spec=SORT), torch.ones(1, 1), torch.ones(1, 1))
    if kind == "separate":
        torch.nn.init.normal_(policy.critic, generator=torch.Generator().manual_seed(0))
    _, observations = padded(SORT, [3, 8, 1, 5])
    actions = tokens(SORT, 4, 7, seed=9)

    def evaluated(function):
        policy.zero_grad()
        found = function(observations, actions)
        found = found if torch.is_tensor(found) else torch.stack(found[:3])
        found.square().sum().backward()
        return [found.detach(), *(p.grad.clone() for p in policy.parameters())]

    for own, fast in zip(evaluated(policy), evaluated(policy.once_differentiable()), strict=True):
        torch.testing.assert_close(fast, own, atol=2e-4, rtol=1e-5)
