"""What `fit` measures, over the fleet: the errors of one input's tensors, or one probe, is one task."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

from surgeon.engine.client import EngineRun
from surgeon.engine.protocol import Engine, Evaluate, Probed, ProbeJob
from surgeon.errors import SurgeonError
from surgeon.fleet.cluster import Fleet
from surgeon.fleet.files import digest_of, shared_files
from surgeon.fleet.order import Here
from surgeon.fleet.turns import alone
from surgeon.fleet.warm import warm_run
from surgeon.folders import cache_folder
from surgeon.measure.base_cache import Base
from surgeon.measure.probing import Item, Place, Prober, Text
from surgeon.measure.progress import Standing
from surgeon.model.model import load_model
from surgeon.moments.files import load_moments, load_weighing
from surgeon.plan.plan import Plan
from surgeon.resolve.resolution import Resolution
from surgeon.resolve.resolve import resolve
from surgeon.resolve.tensor_facts import TensorFacts, facts_of


@dataclass(frozen=True)
class Subject:
    """What probers on all machines have in common. files: a digest of the files' identities, so that a worker that
    keeps a prober open knows whether it is still the same one."""

    model: str
    imatrix: str | None
    moments: str | None
    shrink: float | None
    rounds: int
    files: str


@dataclass
class FleetProber(Prober):
    """A Prober whose errors and probes are measured by the fleet."""

    fleet: Fleet = field(kw_only=True)
    encodes_here: ClassVar[bool] = False

    @classmethod
    def of(cls, prober: Prober, fleet: Fleet) -> FleetProber:
        """The same prober, over the fleet."""
        return cls(
            prober.model, prober.imatrix, prober.engine, prober.moments, prober.shrink, prober.rounds, fleet.cancelled,
            fleet=fleet,
        )  # fmt: skip

    @cached_property
    def engine_label(self) -> str:
        """Which llama.cpp the workers have."""
        return self.fleet.build.partition(" (llama.cpp")[0]

    def base(self, text: Text, place: Place) -> Generator[Standing, None, Base]:
        """Where this machine would have it; every worker's machine makes its own."""
        yield Standing("the unchanged model", place.index, place.count, 1.0, "each worker makes its own")
        source = self.model.file.paths[0]
        return Base(source, text.path, text.n_ctx, text.n_chunks, self.engine_label, cache_folder())

    def probe(
        self, base: Base, wanted: Mapping[str, Resolution], stage: str, place: Place, *, kind: str = "",
        exact: bool = False,
    ) -> Iterator[Item]:  # fmt: skip
        """As `Prober.probe`; the figures come in any order."""
        text = Text(Path(os.path.abspath(base.text)), base.n_ctx, base.n_chunks)
        calls = {
            label: (self._subject, plan.plan, text, exact, plan.moments is not None) for label, plan in wanted.items()
        }
        self.engine_version = self.fleet.build
        yield self._standing(stage, place, 0, len(calls))
        for done, (label, figures) in enumerate(self.fleet.each(measure_probe, calls, (*self._files, text.path)), 1):
            yield label, figures
            yield self._standing(stage, place, done, len(calls), label)

    def errors(
        self, wanted: Sequence[tuple[TensorFacts, tuple[str, ...]]], shrink: float
    ) -> Iterator[tuple[str, dict[str, float]]]:
        """As `Prober.errors`; tensors that share an input are one task."""
        users = self.moments.users if self.moments is not None else {}
        together: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
        for facts, types in wanted:
            together.setdefault(users.get(facts.name, facts.name), []).append((facts.name, types))
        calls = {name: (self._subject, tuple(tensors), shrink) for name, tensors in together.items()}
        for _, found in self.fleet.each(measure_errors_of, calls, self._files):
            yield from found.items()

    def _standing(self, stage: str, place: Place, done: int, of: int, label: str = "") -> Standing:
        note = f"{done} of {of} tasks, {self.fleet.title}  {label}"
        return Standing(stage, place.index, place.count, done / of if of else 1.0, note)

    @property
    def _files(self) -> tuple[Path | None, ...]:
        read = (self.imatrix, self.moments)
        return self.model.file.paths[0], *(None if one is None else Path(one.path) for one in read)

    @cached_property
    def _subject(self) -> Subject:
        paths = [None if path is None else os.path.abspath(path) for path in self._files]
        assert paths[0] is not None  # the model's
        return Subject(paths[0], paths[1], paths[2], self.shrink, self.rounds, digest_of(shared_files(self._files)))


def measure_errors_of(
    here: Here, subject: Subject, wanted: tuple[tuple[str, tuple[str, ...]], ...], shrink: float
) -> dict[str, dict[str, float]]:
    """Tensor -> type -> relative error. Raises SurgeonError, Cancelled."""
    prober = _prober(subject, here.engine)
    prober.cancelled = here.cancelled
    facts = facts_of(prober.model).by_name
    return dict(prober.errors([(facts[name], types) for name, types in wanted], shrink))


def measure_probe(here: Here, subject: Subject, plan: Plan, text: Text, exact: bool, feedback: bool) -> dict[str, Any]:
    """The figures of one plan. feedback: under the second moments. Raises SurgeonError, EngineError, Cancelled."""
    prober = _prober(subject, here.engine)
    prober.cancelled = here.cancelled
    base = _base(here, prober, text)
    swaps = prober.swaps(resolve(prober.model, plan, prober.imatrix, prober.moments if feedback else None))
    job = ProbeJob(subject.model, str(base.path), n_chunks=base.n_chunks)
    with warm_run((subject, job, here.engine), here, lambda: EngineRun(here.engine, job)) as run:
        run.send(*swaps, Evaluate("", exact=exact))
        for message in run.until(Probed):
            if isinstance(message, Probed):
                return message.values
    raise SurgeonError(f"{subject.model}: a probe was not measured")


def _base(here: Here, prober: Prober, text: Text) -> Base:
    """The unchanged model's log-probabilities, in this machine's cache."""
    base = Base(
        prober.model.file.paths[0], text.path, text.n_ctx, text.n_chunks, prober.engine_label, cache_folder()
    )  # fmt: skip
    with alone(base.path, here):
        for _ in prober.base(text, Place()):
            pass
    return base


@lru_cache(maxsize=1)
def _prober(subject: Subject, engine: Engine) -> Prober:
    """The model and what weighs it, opened once for all tasks of a run."""
    imatrix = load_weighing(subject.imatrix, judged=True) if subject.imatrix is not None else None
    moments = load_moments(subject.moments) if subject.moments is not None else None
    return Prober(load_model(subject.model), imatrix, engine, moments, subject.shrink, subject.rounds)
