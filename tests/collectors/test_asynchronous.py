"""Workers that are processes: they share parameters, their gradients tell their age, and none of them dies unseen."""

import multiprocessing
import os
import signal
import time

import pytest
import torch
from torch import nn

from pgcli.collectors.asynchronous import GradientCollector
from pgcli.errors import RunError
from pgcli.types import Episode, Gradients

FORK = multiprocessing.get_context("fork")  # a test's own classes cannot be imported by a fresh interpreter


class Echo:
    """Its gradient is the parameters that it read, and its own number; it counts its gradients."""

    replay_mismatch = None

    def __init__(self, number):
        self.number, self.made = number, 0

    def gradients(self, parameters):
        self.made += 1
        terms = {"worker": float(self.number), "made": float(self.made)}
        return Gradients(torch.from_numpy(parameters.copy()), terms, {}, steps=1, episodes=[Episode(1.0, 2, self.made)])

    def state_dict(self):
        return {"made": self.made}

    def load_state_dict(self, state):
        self.made = state["made"]

    def close(self):
        pass


class Sleepy(Echo):
    """Worker 1 takes its time."""

    def gradients(self, parameters):
        time.sleep(0.3 * self.number)
        return super().gradients(parameters)


class Broken(Echo):
    def gradients(self, parameters):
        raise RunError("the reward is nan")


class Clumsy(Echo):
    def gradients(self, parameters):
        raise KeyError("reward")


def gather(collector, count):
    return [collector.collect(policy()) for _ in range(count)]


@pytest.fixture
def start(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: FORK)
    made = []

    def start(make, num_workers):
        made.append(GradientCollector(make, num_workers=num_workers))
        return made[-1]

    yield start
    for collector in made:
        collector.close()


def policy(value=0.0):
    one = nn.Linear(2, 1)
    nn.init.constant_(one.weight, value)
    nn.init.constant_(one.bias, value)
    return one


def test_a_worker_reads_the_parameters_as_they_are_when_it_goes(start):
    collector = start(Echo, 1)
    for value in (1.0, 2.0, 3.0):
        assert collector.collect(policy(value)).flat.tolist() == [value] * 3


def test_a_start_waits_until_every_worker_is_ready(start, tmp_path):
    def make(number):
        time.sleep(0.2)
        (tmp_path / str(number)).touch()
        return Echo(number)

    start(make, 2).start(policy())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_one_worker_is_never_stale(start):
    collector = start(Echo, 1)
    assert [collector.collect(policy()).staleness for _ in range(4)] == [0] * 4


def test_staleness_counts_the_updates_made_since_the_parameters_were_read(start):
    collector = start(Sleepy, 2)
    for update in range(1_000_000):
        gradients = collector.collect(policy(float(update)))
        read_at = gradients.flat[0].item()  # what the parameters were: the number of their update
        assert gradients.staleness - (update - read_at) in (0, 1)  # 1: read while they changed
        if gradients.terms["worker"] == 1:
            assert gradients.staleness > 10, "the other one has overtaken it"
            return
    raise AssertionError("the slow worker never came")


def test_every_worker_has_its_turn(start):
    collector = start(Echo, 3)
    count = dict.fromkeys((0.0, 1.0, 2.0), 0)
    for _ in range(300):
        count[collector.collect(policy()).terms["worker"]] += 1
    assert min(count.values()) > 30


def test_a_snapshot_holds_what_is_under_way_and_each_worker_s_state(start):
    collector = start(Echo, 3)
    for _ in range(5):
        collector.collect(policy(1.0))
    state = collector.state_dict()
    # Each worker has made one gradient for each time it was told to go: those handed on, and those now in the snapshot.
    assert sum(saved["made"] for saved in state["workers"]) == 5 + len(state["arrived"])
    assert len(state["arrived"]) == 2
    other = start(Echo, 3)
    other.load_state_dict(state)
    # The two that were under way come first, with the parameters that they had read.
    restored = [other.collect(policy(9.0)) for _ in range(2)]
    assert [g.flat.tolist() for g in restored] == [[1.0] * 3] * 2
    assert {g.terms["worker"] for g in restored} == {float(saved["worker"]) for saved in state["arrived"]}
    assert restored[0].episodes[0].total == 1.0
    before = {number: saved["made"] for number, saved in enumerate(state["workers"])}
    following = other.collect(policy(9.0))
    assert following.terms["made"] == before[following.terms["worker"]] + 1
    assert other.updates == 8


def test_a_worker_that_is_killed_is_named(start):
    collector = start(Echo, 2)
    collector.collect(policy())
    os.kill(collector.workers[1].process.pid, signal.SIGKILL)
    with pytest.raises(RunError, match=r"worker 1 of 2 \(process \d+\) has died: killed by SIGKILL"):
        gather(collector, 100_000)  # a killed process takes its time to be gone


@pytest.mark.parametrize(("make", "reason"), [(Broken, "the reward is nan"), (Clumsy, "KeyError: 'reward'")])
def test_an_error_in_a_worker_is_told_in_one_line(start, make, reason):
    with pytest.raises(RunError) as caught:
        start(make, 1).collect(policy())
    assert str(caught.value) == f"worker 0 of 1: {reason}"


def test_workers_end_with_their_collector(start):
    collector = start(Echo, 2)
    collector.collect(policy())
    collector.close()
    assert [worker.process.exitcode for worker in collector.workers] == [0, 0]
