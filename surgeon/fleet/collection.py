"""A collection over the fleet: one task a block of chunks. Sums stay on shared storage, in files beside the output."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from surgeon.engine.protocol import CountJob
from surgeon.fleet.cluster import Fleet
from surgeon.fleet.errors import FleetError
from surgeon.fleet.order import Here
from surgeon.measure.collecting.blocks import DEFAULT_CHUNKS, BlockJob, collect_block, counted_by
from surgeon.measure.collecting.imatrix_run import Collection

_AHEAD = 4  # blocks for each worker that may wait on the disk for an older one


def in_blocks(wanted: Collection) -> Collection:
    """The same collection, in blocks that can be tasks."""
    return replace(wanted, block_chunks=wanted.block_chunks or DEFAULT_CHUNKS)


class FleetCollector:
    """Counts and collects the blocks of one collection on the workers."""

    def __init__(self, fleet: Fleet, wanted: Collection) -> None:
        self._fleet, self._wanted = fleet, wanted

    @property
    def library(self) -> str:
        """Which llama.cpp all workers have."""
        return self._fleet.build

    def count(self, job: CountJob) -> dict[str, int]:
        """The figures of a CountJob."""
        job = replace(job, model=os.path.abspath(job.model), text=os.path.abspath(job.text))
        ((_, found),) = self._fleet.each(count, {0: (job,)}, self._files)
        counted: dict[str, int] = found
        return counted

    def collect(self, blocks: Mapping[int, BlockJob]) -> Iterator[int]:
        """Each block's number, once its files are there."""
        calls = {number: (_absolute(block),) for number, block in blocks.items()}
        ahead = _AHEAD * max(1, self._fleet.n_workers)
        for number, _ in self._fleet.each(collect, calls, self._files, ahead):
            yield number

    @property
    def _files(self) -> tuple[str, ...]:
        return self._wanted.job.model, self._wanted.job.text


def count(here: Here, job: CountJob) -> dict[str, int]:
    """The figures of a CountJob on this worker."""
    return counted_by(here.engine, job, here.cancelled)


def collect(here: Here, block: BlockJob) -> None:
    """Collect one block; its sums lie in the block's file afterwards. Raises EngineError, FleetError, Cancelled."""
    folder = Path(block.path).parent
    if not (folder / "collection").is_file():
        raise FleetError(
            f"worker on {socket.gethostname()}: {folder} is not there; the output must lie on storage that all "
            "machines share"
        )
    if Path(block.path).is_file():
        return  # by a worker that was taken for dead
    for _ in collect_block(here.engine, block, here.cancelled):
        pass


def _absolute(block: BlockJob) -> BlockJob:
    job = block.job
    moments = os.path.abspath(job.moments) if job.moments else ""
    job = replace(job, model=os.path.abspath(job.model), text=os.path.abspath(job.text), moments=moments)
    return BlockJob(job, os.path.abspath(block.path))
