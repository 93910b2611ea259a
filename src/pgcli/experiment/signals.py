"""Ctrl-C, SIGTERM or a closing terminal ask a run to stop: the loop ends its update, saves a checkpoint, and stops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """`requested` becomes true with the first signal; the handler does nothing else, so no update is interrupted."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def requested(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listen for SIGINT, SIGTERM and SIGHUP; a second one ends the process at once. Only the main thread can listen."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if previous[signal.SIGHUP] == signal.SIG_IGN:  # started with nohup, to outlive its terminal
        del previous[signal.SIGHUP]

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        request.signal = number
        for s in previous:  # a second signal, of any kind, ends the process
            signal.signal(s, signal.SIG_DFL)

    for s in previous:
        signal.signal(s, ask)
    try:
        yield request
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
