"""The signals that end a program from outside: SIGTERM (a shutdown, a scheduler), SIGHUP (the connection dropped)."""

from __future__ import annotations

import signal
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """One of them came: cleaned up after like Ctrl-C, so that no temporary file stays."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def install() -> None:
    """Let the ending signals raise `Terminated` in the main thread; one that is ignored (nohup) stays ignored."""
    for number in ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _raise)


def heeded(numbers: tuple[signal.Signals, ...]) -> list[signal.Signals]:
    """Those of them that are not ignored."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def exit_code(number: int) -> int:
    """As a shell gives it."""
    return 128 + number


def _raise(number: int, _frame: FrameType | None) -> None:
    # Both come when a session ends: the second must not interrupt the cleaning up.
    for other in heeded(ENDING):
        signal.signal(other, signal.SIG_IGN)
    raise Terminated(number)
