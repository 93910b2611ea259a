"""A run to write to, a state to save, and a process that dies at its n-th operation on the disk."""

import os
import signal

import numpy as np
import pytest
import torch

from pgcli.runs import files
from pgcli.runs.writer import RunWriter

CONFIG = {
    "env": {"name": "cartpole", "id": "CartPole-v1"},
    "checkpoint": {"every": 100, "keep": 3},
    "algo": {"gamma": 0.99},
}
INFO = {"argv": ["train"], "choices": {"algo": "ppo", "env": "cartpole"}, "device": "cpu", "exact_resume": True}


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch):
    """What the kernel has survives a kill, so no test waits for the disk; that we ask it to is a test of its own."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def new_run(tmp_path):
    def make(runs_dir=tmp_path / "runs", **changes):
        arguments = {
            "algo": "ppo",
            "slug": "cartpole",
            "seed": 0,
            "info": INFO,
            "config": CONFIG,
            "overrides": ["algo=ppo"],
        }
        return RunWriter.create(runs_dir, **(arguments | changes))

    return make


@pytest.fixture
def state_at():
    """A state that differs at every step."""

    def make(step):
        weights = {"layer.weight": torch.full((2, 3), float(step)), "layer.bias": torch.arange(3) + float(step)}
        return {"policy": weights, "collector": {"steps": step, "seeds": np.array([step, step + 1])}}

    return make


@pytest.fixture
def dies_at():
    """dies_at(n, work): run `work` in a child process that SIGKILL ends before its n-th operation on the disk.

    `work` gets a function that starts the count. With `torn`, half of a write or of a removal is done.
    True if the child was killed, False if it ended before its n-th operation.
    """

    def run(n, work, *, torn=False):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(lambda: _arm(n, torn))
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed by itself"
        return os.WIFSIGNALED(status)

    return run


def _arm(n, torn):
    count = 0

    def wrap(name, real):
        def operation(target, *arguments):
            nonlocal count
            count += 1
            if count == n:
                if torn and name in ("write", "append"):
                    data = arguments[0]
                    real(target, data[: len(data) // 2])
                if torn and name == "remove" and target.is_dir():
                    next(target.iterdir()).unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            return real(target, *arguments)

        return operation

    for name in ("make_dir", "write", "fsync", "rename", "remove", "append"):
        setattr(files, name, wrap(name, getattr(files, name)))
