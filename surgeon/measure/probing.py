"""Probes from the parent's side: a model is loaded once, and measured again and again with some tensors exchanged."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import surgeon_kernels
from surgeon.engine.client import EngineRun, perplexity
from surgeon.engine.errors import EngineDied
from surgeon.engine.libraries import find_libraries
from surgeon.engine.protocol import Engine, Evaluate, Loaded, PerplexityJob, Probed, ProbeJob, Started, Step, Swap
from surgeon.errors import SurgeonError
from surgeon.fit.feedback_errors import FeedbackErrors
from surgeon.fit.tensor_errors import measure_errors
from surgeon.folders import cache_folder
from surgeon.imatrix.imatrix import Imatrix
from surgeon.measure.base_cache import Base, trim, used
from surgeon.measure.progress import Standing, followed
from surgeon.measure.speeds import BASE, Speeds, Stage, encoding, timed
from surgeon.model.model import Model
from surgeon.moments.moments import Moments
from surgeon.resolve.resolution import Resolution
from surgeon.resolve.tensor_facts import TensorFacts
from surgeon.write.in_memory import converted_tensors
from surgeon_kernels.formats import FORMATS

Item = Standing | tuple[str, dict[str, Any]]
_PROBES_TIMED = 8


@dataclass(frozen=True)
class Text:
    """A text in chunks: the first n_chunks (-1: all) of n_ctx tokens."""

    path: Path
    n_ctx: int = 512
    n_chunks: int = 4


@dataclass(frozen=True)
class Place:
    """Which of how many stages the Standings belong to."""

    index: int = 0
    count: int = 1


@dataclass
class Prober:
    """Probes of one model. `run` is the engine's run in hand.

    moments, shrink, rounds: what the feedback encoder goes by; without moments the stock encoder writes. They serve as
    the imatrix too where there is none.
    """

    model: Model
    imatrix: Imatrix | None
    engine: Engine
    moments: Moments | None = None
    shrink: float | None = None
    rounds: int = 1
    cancelled: threading.Event = field(default_factory=threading.Event)
    run: EngineRun | None = None
    engine_version: str = ""  # in the words of the child, once it has loaded the model
    encodes_here: ClassVar[bool] = True  # so that this machine needs the kernels

    @cached_property
    def importances(self) -> Imatrix | None:
        """The imatrix, or what the diagonals of the second moments are."""
        return self.moments.as_imatrix if self.imatrix is None and self.moments is not None else self.imatrix

    @cached_property
    def engine_label(self) -> str:
        """Which llama.cpp it is. Raises EngineMissing where there is none."""
        return find_libraries(self.engine.library).label

    @cached_property
    def speeds(self) -> Speeds:
        """Of the model, on this machine."""
        return Speeds.of(self.model.file.paths[0], self.engine)

    def base(self, text: Text, place: Place) -> Generator[Standing, None, Base]:
        """The unchanged model's log-probabilities over a text, made where they are not in the cache."""
        source = self.model.file.paths[0]
        base = Base(source, text.path, text.n_ctx, text.n_chunks, self.engine_label, cache_folder())
        if base.path.is_file():
            used(base.path)
            return base
        try:
            base.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SurgeonError(f"{base.path.parent}: cannot be made: {error.strerror}") from error
        job = PerplexityJob(str(source), str(text.path), text.n_ctx, n_chunks=text.n_chunks, save_base=str(base.path))
        self.run = EngineRun(self.engine, job, self.cancelled)
        messages = timed(perplexity(self.run), self.speeds, BASE, text.n_ctx)
        for item in followed(messages, "the unchanged model", "chunks", place.index, place.count):
            if isinstance(item, Standing):
                yield item
        trim(cache_folder())
        return base

    def probe(
        self, base: Base, wanted: Mapping[str, Resolution], stage: str, place: Place, *, kind: str = "",
        exact: bool = False,
    ) -> Iterator[Item]:  # fmt: skip
        """Standings, and (label, figures) after each of the probes `wanted`, label -> plan.

        kind: of work, to keep its speed (`speeds`).
        exact: a plan whose figures would differ from its file's in the last digits gets none but `inexact`.
        A child that dies is started again and goes on with the probe it was at; one that dies at the same probe once
        more is an error. Raises SurgeonError, EngineError, EngineMissing, Cancelled.
        """
        probes = _Probes(self, base, wanted, stage, place, kind=kind, exact=exact)
        yield from probes.compiled()
        while probes.left:
            try:
                yield from probes.run()
            except EngineDied:
                if probes.died_at == probes.left[0] or self.cancelled.is_set():
                    raise
                probes.died_at = probes.left[0]
                yield probes.standing("llama.cpp ended unexpectedly; starting it again")

    def errors(
        self, wanted: Sequence[tuple[TensorFacts, tuple[str, ...]]], shrink: float
    ) -> Iterator[tuple[str, dict[str, float]]]:
        """(tensor, type -> relative error) of some tensors. shrink: of second moments, where there are any.

        Raises SurgeonError, Cancelled.
        """
        if self.moments is None:
            return measure_errors(self.model, wanted, self.importances, self.cancelled)
        return FeedbackErrors(self.model, self.moments, self.importances, shrink, self.rounds, self.cancelled).measure(
            wanted
        )

    def swaps(self, plan: Resolution) -> list[Swap]:
        """What the child exchanges to have the weights of this plan's file. Raises SurgeonError, Cancelled."""
        made = converted_tensors(plan, self.imatrix, self.cancelled)
        return [Swap(name, FORMATS[kind].number, {"data": blocks}) for name, (kind, blocks) in made.items()]


class _Probes:
    """A sequence of probes, over as many children as it takes. left: the labels still to be measured."""

    def __init__(
        self, prober: Prober, base: Base, wanted: Mapping[str, Resolution], stage: str, place: Place, *, kind: str,
        exact: bool,
    ) -> None:  # fmt: skip
        self.kind, self.exact = kind, exact
        self.prober, self.base, self.wanted, self.stage, self.place = prober, base, wanted, stage, place
        self.left = list(wanted)
        self.died_at = ""
        self.start = self.begun = time.monotonic()
        self.tokens = self.done = 0  # of a probe; probes of the child in hand

    def standing(self, note: str, part: float = 0.0, figures: dict[str, float] | None = None) -> Standing:
        """part: of the probe in hand."""
        whole = (len(self.wanted) - len(self.left) + part) / len(self.wanted)
        left = (time.monotonic() - self.start) * (1 - whole) / whole if whole else None
        return Standing(self.stage, self.place.index, self.place.count, whole, note, figures or {}, left)

    def compiled(self) -> Iterator[Standing]:
        """Compile what encoding takes, which on a first run is minutes."""
        ops = [op for plan in self.wanted.values() for op in plan.kept if op.action == "convert"]
        targets, sources = {op.to_type for op in ops}, {op.from_type for op in ops}
        feedback = any(op.feedback is not None for op in ops)
        for kernel in surgeon_kernels.warm(targets, sources=sources, feedback=feedback):
            yield self.standing(f"compiling kernels (first run): {kernel.name}")

    def run(self) -> Iterator[Item]:
        """The probes that are left, in one child."""
        prober = self.prober
        job = ProbeJob(str(prober.model.file.paths[0]), str(self.base.path), n_chunks=self.base.n_chunks)
        prober.run = EngineRun(prober.engine, job, prober.cancelled)
        with prober.run as run:
            yield self.standing("loading the model")
            for message in run.until(Started):
                if isinstance(message, Loaded):
                    prober.engine_version = message.engine
                elif isinstance(message, Started):
                    self.tokens = message.total * message.n_ctx
            begun = time.monotonic()
            swaps = prober.swaps(self.wanted[self.left[0]])
            if self.exact:
                prober.speeds.keep(encoding(self.wanted[self.left[0]]), time.monotonic() - begun)
            self.begun, self.done = time.monotonic(), 0
            while self.left:
                label = self.left[0]
                run.send(*swaps, Evaluate(label, exact=self.exact))
                # The next one is made ready while llama.cpp is busy with this one.
                swaps = prober.swaps(self.wanted[self.left[1]]) if len(self.left) > 1 else []
                yield from self._answers(run, label)

    def _answers(self, run: EngineRun, label: str) -> Iterator[Item]:
        for message in run.until(Probed):
            if isinstance(message, Step):
                yield self.standing(label, message.done / message.total, message.values)
            elif isinstance(message, Probed):
                self.left.pop(0)
                self._keep_speed()
                yield label, message.values

    def _keep_speed(self) -> None:
        """After a probe; with many, now and then."""
        self.done += 1
        if self.kind and (self.done % _PROBES_TIMED == 0 or not self.left):
            work = Stage(self.kind, self.done * self.tokens, self.base.n_ctx)
            self.prober.speeds.keep(work, time.monotonic() - self.begun)


def measured_plans(
    prober: Prober, text: Text, plans: Mapping[str, Resolution]
) -> Generator[Standing, None, dict[str, dict[str, Any]]]:
    """Label -> figures of several resolved plans on one text, without writing any. Raises as `Prober.probe`."""
    base = yield from prober.base(text, Place(0, 2))
    found = {}
    for item in prober.probe(base, plans, "KL divergence", Place(1, 2)):
        if isinstance(item, Standing):
            yield item
        else:
            found[item[0]] = item[1]
    return found
