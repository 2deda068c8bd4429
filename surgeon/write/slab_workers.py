"""The threads that take slabs from a list of tensors until none is left.

The kernels release the interpreter lock and are serial; each thread pulls the next slab by itself, so that a slow
consumer of the progress does not hold the work up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

from surgeon.errors import Cancelled
from surgeon.write.feedback import Key, Sample
from surgeon.write.slabs import HASHES, Buffers, Slab, TensorJob

Task = tuple[TensorJob, Slab, Key | None]
_BUFFER_BYTES = 256 << 20  # of all threads together, where nobody says
_PATIENCE = 0.1  # seconds for the slabs in hand when a write is cancelled


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
        # Each thread holds its own lock while it writes; whoever holds all of them knows that none does.
        self._writing = [threading.Lock() for _ in range(threads)]
        self._threads = [
            threading.Thread(target=self._run, args=(lock,), name=f"slabs-{number}", daemon=True)
            for number, lock in enumerate(self._writing)
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
        """Stop after the slabs in hand. A thread that takes long for one is left behind: it writes nothing any more."""
        self._stop.set()
        until = time.monotonic() + _PATIENCE
        for thread in self._threads:
            if thread.ident is not None:  # it was started
                thread.join(max(0.0, until - time.monotonic()))
        for lock in self._writing:
            lock.acquire()  # and never released

    def keys(self, jobs: Sequence[TensorJob]) -> Iterator[Key]:
        """The second moments that the slabs of these jobs go by, in order."""
        return (key for _, _, key in _tasks(jobs, self._share) if key is not None)

    def _run(self, writing: threading.Lock) -> None:
        buffers = Buffers()
        try:
            while not (self._stop.is_set() or self._cancelled.is_set()):
                with self._taking:
                    task = next(self._tasks, None)
                if task is None:
                    return
                buffers = self._process(*task, buffers, writing)
        except BaseException as error:  # every failure is reported by the generator that the user's thread reads
            self._stop.set()
            with self._changed:
                self.error = self.error or error
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _process(
        self, job: TensorJob, slab: Slab, key: Key | None, buffers: Buffers, writing: threading.Lock
    ) -> Buffers:
        """Run one slab; returns the buffers to go on with."""
        self.current = job
        if slab.memory > self._share:
            if key is not None and job.feedback is not None:
                job.feedback.await_factor(key)  # the slab that frees the room for it may be waiting for the lock
            with self._oversize:
                digest = job.run(slab, Buffers(), writing)
        else:
            digest = job.run(slab, buffers, writing)
        if key is not None and job.feedback is not None:
            job.feedback.finished(key)
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


def run_all(jobs: Sequence[TensorJob], threads: int, cancelled: threading.Event, sample: Sample) -> None:
    """Do these jobs to the end, without a progress. sample: as `Feedback.begin` takes it.

    Raises what a job raises, Cancelled.
    """
    feedback = next((job.feedback for job in jobs if job.feedback is not None), None)
    workers = SlabWorkers(jobs, threads, _BUFFER_BYTES, cancelled)
    try:
        if feedback is not None:
            feedback.begin(workers.keys(jobs), sample)
        workers.start()
        while not workers.wait(_PATIENCE):
            pass
    finally:
        if feedback is not None:
            feedback.stop()
        workers.join()
    if workers.error is not None:
        raise workers.error
    if cancelled.is_set():
        raise Cancelled("cancelled while tensors were quantized")


def _tasks(jobs: Sequence[TensorJob], memory: int) -> Iterator[Task]:
    """All slabs; of tensors that share second moments, matrix by matrix, so that each factor is needed once."""
    for group in groups(jobs):
        if len(group) == 1 and group[0].matrices == 1:
            yield from ((group[0], slab, group[0].key(slab)) for slab in group[0].slabs(memory))
            continue
        slabs = [(job, slab) for job in group for slab in job.slabs(memory)]
        slabs.sort(key=lambda task: task[1].matrix)  # stable: tensor after tensor within a matrix
        yield from ((job, slab, job.key(slab)) for job, slab in slabs)


def groups(jobs: Sequence[TensorJob]) -> Iterator[list[TensorJob]]:
    """Each job alone, but those with the same second moments together, where the first of them stands."""
    sharing: dict[str, list[TensorJob]] = {}
    for job in jobs:
        if job.feedback_input is not None:
            sharing.setdefault(job.feedback_input, []).append(job)
    for job in jobs:
        if job.feedback_input is None:
            yield [job]
        elif sharing[job.feedback_input][0] is job:
            yield sharing[job.feedback_input]
