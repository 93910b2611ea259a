"""What a run remembers, in its directory: only what is new is written, a fork has it too, an evaluation reads none."""

import json
from itertools import pairwise

import pytest

from pgcli.experiment import evaluate, resume, train
from pgcli.runs import Run

from .conftest import MLP, TINY, assert_same_end, killed_copy, memory_of

pytestmark = pytest.mark.usefixtures("_no_power_cut")

DQN = (
    "algo=dqn", *TINY, "algo.num_steps=10", "algo.gradient_steps=2", "algo.batch_size=8", "algo.learning_starts=50",
    MLP,
)  # fmt: skip


def start(folder, *words, steps=1200):
    return train(*DQN, f"total_steps={steps}", "checkpoint.keep=100", *words, run_dir=folder, quiet=True)


def test_each_checkpoint_writes_the_transitions_since_the_one_before_it(tmp_path):
    run = start(tmp_path / "run")
    named = [list(memory_of(path)) for path in run.checkpoints()]
    assert named[0] == []
    assert all(later[: len(earlier)] == earlier for earlier, later in pairwise(named))
    assert len(named[-1]) == len(run.checkpoints()) - 1
    assert len(list((run.path / "checkpoints" / "memory").iterdir())) == len(named[-1])


def test_a_memory_that_overflows_forgets_on_the_disk_too(tmp_path):
    run = train(
        *DQN, "algo.capacity=200", "total_steps=2000", "checkpoint.keep=1", run_dir=tmp_path / "run", quiet=True
    )
    kept = {name for path in run.checkpoints() for name in memory_of(path)}
    assert {path.name for path in (run.path / "checkpoints" / "memory").iterdir()} == kept
    assert len(memory_of(run.checkpoints()[-1])) <= 2


def test_a_fork_has_the_memory_and_a_larger_one_keeps_all_of_it(tmp_path):
    straight = start(tmp_path / "straight", f"runs_dir={tmp_path / 'forks'}")
    run = start(tmp_path / "run", f"runs_dir={tmp_path / 'forks'}", steps=600)
    child = resume(run.path, "total_steps=1200", fork=True, quiet=True)
    assert len(memory_of(child.checkpoints()[0])) == 1  # all that there was, in one piece
    newest, reference = child.checkpoints()[-1], straight.checkpoints()[-1]
    assert newest.name == reference.name
    for name in ("model.safetensors", "state.safetensors"):
        assert (newest / name).read_bytes() == (reference / name).read_bytes()
    other = resume(run.path, "total_steps=1200", "algo.capacity=100", fork=True, quiet=True)
    assert sum(map(len, memory_of(other.checkpoints()[-1]).values())) < sum(map(len, memory_of(newest).values()))


def test_an_evaluation_and_a_run_that_begins_with_its_weights_read_no_memory(tmp_path):
    run = start(tmp_path / "run", steps=300)
    for path in (run.path / "checkpoints" / "memory").iterdir():
        path.write_bytes(b"not even a file of tensors")
    assert evaluate(run.path, episodes=2)["step"] == run.info["steps"]
    start(tmp_path / "other", f"init={run.path}", steps=100)


@pytest.mark.parametrize("damage", ["torn", "gone"])
def test_a_run_with_a_damaged_segment_goes_on_from_the_checkpoint_before_it(tmp_path, capsys, damage):
    straight = start(tmp_path / "straight")
    killed = killed_copy(straight.path, tmp_path / "killed", after=3)
    last = list(memory_of(Run(killed).checkpoints()[-1]))[-1]
    segment = killed / "checkpoints" / "memory" / last
    segment.write_bytes(segment.read_bytes()[:100]) if damage == "torn" else segment.unlink()
    resume(killed, quiet=True)
    warning = capsys.readouterr().err
    assert last in warning
    assert "was skipped" in warning
    assert_same_end(killed, straight.path)


def test_a_checkpoint_whose_manifest_names_other_files_is_skipped(tmp_path):
    run = start(tmp_path / "run", steps=600)
    killed = killed_copy(run.path, tmp_path / "killed", after=2)
    manifest = Run(killed).checkpoints()[-1] / "MANIFEST.json"
    described = json.loads(manifest.read_text())
    described["memory"] = {"../../config.yaml": next(iter(described["memory"].values()))}
    manifest.write_text(json.dumps(described))
    resume(killed, quiet=True)
    assert "names segments" in (killed / "log.txt").read_text()
