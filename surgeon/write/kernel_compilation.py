"""Compiling the kernels of a write in the background."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import surgeon_kernels
from surgeon.write.slabs import TensorJob


class Warming:
    """Compiles or loads what `jobs` need, in a daemon thread: a compilation cannot be interrupted, only left behind."""

    def __init__(self, jobs: Sequence[TensorJob]) -> None:
        converted = [job for job in jobs if not job.is_copy]
        self._sources = {job.op.from_type for job in converted}
        self._targets = {job.op.to_type for job in converted}
        self._feedback = any(job.feedback is not None for job in converted)
        self.current = ""
        self._ended = threading.Event()
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="compile", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Wait for the end, at most so long; True when it has come. Raises what the compilation raised."""
        ended = self._ended.wait(seconds)
        if self._error is not None:
            raise self._error
        return ended

    def _run(self) -> None:
        try:
            for progress in surgeon_kernels.warm(self._targets, sources=self._sources, feedback=self._feedback):
                self.current = progress.name
        except BaseException as error:  # raised again by the thread that waits
            self._error = error
        finally:
            self._ended.set()
