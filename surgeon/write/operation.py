"""The write: a resolved plan becomes a new model file, or none at all."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from surgeon.errors import Cancelled, SurgeonError
from surgeon.imatrix.imatrix import Imatrix
from surgeon.machine import MOST_THREADS, available_cores
from surgeon.plan.plan import WriteSettings
from surgeon.resolve.resolution import Resolution
from surgeon.write.feedback import SAMPLE_ROWS, Feedback, Key
from surgeon.write.kernel_compilation import Warming
from surgeon.write.layouts import lay_out
from surgeon.write.output_set import Extra, OutputSet, Source, digest
from surgeon.write.resume_log import Checksum
from surgeon.write.slab_workers import SlabWorkers
from surgeon.write.slabs import TensorJob
from surgeon.write_guard import Permit

MAX_BUFFER_BYTES = 256 << 20
TICK = 0.09  # seconds between two reports at most
CHECKPOINT_SECONDS = (
    1.0  # between two records of finished tensors; what a killed run loses at most, beside the tensors in hand
)

Stage = Literal["checking", "compiling", "writing", "syncing"]


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How to write; none of it changes a byte of the tensors.

    threads: 0 for one per core; max_buffer_bytes: for the buffers of all threads together (a row that alone needs more
    still gets it); overwrite: replace an existing output; resume: continue what an interrupted run left, and leave what
    is done when this one is stopped; split_max_bytes: 0, or the most tensor data in one shard.
    """

    threads: int = 0
    max_buffer_bytes: int = MAX_BUFFER_BYTES
    overwrite: bool = False
    resume: bool = False
    split_max_bytes: int = 0

    @classmethod
    def of(cls, settings: WriteSettings, *, overwrite: bool = False, resume: bool = False) -> WriteOptions:
        buffers = settings.max_buffer_bytes or MAX_BUFFER_BYTES
        return cls(settings.threads, buffers, overwrite, resume, settings.split_max_bytes)

    @property
    def settings(self) -> WriteSettings:
        """What of it belongs to a recipe."""
        buffers = None if self.max_buffer_bytes == MAX_BUFFER_BYTES else self.max_buffer_bytes
        return WriteSettings(self.threads, buffers, self.split_max_bytes)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the write stands.

    tensor: the one begun last, by its output name (while compiling: a tensor type); index: tensors finished, of count;
    done_bytes, total_bytes: of the input's kept tensors, including those a resumed run found finished; tensor_done,
    tensor_total: the same of `tensor`; elapsed: seconds since the start; bytes_per_second: since the writing began,
    0.0 before.
    """

    tensor: str
    index: int
    count: int
    done_bytes: int
    total_bytes: int
    tensor_done: int
    tensor_total: int
    elapsed: float
    bytes_per_second: float = 0.0
    stage: Stage = "writing"

    @property
    def seconds_left(self) -> float | None:
        """At the present speed; None before there is one."""
        return (self.total_bytes - self.done_bytes) / self.bytes_per_second if self.bytes_per_second else None


@dataclass(frozen=True, slots=True)
class Summary:
    """What was written. nbytes: of all files; source_bytes: of the kept tensors; resumed: tensors found finished;
    damaged: tensors that an earlier run had finished and whose data was another, so that they were written again;
    left_over: '' or what could not be removed although everything is complete.
    """

    paths: tuple[Path, ...]
    nbytes: int
    source_bytes: int
    seconds: float
    copied: int
    converted: int
    resumed: int
    damaged: int = 0
    left_over: str = ""


class Stop(threading.Event):
    """Set to cancel a write; keep: leave what is finished for `--resume` also where the options did not ask for it."""

    keep = False


def write(
    resolution: Resolution,
    imatrix: Imatrix | None,
    out: Path,
    options: WriteOptions,
    cancelled: threading.Event,
    extras: Sequence[Extra] = (),
    elsewhere: Elsewhere | None = None,
) -> Iterator[Progress | Summary]:
    """Write `resolution` to `out`, reporting at least every 100 ms; the last item is the Summary.

    Until the last moment everything is in temporary files beside the target; the final names then get the whole new
    files at once, those of `extras` too. elsewhere: workers on other machines instead of threads here. Raises
    SurgeonError (one line: file, tensor, what was found, remedy) and, when `cancelled` is set, Cancelled; both say what
    was left behind: nothing, unless `options.resume` asked for it.
    """
    _refuse_errors(resolution)
    if imatrix is None and resolution.moments is not None:
        imatrix = resolution.moments.as_imatrix
    if not resolution.plan.keep_split and not options.split_max_bytes:
        out = Path(os.path.realpath(out))
    layouts = lay_out(resolution, out, options.split_max_bytes)
    outputs = OutputSet(layouts, extras, _permit(resolution, imatrix, options))
    outputs.open(digest(resolution, layouts, imatrix, extras), _identity(resolution), options.resume)
    try:
        run = _Run(resolution, imatrix, options, cancelled, outputs, elsewhere)
        with run:
            yield from run.check()
            run.prepare()
            if elsewhere is None:
                yield from run.compile()
            yield from run.transfer()
            yield from run.complete()
        summary = run.place()
    except SurgeonError as error:
        raise _told(error, outputs.abandon(options.resume or getattr(cancelled, "keep", False))) from None
    except BaseException:
        outputs.abandon(options.resume or getattr(cancelled, "keep", False))
        raise
    yield summary


def _refuse_errors(resolution: Resolution) -> None:
    """Raises SurgeonError for what the plan itself says must not be written."""
    if resolution.errors:
        more = f" (and {len(resolution.errors) - 1} more)" if len(resolution.errors) > 1 else ""
        raise SurgeonError(f"{resolution.model.file.path}: {resolution.errors[0].text}{more}")


def _permit(resolution: Resolution, imatrix: Imatrix | None, options: WriteOptions) -> Permit:
    """What the output may be: never one of the inputs."""
    inputs = tuple(path for file in resolution.sources for path in file.paths)
    weighing = [one.path for one in (imatrix, resolution.moments) if one is not None]
    return Permit((*inputs, *weighing), replace=options.overwrite)


def _identity(resolution: Resolution) -> Source:
    """What must be the same for a run to go on: their states, and the bytes before their tensor data."""
    states = tuple(state for file in resolution.sources for state in file.states)
    return states, " ".join(file.header_digest() for file in resolution.sources)


def _told(error: SurgeonError, left: str) -> SurgeonError:
    """The same error, saying also what was left behind."""
    return type(error)(f"{error}; {left}")


class Workers(Protocol):
    """What runs the jobs of a write: `SlabWorkers` in this process, or others on other machines."""

    error: BaseException | None
    current: TensorJob | None
    done_bytes: int

    def start(self) -> None: ...

    def wait(self, seconds: float) -> bool: ...

    def take_finished(self) -> list[TensorJob]: ...

    def join(self) -> None: ...

    def keys(self, jobs: Sequence[TensorJob]) -> Iterator[Key]: ...


Elsewhere = Callable[[Sequence[TensorJob]], Workers]


class _Run:
    """One write, between opening its temporary files and giving them their names."""

    def __init__(
        self,
        resolution: Resolution,
        imatrix: Imatrix | None,
        options: WriteOptions,
        cancelled: threading.Event,
        outputs: OutputSet,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.elsewhere = elsewhere
        self.sources = resolution.sources
        self.options = options
        self.cancelled = cancelled
        self.outputs = outputs
        self.began = time.monotonic()
        self.began_writing = 0.0
        self.checked = ""
        self.left = False
        self.feedback: Feedback | None = None
        if resolution.moments is not None and resolution.with_feedback:
            self.feedback = Feedback(resolution.moments, resolution.plan, cancelled)
        self.jobs = _jobs(resolution, imatrix, outputs, self.feedback)
        self.pending = self.jobs
        self.total_bytes = sum(job.source_bytes for job in self.jobs)
        self.found_bytes = self.finished = self.damaged = 0
        self.unrecorded: dict[int, Checksum] = {}
        self.workers: Workers = SlabWorkers((), 1, 0, cancelled)
        # Waits for the disk, so that this thread can go on reporting.
        self.disk = ThreadPoolExecutor(1, thread_name_prefix="disk")

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        """No thread touches a file after this, but for a sync that cannot be interrupted."""
        self.left = True
        if self.feedback is not None:
            self.feedback.stop()
        self.workers.join()
        self.disk.shutdown(wait=False, cancel_futures=True)

    def check(self) -> Iterator[Progress]:
        """Read what an earlier run finished: only data that still has its checksum is left out of this one."""
        checking = self.disk.submit(self._verify)
        while not wait([checking], TICK).done:
            self._raise_if_cancelled()
            yield self._progress("checking", self.checked)
        checking.result()

    def _verify(self) -> None:
        try:
            self.outputs.verify_placed()
            for job in self.jobs:
                recorded = self.outputs.recorded.get(job.number)
                if recorded is None:
                    continue
                if self.cancelled.is_set() or self.left:
                    return
                self.checked = job.op.name
                same = job.checksum_of_output(recorded.slab_rows) == recorded
                self.outputs.verified(job.number, same)
                self.damaged += not same
        except OSError as error:
            file = self.outputs.shards[0]
            raise SurgeonError(f"{file.target}: cannot read {file.part.name} back: {error.strerror}") from None

    def prepare(self) -> None:
        """Share out what is left to do."""
        self._raise_if_cancelled()
        self.pending = [job for job in self.jobs if job.number not in self.outputs.finished]
        self.found_bytes = self.total_bytes - sum(job.source_bytes for job in self.pending)
        self.finished = len(self.jobs) - len(self.pending)
        if self.elsewhere is not None:
            self.workers = self.elsewhere(self.pending)
            return
        wanted = min(self.options.threads, MOST_THREADS)
        threads = wanted if wanted > 0 else available_cores()
        self.workers = SlabWorkers(self.pending, threads, self.options.max_buffer_bytes, self.cancelled)

    def compile(self) -> Iterator[Progress]:
        """Compile or load the kernels, in a thread that a cancelled run need not wait for."""
        warming = Warming(self.pending)
        yield self._progress("compiling")
        while not warming.wait(TICK):
            self._raise_if_cancelled()
            yield self._progress("compiling", warming.current)

    def transfer(self) -> Iterator[Progress]:
        """Run all slabs; about every second the finished tensors are synced and recorded."""
        self.began_writing = recorded_at = time.monotonic()
        recording: Future[None] | None = None
        if self.feedback is not None:
            self.feedback.begin(self.workers.keys(self.pending), self._sample)
        self.workers.start()
        while not self.workers.wait(TICK):
            self._raise_if_cancelled()
            self._collect()
            if recording is not None and recording.done():
                recording.result()
                recording = None
            if recording is None and self.unrecorded and time.monotonic() - recorded_at >= CHECKPOINT_SECONDS:
                recorded_at = time.monotonic()
                recording = self.disk.submit(self.outputs.checkpoint, self._take_unrecorded())
            yield self._progress("writing")
        self._collect()
        self._raise_if_cancelled()
        if self.workers.error is not None:
            raise self.workers.error
        yield self._progress("writing")

    def complete(self) -> Iterator[Progress]:
        """Sync, write the headers and read them back."""
        completing = self.disk.submit(self.outputs.complete, self._take_unrecorded())
        while not wait([completing], TICK).done:
            self._raise_if_cancelled()
            yield self._progress("syncing")
        completing.result()

    def place(self) -> Summary:
        """Give the files their names. From here on nothing can be cancelled."""
        self._raise_if_cancelled()
        self._refuse_changed_input()
        self.outputs.place()
        copied = sum(job.is_copy for job in self.jobs)
        return Summary(
            paths=tuple(file.target for file in self.outputs.shards),
            nbytes=self.outputs.nbytes,
            source_bytes=self.total_bytes,
            seconds=time.monotonic() - self.began,
            copied=copied,
            converted=len(self.jobs) - copied,
            resumed=len(self.jobs) - len(self.pending),
            damaged=self.damaged,
            left_over=self.outputs.left_over,
        )

    def _collect(self) -> None:
        """Take note of the tensors finished meanwhile."""
        finished = self.workers.take_finished()
        if finished:
            self._refuse_changed_input()
        self.finished += len(finished)
        self.unrecorded |= {job.number: job.checksum for job in finished}

    def _sample(self, key: Key) -> tuple[NDArray[np.float32], str]:
        """Of the first tensor with this input, also where a resumed run found it finished: the choice is the same."""
        job = next(job for job in self.jobs if job.feedback_input == key[0])
        return job.sample(key[1], SAMPLE_ROWS), job.op.to_type

    def _take_unrecorded(self) -> dict[int, Checksum]:
        taken, self.unrecorded = self.unrecorded, {}
        return taken

    def _raise_if_cancelled(self) -> None:
        if self.cancelled.is_set():
            raise Cancelled(
                f"{self.outputs.files[0].target}: cancelled after {self.finished} of {len(self.jobs)} tensors"
            )

    def _refuse_changed_input(self) -> None:
        changed = [path for source in self.sources for path in source.changed()]
        if changed:
            raise SurgeonError(f"{changed[0]}: was changed while it was being read; start again when it is finished")

    def _progress(self, stage: Stage, name: str = "") -> Progress:
        now = time.monotonic()
        job = self.workers.current
        done = self.workers.done_bytes
        writing = now - self.began_writing if self.began_writing else 0.0
        return Progress(
            tensor=name or (job.op.name if job else ""),
            index=self.finished,
            count=len(self.jobs),
            done_bytes=self.found_bytes + done,
            total_bytes=self.total_bytes,
            tensor_done=job.rows_done * job.source_row_bytes if job else 0,
            tensor_total=job.source_bytes if job else 0,
            elapsed=now - self.began,
            bytes_per_second=done / writing if writing else 0.0,
            stage=stage,
        )


def _jobs(
    resolution: Resolution, imatrix: Imatrix | None, outputs: OutputSet, feedback: Feedback | None
) -> list[TensorJob]:
    """One job per kept tensor, in output order."""
    jobs = []
    for layout, file in zip(outputs.layouts, outputs.shards, strict=True):
        for number, offset in zip(layout.numbers, layout.header.offsets, strict=True):
            jobs.append(TensorJob.of(resolution, number, imatrix, file, offset, feedback))
    return jobs
