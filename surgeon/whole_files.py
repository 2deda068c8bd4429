"""Small files written whole or not at all: under a temporary name, synced, then renamed.

Outputs that take minutes have their own way (`write.output_file`): reserved, locked and resumable. Both ask
`write_guard` before they begin and again before they rename. A process that is killed leaves its temporary file, which
the next that writes into the folder removes: nobody holds its lock any more.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from surgeon.errors import DiskFull, SurgeonError
from surgeon.write_guard import NEW, Kind, Permit, WriteRefused, may_write

_MARK = ".surgeon-tmp"  # in every temporary name
_LONGEST_STEM = 40  # characters of the target's name in it: 160 bytes at most of the 255 that a name may have


@contextmanager
def written_whole(path: Path, kind: Kind = Kind.TEXT, permit: Permit = NEW, suffix: str = "") -> Iterator[Path]:
    """A temporary name beside `path` that takes its place at the end, or is removed where that is not reached.

    kind: what is written; permit: without one the file must be new; suffix: of the temporary name. Raises SurgeonError
    for whatever the guard or the file system refuses.
    """
    target = may_write(path, kind, permit)
    name, handle = "", -1
    try:
        sweep(target.parent)
        handle, name = _locked_temporary(target, suffix)
        yield Path(name)
        _sync(name)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # the mode an ordinary open() gives
        may_write(path, kind, permit)
        give_name(Path(name), target, replace=permit.replace)
    except OSError as error:
        failure = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else SurgeonError
        raise failure(f"{path}: cannot be written: {error.strerror or error}; choose another place") from error
    finally:
        if name:
            with suppress(OSError):
                os.unlink(name)
            with suppress(OSError):  # what counts was synced
                os.close(handle)


def write_whole(path: Path, data: bytes | str, kind: Kind = Kind.TEXT, permit: Permit = NEW) -> None:
    """Write `data` (text as UTF-8) to `path` in one step, as `written_whole` does; raises SurgeonError."""
    with written_whole(path, kind, permit) as temporary:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


def sweep(folder: Path) -> None:
    """Remove the temporary files in `folder` whose process was killed."""
    with suppress(OSError):  # a folder that cannot be listed is no reason not to write
        for path in folder.glob(f".*{_MARK}*"):
            _remove_abandoned(path)


def _remove_abandoned(path: Path) -> None:
    with suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid():
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        finally:
            os.close(fd)


def _locked_temporary(target: Path, suffix: str) -> tuple[int, str]:
    """A new file beside `target`, open and locked. Raises OSError."""
    import tempfile  # a tenth of the time of `surgeon quantize --help`

    while True:
        # Unpredictable and made anew, so that nobody can lay a link there for us to follow.
        handle, name = tempfile.mkstemp(f"{_MARK}{suffix}", f".{target.name[:_LONGEST_STEM]}.", target.parent)
        with suppress(OSError):  # some network file systems know no locks; there nothing is swept either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, name
        os.close(handle)  # another process took it for abandoned before it was locked


def give_name(temporary: Path, target: Path, *, replace: bool) -> None:
    """Rename in one step. Without `replace` a file that has appeared there meanwhile wins.

    Raises OSError, and WriteRefused for that; the temporary file is then still there.
    """
    if replace:
        os.replace(temporary, target)
        return
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise _came_first(target) from None
    except OSError:  # no hard links here (FAT, some network shares): look and rename, with a moment in between
        if os.path.lexists(target):
            raise _came_first(target) from None
        os.replace(temporary, target)
    else:
        os.unlink(temporary)


def _came_first(target: Path) -> WriteRefused:
    return WriteRefused(f"{target}: was created by someone else meanwhile; it was left as it is")


def _sync(name: str) -> None:
    fd = os.open(name, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
