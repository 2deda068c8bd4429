"""Probes from the parent's side: a model is loaded once, and measured again and again with some tensors exchanged."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from surgeon.engine.client import EngineRun, perplexity
from surgeon.engine.libraries import find_libraries
from surgeon.engine.protocol import Engine, Evaluate, Loaded, PerplexityJob, Probed, ProbeJob, Started, Step, Swap
from surgeon.errors import SurgeonError
from surgeon.fit.encoding import STOCK, Encoder, encoded
from surgeon.folders import cache_folder
from surgeon.imatrix.imatrix import Imatrix
from surgeon.measure.base_cache import Base, trim, used
from surgeon.measure.progress import Standing, followed
from surgeon.model.model import Model
from surgeon.resolve.resolution import Resolution
from surgeon.resolve.tensor_facts import facts_of
from surgeon_kernels.formats import FORMATS

Types = Mapping[str, str]  # tensor -> type it is exchanged for


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
    """Probes of one model. `run` is the engine's run in hand."""

    model: Model
    imatrix: Imatrix | None
    engine: Engine
    encoder: Encoder = STOCK
    cancelled: threading.Event = field(default_factory=threading.Event)
    run: EngineRun | None = None
    engine_version: str = ""  # in the words of the child, once it has loaded the model

    @cached_property
    def engine_label(self) -> str:
        """Which llama.cpp it is. Raises EngineMissing where there is none."""
        return find_libraries(self.engine.library).label

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
        for item in followed(perplexity(self.run), "the unchanged model", "chunks", place.index, place.count):
            if isinstance(item, Standing):
                yield item
        trim(cache_folder())
        return base

    def probe(
        self, base: Base, wanted: Mapping[str, Types], stage: str, place: Place
    ) -> Iterator[Standing | tuple[str, dict[str, Any]]]:
        """Standings, and (label, figures) after each of the probes `wanted`, label -> types.

        Raises SurgeonError, EngineError, EngineMissing, Cancelled.
        """
        job = ProbeJob(str(self.model.file.paths[0]), str(base.path), n_chunks=base.n_chunks)
        self.run = EngineRun(self.engine, job, self.cancelled)
        labels = list(wanted)
        with self.run as run:
            yield Standing(stage, place.index, place.count, note="loading the model")
            for message in run.until(Started):
                if isinstance(message, Loaded):
                    self.engine_version = message.engine
            start, swaps = time.monotonic(), self._swaps(wanted[labels[0]])
            for number, label in enumerate(labels):
                run.send(*swaps, Evaluate(label))
                # The next one is made ready while llama.cpp is busy with this one.
                swaps = self._swaps(wanted[labels[number + 1]]) if number + 1 < len(labels) else []
                for message in run.until(Probed):
                    if isinstance(message, Step):
                        part = (number + message.done / message.total) / len(labels)
                        left = (time.monotonic() - start) * (1 - part) / part
                        yield Standing(stage, place.index, place.count, part, label, message.values, left)
                    elif isinstance(message, Probed):
                        yield label, message.values

    def _swaps(self, types: Types) -> list[Swap]:
        by_name = facts_of(self.model).by_name
        return [
            Swap(
                name,
                FORMATS[kind].number,
                {"data": encoded(self.model, by_name[name], kind, self.imatrix, self.encoder)},
            )
            for name, kind in types.items()
        ]


def measured_plans(
    prober: Prober, text: Text, plans: Mapping[str, Resolution]
) -> Generator[Standing, None, dict[str, dict[str, Any]]]:
    """Label -> figures of several resolved plans on one text, without writing any. Raises as `Prober.probe`."""
    base = yield from prober.base(text, Place(0, 2))
    wanted = {label: exchanged(resolution) for label, resolution in plans.items()}
    found = {}
    for item in prober.probe(base, wanted, "KL divergence", Place(1, 2)):
        if isinstance(item, Standing):
            yield item
        else:
            found[item[0]] = item[1]
    return found


def exchanged(resolution: Resolution) -> dict[str, str]:
    """Tensor -> type of all that a plan changes."""
    return {op.source: op.to_type for op in resolution.kept if op.action == "convert"}
