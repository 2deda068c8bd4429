"""Small files written whole or not at all: under a temporary name, synced, then renamed.

Outputs that take minutes have their own way (`write.output_file`): reserved, locked and resumable.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from surgeon.errors import DiskFull, SurgeonError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place at the end, or is removed where that is not reached.

    Raises SurgeonError for whatever the file system refuses.
    """
    name = ""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
        os.close(handle)
        yield Path(name)
        _sync(name)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # the mode an ordinary open() gives
        os.replace(name, path)
    except OSError as error:
        kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else SurgeonError
        raise kind(f"{path}: cannot be written: {error.strerror or error}; choose another place") from error
    finally:
        if name:
            with suppress(OSError):
                os.unlink(name)


def write_whole(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data` (text as UTF-8) in one step; raises SurgeonError."""
    with written_whole(path) as temporary:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


def _sync(name: str) -> None:
    fd = os.open(name, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
