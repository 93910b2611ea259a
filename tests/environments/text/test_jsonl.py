import json
import math

import numpy as np
import pytest
import torch

from pgcli.cli import main
from pgcli.cli._ending import _outcome
from pgcli.collectors.completions import Decoding
from pgcli.collectors.pairs import read_texts
from pgcli.environments.text._reward_function import TAKEN
from pgcli.environments.text._rows import read
from pgcli.environments.text.jsonl import Jsonl
from pgcli.environments.text.tokenizers import Characters
from pgcli.errors import InputError, RunError
from pgcli.experiment import check, evaluate, evaluation, resume, train
from pgcli.experiment.build import build
from pgcli.experiment.config import compose, dump, load
from pgcli.experiment.sampling import Asked
from pgcli.runs import Run
from pgcli.types import ABSENT, Evaluation

TINY = ("policy.width=8", "policy.heads=2", "policy.layers=1", "policy.hidden=8", "device=cpu")
SUMS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(10) for b in range(10)]


def jsonl(path, rows, **settings):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    defaults = {
        "reward": None, "tokenizer": "auto", "folder": None, "held_out": 0.2, "prompt_length": 20,
        "completion_length": 5, "cut_reward": None, "overlong_buffer": None, "solved_at": None,
        "pairs": 10, "label_scale": 1.0, "label_flip": 0.0,
    }  # fmt: skip
    return Jsonl(Jsonl.Config(name="jsonl", path=str(path), **defaults | settings))


def texts(task, observations):
    return [
        task.tokens.decode(row[-n:])
        for row, n in zip(observations["prompt"].tolist(), observations["lengths"].tolist(), strict=True)
    ]


def written(task, *completions):
    """`.` ends a completion; one without it was cut."""
    T = task.spec.completion_length
    rows = [[*task.tokens.encode(c.rstrip(".")), *([task.spec.end] if c.endswith(".") else [])] for c in completions]
    actions = torch.tensor([row + [task.spec.pad] * (T - len(row)) for row in rows])
    return actions, torch.arange(T) < torch.tensor([[len(row)] for row in rows])


@pytest.fixture
def rewards(tmp_path):
    def file(text):
        (tmp_path / "rewards.py").write_text(text)
        return f"{tmp_path / 'rewards.py'}:score"

    return file


def test_prompts_are_those_of_the_file_padded_on_the_left_and_no_held_out_one_is_trained_on(tmp_path):
    rows = [{"prompt": "x" * n} for n in range(1, 16)]
    task = jsonl(tmp_path / "p.jsonl", rows)
    train_side = task.prompts(range(500), held_out=False)
    held_out = set(texts(task, task.prompts(range(500), held_out=True)))
    assert held_out
    assert not held_out & set(texts(task, train_side))
    assert held_out | set(texts(task, train_side)) == {row["prompt"] for row in rows}
    first, length = train_side["prompt"][0].tolist(), int(train_side["lengths"][0])
    assert first[: len(first) - length] == [task.spec.pad] * (len(first) - length)
    assert first[len(first) - length] == task.tokens.bos
    assert task.spec.prompt_length == 16


def test_a_longer_file_has_the_same_prompts_on_either_side(tmp_path):
    short, long = (jsonl(tmp_path / f"{n}.jsonl", SUMS[:n]) for n in (40, 100))
    for side in (True, False):
        assert set(texts(short, short.prompts(range(500), held_out=side))) <= set(
            texts(long, long.prompts(range(2000), held_out=side))
        )


def test_a_prompt_is_held_out_even_where_there_are_two_and_one_alone_is_refused(tmp_path):
    task = jsonl(tmp_path / "two.jsonl", SUMS[:2], held_out=0.001)
    assert len(set(texts(task, task.prompts(range(50), held_out=True)))) == 1
    with pytest.raises(InputError, match=r"env\.held_out=0"):
        jsonl(tmp_path / "one.jsonl", SUMS[:1])
    assert jsonl(tmp_path / "one.jsonl", SUMS[:1], held_out=0.0).prompts([0], held_out=True)["row"].tolist() == [0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a"}, '{"prompt": "b"'], "line 2: not JSON"),
        ([{"prompt": "a"}, "", '["b"]'], "line 3: a row is an object"),
        ([{"prompt": 3}], "line 1: `prompt` must be text"),
        ([{"completion": "a"}], "line 1: a row has a `prompt` or a `text`"),
        ([{"prompt": "a"}, {"prompt": "b" * 20}], "line 2: its `prompt` has 21 tokens, and env.prompt_length is 20"),
        ([{"prompt": "a", "answer": "12345"}], "line 1: its `answer` has 6 tokens, and env.completion_length is 5"),
        (
            [{"prompt": "a"}, {"prompt": "b", "answer": "c", "label": 1}],
            "line 2: the `label` of a completion must be true",
        ),
        (
            [{"prompt": "a", "completion": "c", "label": "true"}],
            "line 1: the `label` of a completion must be true or fal",
        ),
        ([{"prompt": "a", "completion": "c", "answer": "d"}], "line 1: `completion` and `answer` are the same thing"),
        ([], "has no rows"),
        ([{"prompt": "a"}, {"prompt": "\ud800"}], "line 2: `prompt` has half a character"),
        ([{"prompt": "a"}, '{"prompt": "b", "n": %s}' % ("1" * 5000)], "line 2: cannot be read"),
        ([{"prompt": "a"}, '{"prompt": "b", "n": %s}' % ("[" * 100_000)], "line 2: cannot be read"),
    ],
)
def test_a_file_that_is_not_right_is_refused_with_the_line(tmp_path, rows, message):
    with pytest.raises(InputError, match=message) as refusal:
        jsonl(tmp_path / "p.jsonl", rows)
    assert "\n" not in str(refusal.value)


def test_a_word_that_is_a_token_of_its_own_is_refused_with_the_line(tmp_path):
    with pytest.raises(InputError, match="line 2: `<end>` is a token of its own, and no word of a text"):
        jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "say <end> now"}], tokenizer="words")


@pytest.mark.parametrize(("start", "newline"), [("", "\n"), ("\ufeff", "\r\n"), ("", "\n\n")])
def test_other_systems_line_ends_and_marks_and_any_character_of_json_are_read(tmp_path, start, newline):
    rows = [{"prompt": f"a{character}b"} for character in "c\u2028\u2029\x85"]
    text = start + "".join(json.dumps(row, ensure_ascii=False) + newline for row in rows)
    (tmp_path / "p.jsonl").write_bytes(text.encode())
    assert [row for _, row in read(tmp_path / "p.jsonl")] == rows


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        build(compose(["algo=sft", "env=jsonl", f"env.path={tmp_path / 'nowhere'}", *TINY]))


@pytest.mark.parametrize("tokenizer", ["byte", "character", "words"])
def test_demonstrations_end_and_are_what_the_file_says(tmp_path, tokenizer):
    rows = [{"prompt": "big dog", "completion": "a b"}, {"prompt": "dog", "answer": "b"}, {"prompt": "cat"}]
    task = jsonl(tmp_path / "p.jsonl", rows, tokenizer=tokenizer, held_out=0.0)
    observations, actions = task.demonstrations(range(40))
    wanted = {"big dog": "a b", "dog": "b"}
    for prompt, row in zip(texts(task, observations), actions.tolist(), strict=True):
        assert task.tokens.decode(row[: row.index(task.spec.end)]) == wanted[prompt]
    mask = (actions == task.spec.end).cumsum(1) - (actions == task.spec.end).long() == 0
    assert (task.rewards(observations, actions, mask)["exact_match"] == 1).all()


def test_pairs_share_their_prompt_and_each_is_read_once(tmp_path):
    rows = [{"prompt": c, "chosen": c, "rejected": "yy"} for c in "abcdefgh"] + [{"prompt": "z"}]
    task = jsonl(tmp_path / "p.jsonl", rows)
    sides = [task.given_pairs(held_out=held_out) for held_out in (False, True)]
    prompts = [texts(task, chosen.observations) for chosen, _ in sides]
    assert sorted(prompts[0] + prompts[1]) == list("abcdefgh")
    for (chosen, rejected), asked in zip(sides, prompts, strict=True):
        assert torch.equal(chosen.observations["prompt"], rejected.observations["prompt"])
        assert [task.tokens.decode(row) for row in chosen.actions.tolist()] == asked
        assert rejected.actions[:, :3].tolist() == [[ord("y"), ord("y"), 257]] * len(asked)
    assert jsonl(tmp_path / "q.jsonl", SUMS).given_pairs(held_out=False) is None


LABELLED = [
    {"prompt": a, "completion": c, "label": a == c} for a in "abcdefgh" for c in (a, "y")
]  # to say it again is right


def test_labelled_completions_are_read_once_and_their_prompts_held_out(tmp_path):
    others = [{"prompt": "z", "completion": "z"}, {"prompt": "a", "label": "mine"}, {"prompt": "z", "label": None}]
    task = jsonl(tmp_path / "p.jsonl", [*LABELLED, *others])
    found, sides = [], [task.given_labels(held_out=held_out) for held_out in (False, True)]
    for given, right in sides:
        said = [task.tokens.decode(row[: row.index(task.spec.end)]) for row in given.actions.tolist()]
        found += zip(texts(task, given.observations), said, right.tolist(), strict=True)
    assert sorted(found) == sorted((row["prompt"], row["completion"], row["label"]) for row in LABELLED)
    trained, held_out = (set(texts(task, given.observations)) for given, _ in sides)
    assert held_out
    assert not trained & held_out
    assert jsonl(tmp_path / "q.jsonl", SUMS).given_labels(held_out=False) is None


def test_what_is_labelled_wrong_is_neither_a_demonstration_nor_a_text_nor_a_match(tmp_path):
    rows = [{"prompt": "a", "completion": "x", "label": False}, {"prompt": "b", "completion": "u", "label": True}]
    rows += [{"prompt": "c", "answer": "w", "label": False, "chosen": "v", "rejected": "w"}]
    task = jsonl(tmp_path / "p.jsonl", rows, held_out=0.0)
    observations, actions = task.demonstrations(range(20))
    said = {(p, task.tokens.decode(row)) for p, row in zip(texts(task, observations), actions.tolist(), strict=True)}
    assert said == {("b", "u"), ("c", "v")}
    assert {task.tokens.decode(row) for row in task.corpus(range(20)).actions.tolist()} == {"bu", "cv"}
    asked = task._asked(np.array([0, 1, 2]))
    assert task.rewards(asked, *written(task, "x.", "u.", "w."))["exact_match"].tolist() == [0, 1, 0]


def test_what_was_chosen_is_a_demonstration_where_there_is_no_other(tmp_path):
    rows = [{"prompt": "a", "chosen": "x", "rejected": "y"}, {"prompt": "b", "answer": "u", "chosen": "v"}]
    task = jsonl(tmp_path / "p.jsonl", rows, held_out=0.0)
    observations, actions = task.demonstrations(range(20))
    said = {(p, task.tokens.decode(row)) for p, row in zip(texts(task, observations), actions.tolist(), strict=True)}
    assert said == {("a", "x"), ("b", "u")}


@pytest.mark.parametrize("algo", ["sft", "pretrain"])
def test_each_pass_over_the_file_reads_each_text_once_in_another_order(tmp_path, algo):
    def collector():
        rows = [row | {"completion": "5"} for row in SUMS]
        jsonl(tmp_path / "p.jsonl", rows)
        asked = ["env=jsonl", f"env.path={tmp_path / 'p.jsonl'}", "env.held_out=0.08", "env.completion_length=6"]
        return build(compose([f"algo={algo}", *asked, "algo.num_demonstrations=23", *TINY])).collector

    source = collector()
    batches = [source.collect(None) for _ in range(9)]
    read = [
        tuple(row) for batch in batches for row in torch.cat([batch.observations["prompt"], batch.actions], 1).tolist()
    ]
    count = source.count
    assert 80 < count < 100, "all but those that are held out"
    first, second = read[:count], read[count : 2 * count]
    assert len(set(first)) == len(set(second)) == count
    assert first != second
    later = collector()
    later.load_state_dict(source.state_dict())
    assert torch.equal(later.collect(None).actions, source.collect(None).actions)


def test_pretraining_reads_long_texts_in_pieces_and_prompts_with_their_completions(tmp_path):
    rows = [{"text": "abcdefg"}, {"prompt": "p", "completion": "q"}]
    task = jsonl(tmp_path / "p.jsonl", rows, held_out=0.0)
    found = task.corpus(range(60))
    seen = {
        task.tokens.decode([*first, *row], specials=True).replace("<pad>", "")
        for first, row in zip(found.observations["prompt"].tolist(), found.actions.tolist(), strict=True)
    }
    assert seen == {"<bos>abcde", "efg<end>", "<bos>pq<end>"}


def test_pretraining_reads_chosen_completions_and_no_prompt_alone(tmp_path):
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "d"}]
    task = jsonl(tmp_path / "p.jsonl", rows, held_out=0.0)
    assert {task.tokens.decode(row) for row in task.corpus(range(20)).actions.tolist()} == {"ab"}
    task = jsonl(tmp_path / "q.jsonl", [{"prompt": "d"}], held_out=0.0)
    with pytest.raises(InputError, match="no row to train on has a text or a completion"):
        task.corpus(range(2))


def test_pretraining_never_reads_what_is_held_out(tmp_path):
    task = jsonl(tmp_path / "p.jsonl", SUMS, completion_length=10)
    found = task.corpus(range(2000))
    read = {task.tokens.decode(row) for row in found.actions.tolist()}
    trained = set(texts(task, task.prompts(range(2000), held_out=False)))
    assert {text.partition("=")[0] + "=" for text in read} == trained


def test_a_corpus_without_prompts_is_continued_from_its_beginning(tmp_path):
    task = jsonl(tmp_path / "p.jsonl", [{"text": "abc"}])
    assert task.prompts([0, 1], held_out=True)["prompt"].tolist() == [[256], [256]]


def test_a_function_of_the_user_scores_each_completion(tmp_path, rewards):
    name = rewards("def score(prompt, completion, row):\n    return len(completion) + row['bonus']")
    task = jsonl(tmp_path / "p.jsonl", [{"prompt": "a", "bonus": 0.5}], reward=name, held_out=0.0, cut_reward=-1.0)
    asked = task.prompts([0, 0, 0], held_out=False)
    found = task.rewards(asked, *written(task, "xyz.", ".", "xyzzy"))
    assert found["reward"].tolist() == [3.5, 0.5, -1.0]


def test_no_component_can_be_taken_for_what_an_evaluation_measures():
    measured = {name.removeprefix("eval/") for name in evaluation.METRICS if name != "eval/pass@k"}
    assert measured | {evaluation.SUCCESS, "overlong"} == TAKEN


def test_a_function_may_change_the_row_that_it_gets(tmp_path, rewards):
    name = rewards("def score(prompt, completion, row):\n    row['prompt'] = 'X'\n    return float(prompt == 'a')")
    task = jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}], reward=name, held_out=0.0)
    asked = task.prompts([0, 0], held_out=False)
    for _ in range(2):
        assert task.rewards(asked, *written(task, "x.", "y."))["reward"].tolist() == [1, 1]


def test_a_row_without_a_completion_is_matched_by_nothing(tmp_path):
    task = jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b", "answer": "c"}], held_out=0.0)
    asked = {"row": torch.tensor([0, 1])}
    padding = torch.full((2, 5), task.tokens.pad)
    assert task.rewards(asked, padding, torch.ones_like(padding, dtype=torch.bool))["exact_match"].tolist() == [0, 0]


def test_a_text_that_has_the_end_token_is_refused_because_nothing_after_it_would_be_learned(tmp_path, monkeypatch):
    encode = Characters.encode
    monkeypatch.setattr(Characters, "encode", lambda own, text: [
        token for part in text.split("|") for token in (*encode(own, part), own.end)][:-1])  # fmt: skip
    jsonl(tmp_path / "p.jsonl", [{"prompt": "a|b", "answer": "c"}], held_out=0.0, tokenizer="character")
    for row in ({"prompt": "a", "answer": "b|c"}, {"prompt": "a", "chosen": "b|", "rejected": "c"}, {"text": "a|b"}):
        with pytest.raises(InputError, match=r"line 1: `\w+` has the end token, <end>, which is added"):
            jsonl(tmp_path / "p.jsonl", [row], held_out=0.0, tokenizer="character")


def test_a_first_row_may_have_a_text_and_no_prompt(tmp_path):
    task = jsonl(tmp_path / "p.jsonl", [{"prompt": None, "text": "ab"}, *SUMS])
    assert set(texts(task, task.prompts(range(20), held_out=False))) <= {row["prompt"] for row in SUMS}


def test_a_reward_file_may_import_what_is_beside_it_and_have_dataclasses(tmp_path, rewards):
    (tmp_path / "beside_it.py").write_text("WORTH = 7.0")
    name = rewards(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport beside_it\n"
        "@dataclass\nclass Worth:\n    value: float\n"
        "def score(prompt, completion, row):\n    return Worth(beside_it.WORTH).value"
    )
    task = jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}], reward=name, held_out=0.0)
    asked = task.prompts([0], held_out=False)
    assert task.rewards(asked, *written(task, "x."))["reward"].tolist() == [7.0]


def test_a_typed_prompt_is_scored_as_the_file_s_where_it_is_one(tmp_path, rewards):
    name = rewards("def score(p, c, row):\n    return row['bonus']")
    task = jsonl(tmp_path / "p.jsonl", [{"prompt": "ab", "bonus": 2}], reward=name, held_out=0.0)
    for text in ("ab", "ba", "b"):  # nothing is added that other prompts happen to have
        assert texts(task, Asked(task, text, name="mine").prompts([0], held_out=True)) == [text]
    for text, expected in (("ab", [2.0]), ("ba", [float("nan")])):
        typed = {"prompt": torch.tensor([task.encode(text)]), "lengths": torch.tensor([3])}
        found = task.rewards(task.complete(typed, [0]), *written(task, "x."))
        torch.testing.assert_close(found["reward"], torch.tensor(expected), equal_nan=True)


def test_a_dict_is_reported_by_component_and_its_sum_is_trained_unless_it_says_what(tmp_path, rewards):
    name = rewards("def score(p, c, row):\n    return {'length': len(c), 'x': 2.0 * c.count('x')}")
    task = jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}], reward=name, held_out=0.0)
    found = task.rewards(task.prompts([0, 0], held_out=False), *written(task, "xy.", "y."))
    assert found["length"].tolist() == [2, 1]
    assert found["x"].tolist() == [2, 0]
    assert found["reward"].tolist() == [4, 1]
    name = rewards("def score(p, c, row):\n    return {'length': len(c), 'reward': -1}")
    task = jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}], reward=name, held_out=0.0)
    found = task.rewards(task.prompts([0], held_out=False), *written(task, "xy."))
    assert found["reward"].tolist() == [-1]


def test_a_completion_near_the_limit_is_punished_if_the_user_says_so(tmp_path, rewards):
    name = rewards("def score(p, c, row):\n    return 3.0")
    task = jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}], reward=name, held_out=0.0, overlong_buffer=2)
    found = task.rewards(task.prompts([0] * 3, held_out=False), *written(task, "xy.", "xyz.", "xyzuv"))
    assert found["overlong"].tolist() == [0, -0.5, -1]  # 3, 4 and 5 of at most 5 tokens
    assert found["reward"].tolist() == [3, 2.5, 2]


def test_a_batch_function_may_return_an_array(tmp_path):
    (tmp_path / "r.py").write_text(
        "import numpy as np\ndef score_batch(prompts, completions, rows):\n    return np.arange(len(rows)) / 2"
    )
    task = jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}], reward=f"{tmp_path / 'r.py'}:score_batch", held_out=0.0)
    found = task.rewards(task.prompts([0, 0], held_out=False), *written(task, "x.", "y."))["reward"]
    assert found.tolist() == [0, 0.5]


def test_a_batch_function_is_called_once(tmp_path):
    (tmp_path / "r.py").write_text(
        "calls = []\n"
        "def score_batch(prompts, completions, rows):\n"
        "    calls.append(prompts)\n"
        "    return [float(len(calls)), None]"
    )
    task = jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}], reward=f"{tmp_path / 'r.py'}:score_batch", held_out=0.0)
    found = task.rewards(task.prompts([0, 0], held_out=False), *written(task, "x.", "y."))["reward"]
    assert found[0] == 1
    assert found[1].isnan()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", r"failed at prompt 'ab', completion 'x': ZeroDivisionError: division by zero"),
        ("return 'good'", "returned 'good', not a number or a dict of numbers, at prompt 'ab'"),
        ("return float('inf')", "returned inf at prompt 'ab'"),
        ("return 1e300", r"returned 1e\+300 at prompt 'ab'"),
        ("return {'reward': 1, 'length_mean': 2}", "calls a component length_mean, which is measured here already"),
        ("return 10**400", "not a number or a dict of numbers, at prompt 'ab'"),
        ("raise SystemExit(0)", r"failed at prompt 'ab', completion 'x': SystemExit: 0"),
    ],
)
def test_a_function_that_fails_says_where(tmp_path, rewards, body, message):
    task = jsonl(tmp_path / "p.jsonl", [{"prompt": "ab"}], reward=rewards(f"def score(*_):\n    {body}"), held_out=0.0)
    with pytest.raises(RunError, match=message) as failure:
        task.rewards(task.prompts([0], held_out=False), *written(task, "x."))
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rewards.py", "must name a function in a file"),
        ("{folder}/nowhere.py:score", "there is no file"),
        ("{folder}/rewards.py:other", "has no function `other`"),
        ("{folder}/broken.py:score", "cannot be run: SyntaxError"),
        ("{folder}/ends.py:score", "cannot be run: SystemExit: 0"),
    ],
)
def test_a_function_that_is_not_there_is_refused(tmp_path, rewards, name, message):
    rewards("def score(*_):\n    return 0.0")
    (tmp_path / "broken.py").write_text("def score(")
    (tmp_path / "ends.py").write_text("raise SystemExit(0)")
    with pytest.raises(InputError, match=message):
        jsonl(tmp_path / "p.jsonl", SUMS, reward=name.format(folder=tmp_path))


# ---------------------------------------------------------------- as an experiment


def words(tmp_path, *more):
    jsonl(tmp_path / "p.jsonl", SUMS, tokenizer="character")
    return ["env=jsonl", f"env.path={tmp_path / 'p.jsonl'}", "env.tokenizer=character", "env.completion_length=3",
            "total_steps=60", "eval.episodes=4", "eval.every=60", *TINY, *more]  # fmt: skip


def test_an_evaluation_of_whose_greedy_texts_none_could_be_scored_says_the_rest(tmp_path, rewards, monkeypatch):
    parts = build(
        compose([*words(tmp_path, "algo=rloo"), f"env.reward={rewards('def score(*_):' + chr(10) + '    return 1.0')}"])
    )
    play = parts.evaluator.play

    def unscored(policy, seeds, generator, **options):
        rollout = play(policy, seeds, generator, **options)
        if generator is None or hidden:
            rollout.episodes = [episode._replace(total=math.nan) for episode in rollout.episodes]
        return rollout

    monkeypatch.setattr(parts.evaluator, "play", unscored)
    settings = {"episodes": 3, "seed": 0, "stream": "evaluate"}
    hidden = False
    metrics, _ = evaluation.evaluate_both(parts.evaluator, parts.policy, **settings)
    assert metrics["eval/return_mean"] == 1
    assert "eval/greedy_return_mean" not in metrics
    hidden = True
    with pytest.raises(RunError, match=r"no episode of the evaluation could be scored: more of them \(eval.episodes\)"):
        evaluation.evaluate_both(parts.evaluator, parts.policy, **settings)


def test_without_a_reward_only_demonstrations_are_learned_from(tmp_path):
    build(compose(words(tmp_path, "algo=sft")))
    with pytest.raises(InputError, match="algo=grpo learns from a reward, and env=jsonl has none: name a function"):
        build(compose(words(tmp_path, "algo=grpo")))
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}')
    with pytest.raises(InputError, match="no row to train on has a completion"):
        build(compose([*words(tmp_path, "algo=sft")[2:], "env=jsonl", f"env.path={_bare(tmp_path)}"]))


def _bare(tmp_path):
    path = tmp_path / "bare.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}')
    return path


@pytest.mark.parametrize("algo", ["reinforce", "grpo"])
def test_a_user_s_reward_trains_and_what_cannot_be_scored_is_left_out(tmp_path, rewards, algo):
    name = rewards("def score(p, c, row):\n    return None if c.startswith('1') else float(c == row['completion'])")
    small = ["algo.num_episodes=32"] if algo == "reinforce" else ["algo.num_groups=8", "algo.group_size=4"]
    run = train(*words(tmp_path, f"algo={algo}", f"env.reward={name}", *small), run_dir=tmp_path / "run", quiet=True)
    assert run.status == "completed"
    rows = run.rows()
    assert 0 < rows[0]["rollout/unscorable"] < 0.6
    said = {
        key: value for row in rows for key, value in row.items() if key.startswith(("reward/", "eval/", "rollout/"))
    }
    assert not [key for key, value in said.items() if value != value], "no NaN in what is logged"


def test_a_batch_of_bad_luck_is_collected_again_and_its_actions_count(tmp_path, rewards):
    # Every second batch of two pairs scores one completion of each: no pair is left to compare.
    (tmp_path / "r.py").write_text(
        "calls = []\n"
        "def score_batch(prompts, completions, rows):\n"
        "    calls.append(len(rows))\n"
        "    return [None if len(calls) % 2 and i % 2 else float(i) for i in range(len(rows))]"
    )
    words_ = words(tmp_path, "algo=rloo", f"env.reward={tmp_path / 'r.py'}:score_batch")
    parts = build(compose([*words_, "algo.num_groups=2", "algo.group_size=2"]))
    rollout = parts.collector.collect(parts.policy)
    assert len(rollout.episodes) == 4
    assert rollout.steps > int(rollout.mask.sum())
    (tmp_path / "r.py").write_text("def score_batch(prompts, completions, rows):\n    return [None] * len(rows)")
    parts = build(compose([*words_, "algo.num_groups=2", "algo.group_size=2"]))
    with pytest.raises(RunError, match="10 batches in a row had no group of whose completions two could be scored"):
        parts.collector.collect(parts.policy)


@pytest.mark.parametrize("algo", ["ppo", "reinforce", "rloo", "grpo"])
def test_a_linear_schedule_ends_near_zero_whatever_could_not_be_scored(tmp_path, rewards, algo):
    name = rewards("def score(p, c, row):\n    return None if sum(map(ord, c)) % 2 else 1.0")
    small = ["algo.num_episodes=32"] if algo in ("ppo", "reinforce") else ["algo.num_groups=8", "algo.group_size=4"]
    run = train(
        *words(tmp_path, f"algo={algo}", f"env.reward={name}", *small), "algo.schedule=linear", "log_every=1",
        "total_steps=4000", run_dir=tmp_path / "run", quiet=True,
    )  # fmt: skip
    rates = [row["optimiser/learning_rate"] for row in run.rows()]
    assert rates[-1] < 0.2 * rates[0]


def test_samples_that_cannot_be_scored_are_shown_and_are_json(tmp_path, rewards, capsys):
    name = rewards("def score(p, c, row):\n    return None if p == '1+1=' else 0.0")
    more = ["algo=sft", f"env.reward={name}", "env.held_out=0", "eval.texts=100", "eval.episodes=200"]
    run = train(*words(tmp_path, *more), "total_steps=200", run_dir=tmp_path / "run", quiet=True)
    assert any(math.isnan(sample["reward"]) for sample in run.samples())
    for more in (["--history", "-n", "100"], ["--prompt", "9=9", "--trust"]):
        for form, said in (([], "  reward nan  "), (["--json"], '"reward": "NaN"')):
            with pytest.raises(SystemExit) as end:
                main(["sample", str(run.path), *more, *form])
            assert end.value.code == 0
            assert said in capsys.readouterr().out


COPIES = [
    {"prompt": a + b, "chosen": a, "rejected": b} for a in "abcdefghij" for b in "abcdefghij" if a != b
]  # the first letter is right


@pytest.mark.parametrize(("algo", "texts_of_a_pair"), [("dpo", 1), ("kto", 2), ("reward_model", 1)])
def test_pairs_of_the_file_are_learned_from(tmp_path, algo, texts_of_a_pair):
    task = jsonl(tmp_path / "p.jsonl", COPIES)
    run = train(
        f"algo={algo}", "env=jsonl", f"env.path={tmp_path / 'p.jsonl'}", "env.tokenizer=character",
        "env.completion_length=2", "env.held_out=0.2", "total_steps=20000", "eval.episodes=100", "eval.every=20000",
        "policy.width=32", "policy.layers=1", "policy.hidden=32", "device=cpu", "tuned=none",
        "algo.learning_rate=3e-3", run_dir=tmp_path / "run", quiet=True,
    )  # fmt: skip
    last = run.rows()[-1]
    assert last["preferences/dataset"] == texts_of_a_pair * len(task.train)
    assert last["preferences/gold_agreement"] == 1 if algo != "kto" else last["preferences/desirable"] > 0
    if algo != "reward_model":
        assert last["eval/preference_accuracy"] > 0.75, "of pairs that are held out, it ranks most as they are"
        assert last["eval/preference_margin"] > 0
    else:
        assert last["eval/return_mean"] > 0.75, "of pairs that are held out, it knows which was preferred"


def test_input_that_turns_out_wrong_once_there_is_a_run_fails_the_run(tmp_path):
    rows = [{"prompt": a, "chosen": a, "rejected": a} for a in "abcdefghij"]
    jsonl(tmp_path / "p.jsonl", rows)
    with pytest.raises(RunError, match=r"every pair of the file is the same completion twice.*\nrun .*\(failed\)$"):
        train(
            "algo=dpo", "env=jsonl", f"env.path={tmp_path / 'p.jsonl'}", "env.tokenizer=character",
            "env.completion_length=2", "policy=nano", "device=cpu", "tuned=none", run_dir=tmp_path / "run", quiet=True,
        )  # fmt: skip
    assert Run(tmp_path / "run").status == "failed"


def test_the_end_of_a_given_text_is_learned_and_nothing_after_it(tmp_path):
    task = jsonl(tmp_path / "p.jsonl", COPIES, held_out=0.0)
    written_ = task.given_pairs(held_out=False)[0]
    read_ = read_texts(Decoding(task, device=torch.device("cpu")), uniform, written_)
    ends = read_.actions == task.spec.end
    assert ends.any(1).all()
    assert (read_.mask & ends).sum(1).tolist() == [1] * len(ends), "an end token that is not trained is never written"
    assert read_.mask.sum(1).tolist() == (ends.int().argmax(1) + 1).tolist()


def uniform(observations, actions):
    return Evaluation(torch.full(actions.shape, -1.0), ABSENT, ABSENT)


LABELLED = [{"prompt": a + b, "completion": c, "label": c == a} for a in "abcde" for b in "abcde" for c in "abcde"]
SMALL = (
    "env.completion_length=2", "env.held_out=0.2", "total_steps=30000", "eval.episodes=4", "eval.every=30000",
    "policy.width=32", "policy.layers=1", "policy.hidden=32", "device=cpu", "tuned=none", "algo.learning_rate=3e-3",
)  # fmt: skip


def test_unpaired_labels_are_learned_from(tmp_path):
    task = jsonl(tmp_path / "p.jsonl", LABELLED)
    run = train(
        "algo=kto", "env=jsonl", f"env.path={tmp_path / 'p.jsonl'}", "env.tokenizer=character",
        *SMALL, "algo.desirable_weight=4", run_dir=tmp_path / "run", quiet=True,
    )  # fmt: skip
    last = run.rows()[-1]
    assert last["preferences/dataset"] == len(task.train)
    assert last["preferences/desirable"] == pytest.approx(0.2, abs=0.1)
    assert last["preferences/margin"] > 1
    assert last["eval/preference_accuracy"] > 0.75
    assert evaluate(run.path)["metrics"]["preference_accuracy"] == last["eval/preference_accuracy"]
    assert jsonl(tmp_path / "p.jsonl", [row | {"label": True} for row in LABELLED]).given_labels(held_out=True)
    asked = ["algo=kto", "env=jsonl", f"env.path={tmp_path / 'p.jsonl'}", "env.held_out=0.2", *TINY]
    assert build(compose(asked)).preferences is None, "what is desirable has nothing to be compared with"


def test_labels_of_the_file_are_outcomes_and_the_held_out_ones_evaluate_their_judge(tmp_path):
    task = jsonl(tmp_path / "p.jsonl", LABELLED)
    run = train(
        "algo=outcome_reward", "env=jsonl", f"env.path={tmp_path / 'p.jsonl'}", "env.tokenizer=character",
        *SMALL, run_dir=tmp_path / "run", quiet=True,
    )  # fmt: skip
    last = run.rows()[-1]
    assert last["preferences/dataset"] == len(task.train)
    assert last["eval/right"] == pytest.approx(0.2), "all that are held out, of which one in five is right"
    assert last["eval/return_mean"] == last["eval/greedy_return_mean"] > 0.85
    assert last["eval/brier"] < 0.14, "0.16 is what one knows who says 1/5 of all"
    assert _outcome(run).partition("tokens")[2].partition(": ")[2].startswith("right about ")


def test_without_a_reward_of_ones_own_a_judge_decides_who_wins_and_nothing_is_called_gold(tmp_path):
    jsonl(tmp_path / "p.jsonl", COPIES)
    asked = ["env=jsonl", f"env.path={tmp_path / 'p.jsonl'}", "env.tokenizer=character", "env.completion_length=2",
             "total_steps=2000", "eval.episodes=40", "eval.every=2000", "tuned=none", *TINY]  # fmt: skip
    judge = train(*asked, "algo=reward_model", run_dir=tmp_path / "rm", quiet=True)
    more = [f"reward={judge.path}", "judge.calibration=64", "algo.kl.measure=true", "total_steps=8000"]
    paid = train(*asked, "algo=rloo", *more, "algo.learning_rate=1e-2", run_dir=tmp_path / "run", quiet=True)
    last = paid.rows()[-1]
    assert last["eval/proxy"] != last["eval/exact_match"]
    assert not [key for key in last if "gold" in key or "gap" in key]
    assert last["eval/win_rate"] != 0.5, "the judge distinguishes texts of which none is the file's"
    unpaid = train(*asked, "algo=dpo", run_dir=tmp_path / "dpo", quiet=True)
    assert "eval/kl_k1" in unpaid.rows()[-1]
    assert "eval/win_rate" not in unpaid.rows()[-1]


def test_pairs_that_nobody_can_label_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"algo=dpo learns from pairs, and .*p.jsonl has no rows with chosen and"):
        build(compose(words(tmp_path, "algo=dpo")))
    with pytest.raises(InputError, match=r"algo=kto learns from pairs, and .*, or with completion and label: add some"):
        build(compose(words(tmp_path, "algo=kto")))
    with pytest.raises(InputError, match="algo=online_dpo learns from a reward, and env=jsonl has none"):
        build(compose(words(tmp_path, "algo=online_dpo")))


def test_a_reward_that_breaks_while_training_fails_the_run_in_one_line(tmp_path, rewards):
    name = rewards("def score(p, c, row):\n    return row['nothing']")
    with pytest.raises(RunError, match=r"failed at prompt .* KeyError: 'nothing'"):
        train(*words(tmp_path, "algo=reinforce", f"env.reward={name}"), run_dir=tmp_path / "run", quiet=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_a_run_is_resumed_to_the_same_bytes_and_says_when_its_file_has_changed(tmp_path, rewards, capsys):
    name = rewards("def score(p, c, row):\n    return None if c.startswith('1') else float(len(c))")
    asked = words(tmp_path, "algo=grpo", f"env.reward={name}", "algo.num_groups=8", "checkpoint.every=20")
    straight = train(*asked[:-1], "total_steps=300", *asked[-1:], run_dir=tmp_path / "straight", quiet=True)
    train(*asked, run_dir=tmp_path / "run", quiet=True)
    resume(tmp_path / "run", "total_steps=300", trust=True, quiet=True)
    ends = [(path.checkpoints()[-1] / "model.safetensors").read_bytes() for path in (straight, Run(tmp_path / "run"))]
    assert ends[0] == ends[1]
    assert Run(tmp_path / "run").info["exact_resume"] is True
    with (tmp_path / "p.jsonl").open("a") as file:
        file.write('\n{"prompt": "1+1+1=", "completion": "3"}')
    resume(tmp_path / "run", "total_steps=360", trust=True, quiet=True)
    assert "p.jsonl has changed since the run began" in Run(tmp_path / "run").info["exact_resume"]
    assert "has changed" in capsys.readouterr().err
    rewards("def score(p, c, row):\n    return 0.0")
    resume(tmp_path / "run", "total_steps=700", trust=True, quiet=True)
    assert "rewards.py:score has changed since the run began" in Run(tmp_path / "run").info["exact_resume"]


def test_a_file_that_names_a_reward_needs_trust_and_the_command_line_does_not(tmp_path, rewards):
    name = rewards("def score(p, c, row):\n    return 1.0")
    typed = compose(words(tmp_path, "algo=grpo", f"env.reward={name}"))
    (tmp_path / "config.yaml").write_text(json.dumps(dump(typed)))
    with pytest.raises(InputError, match=r"names user code to import, env.reward=.*rewards.py:score: pass --trust"):
        load(tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml", trust=True).env.reward == name
    assert load(tmp_path / "config.yaml", [f"env.reward={name}"]).env.reward == name
    (tmp_path / "conf" / "env").mkdir(parents=True)
    (tmp_path / "conf" / "env" / "mine.yaml").write_text(f"defaults: [jsonl]\nname: jsonl\nreward: {name}\n")
    asked = ["algo=grpo", "env=mine", f"env.path={tmp_path / 'p.jsonl'}"]
    with pytest.raises(InputError, match="pass --trust"):
        compose(asked, config_dirs=[tmp_path / "conf"])
    assert compose(asked, config_dirs=[tmp_path / "conf"], trust=True).env.reward == name


def test_a_judge_that_was_trained_on_user_code_is_used_with_trust(tmp_path, rewards):
    name = rewards("def score(p, c, row):\n    return float(len(c))")
    scored = f"env.reward={name}"
    judge = train(*words(tmp_path, "algo=reward_model", scored, "env.pairs=8"), run_dir=tmp_path / "rm", quiet=True)
    asked = words(tmp_path, "algo=rloo", scored, f"reward={judge.path}", "judge.calibration=8")
    with pytest.raises(InputError, match="pass --trust"):
        train(*asked, run_dir=tmp_path / "run", quiet=True)
    check(compose(asked), trust=True)
    assert train(*asked, run_dir=tmp_path / "run", trust=True, quiet=True).status == "completed"
