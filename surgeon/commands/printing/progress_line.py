"""Progress of a long command on stderr: one line that is overwritten on a terminal, few lines elsewhere."""

from __future__ import annotations

import shutil
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


class StandingLine:
    """Where a job of several stages is, on stderr: one line rewritten on a terminal, a line now and then elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._last, self._stage = 0.0, ""

    def watch(self, standings: Iterable[Standing]) -> Iterator[Standing]:
        """Pass all on, showing them."""
        try:
            for standing in standings:
                self._show(standing)
                yield standing
        finally:
            if self._terminal:
                redraw(self._stream, "")

    def _show(self, standing: Standing) -> None:
        now = time.monotonic()
        wait = _SECONDS_BETWEEN if self._terminal else _SECONDS_BETWEEN_LINES
        if now - self._last < wait and standing.stage == self._stage:
            return
        self._last, self._stage = now, standing.stage
        left = "" if standing.seconds_left is None else f"  {duration(standing.seconds_left)} left"
        figures = "".join(
            f"  {name} {standing.figures[name]:.4f}" for name in ("mean_kld",) if name in standing.figures
        )
        text = f"{standing.stage}: {standing.part:4.0%}{left}{figures}  {standing.note}"
        if self._terminal:
            redraw(self._stream, text[: shutil.get_terminal_size().columns - 1])
        else:
            tell([text], self._stream)
            self._stream.flush()


class ProgressLine:
    """Steps on stderr: one line rewritten on a terminal, a line now and then elsewhere."""

    def __init__(self, what: str, unit: str, stream: TextIO | None = None) -> None:
        self._what, self._unit = what, unit
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._start = self._last = time.monotonic()
        self._values: dict[str, float] = {}

    def watch(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Pass all messages on, showing Loaded, Started, Step and Within."""
        from surgeon.engine.protocol import Loaded, Started, Step, Within

        try:
            for message in messages:
                if isinstance(message, Loaded):
                    self._line(f"{message.engine}, {message.threads} threads; {message.description}")
                elif isinstance(message, Started):
                    self._start = time.monotonic()
                elif isinstance(message, Step):
                    self._values = message.values
                    self._step(f"{message.done}", message.done, message.total)
                elif isinstance(message, Within):
                    self._step(f"{message.done:.1f}", message.done, message.total)
                yield message
        finally:
            if self._terminal:
                redraw(self._stream, "")

    def _step(self, said: str, done: float, total: int) -> None:
        now = time.monotonic()
        wait = _SECONDS_BETWEEN if self._terminal else _SECONDS_BETWEEN_LINES
        if now - self._last < wait and done < total:
            return
        self._last = now
        left = (now - self._start) / (done or 1) * (total - done)
        figures = "".join(
            f"  {name} {value:.4f}" if isinstance(value, float) else f"  {value} {name}"
            for name, value in self._values.items()
            if not name.endswith("error")
        )
        text = f"{self._what}: {said}/{total} {self._unit}{figures}  {duration(left)} left"
        if self._terminal:
            redraw(self._stream, text[:110])
        else:
            self._line(text)

    def _line(self, text: str) -> None:
        if self._terminal:
            redraw(self._stream, text, end="\n")
        else:
            tell([text], self._stream)
            self._stream.flush()
