"""stdin, stdout and stderr that never stop the work.

A reader that has gone (`| head -1`), a full disk behind `> log` or a closed stream must neither end a write of hours
nor turn a failure into exit code 0. What cannot be written is dropped and remembered: `undelivered` is asked
at the end.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys

from surgeon.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` costs `surgeon --help` a tenth of its time
    from typing import TextIO


class Lasting(io.RawIOBase):
    """The descriptor `fd`, whose first failure ends the writing, not the program; `failure` is that."""

    def __init__(self, fd: int, failure: OSError | None = None) -> None:
        self._fd, self.failure = fd, failure

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return self.failure is None and os.isatty(self._fd)

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        while self.failure is None:
            try:
                return os.write(self._fd, view)
            except BlockingIOError:  # the terminal was left so by another program
                import select

                select.select([], [self._fd], [])
            except OSError as error:
                self.failure = error
        return view.nbytes


_log_only = [False]


def install() -> None:
    """Make sure that descriptors 0 to 2 are open, and put lasting streams in the place of stdout and stderr.

    One that is closed (`2>&-`) would be given to the next file that is opened, and messages would go into that.
    """
    _log_only[0] = False
    closed = [fd for fd in (0, 1, 2) if not _is_open(fd)]
    for fd in closed:
        # The lowest number that is free, which is this one.
        os.open(os.devnull, os.O_RDWR if fd else os.O_RDONLY)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - open as long as the program
    sys.stdout = _lasting(sys.stdout, 1, 1 in closed)
    sys.stderr = _lasting(sys.stderr, 2, 2 in closed)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _lasting(stream: TextIO | None, fd: int, closed: bool) -> TextIO:
    """A stream to `fd` that writes as `stream` does; one that is not a file (in tests, embedded) stays."""
    if stream is not None and not (isinstance(stream, io.TextIOWrapper) and _descriptor(stream) == fd):
        return stream
    raw = Lasting(fd, OSError(errno.EBADF, os.strerror(errno.EBADF)) if closed else None)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    # Shown escaped instead of stopping the program: a file name that is not UTF-8, a terminal that is not.
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=fd == 2 or raw.isatty()
    )


def _descriptor(stream: TextIO) -> int:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return -1


def output_is_log() -> None:
    """Say that what this command is for has been delivered elsewhere: what it prints may be lost."""
    _log_only[0] = True


def lasting_terminal() -> None:
    """Let the screen, which draws on `sys.__stderr__`, outlive a terminal that hangs up."""
    encoding = getattr(sys.__stderr__, "encoding", None) or "utf-8"
    stream = io.TextIOWrapper(io.BufferedWriter(Lasting(2)), encoding, errors="backslashreplace")
    sys.__stderr__ = stream  # type: ignore[misc]


def require_terminal(what: str) -> None:
    """Raises UsageError where no screen can be shown: in cron, with `</dev/null`, `| cat` or `2> log`."""
    without = [name for name, fd in (("stdin", 0), ("stdout", 1), ("stderr", 2)) if not os.isatty(fd)]
    if without:
        raise UsageError(
            f"{without[0]} is not a terminal, and the screen needs one; surgeon show {what} prints the model"
        )


def undelivered() -> str:
    """'' if everything reached stdout that had to, else what stopped it. A reader that has gone wanted no more."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    failure = raw.failure if isinstance(raw, Lasting) else None
    if failure is None or failure.errno == errno.EPIPE or _log_only[0]:
        return ""
    return failure.strerror or str(failure)
