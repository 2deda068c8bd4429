"""Ctrl-C, SIGTERM and SIGHUP during a long run: the run ends in order."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from surgeon.errors import Cancelled
from surgeon.signals import ENDING, exit_code, heeded


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C, SIGTERM and SIGHUP set, so that the writer ends in order and says what it left.

    A second Ctrl-C has its usual effect. Cancelled then carries the exit code that a shell expects of the signal.
    """
    cancelled = threading.Event()
    came: list[int] = []

    def stop(number: int, _frame: object) -> None:
        came.append(number)
        cancelled.set()
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, stop) for number in heeded((signal.SIGINT, *ENDING))}
    try:
        yield cancelled
    except Cancelled as error:
        error.exit_code = exit_code(came[0]) if came else error.exit_code
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
