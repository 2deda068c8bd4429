"""Compiling the kernels the plan needs while the user reads the tree."""

from __future__ import annotations

import threading
from collections.abc import Callable

from textual.message import Message

from surgeon.resolve.resolve import Resolution
from surgeon.session.child_process import lines_of
from surgeon.tui.jobs.messages import Warmed, WarmFailed

# In a process of its own: what compiling leaves in memory goes with it. The cache keeps the kernels.
_COMPILE = """
import sys
import surgeon_kernels
for progress in surgeon_kernels.warm(sys.stdin.read().split()):
    print(f"{progress.index}/{progress.total}", flush=True)
"""


class WarmUp:
    """One thread at most; what is wanted meanwhile is done by the same thread afterwards.

    The thread is a daemon and not textual's worker: a compilation cannot be interrupted, and quitting must not wait.
    """

    def __init__(self, tell: Callable[[Message], object]) -> None:
        self.tell = tell
        self.done: set[str] = set()
        self._wanted: set[str] = set()
        self._lock = threading.Lock()
        self._running = False

    def want(self, resolution: Resolution) -> None:
        """Make ready what converting this resolution takes; returns at once."""
        ops = [op for op in resolution.kept if op.action == "convert"]
        names = {name for op in ops for name in (op.from_type, op.to_type)}
        with self._lock:
            self._wanted = names - self.done
            if self._running or not self._wanted:
                return
            self._running = True
        threading.Thread(target=self._run, name="warm-up", daemon=True).start()

    def _run(self) -> None:
        while names := self._next():
            try:
                for line in lines_of(("-c", _COMPILE), " ".join(sorted(names)), threading.Event()):
                    self.tell(Warmed(f"kernels {line.strip()}"))
            except Exception as error:  # a defect here costs a wait at the write, not the session
                self.tell(WarmFailed(f"kernel compilation failed: {error}"))
            self.done |= names
            self.tell(Warmed(""))

    def _next(self) -> set[str]:
        """What is still to be done; empty ends the thread, decided under the lock so that no wish is lost."""
        with self._lock:
            names = self._wanted - self.done
            self._running = bool(names)
            return names
