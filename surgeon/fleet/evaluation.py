"""Perplexity and KL divergence over the fleet: one task a block of chunks, the figures of one machine to the bit.

A worker answers with sums of each chunk, or for KL divergence four numbers of each token; added up in the text's order
they are what one run has. Log-probabilities to keep go into ranges of one file on shared storage.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from surgeon.engine.client import EngineRun
from surgeon.engine.comparison import Comparison, statistics
from surgeon.engine.errors import EngineError
from surgeon.engine.perplexity_totals import PerplexityTotals
from surgeon.engine.protocol import (
    ChunkSums,
    CountJob,
    DivergenceJob,
    Finished,
    Loaded,
    Message,
    PerplexityJob,
    Started,
    Step,
)
from surgeon.errors import UsageError
from surgeon.fleet.cluster import Fleet
from surgeon.fleet.errors import FleetError
from surgeon.fleet.order import Here
from surgeon.fleet.probes import FleetProber
from surgeon.gguf.file import shards_of
from surgeon.measure.collecting.blocks import counted_by
from surgeon.measure.evaluation import TextJob
from surgeon.measure.probing import Prober
from surgeon.whole_files import written_whole
from surgeon.write_guard import Kind, Permit

BLOCK_CHUNKS = 8  # a task's, at least; raised to whole batches


@dataclass(frozen=True)
class BlockSums:
    """What a worker answers. sums: of each chunk, in order; devices, description: of its llama.cpp and its model."""

    sums: tuple[ChunkSums, ...]
    loaded: Loaded | None


class FleetEvaluator:
    """What the screen measures over the fleet: files in blocks of the text, a plan without a file as one task."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._shared: dict[Path, bool] = {}

    def takes(self, job: TextJob, cache: Path) -> bool:
        """Whether the workers see all its files, those in this machine's cache folder included."""
        kept = (job.model, job.save_base if isinstance(job, PerplexityJob) else job.base)
        if not any(Path(path).is_relative_to(cache) for path in kept if path):
            return True
        if cache not in self._shared:
            self._shared[cache] = self._fleet.sees(cache)
        return self._shared[cache]

    def messages(self, job: TextJob) -> Iterator[Message]:
        """As `evaluated`; saved log-probabilities may be replaced."""
        return evaluated(self._fleet, job, overwrite=True)

    def prober(self, prober: Prober) -> Prober:
        """The same prober, over the fleet."""
        return FleetProber.of(prober, self._fleet)


def evaluated(fleet: Fleet, job: TextJob, *, overwrite: bool = False) -> Iterator[Message]:
    """The messages of the engine for this job; the figures in Finished are those of one machine.

    overwrite: an older file of saved log-probabilities may be replaced. Raises FleetError, EngineError, Cancelled,
    WriteRefused, UsageError for windows that overlap.
    """
    if isinstance(job, DivergenceJob):
        yield from _messages(fleet, replace(job, base=os.path.abspath(job.base), text=_absolute(job.text)))
        return
    if job.stride > 0:
        raise UsageError("--ppl-stride is measured on one machine; leave --scheduler away (or: --scheduler none)")
    job = replace(job, text=os.path.abspath(job.text))
    if job.save_base is None:
        yield from _messages(fleet, job)
        return
    permit = Permit((*shards_of(Path(job.model)), Path(job.text)), replace=overwrite)
    with written_whole(Path(job.save_base), Kind.LOGITS, permit) as temporary:
        yield from _messages(fleet, replace(job, save_base=os.path.abspath(temporary)))


def _messages(fleet: Fleet, job: TextJob) -> Iterator[Message]:
    job = replace(job, model=os.path.abspath(job.model))
    files = (job.model, job.text, job.base if isinstance(job, DivergenceJob) else None)
    ((_, counted),) = fleet.each(count, {0: (job,)}, files)
    n_tokens, n_chunks, n_ctx, n_seq = (counted[key] for key in ("n_tokens", "n_chunks", "n_ctx", "n_seq"))
    yield Started(n_tokens, n_chunks, n_ctx)
    size = -(-BLOCK_CHUNKS // n_seq) * n_seq
    starts = range(0, n_chunks, size)
    calls = {first: (replace(job, first=first, until=min(first + size, n_chunks)),) for first in starts}
    found: dict[int, ChunkSums] = {}
    for _, block in fleet.each(measure_block, calls, files):
        if block.loaded is not None and not found:
            yield block.loaded
        found |= {one.chunk: one for one in block.sums}
        yield Step(len(found), n_chunks, {"workers": fleet.n_workers})
    ordered = [found[chunk] for chunk in range(n_chunks)]
    figures = _perplexity(ordered) if isinstance(job, PerplexityJob) else _divergence(ordered)
    yield Finished({**figures, "n_chunks": n_chunks, "n_ctx": n_ctx})


def _perplexity(chunks: list[ChunkSums]) -> Mapping[str, Any]:
    totals = PerplexityTotals()
    for chunk in chunks:
        for count_, total, squares in chunk.arrays["sums"].tolist():
            totals.join(count_, total, squares)
    return {**totals.figures, "n_tokens": totals.count}


def _divergence(chunks: list[ChunkSums]) -> Mapping[str, Any]:
    return statistics(Comparison.joined([Comparison(**chunk.arrays) for chunk in chunks]))  # type: ignore[arg-type]


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(path)


# --- on a worker


def count(here: Here, job: TextJob) -> dict[str, int]:
    """How the job's text, or base, falls into chunks: `n_tokens`, `n_chunks`, `n_ctx`, `n_seq`. Raises EngineError."""
    if isinstance(job, DivergenceJob):
        wanted = CountJob(job.model, "", 0, job.n_batch, n_chunks=job.n_chunks, base=job.base)
    else:
        wanted = CountJob(job.model, job.text, job.n_ctx, job.n_batch, n_chunks=job.n_chunks)
    return counted_by(here.engine, wanted, here.cancelled)


def measure_block(here: Here, job: TextJob) -> BlockSums:
    """The sums of the job's chunks. Raises EngineError, Cancelled."""
    sums, loaded, whole = list[ChunkSums](), None, False
    if isinstance(job, PerplexityJob) and job.save_base is not None and not Path(job.save_base).is_file():
        folder = Path(job.save_base).parent
        raise FleetError(f"{folder}: is another folder on a worker; put the output on storage that all machines share")
    for message in EngineRun(here.engine, job, here.cancelled).messages():
        if isinstance(message, ChunkSums):
            sums.append(message)
        elif isinstance(message, Loaded):
            loaded = message
        whole = whole or isinstance(message, Finished)
    if not whole or not sums:
        raise EngineError(f"{job.model}: chunks {job.first} to {job.until} were not measured")
    return BlockSums(tuple(sums), loaded)
