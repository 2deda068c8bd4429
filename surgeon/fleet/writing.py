"""A write over the fleet: the tensors of one task are converted on a worker, into ranges of the temporary files.

This machine lays the files out, keeps the log of what is finished, writes the headers and gives the names, as in any
write. A worker that dies has its task run again elsewhere: the same bytes go to the same place.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from surgeon.errors import SurgeonError
from surgeon.fleet.cluster import Fleet
from surgeon.fleet.errors import FleetError
from surgeon.fleet.files import digest_of, shared_files
from surgeon.fleet.order import Here
from surgeon.imatrix.imatrix import Imatrix
from surgeon.model.model import load_model
from surgeon.moments.files import load_moments, load_weighing
from surgeon.plan.plan import Plan
from surgeon.resolve.resolution import Resolution
from surgeon.resolve.resolve import resolve
from surgeon.write.feedback import SAMPLE_ROWS, Feedback, Key
from surgeon.write.output_file import OutputFile
from surgeon.write.slab_workers import groups, run_all
from surgeon.write.slabs import TensorJob

_TASK_BYTES = 64 << 20  # of the input, in one task: seconds of work
_LAST_SLAB_SECONDS = 0.5  # after which no worker writes any more once its task is cancelled


@dataclass(frozen=True)
class Written:
    """What a worker needs to have the same plan. files: a digest of their identities; made: of what each tensor
    becomes, which must be the same there."""

    model: str
    plan: Plan
    imatrix: str | None
    moments: str | None
    files: str
    made: str


@dataclass(frozen=True)
class Range:
    """Where a tensor goes. number: its place among the kept ones; part: the temporary file; offset: in bytes."""

    number: int
    part: str
    offset: int


class FleetWorkers:
    """In the place of `SlabWorkers`: the jobs of a write, done by the fleet."""

    def __init__(self, fleet: Fleet, written: Written, files: tuple[Path, ...], jobs: Sequence[TensorJob]) -> None:
        self.error: BaseException | None = None
        self.current: TensorJob | None = None
        self.done_bytes = 0
        self._fleet, self._written, self._files = fleet, written, files
        self._jobs = {job.number: job for job in jobs}
        self._finished: list[TensorJob] = []
        self._changed = threading.Condition()
        self._ended = not jobs
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)

    def start(self) -> None:
        if self._jobs:
            self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait for the end, at most so long; True when nothing is given out any more."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended, seconds)

    def take_finished(self) -> list[TensorJob]:
        """The tensors completed since the last call."""
        with self._changed:
            finished, self._finished = self._finished, []
        return finished

    def join(self) -> None:
        """Give nothing out any more, and wait until the workers have stopped."""
        if self._thread.ident is None or self._ended:
            return
        self._fleet.cancelled.set()
        self._thread.join(2.0)
        time.sleep(_LAST_SLAB_SECONDS)

    def keys(self, jobs: Sequence[TensorJob]) -> Iterator[Key]:
        """No factor is needed here."""
        return iter(())

    def _run(self) -> None:
        calls = {place: (self._written, ranges) for place, ranges in enumerate(_tasks(list(self._jobs.values())))}
        try:
            for _, found in self._fleet.each(convert, calls, self._files):
                self._take(found)
        except BaseException as error:  # reported by the generator that the user's thread reads
            self.error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _take(self, found: dict[int, tuple[int, int]]) -> None:
        with self._changed:
            for number, checksum in found.items():
                job = self._jobs[number]
                job.slab_rows, job.total = checksum
                job.rows_done = job.n_rows
                self.current = job
                self.done_bytes += job.source_bytes
                self._finished.append(job)


def workers_of(
    fleet: Fleet, resolution: Resolution, imatrix: Imatrix | None, jobs: Sequence[TensorJob]
) -> FleetWorkers:
    """The fleet as a write's workers. Raises FleetError where a file cannot be read."""
    moments = resolution.moments
    files = [path for file in resolution.sources for path in file.paths]
    files += [one.path for one in (imatrix, moments) if one is not None]
    plan = resolution.plan
    if plan.healing is not None:
        plan = replace(plan, healing=replace(plan.healing, file=os.path.abspath(plan.healing.file)))
    written = Written(
        os.path.abspath(resolution.model.file.paths[0]),
        plan,
        None if imatrix is None else os.path.abspath(imatrix.path),
        None if moments is None else os.path.abspath(moments.path),
        digest_of(shared_files(files)),
        _made(resolution),
    )
    return FleetWorkers(fleet, written, tuple(files), jobs)


def _made(resolution: Resolution) -> str:
    return digest_of([(op.name, op.to_type, op.nbytes, op.feedback) for op in resolution.kept])


def _tasks(jobs: Sequence[TensorJob]) -> Iterator[tuple[Range, ...]]:
    """Runs of tensors of about _TASK_BYTES; those with the same second moments stay together."""
    waiting: list[TensorJob] = []
    for group in groups(jobs):
        waiting += group
        if sum(job.source_bytes for job in waiting) >= _TASK_BYTES:
            yield _ranges(waiting)
            waiting = []
    if waiting:
        yield _ranges(waiting)


def _ranges(jobs: Sequence[TensorJob]) -> tuple[Range, ...]:
    return tuple(Range(job.number, os.path.abspath(job.output.part), job.offset) for job in jobs)


# --- on a worker


def convert(here: Here, written: Written, ranges: tuple[Range, ...]) -> dict[int, tuple[int, int]]:
    """Write these tensors into their ranges; number -> checksum (slab_rows, total). Raises SurgeonError, Cancelled."""
    bench = _bench(written)
    parts = {part: _Part(Path(part)) for part in {one.part for one in ranges}}
    try:
        for part in parts.values():
            part.open()
        jobs = bench.run(here, [(one.number, parts[one.part], one.offset) for one in ranges])
        for part in parts.values():
            os.fsync(part.fd)
    except OSError as error:
        raise SurgeonError(f"{error.filename or ranges[0].part}: cannot be written: {error.strerror}") from None
    finally:
        for part in parts.values():
            part.close()
    return {job.number: (job.checksum.slab_rows, job.checksum.total) for job in jobs}


class _Part(OutputFile):
    """The temporary file that another machine has made, and holds the lock of."""

    def __init__(self, part: Path) -> None:
        super().__init__(part, 0)
        self.part = self.target = part

    def open(self) -> None:
        self.fd = os.open(self.part, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def close(self) -> None:
        with suppress(OSError):
            os.close(self.fd)
        self.fd = -1


@dataclass(frozen=True)
class _Bench:
    """The plan as this worker resolves it."""

    resolution: Resolution
    imatrix: Imatrix | None

    def run(self, here: Here, places: list[tuple[int, OutputFile, int]]) -> list[TensorJob]:
        """The finished jobs. Raises SurgeonError, Cancelled."""
        feedback = None
        if self.resolution.moments is not None and self.resolution.with_feedback:
            feedback = Feedback(self.resolution.moments, self.resolution.plan, here.cancelled)
        jobs = [
            TensorJob.of(self.resolution, number, self.imatrix, output, offset, feedback)
            for number, output, offset in places
        ]
        run_all(jobs, max(1, here.engine.threads), here.cancelled, self._sample)
        return jobs

    def _sample(self, key: Key) -> tuple[NDArray[np.float32], str]:
        """Of the first tensor with this input, as on the machine that began the write."""
        for number, op in enumerate(self.resolution.kept):
            if op.feedback == key[0] and op.action != "copy":
                job = TensorJob.of(self.resolution, number, self.imatrix, _Part(Path()), 0, None)
                return job.sample(key[1], SAMPLE_ROWS), op.to_type
        raise SurgeonError(f"{key[0]}: no tensor reads this input")


@lru_cache(maxsize=1)
def _bench(written: Written) -> _Bench:
    imatrix = moments = None
    if written.moments is not None:
        moments = load_moments(written.moments)
    if written.imatrix is not None:
        imatrix = load_weighing(written.imatrix, judged=True)
    resolution = resolve(load_model(written.model), written.plan, imatrix, moments)
    if _made(resolution) != written.made:
        raise FleetError(f"{written.model}: the plan becomes something else on this worker; install the same surgeon")
    return _Bench(resolution, imatrix if imatrix is not None or moments is None else moments.as_imatrix)
