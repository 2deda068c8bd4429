"""Folders for files that must not outlive the process, and the removal of those whose process was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from surgeon.errors import SurgeonError
from surgeon.folders import make_private

_LOCK = "in-use"
_TRIAL, _SCAN = "trial-", "surgeon-scan-"
_YOUNG = 60.0  # seconds in which a folder without a lock may still be about to get one


@contextmanager
def scan_folder() -> Iterator[Path]:
    """A scratch folder among the system's temporary files; those of killed scans go first. Raises SurgeonError."""
    parent = Path(tempfile.gettempdir())
    sweep(parent, _SCAN)
    with scratch_folder(parent, _SCAN) as folder:
        yield folder


@contextmanager
def scratch_folder(parent: Path, prefix: str = _TRIAL) -> Iterator[Path]:
    """A new folder in `parent`, removed with all it holds at the end. Raises SurgeonError where none can be made."""
    try:
        make_private(parent)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise SurgeonError(f"{parent}: no temporary folder can be made: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep(parent: Path, prefix: str = _TRIAL) -> list[Path]:
    """Remove the scratch folders in `parent` that no living process holds; which were removed."""
    removed = []
    for folder in parent.glob(f"{prefix}*"):
        if _abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def _abandoned(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:
        with suppress(OSError):
            return time.time() - folder.stat().st_mtime > _YOUNG
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True
