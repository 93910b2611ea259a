"""`sample`: what a run writes, with numbers that another way of counting gives, too."""

import json
import math

import pytest
import torch

from pgcli import evaluate, sample, train
from pgcli.cli import main
from pgcli.errors import InputError
from pgcli.experiment.sampling import _reward
from pgcli.experiment.session import opened

SMALL = ("policy.width=16", "policy.heads=2", "policy.layers=1", "policy.hidden=16", "eval.episodes=4", "device=cpu")
GRPO = ("algo.num_groups=2", "algo.group_size=2", "algo.kl.coefficient=0.1")


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    start = train(
        "algo=sft", "env=sort", "env.digits=3", *SMALL, "tuned=none", "total_steps=14000", "algo.learning_rate=1e-2",
        "algo.num_demonstrations=64", "policy.temperature=1.25", run_dir=folder / "sft", quiet=True,
    )  # fmt: skip
    return train(
        "algo=grpo", "env=sort", "env.digits=3", *SMALL, *GRPO, "tuned=none", "total_steps=300",
        "algo.learning_rate=1e-2", "policy.temperature=1.25", f"init={start.path}", run_dir=folder / "grpo", quiet=True,
    )  # fmt: skip


def test_log_probs_and_the_divergence_are_those_of_the_whole_policy(taught):
    found = sample(taught.path, n=3, temperature=0.7, top_k=4, top_p=0.9)
    assert (found["run"], found["step"]) == (str(taught.path), taught.steps)
    with opened(taught) as (parts, _):
        task = parts.environment
        for one in found["samples"]:
            digits = task.encode(one["prompt"].removeprefix("<bos>"))
            prompt = torch.tensor([[task.encode("=")[0] + 1, *digits]])
            answer = task.encode(one["completion"]) + ([task.spec.end] if one["finished"] else [])
            shares = [
                torch.softmax(p({"prompt": prompt}, torch.tensor([answer])).distribution.logits[0].double(), -1)
                for p in (parts.policy, parts.frozen["reference"])
            ]
            own, reference = (p[range(len(answer)), answer].log() for p in shares)
            assert one["log_prob"] == pytest.approx(own.sum().item(), abs=1e-4)
            assert one["log_probs"] == pytest.approx(own.tolist(), abs=1e-4)
            assert one["reference_log_prob"] == pytest.approx(reference.sum().item(), abs=1e-4)
            p, q = shares
            assert one["kl"] == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-3, abs=1e-5)
            cold = p ** (1 / 0.7)
            kept = cold * (cold >= cold.sort(dim=-1).values[:, -4:-3])
            kept /= kept.sum(-1, keepdim=True)
            order = kept.sort(dim=-1, descending=True)
            before = torch.zeros_like(kept).scatter(-1, order.indices, order.values.cumsum(-1) - order.values)
            kept = kept * (before < 0.9)
            sampled = (kept / kept.sum(-1, keepdim=True))[range(len(answer)), answer].log().sum()
            assert one["sampled_log_prob"] == pytest.approx(sampled.item(), abs=1e-4)


def test_the_policy_itself_has_one_log_prob_and_a_seed_says_which_texts(taught):
    first, again, other = (sample(taught.path, n=6, seed=seed)["samples"] for seed in (1, 1, 2))
    assert first == again != other
    assert "sampled_log_prob" not in first[0]
    assert len({one["prompt"] for one in first}) == 6


def test_a_prompt_of_ones_own_is_completed_many_times_and_framed_as_the_task_does(taught):
    bare, framed = (sample(taught.path, text, n=4)["samples"] for text in ("521", "521="))
    assert bare == framed
    assert {one["prompt"] for one in bare} == {"<bos>521="}
    for one in sample(taught.path, "521", n=64)["samples"]:
        assert one["reward"] == one["components"]["exact_match"] == (one["completion"] == "125" and one["finished"])
    assert sample(taught.path, "222", n=64, best_of=4)["samples"][0]["prompt"] == "<bos>222="


def test_greedy_takes_the_likeliest_and_top_1_is_greedy(taught):
    greedy = sample(taught.path, n=5, greedy=True)["samples"]
    narrow = sample(taught.path, n=5, top_k=1)["samples"]
    assert [one["completion"] for one in greedy] == [one["completion"] for one in narrow]
    assert all(one["sampled_log_prob"] == pytest.approx(0, abs=1e-6) for one in narrow)


def test_the_best_of_n_is_the_one_of_highest_reward(taught):
    start = taught.path.parent / "sft"  # right in a fifth of its completions
    single = sum(one["reward"] for one in sample(start, n=16)["samples"])
    best = sample(start, n=16, best_of=8)["samples"]
    assert len(best) == 16
    assert sum(one["reward"] for one in best) > single
    unscored, poor, good = ({"reward": x} for x in (math.nan, -1.0, 2.0))
    assert max([unscored, poor, good], key=_reward) is good
    assert max([unscored, poor], key=_reward) is poor


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--prompt", "52x"], "error: sort reads digits and `=`, not 'x'"),
        (["--prompt", "5219"], "error: the prompt has 6 tokens, and sort has room for 5"),
        (["--prompt", "52"], "error: sort cannot score completions of this prompt; one of its own is <bos>"),
        (["-n", "0"], "error: -n must be 1 or more, not 0"),
        (["--top-p", "0"], "error: --top-p must be above 0 and at most 1, not 0"),
        (["--top-k", "0"], "error: --top-k must be 1 or more, not 0"),
        (["--temperature", "0"], "error: --temperature must be above 0, not 0; --greedy takes the likeliest token"),
        (["--greedy", "--top-k", "3"], "error: greedy takes the likeliest token: leave out temperature"),
    ],
)
def test_what_cannot_be_sampled_is_refused_in_one_line(taught, capsys, monkeypatch, words, line):
    monkeypatch.delenv("PGCLI_DEBUG", raising=False)
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(taught.path), *words])
    said = capsys.readouterr()
    assert (stop.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith(line)


def test_a_run_in_control_has_no_texts(tmp_path):
    run = train(
        "algo=vanilla_pg", "env=cartpole", "tuned=none", "total_steps=20", "eval.episodes=1", "device=cpu",
        run_dir=tmp_path / "run", quiet=True,
    )  # fmt: skip
    with pytest.raises(InputError, match="env=cartpole has no texts"):
        sample(run.path)


def test_a_judge_writes_nothing(taught, tmp_path):
    run = train(
        "algo=outcome_reward", "env=sort", "env.digits=3", *SMALL, "tuned=none", "total_steps=50",
        "policy.temperature=1.25", "env.pairs=8", f"init={taught.path}", run_dir=tmp_path / "run", quiet=True,
    )  # fmt: skip
    with pytest.raises(InputError, match="a run of algo=outcome_reward writes nothing"):
        sample(run.path)


def test_eval_tells_what_texts_are_made_of_and_how_often_one_of_k_is_right(taught, capsys):
    found = evaluate(taught.path, episodes=16, samples=4)
    one, two, four = (found["metrics"][f"pass@{k}"] for k in (1, 2, 4))
    assert one == pytest.approx(found["metrics"]["exact_match"]) == pytest.approx(found["stochastic"]["mean"])
    assert one <= two <= four
    assert found["metrics"]["kl"] > 0
    narrow = evaluate(taught.path, episodes=16, top_k=1)
    assert narrow["stochastic"]["mean"] == narrow["greedy"]["mean"]
    assert "kl" not in narrow["metrics"], "it is not the policy that wrote"
    with pytest.raises(InputError, match="--top-p must be above 0"):
        evaluate(taught.path, top_p=2.0)
    with pytest.raises(SystemExit):
        main(["eval", str(taught.path), "--episodes", "4", "--samples", "2"])
    said = capsys.readouterr().out.splitlines()
    assert " 4 fresh episodes" in said[0]
    assert "pass@2 " in said[2]
    with pytest.raises(SystemExit):
        main(["eval", str(taught.path), "--episodes", "1"])
    assert capsys.readouterr().out.splitlines()[0].endswith(" 1 fresh episode")


def test_on_screen_a_text_and_below_it_its_numbers_and_the_history_needs_no_torch(taught, capsys):
    for words in (["-n", "2"], ["--history", "-n", "1"]):
        with pytest.raises(SystemExit) as stop:
            main(["sample", str(taught.path), *words])
        out = capsys.readouterr().out.splitlines()
        assert stop.value.code == 0
        texts = [line for line in out if " | " in line]
        numbers = [line for line in out if line.startswith("  reward ")]
        assert len(texts) == len(numbers) == (2 if "2" in words else 1)
        assert all(f"  {name} " in numbers[0] for name in ("exact match", "log-prob", "KL", "tokens"))
    assert out[0] == f"step {taught.steps}"
    with pytest.raises(SystemExit):
        main(["sample", str(taught.path), "--history", "--json"])
    assert json.loads(capsys.readouterr().out)["samples"] == taught.samples()
