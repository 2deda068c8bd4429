"""A collection in blocks of chunks, each collected by itself, their sums added up in order.

The result depends on the size of the blocks alone: not on who collects them, how many do, or in which order they end.
Squares are added up in float64 between blocks, second moments in float32, block after block. A block's sums lie in
files until they are added; blocks that an interrupted run left are not collected again.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.engine.client import EngineRun
from surgeon.engine.errors import EngineError
from surgeon.engine.perplexity_totals import PerplexityTotals
from surgeon.engine.protocol import CountJob, Engine, Finished, ImatrixJob, Message, Snapshot, Started, Step
from surgeon.engine.raw_moments import Contents, RawInput, RawMoments, raw_path, write

Arrays = dict[str, NDArray[np.generic]]
_NEVER = 1 << 30  # chunks between two snapshots of a block
_RUN = "run"  # an array that is none: the digest of the collection
DEFAULT_CHUNKS = 32


@dataclass(frozen=True)
class BlockJob:
    """One block: what the engine collects, and the file its sums go to."""

    job: ImatrixJob
    path: str


Runner = Callable[[Mapping[int, BlockJob]], Iterator[int]]
"""Collects these blocks, by number; yields each number once its files are there."""


class Blocks:
    """`messages()` are those of one run of the engine: Started, Step, Snapshot with all sums so far, Finished.

    job: the whole collection, `done` and `arrays` of what was added before; counted: of a CountJob; size: chunks of a
    block, raised to whole batches; folder: for the blocks' files, which this object alone uses.
    """

    def __init__(self, job: ImatrixJob, counted: Mapping[str, int], size: int, folder: Path) -> None:
        self._job, self._folder = job, folder
        self._n_tokens, self._n_chunks = counted["n_tokens"], counted["n_chunks"]
        self._size = -(-size // counted["n_seq"]) * counted["n_seq"]
        self._sums: Arrays = dict(job.arrays)
        self._done = job.done

    def messages(self, run: Runner) -> Iterator[Message]:
        """Raises EngineError, and whatever `run` raises; what is finished stays in the folder."""
        yield Started(self._n_tokens, self._n_chunks, self._job.n_ctx)
        numbers = range(-(-self._done // self._size), -(-self._n_chunks // self._size))
        ready = {number for number in numbers if self._is_collected(number)}
        if self._add(ready):
            yield self._snapshot()
        wanted = {number: self._block(number) for number in numbers if number not in ready}
        wanted = {number: block for number, block in wanted.items() if self._first(number) >= self._done}
        collected = self._done + sum(self._length(number) for number in ready if self._first(number) >= self._done)
        for number in run(wanted) if wanted else ():
            ready.add(number)
            collected += self._length(number)
            if self._add(ready):
                yield self._snapshot()
                self._forget()
            yield Step(collected, self._n_chunks, self._totals.figures)
        self._forget()
        yield Finished(self._totals.figures)

    def _first(self, number: int) -> int:
        return number * self._size

    def _length(self, number: int) -> int:
        return min(self._first(number) + self._size, self._n_chunks) - self._first(number)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.sums"

    def _is_collected(self, number: int) -> bool:
        """Whether an interrupted run left the block's sums, all of them."""
        if self._job.moments and not self._moments_path(number).is_file():
            return False
        return self._path(number).is_file()

    def _moments_path(self, number: int) -> Path:
        end = self._job.first_chunk + self._first(number) + self._length(number)
        return raw_path(f"{self._path(number)}.moments", end)

    def _block(self, number: int) -> BlockJob:
        path, first = self._path(number), self._first(number)
        job = replace(
            self._job, done=first, until=first + self._length(number), arrays={}, moments_from="", save_every=_NEVER,
            moments=f"{path}.moments" if self._job.moments else "",
        )  # fmt: skip
        return BlockJob(job, str(path))

    def _add(self, ready: set[int]) -> bool:
        """Add the blocks that follow what is added; whether there was one."""
        before = self._done
        while self._done < self._n_chunks and (number := self._done // self._size) in ready:
            self._sums = _added(self._sums, read_block(self._path(number), self._job.run))
            if self._job.moments:
                self._add_moments(number)
            self._done += self._length(number)
        return self._done > before

    def _add_moments(self, number: int) -> None:
        done, after = (self._job.first_chunk + chunks for chunks in (self._done, self._done + self._length(number)))
        block, target = self._moments_path(number), raw_path(self._job.moments, after)
        run = self._job.run
        if self._done == 0:
            add_raw([RawMoments(block, run)], target, after)
        else:
            add_raw([RawMoments(raw_path(self._job.moments, done), run), RawMoments(block, run)], target, after)

    def _forget(self) -> None:
        """Remove the files of blocks that are added, which are safe by now."""
        for path in self._folder.glob("*.sums*"):
            number = path.name.partition(".")[0]
            if number.isdigit() and self._first(int(number)) < self._done:
                path.unlink(missing_ok=True)

    @property
    def _totals(self) -> PerplexityTotals:
        totals = PerplexityTotals()
        if "ppl" in self._sums:
            totals.join(*self._sums["ppl"].astype(np.float64).tolist())
        return totals

    def _snapshot(self) -> Snapshot:
        return Snapshot(self._done, self._job.n_ctx, dict(self._sums))


def count_job(job: ImatrixJob) -> CountJob:
    """How the collection's text falls into chunks."""
    return CountJob(job.model, job.text, job.n_ctx, job.n_batch, job.first_chunk, job.n_chunks, job.parse_special)


def counted_by(engine: Engine, job: CountJob, cancelled: Any = None) -> dict[str, int]:
    """The figures of a CountJob on this machine. Raises EngineError, Cancelled."""
    for message in EngineRun(engine, job, cancelled).messages():
        if isinstance(message, Finished):
            return message.values
    raise EngineError(f"{job.text}: its chunks were not counted")


def collect_block(engine: Engine, block: BlockJob, cancelled: Any = None) -> Iterator[Message]:
    """Collect one block on this machine; its sums are in their file at the end. Raises EngineError, Cancelled."""
    for message in EngineRun(engine, block.job, cancelled).messages():
        if isinstance(message, Snapshot):
            write_block(Path(block.path), message.arrays, block.job.run)
        yield message


def write_block(path: Path, arrays: Mapping[str, NDArray[np.generic]], run: str) -> None:
    """Keep a block's sums; the file has its name when it is whole, and checksums (a zip has). Raises EngineError."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, allow_pickle=False, **{**arrays, _RUN: np.array(run)})
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise EngineError(f"{path}: the block's sums cannot be kept: {error.strerror or error}") from None


def read_block(path: Path, run: str) -> Arrays:
    """The sums of one block. Raises EngineError where the file is damaged, or of another collection than `run`."""
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        if str(arrays.pop(_RUN)) == run:
            return arrays
    except (OSError, ValueError, zipfile.BadZipFile, KeyError) as error:
        raise EngineError(f"{path}: cannot be read ({error}); remove it and run the same command again") from None
    raise EngineError(f"{path}: belongs to another collection; remove it and run the same command again")


def _added(sums: Arrays, block: Arrays) -> Arrays:
    """Both together, entry by entry, in float64 but for counts."""
    total: Arrays = dict(sums)
    for name, values in block.items():
        wide = values if values.dtype.kind == "i" else values.astype(np.float64)
        before = total.get(name)
        total[name] = wide if before is None else before.reshape(wide.shape) + wide  # type: ignore[operator]
    return total


def add_raw(parts: Iterable[RawMoments], target: Path, chunks: int) -> None:
    """Write the sum of these files of second moments, in this order. Raises EngineError."""
    files = list(parts)
    found: dict[str, list[tuple[RawMoments, RawInput]]] = {}
    for raw in files:
        for one in raw.contents.inputs:
            found.setdefault(one.weight, []).append((raw, one))
    inputs = [_joined([one for _, one in entries]) for entries in found.values()]
    first = files[0].contents
    values = (panels for entries in found.values() for panels in _summed(entries, first.halves))
    write(target, Contents(chunks, first.block, first.halves, inputs, first.run), values)


def _joined(entries: list[RawInput]) -> RawInput:
    first = entries[0]
    users = list(dict.fromkeys(user for one in entries for user in one.users))
    tokens = np.sum([one.tokens for one in entries], axis=0)
    return RawInput(first.weight, users, first.columns, first.matrices, tokens.tolist())


def _summed(entries: list[tuple[RawMoments, RawInput]], halves: int) -> Iterator[NDArray[np.float32]]:
    for matrix in range(entries[0][1].matrices):
        for half in range(halves):
            parts = [raw.panels(one, matrix, half) for raw, one in entries]
            for panels in zip(*parts, strict=True):
                total = np.array(panels[0])
                for more in panels[1:]:
                    total += more
                yield total
