"""Progress of a run for the user: one screen on a terminal, a plain line from time to time elsewhere.

The console never stops a run: a stream that breaks (`| head`) is not written to again, and training goes on.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, TextIO

from rich.console import Console as Terminal
from rich.live import Live

from pgcli.runs.screen import ASCII, UNICODE, Progress, plain_line, sample_line, screen

FRAME_SECONDS = 1 / 8
LINE_SECONDS = 1.0


class Display(Protocol):
    def wants(self, progress: Progress, now: float) -> bool:
        """Whether it is time to show something: called at every row, so it must be cheap."""
        ...

    def show(self, progress: Progress, now: float) -> None: ...

    def note(self, text: str) -> None: ...

    def samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Show completions now, on a display without a screen that would keep them."""
        ...

    def close(self, progress: Progress, now: float) -> None: ...


class Stream:
    """A text stream that writes nothing more after an error, and replaces characters that its encoding lacks."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"
        self.broken = False

    def write(self, text: str) -> int:
        if not self.broken:
            try:
                self.stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
            except OSError:
                self.broken = True
        return len(text)

    def flush(self) -> None:
        if not self.broken:
            try:
                self.stream.flush()
            except OSError:
                self.broken = True

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()


class Lines:
    """A line at the start, at every evaluation, and otherwise at most once a second, less often in long runs."""

    def __init__(self, stream: Stream):
        self.stream = stream
        self.shown = 0
        self.due = -math.inf

    def wants(self, progress: Progress, now: float) -> bool:
        return now >= self.due or progress.evaluated_at == progress.step

    def show(self, progress: Progress, now: float) -> None:
        self.note(plain_line(progress, now))
        self.shown = progress.step
        self.due = now + max(LINE_SECONDS, (now - progress.began) / 100)

    def note(self, text: str) -> None:
        self.stream.write(text + "\n")
        self.stream.flush()

    def samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        self.note("\n".join(map(sample_line, samples)))

    def close(self, progress: Progress, now: float) -> None:
        if progress.step > self.shown:
            self.show(progress, now)


class Screen:
    """The screen of a terminal, redrawn eight times a second at most, and in at most a fiftieth of the time."""

    def __init__(self, stream: Stream, clock: Callable[[], float]):
        self.clock = clock
        self.due = -math.inf
        self.glyphs = UNICODE if stream.encoding.lower().startswith("utf") else ASCII
        # Rich uses only methods that Stream has. On a broken pipe Rich itself would exit.
        self.terminal = Terminal(file=stream, force_terminal=True, highlight=False)  # type: ignore[arg-type]
        self.live = Live(console=self.terminal, auto_refresh=False, vertical_overflow="crop")
        self.live.start()

    def wants(self, progress: Progress, now: float) -> bool:
        return now >= self.due

    def show(self, progress: Progress, now: float) -> None:
        width, height = self.terminal.size
        self.live.update(screen(progress, now, width, height, self.glyphs), refresh=True)
        self.due = now + max(FRAME_SECONDS, 50 * (self.clock() - now))

    def note(self, text: str) -> None:
        self.terminal.print(text, markup=False)

    def samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        self.due = -math.inf  # they are in `Progress`, and the next row shows them

    def close(self, progress: Progress, now: float) -> None:
        if progress.first is not None:
            self.show(progress, now)
        self.live.stop()


class Console:
    """Takes every metrics row and shows as many as a user can follow."""

    def __init__(
        self, progress: Progress, display: Display | None, clock: Callable[[], float], *, samples: bool = False
    ):
        self.progress = progress
        self.display = display
        self.clock = clock
        self.wants_samples = samples

    def log(self, row: Mapping[str, float]) -> None:
        """Take a metrics row: cheap, unless it is time to show it."""
        if self.display is None:
            return
        now = self.clock()
        self.progress.add(row, now)
        if self.display.wants(self.progress, now):
            self.display.show(self.progress, now)

    def samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Take completions of the evaluation whose row was logged last; shown if the user asked for them."""
        if samples and self.wants_samples and self.display is not None:
            self.progress.samples = samples
            self.display.samples(samples)

    def note(self, text: str) -> None:
        """A line that stays."""
        if self.display is not None:
            self.display.note(text)

    def close(self) -> None:
        """Show the last state. Nothing is shown after it."""
        if self.display is not None:
            self.display.close(self.progress, self.clock())
            self.display = None

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def is_plain(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether the stream can only show lines: a pipe, a file, continuous integration, a dumb terminal."""
    return not stream.isatty() or environ.get("TERM", "") in ("dumb", "unknown") or bool(environ.get("CI"))


def open_console(
    *,
    title: str,
    total_steps: int,
    unit: str,
    quiet: bool = False,
    samples: bool = False,
    stream: TextIO | None = None,
    plain: bool | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Console:
    """The console of a run. `unit`: the name of an action, `steps` or `tokens`. `samples`: show completions, too.

    `plain`: lines instead of a screen; by default it depends on the stream.
    """
    target = sys.stdout if stream is None else stream
    progress = Progress(title=title, total_steps=total_steps, unit=unit, began=clock())
    if quiet:
        return Console(progress, None, clock)
    lines_only = is_plain(target, os.environ) if plain is None else plain
    display: Display = Lines(Stream(target)) if lines_only else Screen(Stream(target), clock)
    if lines_only:
        display.note(title)
    return Console(progress, display, clock, samples=samples)
