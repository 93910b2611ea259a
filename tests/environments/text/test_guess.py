import pytest
import torch

from pgcli.collectors.dataset import DatasetCollector
from pgcli.environments.text.guess import END, PAD, Guess
from pgcli.errors import InputError
from pgcli.experiment.build import build
from pgcli.experiment.config import compose


def guess(**settings):
    defaults = {
        "choices": 3, "letters": 26, "cut_reward": 0.0, "overlong_buffer": None, "solved_at": None, "pairs": 10,
        "label_scale": 1.0, "label_flip": 0.0,
    }  # fmt: skip
    return Guess(Guess.Config(name="guess", **defaults | settings))


def asked(task, letters, meant):
    prompt = [*task.encode(letters + "?")]
    return {"prompt": torch.tensor([[31, *prompt]] * len(meant)), "meant": torch.tensor(task.encode(meant))}


def turns(task, *texts):
    """`.` for an end token; the reply stands where it is said, and nobody chose it."""
    rows, masks = [], []
    for text in texts:
        tokens = [END if c == "." else task.encode(c)[0] for c in text]
        reply = text.find(".") + 1 if "." in text else 99
        rows.append(tokens + [PAD] * (5 - len(tokens)))
        masks.append([t < len(tokens) and t != reply for t in range(5)])
    return torch.tensor(rows), torch.tensor(masks)


def test_a_prompt_is_different_letters_and_what_is_meant_is_one_of_them():
    found = guess().prompts(range(3000), held_out=False)
    letters = found["prompt"][:, 1:-1]
    assert all(len(set(row)) == 3 for row in letters.tolist())
    place = (letters == found["meant"][:, None]).long()
    assert (place.sum(1) == 1).all()
    # Each place and each letter alike: standard errors sqrt(2/9 / 3000) = 0.0086 and sqrt(25/676 / 9000) = 0.002.
    torch.testing.assert_close(place.float().mean(0), torch.full((3,), 1 / 3), atol=0.035, rtol=0)
    shares = torch.bincount(letters.flatten(), minlength=26) / letters.numel()
    torch.testing.assert_close(shares, torch.full((26,), 1 / 26), atol=0.008, rtol=0)


def test_a_prompt_is_a_function_of_its_seed_alone_and_no_set_is_on_both_sides():
    task = guess(letters=6)  # 20 sets
    together = task.prompts(range(800), held_out=True)
    alone = task.prompts([7], held_out=True)
    assert torch.equal(together["prompt"][7:8], alone["prompt"])
    assert torch.equal(together["meant"][7:8], alone["meant"])

    def sets(held_out):
        return {frozenset(row[1:-1]) for row in task.prompts(range(800), held_out=held_out)["prompt"].tolist()}

    assert not sets(True) & sets(False)
    assert len(sets(True) | sets(False)) == 20


def test_a_prompt_that_somebody_types_has_something_meant_too():
    task = guess()
    typed = {"prompt": torch.tensor([[31, *task.encode("tch?")]] * 300)}
    meant = task.complete(typed, range(300))["meant"]
    assert sorted(task.decode(meant.unique().tolist())) == ["c", "h", "t"]


def test_the_reply_compares_what_is_meant_with_a_first_turn_of_one_letter():
    task = guess()
    completions, mask = turns(task, "h.", "h.", "h.", ".", "ab.", "?.", "z.")
    replies = task.replies(asked(task, "tch", "chtcccc"), completions, mask)
    assert task.decode(replies.squeeze(1).tolist()) == "<=>!!!<"


def test_only_the_answer_is_paid_for():
    task = guess(cut_reward=-1.0)
    cases = {
        # what was said: (reward, first_right, decided, possible), of letters t c h with c meant
        "h.<c.": (1, 0, 1, 1),  # asked in the middle, answered right
        "h.<t.": (0, 0, 1, 0),  # answered what the reply ruled out
        "c.=c.": (1, 1, 1, 1),
        "c.=h.": (0, 1, 1, 0),
        "t.<h.": (0, 0, 0, 1),  # asked at the edge: two are left, and it took the wrong one
        "t.<c.": (1, 0, 0, 1),
        ".!c.": (1, 0, 0, 1),  # asked nothing and was lucky
        "h.<cc": (-1, 0, 1, 0),  # the second turn is cut
        "h.<.": (0, 0, 1, 0),  # no answer
        "ccccc": (-1, 0, 0, 0),  # the first turn is cut
        ".!cc.": (0, 0, 0, 0),  # an answer of two letters
    }
    completions, mask = turns(task, *cases)
    found = task.rewards(asked(task, "tch", "c" * len(cases)), completions, mask)
    names = ("reward", "first_right", "decided", "possible")
    got = {text: tuple(float(found[name][i]) for name in names) for i, text in enumerate(cases)}
    assert got == cases
    assert found["exact_match"].tolist() == [float(reward == 1) for reward, *_ in cases.values()]


def test_demonstrations_are_right_seven_times_in_nine_and_always_possible():
    task = guess()
    observations, actions = task.demonstrations(range(9000))
    mask = torch.ones_like(actions, dtype=torch.bool)
    mask[:, 2] = False
    found = task.rewards(observations, actions, mask)
    assert (found["possible"] == 1).all()
    # Standard errors: sqrt(14/81 / 9000) = 0.0044, sqrt(2/9 / 9000) = 0.005.
    assert float(found["reward"].mean()) == pytest.approx(7 / 9, abs=0.018)
    assert float(found["first_right"].mean()) == pytest.approx(1 / 3, abs=0.02)
    replies = task.replies(observations, actions, mask)
    assert torch.equal(actions[:, 2:3], replies)


def test_both_turns_of_a_demonstration_are_learned_and_the_reply_is_not():
    task = guess()
    source = DatasetCollector(
        task.demonstrations, end=END, rows=4, seed=0, device=torch.device("cpu"), reply_length=task.spec.reply_length
    )
    rollout = source.collect(None)
    assert rollout.mask.tolist() == [[True, True, False, True, True]] * 4
    assert rollout.terminated.tolist() == [[False, False, False, False, True]] * 4


def test_as_many_choices_as_letters_are_refused():
    with pytest.raises(InputError, match="choices 5 must be fewer"):
        compose(["algo=sft", "env=guess", "env.choices=5", "env.letters=5"])


def test_the_gradient_flows_through_both_turns_and_not_through_the_reply():
    words = ["algo=reinforce", "env=guess", "policy.width=8", "policy.heads=2", "policy.layers=1", "policy.hidden=8"]
    parts = build(compose([*words, "algo.gamma=1", "algo.baseline=none", "device=cpu"]))
    task = parts.environment
    source = DatasetCollector(
        task.demonstrations, end=END, rows=16, seed=0, device=torch.device("cpu"), reply_length=task.spec.reply_length
    )
    rollout = source.collect(None)  # well-formed turns, as an untrained policy hardly ever writes them
    reward = task.rewards(rollout.observations, rollout.actions, rollout.mask)["reward"]
    rollout.rewards[:, -1] = reward
    rollout.log_probs = parts.policy(rollout.observations, rollout.actions).log_probs.detach()
    rewarded = reward.nonzero().squeeze(1)
    assert 0 < len(rewarded) < 16
    total, _ = parts.algorithm.loss(parts.policy, parts.algorithm.prepare(rollout), None)
    parameters = [p for p in parts.policy.parameters() if p.requires_grad]
    found = torch.autograd.grad(total, parameters, allow_unused=True)

    # R = 1, gamma = 1: each chosen token of a rewarded row counts alike, whichever turn it stands in.
    log_probs = parts.policy(rollout.observations, rollout.actions).log_probs[rewarded]
    chosen = log_probs[:, [0, 1, 3, 4]].sum()
    expected = torch.autograd.grad(chosen, parameters, retain_graph=True, allow_unused=True)
    with_reply = torch.autograd.grad(log_probs.sum(), parameters, allow_unused=True)

    def direction(gradients):
        flat = torch.cat([g.flatten() for g in gradients if g is not None])
        return flat / flat.norm()

    torch.testing.assert_close(direction(found), -direction(expected), atol=1e-5, rtol=0)
    assert (direction(found) + direction(with_reply)).abs().max() > 1e-3
