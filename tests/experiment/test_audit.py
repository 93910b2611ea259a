"""`audit`: a sound run passes, and whatever is done to it, or to the code that plays it, is noticed by name."""

import json
import shutil

import numpy as np
import pytest
import torch

from pgcli import audit, train
from pgcli.algorithms.grpo import GRPO
from pgcli.cli import main
from pgcli.collectors import completions
from pgcli.runs import Run, checkpoint

SMALL = ("policy.width=16", "policy.heads=2", "policy.layers=1", "policy.hidden=16", "eval.episodes=4", "device=cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def taught(folder):
    return train(
        "algo=sft", "env=sort", "env.digits=3", *SMALL, "tuned=none", "total_steps=2000", "algo.learning_rate=1e-2",
        run_dir=folder / "sft", quiet=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def paid(folder, taught):
    return train(
        "algo=grpo", "env=sort", "env.digits=3", *SMALL, "tuned=none", "total_steps=400", "algo.num_groups=4",
        "algo.group_size=4", "algo.kl.coefficient=0.1", f"init={taught.path}", run_dir=folder / "grpo", quiet=True,
    )  # fmt: skip


@pytest.fixture
def copy(paid, tmp_path):
    shutil.copytree(paid.path, tmp_path / "run")
    return tmp_path / "run"


def failed(run):
    return [check.name for check in audit(run) if check.ok is False]


def test_sound_runs_pass_in_both_worlds(paid, taught, folder):
    control = ("env=cartpole", "tuned=none", "eval.episodes=2", "device=cpu", "policy.hidden=[8]")
    stepped = [
        train(*f"algo={words}".split(), *control, "total_steps=600", run_dir=folder / words[:4], quiet=True)
        for words in ("ppo", "reinforce", "dqn algo.learning_starts=100", "gspo")
    ]
    for run in (paid, taught, *stepped):
        assert failed(run.path) == []
    held = {check.name for check in audit(paid.path) if check.ok}
    assert len(held) == len(audit(paid.path)), "everything applies to a run of this kind"
    assert {check.name for check in audit(stepped[1].path) if check.ok} >= {
        "padding is not in the loss",
        "returns are the sums of rewards",
        "the ratio is 1 on the first epoch",
    }


def test_a_byte_that_changed_in_a_checkpoint(copy):
    file = Run(copy).checkpoints()[0] / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert failed(copy) == ["checkpoints are intact"]


def edit(path, change):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda rows: rows[0].update({"loss/total": "NaN"}), "metrics are finite"),
        (lambda rows: rows.append(rows[0]), "steps and updates rise"),
        (lambda rows: rows[0].update({"kl/price": 0.1}), "KL is paid once, and rightly"),
        (lambda rows: rows[0].update({"rollout/episodes": 99.0}), "every episode is written down"),
        (lambda rows: rows.pop(), "the end is the same everywhere"),
    ],
)
def test_metrics_that_were_tampered_with(copy, change, name):
    edit(copy / "metrics.jsonl", change)
    assert name in failed(copy)


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("group_size: 4", "group_size: 8", "the config is what was typed"),
        ("coefficient: 0.1", "coefficient: 0.0", "KL is paid once, and rightly"),
    ],
)
def test_a_config_that_was_tampered_with(copy, old, new, name):
    text = (copy / "config.yaml").read_text()
    assert old in text
    (copy / "config.yaml").write_text(text.replace(old, new))
    assert name in failed(copy)


def test_of_a_setting_that_was_typed_twice_the_last_value_counts(copy):
    (copy / "overrides.txt").write_text("algo=grpo\nalgo.group_size=3\nalgo.group_size=4\n")
    assert "the config is what was typed" not in failed(copy)
    (copy / "overrides.txt").write_text("algo=grpo\nalgo.group_size=4\nalgo.group_size=3\n")
    assert "the config is what was typed" in failed(copy)


def test_words_that_were_overwritten(copy):
    (copy / "overrides.txt").write_bytes(b"algo=\xff\n")
    assert "the config is what was typed" in failed(copy)


def test_a_reference_that_moved(copy):
    newest = Run(copy).checkpoints()[-1]
    step, state = checkpoint.read(newest)
    state["frozen"]["reference"]["unembedding"][0, 0] += 1e-3
    checkpoint.write(newest.parent, step, state)
    assert failed(copy) == ["the reference has not moved"]


def test_a_run_without_a_checkpoint_cannot_be_played(copy, capsys):
    shutil.rmtree(copy / "checkpoints")
    assert {"checkpoints are intact", "can be replayed"} <= set(failed(copy))
    with pytest.raises(SystemExit) as stop:
        main(["audit", str(copy)])
    out = capsys.readouterr().out
    assert stop.value.code == 1
    assert "NOT checkpoints are intact" in out
    assert out.splitlines()[-1].startswith("5 hold, ")


# ---------------------------------------------------------------- faults in the code that plays and learns


def decoding_with(monkeypatch, change):
    """Every rollout of texts goes through `change`."""
    play = completions.Decoding.play

    def changed(self, *arguments, **settings):
        rollout = play(self, *arguments, **settings)
        change(rollout)
        return rollout

    monkeypatch.setattr(completions.Decoding, "play", changed)


def end_is_masked_out(rollout):
    rollout.mask = rollout.mask & ~rollout.terminated


def reward_comes_first(rollout):
    rollout.rewards = rollout.rewards.sum(1, keepdim=True) * torch.nn.functional.one_hot(torch.tensor(0), 4)


def mask_goes_on(rollout):
    rollout.mask = torch.ones_like(rollout.mask)


def reward_is_doubled(rollout):
    rollout.rewards = rollout.rewards * 2 + rollout.terminated


def scored_at_another_temperature(rollout):
    rollout.log_probs = rollout.log_probs / 1.3


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (end_is_masked_out, "the end token is trained"),
        (mask_goes_on, "masks are 1 up to the end, and not after"),
        (reward_comes_first, "rewards stand where they are due"),
        (reward_is_doubled, "returns are the sums of rewards"),
        (scored_at_another_temperature, "the ratio is 1 on the first epoch"),
    ],
)
def test_a_sampler_that_is_wrong(paid, monkeypatch, fault, name):
    def one_wrong_reward(rollout):  # without one, wrong places and sums are all zero
        rollout.rewards = torch.where(rollout.terminated, 1.0, 0.0)
        rollout.episodes = [
            e._replace(total=float(t)) for e, t in zip(rollout.episodes, rollout.rewards.sum(1), strict=True)
        ]
        fault(rollout)

    decoding_with(monkeypatch, one_wrong_reward)
    assert name in failed(paid.path)


def test_noise_that_depends_on_the_rows_beside(paid, monkeypatch):
    def by_position(keys, count):
        return np.random.default_rng(len(keys)).random((len(keys), count))

    monkeypatch.setattr(completions, "uniforms", by_position)
    assert failed(paid.path) == ["noise does not depend on batching"]


def test_a_loss_that_reads_padding(paid, monkeypatch):
    prepare = GRPO.prepare

    def with_padding(self, rollout):
        batch = prepare(self, rollout)
        batch.weights = torch.full_like(batch.weights, 0.01)
        return batch

    monkeypatch.setattr(GRPO, "prepare", with_padding)
    assert "padding is not in the loss" in failed(paid.path)


def test_an_estimate_that_changes_rewards_in_place(paid, monkeypatch):
    prepare = GRPO.prepare

    def in_place(self, rollout):
        batch = prepare(self, rollout)
        rollout.rewards += 1
        return batch

    monkeypatch.setattr(GRPO, "prepare", in_place)
    assert "rewards stay as they were given" in failed(paid.path)


def test_as_json_and_nothing_in_the_run_changes(paid, capsys):
    before = {path: path.read_bytes() for path in paid.path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stop:
        main(["audit", str(paid.path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0
    assert found["passed"] is True
    assert {"name", "seen", "ok"} == set(found["checks"][0])
    assert {path: path.read_bytes() for path in paid.path.rglob("*") if path.is_file()} == before


def test_a_run_with_user_code_is_refused_without_trust(tmp_path, capsys):
    run = train("algo=ppo", "env=CartPole-v1", "total_steps=64", "device=cpu", run_dir=tmp_path / "run", quiet=True)
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace("CartPole-v1", "danger:Env-v0"))
    with pytest.raises(SystemExit) as stop:
        main(["audit", str(run.path)])
    said = capsys.readouterr()
    assert (stop.value.code, said.out) == (2, "")
    assert "env.id=danger:Env-v0: pass --trust" in said.err
