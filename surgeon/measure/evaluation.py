"""Measuring a plan or a written model: perplexity, KL divergence from the unchanged model, tasks, speed.

A plan without an output is measured by a probe where it changes nothing but types, with the figures that its file would
have; otherwise it is written to a temporary file, measured and removed. Every figure goes into the journal as
soon as it is there, so that a run that is stopped keeps what it has.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from surgeon.engine.client import EngineRun, perplexity
from surgeon.engine.libraries import find_libraries
from surgeon.engine.protocol import (
    BenchJob,
    DivergenceJob,
    Engine,
    Finished,
    Job,
    Loaded,
    Message,
    PerplexityJob,
    TaskJob,
)
from surgeon.errors import DiskFull, SurgeonError, UsageError
from surgeon.folders import make_private
from surgeon.imatrix.imatrix import Imatrix
from surgeon.measure.base_cache import Base, trim, used
from surgeon.measure.probing import Place, Prober
from surgeon.measure.progress import Standing, followed
from surgeon.measure.scratch import scratch_folder, sweep
from surgeon.measure.speeds import BASE, BENCH, DIVERGENCE, PERPLEXITY, TASK, Speeds, encoding, timed
from surgeon.model.kinds import refuse_without_text
from surgeon.plan.plan import Plan, changes_types_only
from surgeon.resolve.resolution import Resolution
from surgeon.trials.journal import Journal, Measured, Trial
from surgeon.trials.records import is_unchanged, measured, recipe_text, record, record_plan
from surgeon.write.operation import Progress, WriteOptions, write

SPEED_TESTS = [[512, 0], [0, 128]]  # llama-bench's own: pp512 and tg128
SPEED_REPETITIONS = 3
Argument = TypeVar("Argument")
Stage = Callable[[ExitStack], Iterator[Standing]]
TextJob = PerplexityJob | DivergenceJob


@dataclass(frozen=True)
class Wanted:
    """What to measure. text, n_ctx, n_chunks (-1: all): for perplexity and divergence; n_tasks 0: all of each file."""

    perplexity: bool = False
    divergence: bool = False
    text: Path | None = None
    n_ctx: int = 512
    n_chunks: int = 8
    tasks: tuple[Path, ...] = ()
    n_tasks: int = 0
    speed: bool = False

    def check(self) -> None:
        """Raises UsageError where something is missing, SurgeonError where a file is."""
        if not (self.perplexity or self.divergence or self.tasks or self.speed):
            raise UsageError("nothing to measure: choose perplexity, KL divergence, tasks or speed")
        if (self.perplexity or self.divergence) and self.text is None:
            raise UsageError("perplexity and KL divergence need a text")
        for path in (*self.tasks, *((self.text,) if self.text else ())):
            if not path.is_file():
                raise SurgeonError(f"{path}: no such file")


@dataclass(frozen=True)
class Subject:
    """What is measured. source: the unchanged model; output: a file that is there, or None: `resolution` is written.

    recipe: TOML that restores the plan, '' where it is not known; label: how the journal calls it.
    """

    label: str
    source: Path
    source_size: int
    recipe: str = ""
    resolution: Resolution | None = None
    imatrix: Imatrix | None = None
    output: Path | None = None


class Elsewhere(Protocol):
    """Other machines that measure."""

    def takes(self, job: TextJob, cache: Path) -> bool:
        """Whether they can do this job. cache: where files of this machine lie that they may not see."""

    def messages(self, job: TextJob) -> Iterator[Message]:
        """The engine's messages for the job."""

    def prober(self, prober: Prober) -> Prober:
        """The same prober, whose probes run there."""


class Evaluation:
    """One run; `run` is the engine's run in hand, `trial` the journal's row as soon as there is one.

    elsewhere: does what it takes, this machine the rest.
    """

    def __init__(
        self,
        subject: Subject,
        wanted: Wanted,
        engine: Engine,
        journal: Journal,
        cache: Path,
        cancelled: threading.Event | None = None,
    ) -> None:
        self.subject, self.wanted, self.engine, self.journal, self.cache = subject, wanted, engine, journal, cache
        self.cancelled = cancelled or threading.Event()
        self.elsewhere: Elsewhere | None = None
        self.run: EngineRun | None = None
        self.trial: Trial | None = None
        self._model = subject.output
        self._index = self._count = 0
        self._speeds = Speeds.of(subject.source, engine)

    def steps(self) -> Iterator[Standing]:
        """Do it all. Raises SurgeonError, EngineError, EngineMissing or Cancelled; no temporary file is left."""
        self.wanted.check()
        refuse_without_text(self._model or self.subject.source)
        label = find_libraries(self.engine.library).label
        if self._model is None and self.subject.resolution is None:
            raise SurgeonError(f"{self.subject.label}: neither a file nor a plan to write one")
        sweep(self.cache)
        base = self._base(label)
        stages = self._stages(base)
        self._count = len(stages)
        with ExitStack() as stack:
            try:
                for self._index, stage in enumerate(stages):
                    yield from stage(stack)
            except DiskFull as error:
                raise _full(self.cache) from error

    def _base(self, label: str) -> Base | None:
        wanted = self.wanted
        if not wanted.divergence or wanted.text is None:
            return None
        return Base(self.subject.source, wanted.text, wanted.n_ctx, wanted.n_chunks, label, self.cache)

    def _stages(self, base: Base | None) -> list[Stage]:
        wanted = self.wanted
        stages: list[Stage] = []
        unchanged = self._unchanged()
        self._model = self.subject.source if unchanged else self._model
        if base is not None and (unchanged or not base.path.is_file()):
            stages.append(_stage(self._save_base, base))
        probed = self._model is None and base is not None and is_probed(self.subject, wanted)
        if self._model is None and not probed:
            stages.append(self._write)
        if base is not None and probed:
            stages.append(partial(self._probe, base))
        elif base is not None and not unchanged:
            stages.append(_stage(self._diverge, base))
        elif wanted.perplexity and base is None:
            stages.append(self._perplexity)
        stages += [_stage(self._task, file) for file in wanted.tasks]
        if wanted.speed:
            stages.append(self._speed)
        return stages

    def _unchanged(self) -> bool:
        """The plan changes nothing: the source itself is measured, and has no divergence from itself."""
        made = self.subject.resolution
        return self._model is None and made is not None and is_unchanged(made.plan)

    # --- the stages

    def _write(self, stack: ExitStack) -> Iterator[Standing]:
        resolution = self.subject.resolution
        assert resolution is not None  # steps() has refused otherwise
        out = stack.enter_context(scratch_folder(self.cache)) / "plan.gguf"
        begun = time.monotonic()
        for item in write(resolution, self.subject.imatrix, out, WriteOptions(), self.cancelled):
            if isinstance(item, Progress):
                if item.stage == "compiling":
                    begun = time.monotonic()
                yield self._written(item)
            else:
                self._model = item.paths[0]
        self._speeds.keep(encoding(resolution), time.monotonic() - begun)

    def _written(self, progress: Progress) -> Standing:
        part = progress.done_bytes / progress.total_bytes if progress.total_bytes else 1.0
        note = f"compiling kernels (first run): {progress.tensor}" if progress.stage == "compiling" else progress.tensor
        return Standing("writing the plan", self._index, self._count, part, note, {}, progress.seconds_left)

    def _save_base(self, base: Base) -> Iterator[Standing]:
        path, source = base.path, self.subject.source
        try:
            make_private(path.parent)
        except OSError as error:
            raise SurgeonError(f"{path.parent}: cannot be made: {error.strerror}") from error
        job = PerplexityJob(str(source), str(base.text), base.n_ctx, n_chunks=base.n_chunks, save_base=str(path))
        yield from self._engine("the unchanged model", "chunks", job, base.text)
        trim(self.cache)

    def _probe(self, base: Base, stack: ExitStack) -> Iterator[Standing]:
        """The plan's figures without its file; where they would not be the same to the last digit, with it."""
        subject, resolution = self.subject, self.subject.resolution
        assert resolution is not None  # `is_probed` looked
        used(base.path)
        plan = resolution.plan
        prober = Prober(
            resolution.model, subject.imatrix, self.engine, resolution.moments, plan.shrink, plan.feedback_rounds,
            self.cancelled,
        )  # fmt: skip
        if self.elsewhere is not None:
            prober = self.elsewhere.prober(prober)
        wanted, place = {"the plan": resolution}, Place(self._index, self._count)
        for item in prober.probe(base, wanted, "KL divergence", place, kind=DIVERGENCE, exact=True):
            self.run = prober.run
            if isinstance(item, Standing):
                yield item
            elif "mean_kld" in item[1]:
                found = measured({"engine": prober.engine_version, **item[1]}, text=str(base.text))
                self.trial = record_plan(
                    self.journal, subject.label, resolution, subject.recipe, found, subject.source_size
                )
        if self.trial is None:
            yield from self._write(stack)
            yield from self._diverge(base)

    def _diverge(self, base: Base) -> Iterator[Standing]:
        used(base.path)
        job = DivergenceJob(str(self._model), str(base.path))
        yield from self._engine("KL divergence", "chunks", job, base.text)

    def _perplexity(self, _: ExitStack) -> Iterator[Standing]:
        wanted = self.wanted
        job = PerplexityJob(str(self._model), str(wanted.text), wanted.n_ctx, n_chunks=wanted.n_chunks)
        yield from self._engine("perplexity", "chunks", job, wanted.text)

    def _task(self, file: Path) -> Iterator[Standing]:
        job = TaskJob(str(self._model), task_kind(file), str(file), self.wanted.n_tasks)
        yield from self._engine(file.name, "tasks", job, file)

    def _speed(self, _: ExitStack) -> Iterator[Standing]:
        yield from self._engine("speed", "runs", BenchJob(str(self._model), SPEED_TESTS, SPEED_REPETITIONS), None)

    # --- what they share

    def _engine(self, stage: str, unit: str, job: Job, text: Path | None) -> Iterator[Standing]:
        """Run one job and record its figures."""
        name = ""
        for item in followed(self._messages(job), stage, unit, self._index, self._count):
            if isinstance(item, Standing):
                yield item
            elif isinstance(item, Loaded):
                name = item.engine
            elif isinstance(item, Finished):
                self._record(Path(job.model), measured({"engine": name, **item.values}, text=str(text or "")))

    def _messages(self, job: Job) -> Iterator[Message]:
        away = self.elsewhere
        if away is not None and isinstance(job, PerplexityJob | DivergenceJob) and away.takes(job, self.cache):
            return away.messages(job)
        self.run = EngineRun(self.engine, job, self.cancelled)
        return timed(perplexity(self.run, overwrite=True), self._speeds, *_measure_of(job, self.wanted.n_ctx))

    def _record(self, model: Path, found: Measured) -> None:
        """The figures go to the row of the file they were measured on, which may be the unchanged model's."""
        subject = self.subject
        if model == subject.source:
            name = f"{model.stem} (unchanged)"
            recipe = recipe_text(Plan(), None)
            trial = record(self.journal, model, name, measured=found, recipe=recipe, source_size=subject.source_size)
        else:
            trial = record(
                self.journal, model, subject.label, measured=found, resolution=subject.resolution,
                recipe=subject.recipe, source_size=subject.source_size, kept=model == subject.output,
            )  # fmt: skip
        if model == self._model:
            self.trial = trial


def is_probed(subject: Subject, wanted: Wanted) -> bool:
    """Whether a plan is measured without its file: figures of the text alone, nothing but types changed.

    Where the head is the token embeddings, some types make llama.cpp keep a file's two copies of them in different
    ways; then it takes the file all the same.
    """
    made = subject.resolution
    if made is None or subject.output is not None or wanted.tasks or wanted.speed or not wanted.divergence:
        return False
    return changes_types_only(made.plan) and not is_unchanged(made.plan)


def _measure_of(job: Job, n_ctx: int) -> tuple[str, int]:
    """The kind of work, and the tokens of a step."""
    if isinstance(job, TaskJob):
        return f"{TASK} {job.task}", 0
    if isinstance(job, BenchJob):
        return BENCH, 0
    if isinstance(job, DivergenceJob):
        return DIVERGENCE, n_ctx
    saves = isinstance(job, PerplexityJob) and job.save_base is not None
    return BASE if saves else PERPLEXITY, n_ctx


def _full(cache: Path) -> SurgeonError:
    """A full disk is the cache's, wherever model and output lie: say so, and how to choose another."""
    free = shutil.disk_usage(cache).free
    return SurgeonError(
        f"{cache}: {os.strerror(errno.ENOSPC)}, {free:,} bytes free; make room, measure fewer chunks, "
        "or set SURGEON_CACHE_DIR to a folder on another disk"
    )


def _stage(method: Callable[[Argument], Iterator[Standing]], argument: Argument) -> Stage:
    return lambda _: method(argument)


def task_kind(path: Path) -> str:
    """`multiple-choice`, `winogrande` or `hellaswag`, detected from the content. Raises SurgeonError."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise SurgeonError(f"{path}: cannot be read: {error.strerror}") from error
    if b"\0" in head[:64]:
        return "multiple-choice"
    first = head.split(b"\n", 1)[0].rstrip(b"\r")
    if first.count(b",") >= 4 and first.rsplit(b",", 1)[1] in (b"1", b"2"):
        return "winogrande"
    return "hellaswag"
