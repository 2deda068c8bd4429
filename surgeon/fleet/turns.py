"""What is made once a machine, by whichever of its workers comes first."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surgeon.errors import Cancelled, SurgeonError
from surgeon.fleet.order import Here
from surgeon.folders import make_private

_POLL_SECONDS = 0.2


@contextmanager
def alone(path: Path, here: Here) -> Iterator[None]:
    """Hold the right to make `path`, of all workers on this machine. Raises Cancelled, SurgeonError."""
    try:
        make_private(path.parent)
        lock = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SurgeonError(f"{path.parent}: cannot be written: {error.strerror}") from error
    try:
        while not _locked(lock):
            if here.cancelled.is_set():
                raise Cancelled("the run was cancelled")
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
