import pytest
import torch
from pydantic import ValidationError

from pgcli import processes
from pgcli.devices.auto import Auto
from pgcli.devices.cpu import CPU
from pgcli.devices.cuda import CUDA
from pgcli.devices.mps import MPS
from pgcli.errors import InputError
from pgcli.experiment.build import network_size


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def with_cuda(monkeypatch):
    """As on a machine with two CUDA devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"device {index}")


@pytest.fixture
def without(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def with_metal(monkeypatch):
    """As on an Apple computer."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


@pytest.fixture
def process(monkeypatch):
    """As in a process of `torchrun`, of as many as are said."""

    def become(local_rank, size):
        monkeypatch.setattr(processes._Team, "local_rank", local_rank)
        monkeypatch.setattr(processes._Team, "size", size)

    return become


def auto(parameters):
    return Auto(Auto.Config(name="auto", threads=1, small=1_000), parameters=parameters)


@pytest.mark.parametrize("threads", [1, 2])
def test_whoever_makes_a_device_sets_the_threads(threads):
    device = CPU(CPU.Config(name="cpu", threads=threads), parameters=10)
    assert torch.get_num_threads() == threads
    assert device.torch == torch.device("cpu")
    assert device.note == f"cpu, {threads} thread{'s' if threads > 1 else ''}"


def test_threads_that_no_processor_has_are_refused():
    with pytest.raises(ValidationError, match="less than or equal to 1024"):
        CPU.Config(name="cpu", threads=100_000)


def test_auto_keeps_a_small_network_on_the_processor_and_says_why(with_cuda):
    device = auto(parameters=999)
    assert device.torch.type == "cpu"
    assert device.note == "cpu, 1 thread (auto: a network of 999 parameters is faster there than on cuda)"


def test_auto_gives_a_large_network_the_graphics_processor(with_cuda):
    assert auto(parameters=1_000).torch.type == "cuda"


def test_frozen_weights_beside_an_adapter_make_a_network_large(with_cuda):
    adapted = torch.nn.Linear(2, 3)
    adapted.register_buffer("frozen", torch.zeros(1_000), persistent=False)
    assert network_size(adapted) == 1_009
    assert auto(network_size(adapted)).torch.type == "cuda"


def test_auto_without_a_graphics_processor_is_the_processor(without):
    assert auto(parameters=10**9).torch.type == "cpu"


def test_a_device_asked_for_by_name_is_there_or_refused(without):
    with pytest.raises(InputError, match="no CUDA device on this machine; use device=cpu"):
        CUDA(CUDA.Config(name="cuda", index=0, threads=1), parameters=1)
    with pytest.raises(InputError, match="no Metal device on this machine; use device=cpu"):
        MPS(MPS.Config(name="mps", threads=1), parameters=1)


def test_a_device_is_asked_for_by_its_number(with_cuda):
    device = CUDA(CUDA.Config(name="cuda", index=1, threads=1), parameters=1)
    assert device.torch == torch.device("cuda", 1)
    assert device.note == "cuda:1, device 1"
    with pytest.raises(InputError, match=r"device=cuda:2: this machine has 2 CUDA device\(s\)"):
        CUDA(CUDA.Config(name="cuda", index=2, threads=1), parameters=1)


def test_each_process_has_a_graphics_processor_of_its_own(with_cuda, process):
    process(1, size=2)
    assert auto(parameters=1_000).torch == torch.device("cuda", 1)
    assert CUDA(CUDA.Config(name="cuda", index=0, threads=1), parameters=1).torch == torch.device("cuda", 1)


def test_there_must_be_enough_of_them(with_cuda, process):
    process(2, size=3)
    for make in (
        lambda: auto(parameters=1_000),
        lambda: CUDA(CUDA.Config(name="cuda", index=0, threads=1), parameters=1),
    ):
        with pytest.raises(InputError, match=r"device=cuda:2: this machine has 2 CUDA device\(s\)"):
            make()


def test_several_processes_do_not_share_an_apple_graphics_processor(with_metal, process):
    assert auto(parameters=1_000).torch.type == "mps"
    assert MPS(MPS.Config(name="mps", threads=1), parameters=1).torch.type == "mps"
    process(0, size=2)
    assert auto(parameters=1_000).torch.type == "cpu"
    with pytest.raises(InputError, match="device=mps: the processes of a torchrun cannot exchange tensors of it"):
        MPS(MPS.Config(name="mps", threads=1), parameters=1)
