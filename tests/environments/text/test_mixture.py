import json
import re
from types import SimpleNamespace

import pytest
import torch

from pgcli.collectors.learned_reward import LearnedReward
from pgcli.errors import InputError
from pgcli.experiment.config import compose, dump, explain, load
from pgcli.experiment.worlds.text import Decoding
from pgcli.registry import find

ALL = (
    "{sort: {digits: 3, cut_reward: -0.5}, reverse: {max_letters: 4}, add: {digits: 1, partial: 0.5}, bracket: {}, "
    "chain: {max_steps: 3}, count_or_pad: {letters: 3, limit: 9, errors: 0, overlong_buffer: 4}}"
)


def mixed(tasks, *words):
    config = compose(["env=mixture", f"env.tasks={tasks}", *words])
    return find("env", "mixture")(config.env)


def alone(name, *words):
    return find("env", name)(compose([f"env={name}", *words]).env)


def mask_of(actions, end):
    ends = actions == end
    return (ends.cumsum(1) - ends.long()) == 0


def text_of(task, row):
    """Without padding."""
    return task.decode([token for token in row.tolist() if token != task.spec.pad])


def texts(task, observations):
    return [text_of(task, row) for row in observations["prompt"]]


def written(task, *texts):
    """Prompts and completions of a mixture from `<sort>21= 12<end>`, and the mask."""
    limit, width = task.spec.completion_length, task.spec.prompt_length
    prompts, actions = [], []
    for text in texts:
        asked, answer = text.split(" ")
        prompts.append(task.encode(asked))
        tokens = [task.encode(piece) for piece in answer.split("<end>")]
        actions.append([*tokens[0], task.spec.end] if len(tokens) == 2 else tokens[0])
    assert all(len(row) == limit or row[-1] == task.spec.end for row in actions)
    completions = torch.tensor([row + [task.spec.pad] * (limit - len(row)) for row in actions])
    asked = torch.tensor([[task.spec.pad] * (width - len(row)) + row for row in prompts])
    lengths = torch.tensor([len(row) for row in prompts])
    return {"prompt": asked, "lengths": lengths}, completions, mask_of(completions, task.spec.end)


def test_a_prompt_begins_with_its_task_so_that_two_tasks_may_ask_the_same():
    task = mixed("{short: {name: sort, digits: 3}, long: {name: sort, digits: 5}, same: {name: sort, digits: 3}}")
    found = texts(task, task.prompts(range(300), held_out=False))
    assert {re.sub(r"\d", "d", text) for text in found} == {"<short>ddd=", "<long>ddddd=", "<same>ddd="}
    assert (task.spec.prompt_length, task.spec.completion_length) == (7, 6)


def test_each_task_has_its_share_of_the_prompts_on_both_sides_of_the_split():
    task = mixed("{sort: {weight: 2}, reverse: {}, add: {weight: 0.5}}")
    for held_out in (False, True):
        found = [text[1:].partition(">")[0] for text in texts(task, task.prompts(range(20_000), held_out=held_out))]
        # 2 : 1 : 0.5 of 3.5; five standard errors of a share are below 0.018.
        for name, share in {"sort": 4 / 7, "reverse": 2 / 7, "add": 1 / 7}.items():
            assert abs(found.count(name) / 20_000 - share) < 0.018, name


def test_the_largest_weights_are_shares_too():
    task = mixed("{sort: {weight: 1e308}, reverse: {weight: 1e308}}")
    found = texts(task, task.prompts(range(2_000), held_out=False))
    assert 800 < sum(text.startswith("<sort>") for text in found) < 1200


def test_the_prompts_of_a_task_do_not_depend_on_the_share_that_it_has():
    # Bracket draws its prompt by one number of the seed: were it the same that draws the task, most would never come.
    task = mixed("{bracket: {}, sort: {}}")
    found = {text for text in texts(task, task.prompts(range(20_000), held_out=False)) if text.startswith("<bracket>")}
    own = alone("bracket")
    every = set(texts(own, own.prompts(range(100_000), held_out=False)))
    assert {text.replace("<bracket>", "<bos>") for text in found} <= every
    assert len(found) > 0.95 * len(every)


def test_the_order_in_which_tasks_are_named_changes_nothing():
    one, other = mixed("{sort: {}, reverse: {}, add: {}}"), mixed("{add: {}, sort: {}, reverse: {}}")
    assert one.names == other.names
    first, second = (task.demonstrations(range(50)) for task in (one, other))
    assert torch.equal(first.observations["prompt"], second.observations["prompt"])
    assert torch.equal(first.actions, second.actions)


def test_the_vocabulary_is_the_union_and_every_text_comes_back():
    task = mixed("{sort: {}, reverse: {letters: 2}, add: {}}")
    assert task.names[:-5] == [*"+0123456789:=", *"abcdefghijklmnopqrstuvwxyz"], "in the same order in each process"
    assert task.names[-5:] == ["<end>", "<pad>", "<add>", "<reverse>", "<sort>"]
    assert (task.names[task.spec.end], task.names[task.spec.pad]) == ("<end>", "<pad>")
    for text in ("<sort>31=", "<reverse>ab=", "<add>1+2=", "3:4"):
        assert task.decode(task.encode(text)) == text
    assert len(task.encode("<sort>31=")) == 4
    for wrong in ("<end>", "<pad>", "<bos>", "3 4", "<sorted>", "#", "\n"):
        with pytest.raises(InputError, match=r"not among the 39 characters of the vocabulary, nor <add>, <reverse>, <"):
            task.encode(wrong)


def test_each_row_is_scored_as_its_own_task_scores_it():
    task = mixed(ALL)
    own = {part.label: part.task for part in task.parts}
    assert list(own) == ["add", "bracket", "chain", "count_or_pad", "reverse", "sort"]
    generator = torch.Generator().manual_seed(0)
    expected, rows = {}, {}
    prompts = torch.full((240, task.spec.prompt_length), task.spec.pad)
    actions, lengths = torch.full((240, task.spec.completion_length), task.spec.pad), torch.zeros(240).long()
    for number, (label, inner) in enumerate(own.items()):
        rows[label] = torch.arange(40) * 6 + number  # the tasks take turns
        asked, answers = inner.demonstrations(range(40))
        # Right, with wrong tokens anywhere (an early end, padding that was chosen), and without any end.
        noise = torch.randint(inner.spec.vocabulary, answers.shape, generator=generator)
        spoilt = torch.rand(answers.shape, generator=generator) < 0.2
        answers[10:30] = torch.where(spoilt, noise, answers)[10:30]
        answers[30:] = torch.where(noise[30:] == inner.spec.end, 0, noise[30:])
        mask = mask_of(answers, inner.spec.end)
        expected[label] = inner.rewards(asked, answers, mask)
        words = [inner.decode([token]).replace("<bos>", f"<{label}>") for token in range(inner.spec.vocabulary)]
        there = torch.tensor([task.names.index(word) for word in words])
        limit = answers.shape[1]
        prompts[rows[label], -inner.spec.prompt_length :] = there[asked["prompt"]]
        lengths[rows[label]] = asked.get("lengths", torch.tensor(inner.spec.prompt_length))
        actions[rows[label], :limit] = torch.where(mask, there[answers], task.spec.pad)
    # A row that its own limit cut goes on here: it may write more, which its task does not read.
    mask = mask_of(actions, task.spec.end)
    found = task.rewards({"prompt": prompts, "lengths": lengths}, actions, mask)
    for label, parts in expected.items():
        for name, value in parts.items():
            torch.testing.assert_close(found[f"{label}_{name}"][rows[label]], value, equal_nan=True)
            others = torch.ones(240, dtype=torch.bool).index_fill(0, rows[label], False)
            assert found[f"{label}_{name}"][others].isnan().all()
        for name in ("reward", "exact_match"):
            torch.testing.assert_close(found[name][rows[label]], parts[name])
            assert parts[name].std() > 0
    assert set(found) == set(task.COMPONENTS)


def test_a_completion_that_is_longer_than_its_tasks_limit_is_cut_for_it():
    task = mixed("{sort: {digits: 2, cut_reward: -0.5}, count_or_pad: {letters: 2, limit: 6}}")
    observations, completions, mask = written(
        task,
        "<sort>21= 12<end>",  # three tokens are its limit
        "<sort>21= 120<end>",  # its end comes too late
        "<sort>21= 12012<end>",
        "<sort>21= 120120",
        "<count_or_pad>ab?b= 1....<end>",
        "<count_or_pad>ab?b= 1.....",
    )
    found = task.rewards(observations, completions, mask)
    assert found["reward"].tolist() == [1, -0.5, -0.5, -0.5, 1, 0]
    assert found["exact_match"].tolist() == [1, 0, 0, 0, 1, 0]


def test_symbols_of_another_task_are_wrong():
    task = mixed("{sort: {digits: 2}, reverse: {min_letters: 2, max_letters: 2}}")
    observations, completions, mask = written(
        task, "<sort>21= 12<end>", "<sort>21= ab<end>", "<sort>21= 1<sort><end>", "<reverse>ab= ba<end>",
        "<reverse>ab= b1<end>", "<reverse>ab= b<end>", "<reverse>ab= <reverse>a<end>",
    )  # fmt: skip
    assert task.rewards(observations, completions, mask)["reward"].tolist() == [1, 0, 0, 1, 0, 0, 0]


def test_a_task_may_reward_step_by_step_beside_one_that_does_not():
    task = mixed("{sort: {digits: 4}, chain: {min_steps: 1, max_steps: 2, reward_kind: process}}")
    observations, completions, mask = written(
        task, "<chain>7+5-3= 2;8<end>", "<sort>4321= 1234<end>", "<chain>1+1= 2<end>"
    )
    found = task.rewards(observations, completions, mask)
    # 7 + 5 = 12 is right, 9 would have been the second step; sort is paid at its last token.
    assert found["reward"].tolist() == [[0, 0.5, 0, 0, 0], [0, 0, 0, 0, 1], [0, 1, 0, 0, 0]]
    assert found["chain_reward"][[0, 2]].tolist() == [0.5, 1]
    assert found["exact_match"].tolist() == [0, 1, 1]
    assert not hasattr(task, "step_labels")


def test_steps_are_labelled_where_all_tasks_have_steps():
    task = mixed("{easy: {name: chain, min_steps: 1, max_steps: 1}, hard: {name: chain, min_steps: 2, max_steps: 2}}")
    texts = written(task, "<hard>7+5-3= 2;8<end>", "<easy>1+1= 2<end>")
    nan = float("nan")
    expected = torch.tensor([[nan, 1, nan, 0], [nan, 1, nan, nan]])
    torch.testing.assert_close(task.step_labels(*texts), expected, equal_nan=True)


@pytest.mark.parametrize(
    "prompt", ["21=", "<sort>2=", "<sort>213=", "<sort>a1=", "<reverse>abcde=", "<reverse>a<sort>b=", "<reverse>1="]
)
def test_a_prompt_of_another_form_is_not_scored(prompt):
    task = mixed("{sort: {digits: 2}, reverse: {min_letters: 2, max_letters: 4}, add: {}}")
    with pytest.raises(ValueError, match="a prompt"):
        task.rewards(*written(task, f"{prompt} 12<end>"))


def test_a_task_without_a_row_in_the_batch_is_left_out_of_its_metrics():
    task = mixed("{sort: {weight: 1000}, reverse: {weight: 0.001}}")

    class Silent:
        has_critic = False

        def prefill(self, observations):
            return torch.zeros(len(observations["prompt"]), task.spec.vocabulary), None

        def step(self, tokens, cache):
            return torch.zeros(len(tokens), task.spec.vocabulary)

    rollout = Decoding(task, device=torch.device("cpu")).play(Silent(), list(range(8)), None)
    assert "reward/sort_exact_match" in rollout.metrics
    assert not any(key.startswith("reward/reverse") for key in rollout.metrics)
    assert set(rollout.aux) == set(task.COMPONENTS), "the same in each process"


def test_a_trained_reward_keeps_to_each_tasks_limits():
    task = mixed(
        "{sort: {digits: 2, cut_reward: -0.5}, reverse: {max_letters: 3, cut_reward: 0.25, overlong_buffer: 2}}"
    )
    texts = written(task, "<sort>21= 12<end>", "<sort>21= 120<end>", "<reverse>abc= cba<end>", "<reverse>abc= cbac")
    judge = SimpleNamespace(members=1, reading="preference", gold_mean=torch.tensor(1.0), gold_std=torch.tensor(2.0))
    judge.worth = lambda task, completions: torch.full((1, 4, 1), 0.5)  # 2 in the unit of the tasks
    found = LearnedReward(task, judge, combination="mean", pessimism=0.0).rewards(*texts)
    # Four tokens are the limit of reverse: the last one costs 1.
    expected = [2, -0.5, 1, 0.25 - 1]
    torch.testing.assert_close(found["reward"], torch.tensor([(reward - 1) / 2 for reward in expected]))
    assert found["gold"].tolist() == [1, -0.5, 0, -1]


# ---------------------------------------------------------------- settings


def test_the_default_is_a_mixture_of_three():
    task = find("env", "mixture")(compose(["env=mixture"]).env)
    assert [part.label for part in task.parts] == ["add", "reverse", "sort"]


def test_an_entry_has_its_options_values_and_what_is_typed_replaces_the_default():
    config = compose(["env=mixture", "env.tasks={sort: {weight: 2, digits: 4}, chain: {}}"]).env
    assert (config.tasks.sort.weight, config.tasks.sort.digits, config.tasks.sort.cut_reward) == (2, 4, 0)
    own = compose(["env=chain"]).env
    assert config.tasks.chain.weight == 1
    assert all(
        getattr(config.tasks.chain, key) == getattr(own, key) for key in ("min_steps", "max_steps", "reward_kind")
    )
    assert set(type(config.tasks).model_fields) == {"sort", "chain"}
    # One setting of one of them, another one added, one left out.
    config = compose(["env=mixture", "env.tasks.sort.digits=7", "env.tasks.chain.weight=3", "env.tasks.add=null"]).env
    assert set(type(config.tasks).model_fields) == {"sort", "reverse", "chain"}
    assert (config.tasks.sort.digits, config.tasks.chain.weight) == (7, 3)


def test_a_run_keeps_all_settings_of_its_tasks():
    config = compose(["env=mixture", "env.tasks={short: {name: sort, digits: 3}, add: {weight: 0.5}}", "algo=grpo"])
    data = dump(config)
    assert data["env"]["tasks"]["short"] == {
        "name": "sort", "cut_reward": 0.0, "overlong_buffer": None, "digits": 3, "weight": 1.0,
    }  # fmt: skip
    back = load(json.loads(json.dumps(data, sort_keys=True)))
    assert dump(back) == data
    assert back.env == config.env
    assert load(data, ["env.tasks.add.weight=2"]).env.tasks.add.weight == 2


def test_an_option_of_ones_own_can_be_mixed_and_each_value_knows_its_file(tmp_path):
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "hard.yaml").write_text("# Hard.\ndefaults: [sort]\ndigits: 9\n")
    config, origins = explain(["env=mixture", "env.tasks={hard: {cut_reward: -1}, add: {}}"], config_dirs=[tmp_path])
    assert (config.env.tasks.hard.name, config.env.tasks.hard.digits, config.env.tasks.hard.cut_reward) == (
        "sort",
        9,
        -1,
    )
    assert origins.name("env.tasks.hard.digits") == str(tmp_path / "env" / "hard.yaml")
    assert origins.name("env.tasks.hard.overlong_buffer") == "conf/env/sort.yaml"
    assert origins.name("env.tasks.hard.cut_reward") == "command line"
    assert origins.name("env.solved_at") == "conf/env/mixture.yaml"
    (tmp_path / "env" / "wrong.yaml").write_text("# Wrong.\ndefaults: [sort]\ndigits: 90\n")
    with pytest.raises(
        InputError, match=r"wrong\.yaml: `env\.tasks\.wrong\.digits` must be an integer > 0, <= 18, not"
    ):
        compose(["env=mixture", "env.tasks={wrong: {}, add: {}}"], config_dirs=[tmp_path])


@pytest.mark.parametrize(
    ("tasks", "line"),
    [
        ("{srot: {}, add: {}}", "`env.tasks.srot`: no env is called `srot`; did you mean `sort`?   (pgcli list envs)"),
        ("{sort: {}}", "`env.tasks` has 1 task, and a mixture two or more"),
        ("{sort: {}, add: null}", "`env.tasks` has 1 task, and a mixture two or more"),
        ("[sort,add]", "`env.tasks` must be settings by task, {sort: {weight: 2}, reverse: {}}"),
        ("{sort: 2, add: {}}", "`env.tasks.sort` must be settings, such as {weight: 2}, not 2"),
        (
            "{sort: {digit: 3}, add: {}}",
            "`env.tasks.sort.digit` is not a setting of mixture; did you mean `env.tasks.sort.digits`?   "
            "(all of them: pgcli show config env=mixture)",
        ),
        (
            "{sort: {digits: 40}, add: {}}",
            "`env.tasks.sort.digits` must be an integer > 0, <= 18, not 40   "
            "(number of digits to sort; a completion has one token more, the end)",
        ),
        (
            "{sort: {weight: 0}, add: {}}",
            "`env.tasks.sort.weight` must be a number > 0, not 0   "
            "(the task's share of the prompts, relative to the other weights)",
        ),
        (
            "{reverse: {min_letters: 6, max_letters: 3}, add: {}}",
            "`env.tasks.reverse` is refused: min_letters 6 is above max_letters 3",
        ),
        (
            "{sort: {}, add: {pairs: 5}}",
            "`env.tasks.add.pairs` is refused: it is set for the whole mixture, not for one of its tasks",
        ),
        ("{sort: {}, guess: {}}", "`env.tasks.guess`: a mixture is of tasks of one turn, and guess has two"),
        (
            "{sort: {}, jsonl: {}}",
            "`env.tasks.jsonl`: a mixture is of tasks that score a prompt by its tokens alone, and jsonl knows more of "
            "it",
        ),
        (
            "{sort: {}, story: {}}",
            "`env.tasks.story`: a mixture is of tasks whose completions are right or wrong, and story has no "
            "exact_match",
        ),
        ("{sort: {}, cartpole: {}}", "`env.tasks.cartpole`: env=cartpole is no text task"),
        ("{sort: {}, mixture: {}}", "`env.tasks.mixture`: a mixture is of tasks, not of mixtures"),
        (
            "{sort: {}, copy: {name: add}}",
            "`env.tasks.copy`: cannot be the name of a task; take another, and say which task it is by `name`",
        ),
        (
            "{sort: {}, end: {name: add}}",
            "`env.tasks.end`: cannot be the name of a task; take another, and say which task it is by `name`",
        ),
    ],
)
def test_what_cannot_be_mixed_is_refused_in_one_line(tasks, line):
    with pytest.raises(InputError) as caught:
        compose(["env=mixture", f"env.tasks={tasks}"])
    assert str(caught.value) == line
