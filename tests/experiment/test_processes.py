"""Two processes, as `torchrun --nproc-per-node 2` starts them, learn what one learns on the same rows."""

import multiprocessing
import os
import socket

import pytest
import torch

from pgcli import processes
from pgcli.errors import PgcliError
from pgcli.experiment import resume, train
from pgcli.runs import Run

from .conftest import TRANSFORMER

pytestmark = pytest.mark.usefixtures("_no_power_cut")
FORK = multiprocessing.get_context("fork")

SORT = (
    "env=sort", "env.cut_reward=-1", "tuned=none",
    "device=cpu", "log_every=1", "eval.episodes=5", "eval.every=500", "checkpoint.every=200",
    "checkpoint.keep=100", "total_steps=600", *TRANSFORMER,
)  # fmt: skip
EXPERIMENTS = {
    # A price on the exact KL, an odd number of rows in pieces of odd numbers.
    "grpo": (
        "algo=grpo", "algo.num_groups=5", "algo.group_size=3", "algo.minibatches=2", "algo.epochs=2",
        "algo.entropy_coefficient=0.01", "algo.kl.coefficient=0.1",
    ),
    # A critic; advantages whitened over each piece, which no process has all of.
    "ppo": ("algo=ppo", "algo.num_episodes=16", "algo.normalise_advantages=minibatch"),
    # The exact KL of whole distributions.
    "ppo_kl": ("algo=ppo_kl", "algo.num_episodes=16"),
    # Pieces of one row, which both processes differentiate.
    "ppo_of_few": ("algo=ppo", "algo.num_episodes=3", "algo.minibatches=3", "total_steps=60"),
    "sft": ("algo=sft", "algo.num_demonstrations=15"),
    # Losses of pairs, whose rows may stand in two processes; and a policy that is no distribution.
    "dpo": ("algo=dpo", "algo.num_pairs=9"),
    "reward_model": ("algo=reward_model", "algo.num_pairs=9", "algo.ensemble=2"),
}  # fmt: skip
SAME = ("loss/", "policy/", "optimiser/", "rollout/", "reward/", "eval/", "kl/", "value/")


def one_of_two(rank, port, work, words, answers):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    try:
        work(*words[rank])
        answers.put((rank, "done"))
    except PgcliError as error:
        answers.put((rank, f"{type(error).__name__}: {error}"))


def in_two(work, *words, other=None):
    """What each process says at the end. `other`: what the second one is told, if it differs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = FORK.Queue()
    told = (words, words if other is None else other)
    started = [FORK.Process(target=one_of_two, args=(rank, port, work, told, answers)) for rank in (0, 1)]
    for process in started:
        process.start()
    found = dict(answers.get(timeout=60) for _ in started)
    for process in started:
        process.join(timeout=60)
        assert process.exitcode == 0
    return found[0], found[1]


def start(folder, *words):
    return train(*SORT, *words, run_dir=folder, quiet=True)


def assert_same(a, b, tolerance=1e-5):
    assert len(a.rows()) == len(b.rows()) >= 4
    for own, other in zip(a.rows(), b.rows(), strict=True):
        assert own.keys() == other.keys()
        for key in own:
            if key.startswith(SAME):
                assert other[key] == pytest.approx(own[key], abs=tolerance, rel=tolerance, nan_ok=True), key


@pytest.mark.parametrize("words", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_two_processes_have_the_losses_of_one(tmp_path, words):
    alone = start(tmp_path / "alone", *words)
    assert in_two(start, tmp_path / "two", *words) == ("done", "done")
    together = Run(tmp_path / "two")
    assert together.info["processes"] == 2
    assert_same(alone, together)
    assert sum(row["optimiser/grad_norm"] for row in alone.rows()) > 0
    assert together.episodes()["r"].tolist() == alone.episodes()["r"].tolist()


def test_a_run_of_two_processes_is_resumed_exactly_by_two_and_not_so_by_one(tmp_path, capsys):
    words = EXPERIMENTS["grpo"]
    in_two(start, tmp_path / "straight", *words)
    in_two(start, tmp_path / "halves", *words, "total_steps=300")
    assert in_two(go_on, tmp_path / "halves", "total_steps=600") == ("done", "done")
    last = [Run(tmp_path / name).checkpoints()[-1] / "model.safetensors" for name in ("straight", "halves")]
    assert last[0].read_bytes() == last[1].read_bytes()
    assert Run(tmp_path / "halves").info["exact_resume"] is True
    resume(tmp_path / "halves", "total_steps=800", quiet=True)
    assert "2 -> 1 processes" in capsys.readouterr().err


def go_on(folder, *words):
    resume(folder, *words, quiet=True)


def test_what_happens_to_one_of_them_ends_the_run_and_is_said_once(tmp_path):
    words = EXPERIMENTS["sft"]
    # The second process goes wrong after it has learned for a while.
    said, other = in_two(go_wrong, tmp_path / "run", *words, other=(None, *words))
    assert said.startswith("Lost: process 1 of 2: out of luck\nrun ")
    assert other == "RunError: out of luck"
    run = Run(tmp_path / "run")
    assert (run.status, run.info["reason"]) == ("failed", "process 1 of 2: out of luck")
    assert len(run.rows()) > 0


def go_wrong(folder, *words):
    if os.environ["RANK"] == "1":
        anybody, calls = processes.anybody, []

        def unlucky(flag):
            calls.append(flag)
            if len(calls) == 3:
                raise processes.RunError("out of luck")
            return anybody(flag)

        processes.anybody = unlucky
    start(folder, *words)


def test_a_run_that_only_the_other_process_was_asked_to_stop_is_interrupted(tmp_path):
    words = EXPERIMENTS["sft"]
    assert in_two(stop_early, tmp_path / "run", *words, other=(None, *words)) == ("done", "done")
    run = Run(tmp_path / "run")
    assert (run.status, run.info["reason"]) == ("interrupted", "SIGTERM")
    assert 0 < run.steps < 600


def stop_early(folder, *words):
    if os.environ["RANK"] == "1":
        anybody, calls = processes.anybody, []

        def asked(flag):
            calls.append(flag)
            return anybody(len(calls) == 3)

        processes.anybody = asked
    start(folder, *words)


def test_a_stepped_environment_is_refused_before_anything_is_written(tmp_path):
    said, _ = in_two(train, "algo=ppo", "env=cartpole", f"runs_dir={tmp_path / 'runs'}")
    assert said == "InputError: torchrun shares out the rows of a text task; env=cartpole is stepped by one process"
    assert not (tmp_path / "runs").exists()


def test_shares_are_consecutive_and_each_row_has_one(monkeypatch):
    monkeypatch.setattr(processes._Team, "size", 4)
    shares = []
    for rank in range(4):
        monkeypatch.setattr(processes._Team, "rank", rank)
        shares += list(range(10))[processes.share(10)]
        assert processes.share(3) == slice(0, 3), "too few to share out"
    assert shares == list(range(10))


def gathers(folder):
    del folder
    with processes.joined():
        rank = processes.rank()
        own = torch.tensor([[1.0], [2.0]] if rank == 0 else [[3.0], [4.0], [5.0]], requires_grad=True)
        whole = processes._Whole.apply(own, 5)
        # sum of squares of everything: this process's gradient is twice its own rows.
        whole.square().sum().backward()
        assert whole.flatten().tolist() == [1, 2, 3, 4, 5]
        assert torch.equal(own.grad, 2 * own.detach())
        assert processes.gather(torch.tensor([True] * len(own)), 5).dtype == torch.bool
        assert processes.anybody(rank == 1)
        assert not processes.anybody(False)
        assert processes.tell(f"café {rank}") == "café 0"


def test_what_is_gathered_has_the_gradient_of_one_s_own_rows(tmp_path):
    assert in_two(gathers, tmp_path) == ("done", "done")
