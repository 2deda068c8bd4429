"""Files of measured figures: two runs at once add to one, and neither loses what the other measured."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from surgeon.folders import make_private


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """While a file there is read again, added to and written, no other process that asks for this does so.

    The folder itself is locked: the files are renamed over. Where it cannot be made or locked (some network file
    systems know no locks) nobody is kept away, and the write says what is wrong.
    """
    handle = -1
    with suppress(OSError):
        make_private(folder)
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle >= 0:
            os.close(handle)
