"""Ctrl-C and SIGTERM during a long run: the run ends in order."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that the writer ends in order and says what it left.

    A second signal has its usual effect.
    """
    cancelled = threading.Event()

    def stop(number: int, _frame: object) -> None:
        cancelled.set()
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield cancelled
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
