"""The threads that take slabs from a list of tensors until none is left.

The kernels release the interpreter lock and are serial; each thread pulls the next slab by itself, so that a slow
consumer of the progress does not hold the work up.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from surgeon.write.slabs import HASHES, Buffers, Slab, TensorJob


class SlabWorkers:
    """Runs the jobs in `threads` threads.

    max_buffer_bytes: for the buffers of all threads together. A slab that alone needs more than its thread's share (a
    very long row) runs while no other such slab does, and its buffers are given back.
    """

    def __init__(
        self, jobs: Sequence[TensorJob], threads: int, max_buffer_bytes: int, cancelled: threading.Event
    ) -> None:
        self._share = max_buffer_bytes // threads
        self._tasks = _tasks(jobs, self._share)
        self._cancelled = cancelled
        self._stop = threading.Event()
        self._oversize = threading.Lock()
        self._taking = threading.Lock()
        self._changed = threading.Condition()
        self._running = threads
        self._finished: list[TensorJob] = []
        self.error: BaseException | None = None
        self.current: TensorJob | None = None
        self.done_bytes = 0
        self._threads = [
            threading.Thread(target=self._run, name=f"slabs-{number}", daemon=True) for number in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait for the end, at most so long; True when no thread is running any more."""
        with self._changed:
            return self._changed.wait_for(lambda: self._running == 0, seconds)

    def take_finished(self) -> list[TensorJob]:
        """The tensors completed since the last call."""
        with self._changed:
            finished, self._finished = self._finished, []
        return finished

    def join(self) -> None:
        """Stop after the slabs in hand."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:  # it was started
                thread.join()

    def _run(self) -> None:
        buffers = Buffers()
        try:
            while not (self._stop.is_set() or self._cancelled.is_set()):
                with self._taking:
                    task = next(self._tasks, None)
                if task is None:
                    return
                buffers = self._process(*task, buffers)
        except BaseException as error:  # every failure is reported by the generator that the user's thread reads
            self._stop.set()
            with self._changed:
                self.error = self.error or error
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _process(self, job: TensorJob, slab: Slab, buffers: Buffers) -> Buffers:
        """Run one slab; returns the buffers to go on with."""
        self.current = job
        if slab.memory > self._share:
            with self._oversize:
                digest = job.run(slab, Buffers())
        else:
            digest = job.run(slab, buffers)
        self._count(job, slab, digest)
        return buffers if buffers.nbytes <= self._share else Buffers()

    def _count(self, job: TensorJob, slab: Slab, digest: int) -> None:
        with self._changed:
            job.total = (job.total + digest) % HASHES
            self.done_bytes += slab.source_bytes
            job.rows_done += slab.rows
            if job.rows_done == job.n_rows:
                job.release()
                self._finished.append(job)


def _tasks(jobs: Sequence[TensorJob], memory: int) -> Iterator[tuple[TensorJob, Slab]]:
    for job in jobs:
        for slab in job.slabs(memory):
            yield job, slab
