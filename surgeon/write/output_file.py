"""A file that appears under its name only when it is whole.

Data goes to `.NAME.surgeon-part` beside the target, locked against a second writer, its space reserved before the work.
`place()` gives it the final name in one step; until then, whatever happens, the final name holds what it held before.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from surgeon.errors import DiskFull, SurgeonError
from surgeon.whole_files import give_name
from surgeon.write_guard import Kind, Permit, may_write, refuse_alias

_LONGEST_NAME = 255  # bytes, of every file system in use


def companion(target: Path, suffix: str) -> Path:
    """The hidden file beside `target` that ends in `suffix`; a name too long for that is shortened to its hash."""
    name = f".{target.name}{suffix}"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()}{suffix}"
    return target.with_name(name)


class OutputFile:
    """The temporary file of one target.

    path: as the user named it; target: the file it stands for; nbytes: of the whole file; kind: what it will be.
    fd: open for reading and writing from `open()` on; writes are positional and may come from any thread.
    placed: an interrupted run has given it its final name already.
    """

    def __init__(self, path: Path, nbytes: int, kind: Kind = Kind.MODEL) -> None:
        self.path = path
        self.target = Path(os.path.realpath(path))
        self.nbytes = nbytes
        self.kind = kind
        self.part = companion(self.target, ".surgeon-part")
        self.old = companion(self.target, ".surgeon-old")
        self.fd = -1
        self.placed = False
        self.left_over = ""  # what lies there still although the file has its name

    def admit(self, permit: Permit, ours: Sequence[int] = ()) -> None:
        """Raises SurgeonError when this file, or what will lie beside it meanwhile, must not be written."""
        may_write(self.path, self.kind, permit, ours)
        refuse_alias(self.part, permit)

    def is_placed(self, inodes: Sequence[int]) -> bool:
        """Whether the target is one of the files `inodes` and its temporary name is gone."""
        return not self.part.exists() and self.target.is_file() and self.target.stat().st_ino in inodes

    def open(self) -> None:
        """Open or create the temporary file and lock it; what an earlier run left in it stays there.

        Raises SurgeonError when another writer holds the lock.
        """
        if self.placed:
            self.fd = os.open(self.target, os.O_RDONLY | os.O_CLOEXEC)
            return
        while self.fd < 0:
            fd = self._open_part()
            self._lock(fd)
            if _is_at(fd, self.part):
                self.fd = fd
            else:  # its writer finished between our open and our lock: that is now the target, not ours to touch
                os.close(fd)

    def _open_part(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self.part, flags, 0o666)
        except PermissionError:
            folder = self.part.parent
            raise SurgeonError(f"{self.target}: no permission to write in {folder}; choose another folder") from None
        except OSError as error:
            raise SurgeonError(f"{self.target}: cannot create {self.part.name} beside it: {error.strerror}") from None

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise SurgeonError(
                f"{self.target}: is being written by another surgeon right now; wait for it or choose another name"
            ) from None
        except OSError as error:
            # Some network file systems know no locks; there the user is alone responsible for one writer at a time.
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                os.close(fd)
                raise SurgeonError(f"{self.target}: cannot lock {self.part.name}: {error.strerror}") from None

    @property
    def inode(self) -> int:
        return os.fstat(self.fd).st_ino

    def start_afresh(self) -> None:
        """Empty the temporary file.

        A run killed between the two steps of `place()` leaves it as a second name of the finished target, which must
        not be emptied: then the name goes and a new file takes it.
        """
        if os.fstat(self.fd).st_nlink > 1:
            self.part.unlink()
            self.close()
            self.open()
        os.ftruncate(self.fd, 0)

    def reserve(self) -> None:
        """Give the file its full size, with disk space behind it where the file system can promise that.

        Raises SurgeonError naming what is needed and what is free when it does not fit.
        """
        if self.placed:
            return
        try:
            os.ftruncate(self.fd, self.nbytes)
            _allocate(self.fd, self.nbytes)
        except OSError as error:
            raise write_error(self, error) from None

    def pwrite(self, data: memoryview | bytes, offset: int) -> None:
        """Write all of `data` at `offset`; raises OSError."""
        view = memoryview(data)
        while view:
            count = os.pwrite(self.fd, view, offset)
            view = view[count:]
            offset += count

    def sync(self) -> None:
        """Wait until the data is on the disk."""
        os.fsync(self.fd)

    def place(self, permit: Permit, *, keep_old: bool = False) -> None:
        """Give the file its final name. Unless it may be replaced, a file that has appeared there meanwhile wins.

        keep_old: a file that is replaced stays beside it until `forget_old()`, for `take_back()`. Raises SurgeonError
        and OSError; the temporary file is then still there.
        """
        if self.placed:
            return
        if _is_at(self.fd, self.target):  # an earlier run was killed between the two steps
            self.part.unlink()
            return
        may_write(self.path, self.kind, permit)
        if keep_old and permit.replace and self.target.exists():
            self.forget_old()
            with contextlib.suppress(OSError):  # no hard links here: then it cannot be taken back
                os.link(self.target, self.old)
        try:
            give_name(self.part, self.target, replace=permit.replace)
        except OSError as error:
            if not _is_at(self.fd, self.target):
                raise
            self.left_over = f"{self.part}: could not be removed: {error.strerror}"

    def take_back(self) -> None:
        """Undo `place`: what was there before has its name again, and this file its temporary one."""
        with contextlib.suppress(OSError):  # a run with --resume then goes on from here
            if self.old.exists():
                os.link(self.target, self.part)
                os.replace(self.old, self.target)
            else:
                os.rename(self.target, self.part)

    def forget_old(self) -> None:
        """The file that was replaced is not needed any more."""
        self.old.unlink(missing_ok=True)

    def close(self) -> None:
        """Close and unlock; the files stay."""
        if self.fd >= 0:
            # Unlocked by name: a sync still running in another thread would keep the file open, and so the lock.
            with contextlib.suppress(OSError):
                fcntl.flock(self.fd, fcntl.LOCK_UN)
            with contextlib.suppress(OSError):  # what counts was synced
                os.close(self.fd)
            self.fd = -1

    def discard(self) -> None:
        """Remove the temporary file, then close it."""
        if self.fd >= 0 and not self.placed and _is_at(self.fd, self.part):
            self.part.unlink()
        self.close()


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system can sync a folder; the rename itself is done
            os.fsync(fd)
    finally:
        os.close(fd)


def write_error(output: OutputFile, error: OSError, tensor: str = "", needed: int = 0) -> SurgeonError:
    """The one line for a failed write: the file, the tensor, what happened, what would help.

    needed: bytes of all files together where that is more than this one's.
    """
    where = f"{output.target}: cannot write tensor {tensor}" if tensor else f"{output.target}: cannot be written"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(output.part.parent).free
        needed = max(needed, output.nbytes)
        return DiskFull(
            f"{where}: {error.strerror}: {needed:,} bytes needed, {free:,} free in {output.part.parent}; "
            "make room or choose another folder"
        )
    if error.errno == errno.EFBIG:
        return SurgeonError(
            f"{where}: {error.strerror}: {output.nbytes:,} bytes are over the limit for one file here; "
            "write shards (--split-max-size) or choose another folder"
        )
    return SurgeonError(f"{where}: {error.strerror}")


def _is_at(fd: int, path: Path) -> bool:
    """Whether `path` still names the open file `fd`."""
    try:
        at_path = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    opened = os.fstat(fd)
    return stat.S_ISREG(at_path.st_mode) and (at_path.st_dev, at_path.st_ino) == (opened.st_dev, opened.st_ino)


def _allocate(fd: int, nbytes: int) -> None:
    """fallocate(2), so that a full disk shows before the work. Raises OSError when the space is not there.

    Not `os.posix_fallocate`: where the file system cannot allocate, the C library would write to every block instead.
    """
    if not sys.platform.startswith("linux") or nbytes == 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "fallocate64"):
        return
    if libc.fallocate64(fd, 0, ctypes.c_int64(0), ctypes.c_int64(nbytes)) != 0:
        code = ctypes.get_errno()
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(code, os.strerror(code))
