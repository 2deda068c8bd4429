"""Work that must not leave its memory in this process: a child of the same Python that answers with lines."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from surgeon.errors import SurgeonError

_POLL_SECONDS = 0.05  # how long a cancel may go unseen


def lines_of(arguments: Sequence[str], job: str, cancelled: threading.Event) -> Iterator[str]:
    """What `python ARGUMENTS` prints, line by line, with `job` on its stdin; ends early once `cancelled` is set.

    However the iteration ends, the child is gone afterwards. Raises SurgeonError where it cannot start or fails.
    """
    try:
        process = _start(arguments)
    except OSError as error:
        raise SurgeonError(f"{sys.executable}: cannot be started: {error.strerror}") from None
    try:
        assert process.stdin is not None  # `_start` asks for a pipe
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(job)
        lines = _reader(process)
        while not cancelled.is_set():
            with contextlib.suppress(queue.Empty):
                line = lines.get(timeout=_POLL_SECONDS)
                if line is None:
                    break
                yield line
        if not cancelled.is_set() and process.wait():
            raise SurgeonError(f"the process that measures ended with code {process.returncode}")
    finally:
        process.kill()
        process.wait()


def _start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    import surgeon
    import surgeon_kernels

    roots = [str(Path(str(module.__file__)).parents[1]) for module in (surgeon, surgeon_kernels)]
    path = os.pathsep.join(filter(None, (*roots, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        # -P: a file named like a module in the current directory must not take its place.
        [sys.executable, "-P", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C and Ctrl-Z are the screen's
    )  # fmt: skip


def _reader(process: subprocess.Popen[str]) -> queue.SimpleQueue[str | None]:
    """A thread that puts every line into the queue, and None at the end."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in process.stdout or ():
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, name="child", daemon=True).start()
    return lines
