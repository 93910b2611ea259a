"""Gradients from worker processes, each with its own environments, that read shared parameters without waiting.

    main process                                 worker process
    start:   begin the processes            -->  make environments and a policy, say when ready
    collect: publish the parameters, "go"   -->  read them, play a segment, differentiate the loss
             take whichever gradient is next <--  send the gradient, wait to be told to go on
    update:  one optimiser step along it

A worker waits for its own gradient to be applied, as a thread of A3C does, but not for the gradients of other workers:
while it works, the parameters move on, and its gradient is that of parameters `staleness` updates older.
"""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from pgcli.errors import RunError
from pgcli.types import Gradients, State

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a run to stop. Ctrl-C in the terminal, or a `kill` of the process group, also reaches the workers, and is
meant for the main process alone."""


class Worker(Protocol):
    """What a worker process runs: an environment, a copy of the policy and the loss."""

    @property
    def replay_mismatch(self) -> str | None: ...

    def gradients(self, parameters: np.ndarray) -> Gradients:
        """Gradients of the loss on the next segment, played by the policy with these parameters, (P,) float32."""
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...

    def close(self) -> None: ...


MakeWorker = Callable[[int], Worker]
"""Worker number -> worker. Called in the worker's process, so it must be picklable."""


class Failure(NamedTuple):
    """An exception of a worker, in a sentence."""

    text: str


class Arrival(NamedTuple):
    """A gradient, and how many updates had been made when its worker read the parameters."""

    read_at: int
    gradients: Gradients


class Shared(NamedTuple):
    """Memory that all processes see: how many updates were made, and the parameters after them."""

    updates: Any
    parameters: Any


class Remote(NamedTuple):
    """A worker as the main process sees it."""

    number: int
    process: Any
    connection: Connection


class GradientCollector:
    """Starts `num_workers` processes and hands on their gradients, one at a time, in the order in which they come."""

    def __init__(self, make: MakeWorker, *, num_workers: int) -> None:
        self.make, self.num_workers = make, num_workers
        self.updates = 0  # gradients handed on so far
        self.workers: list[Remote] = []
        self.waiting: set[int] = set(range(num_workers))  # workers that wait for "go"
        self.arrived: deque[tuple[int, Arrival]] = deque()  # received for a checkpoint, not handed on yet
        self.served = -1  # the worker whose gradient came last
        self.replay_mismatch: str | None = None
        self.shared = Shared(None, [])

    def start(self, policy: Any) -> None:
        """Start the workers, unless they run, and wait until they are ready: seconds that are no part of collecting."""
        if not self.workers:
            self._start(sum(p.numel() for p in policy.parameters()))

    def collect(self, policy: Any) -> Gradients:
        """The next gradient. Raises RunError if a worker has died."""
        self.start(policy)
        flat = torch.cat([p.detach().flatten() for p in policy.parameters()]).cpu().numpy()
        np.frombuffer(self.shared.parameters, dtype=np.float32)[:] = flat
        self.shared.updates.value = self.updates
        for number in sorted(self.waiting):
            self._send(self.workers[number], "go", None)
        self.waiting.clear()
        number, (read_at, gradients) = self.arrived.popleft() if self.arrived else self._next()
        self.waiting.add(number)
        self.updates += 1
        return replace(gradients, staleness=self.updates - 1 - read_at)

    def _next(self) -> tuple[int, Arrival]:
        """From the first ready worker after the one served last, so that a fast worker does not shut out the others."""
        ready = wait([worker.connection for worker in self.workers])
        turns = [*self.workers[self.served + 1 :], *self.workers[: self.served + 1]]
        worker = next(worker for worker in turns if worker.connection in ready)
        self.served = worker.number
        return worker.number, self._receive(worker)

    def _start(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit locks that other threads hold
        self.shared = Shared(context.RawValue("q"), context.RawArray("f", size))
        atexit.register(self.close)  # before multiprocessing's own end, which would wait for them to obey a SIGTERM
        for number in range(self.num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=serve, args=(self.make, number, self.shared, theirs), name=f"pgcli worker {number}", daemon=True
            )
            with _deaf():
                process.start()
            theirs.close()
            self.workers.append(Remote(number, process, ours))
        for worker in self.workers:
            self._receive(worker)

    def _send(self, worker: Remote, command: str, argument: Any) -> None:
        try:
            worker.connection.send((command, argument))
        except OSError as error:
            raise self._dead(worker) from error

    def _receive(self, worker: Remote) -> Any:
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError) as error:
            raise self._dead(worker) from error
        if isinstance(answer, Failure):
            raise RunError(f"worker {worker.number} of {self.num_workers}: {answer.text}")
        return answer

    def _dead(self, worker: Remote) -> RunError:
        worker.process.join(timeout=5)
        code = worker.process.exitcode
        how = f"killed by {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
        return RunError(
            f"worker {worker.number} of {self.num_workers} (process {worker.process.pid}) has died: {how}; "
            "the last checkpoint can be resumed"
        )

    def state_dict(self) -> State:
        """A consistent snapshot: waits for the gradients under way, then asks each worker for its open episodes."""
        busy = [w for w in self.workers if w.number not in self.waiting | {number for number, _ in self.arrived}]
        self.arrived.extend((worker.number, self._receive(worker)) for worker in busy)
        states = []
        for worker in self.workers:
            self._send(worker, "state", None)
            states.append(self._receive(worker))
        return {
            "updates": self.updates,
            "size": len(self.shared.parameters),
            "workers": states,
            "arrived": [{"worker": n, "read_at": at, "gradients": vars(one)} for n, (at, one) in self.arrived],
        }

    def load_state_dict(self, state: State) -> None:
        if not state["workers"]:  # the checkpoint of step 0
            return
        self._start(state["size"])
        self.updates = state["updates"]
        for worker, saved in zip(self.workers, state["workers"], strict=True):
            self._send(worker, "load", saved)
        for worker in self.workers:
            self.replay_mismatch = self.replay_mismatch or self._receive(worker)
        for saved in state["arrived"]:
            self.arrived.append((saved["worker"], Arrival(saved["read_at"], Gradients.load(saved["gradients"]))))
        self.waiting -= {number for number, _ in self.arrived}

    def close(self) -> None:
        """Let the workers end; one that does not within two seconds is killed."""
        atexit.unregister(self.close)
        for worker in self.workers:
            with suppress(OSError):  # it is gone already
                worker.connection.send(("stop", None))
        for worker in self.workers:
            worker.process.join(timeout=2)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


@contextmanager
def _deaf() -> Iterator[None]:
    """A process started within inherits that `STOPS` wait, so that they do not end it in the seconds of its imports."""
    resource_tracker.ensure_running()  # otherwise the first start starts it, and lets the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(make: MakeWorker, number: int, shared: Shared, connection: Connection) -> None:
    """The main function of a worker process. It ends when its commands end, also if the main process was killed."""
    for stop in STOPS:
        signal.signal(stop, lambda *_: None)  # not SIG_IGN, which a program that an environment starts would inherit
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    worker: Worker | None = None
    parameters = np.frombuffer(shared.parameters, dtype=np.float32)
    try:
        worker = make(number)
        connection.send("ready")
        while (message := connection.recv())[0] != "stop":
            command, argument = message
            match command:
                case "go":
                    # Not locked, as in the paper: read while they change, they are partly one update newer.
                    read_at, own = shared.updates.value, parameters.copy()
                    connection.send(Arrival(read_at, worker.gradients(own)))
                case "state":
                    connection.send(worker.state_dict())
                case "load":
                    worker.load_state_dict(argument)
                    connection.send(worker.replay_mismatch)
    except (EOFError, OSError):
        pass  # the main process is gone
    except Exception as error:
        reason = str(error).partition("\n")[0]
        connection.send(Failure(reason if isinstance(error, RunError) else f"{type(error).__name__}: {reason}"))
    finally:
        if worker is not None:
            worker.close()
