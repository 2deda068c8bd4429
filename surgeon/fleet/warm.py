"""The engine's child kept between tasks on a worker, so that a model is loaded once and not for every candidate."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress

from surgeon.engine.client import EngineRun
from surgeon.engine.protocol import Started
from surgeon.fleet.order import Here

_IDLE_SECONDS = 20.0

_lock = threading.RLock()
_kept: tuple[Hashable, EngineRun] | None = None
_timer: threading.Timer | None = None


@contextmanager
def warm_run(key: Hashable, here: Here, make: Callable[[], EngineRun]) -> Iterator[EngineRun]:
    """The kept child for `key`, started and at its requests; another one is ended first.

    It is kept for the next task, ended where the task fails or is cancelled, or after some seconds without one.
    """
    with _lock:
        _stop_timer()
        run = _kept[1] if _kept is not None and _kept[0] == key else _started(key, here, make)
        run.cancelled = here.cancelled
        try:
            yield run
        except BaseException:
            release()
            raise
        _start_timer()


def release() -> None:
    """End the kept child."""
    global _kept
    with _lock:
        _stop_timer()
        kept, _kept = _kept, None
        if kept is not None:
            with suppress(OSError):
                kept[1].__exit__(None, None, None)


async def release_idle() -> None:
    """End the kept child unless a task is at it. Beside the loop in which the worker answers its scheduler."""
    await asyncio.to_thread(_release_idle)


def _release_idle() -> None:
    if _lock.acquire(blocking=False):
        try:
            release()
        finally:
            _lock.release()


def _started(key: Hashable, here: Here, make: Callable[[], EngineRun]) -> EngineRun:
    global _kept
    release()
    run = make()
    run.cancelled = here.cancelled
    run.__enter__()
    _kept = key, run
    try:
        for _ in run.until(Started):
            pass
    except BaseException:
        release()
        raise
    return run


def _start_timer() -> None:
    global _timer
    _timer = threading.Timer(_IDLE_SECONDS, release)
    _timer.daemon = True
    _timer.start()


def _stop_timer() -> None:
    global _timer
    if _timer is not None:
        _timer.cancel()
    _timer = None
