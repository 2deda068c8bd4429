"""Progress of a long command on stderr: one line that is overwritten on a terminal, few lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO

from surgeon.figures import duration
from surgeon.terminal import redraw, tell

if TYPE_CHECKING:
    from surgeon.engine.protocol import Message
    from surgeon.measure.progress import Standing

_SECONDS_BETWEEN = 0.1  # progress lines on a terminal
_SECONDS_BETWEEN_LINES = 10.0  # and elsewhere


class _Line:
    """One line rewritten on a terminal, a line now and then elsewhere."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._last = time.monotonic()

    def is_due(self, *, at_once: bool = False) -> bool:
        """Whether it is time for the next; at_once: it is, whatever the time."""
        now = time.monotonic()
        if not at_once and now - self._last < (_SECONDS_BETWEEN if self._terminal else _SECONDS_BETWEEN_LINES):
            return False
        self._last = now
        return True

    def show(self, text: str) -> None:
        if self._terminal:
            redraw(self._stream, text)
        else:
            self.keep(text)

    def keep(self, text: str) -> None:
        """A line that stays."""
        if self._terminal:
            redraw(self._stream, text, end="\n")
        else:
            tell([text], self._stream)
            self._stream.flush()

    def clear(self) -> None:
        if self._terminal:
            redraw(self._stream, "")


class StandingLine:
    """Where a job of several stages is, on stderr."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._line = _Line(stream)
        self._stage = ""

    def watch(self, standings: Iterable[Standing]) -> Iterator[Standing]:
        """Pass all on, showing them."""
        try:
            for standing in standings:
                self.show(standing)
                yield standing
        finally:
            self.clear()

    def show(self, standing: Standing) -> None:
        """Show it, unless one of the same stage was shown a moment ago."""
        if not self._line.is_due(at_once=standing.stage != self._stage):
            return
        self._stage = standing.stage
        left = "" if standing.seconds_left is None else f"  {duration(standing.seconds_left)} left"
        figures = "".join(
            f"  {name} {standing.figures[name]:.4f}" for name in ("mean_kld",) if name in standing.figures
        )
        self._line.show(f"{standing.stage}: {standing.part:4.0%}{left}{figures}  {standing.note}")

    def keep(self, text: str) -> None:
        """A line that stays above."""
        self._line.keep(text)

    def clear(self) -> None:
        self._line.clear()


class ProgressLine:
    """Steps of one run, on stderr."""

    def __init__(self, what: str, unit: str, stream: TextIO | None = None) -> None:
        self._what, self._unit = what, unit
        self._line = _Line(stream)
        self._start = time.monotonic()
        self._values: dict[str, float] = {}

    def watch(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Pass all messages on, showing Loaded, Started, Step and Within."""
        from surgeon.engine.protocol import Loaded, Started, Step, Within

        try:
            for message in messages:
                if isinstance(message, Loaded):
                    self._line.keep(f"{message.engine}, {message.threads} threads; {message.description}")
                elif isinstance(message, Started):
                    self._start = time.monotonic()
                elif isinstance(message, Step):
                    self._values = message.values
                    self._step(f"{message.done}", message.done, message.total)
                elif isinstance(message, Within):
                    self._step(f"{message.done:.1f}", message.done, message.total)
                yield message
        finally:
            self._line.clear()

    def _step(self, said: str, done: float, total: int) -> None:
        if not self._line.is_due(at_once=done >= total):
            return
        left = (time.monotonic() - self._start) / (done or 1) * (total - done)
        figures = "".join(
            f"  {name} {value:.4f}" if isinstance(value, float) else f"  {value} {name}"
            for name, value in self._values.items()
            if not name.endswith("error")
        )
        self._line.show(f"{self._what}: {said}/{total} {self._unit}{figures}  {duration(left)} left")
