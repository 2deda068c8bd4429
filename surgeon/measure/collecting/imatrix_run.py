"""A collection from the parent's side: saves as it goes, goes on where it stopped, merges, writes the final file."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from surgeon.engine.client import EngineRun
from surgeon.engine.errors import EngineError
from surgeon.engine.libraries import find_libraries
from surgeon.engine.protocol import CountJob, Engine, Finished, ImatrixJob, Message, Snapshot, Step
from surgeon.errors import SurgeonError
from surgeon.gguf.file import open_gguf, shards_of
from surgeon.imatrix.experts import ExpertSums
from surgeon.imatrix.files import load_imatrix, save_dat
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.imatrix.influence import Influence, load_influence, merged, save, with_weight_zd
from surgeon.imatrix.weight_scores import weight_zd
from surgeon.measure.collecting.blocks import BlockJob, Blocks, collect_block, count_job, counted_by
from surgeon.measure.collecting.collection_state import State, belongs_to, is_partial, read_state
from surgeon.measure.collecting.moments_run import MomentsCollection, MomentsRun
from surgeon.measure.speeds import IMATRIX, MOMENTS, Speeds, timed
from surgeon.model.kinds import refuse_without_text
from surgeon.model.model import load_model
from surgeon.write_guard import Kind, Permit, WriteRefused, may_write

Part = tuple[Imatrix, Influence | None]


@dataclass(frozen=True)
class Collection:
    """What is wanted. merge: matrices to add to; dat: the old format; resume: go on with `<out>.partial`; overwrite:
    replace an older matrix at `out`; moments: second moments of the same rows, in a file of their own; block_chunks: 0,
    or collect blocks of so many chunks and add up their sums, as `blocks` says.
    """

    job: ImatrixJob
    out: Path
    merge: tuple[Path, ...] = ()
    dat: bool = False
    resume: bool = False
    overwrite: bool = False
    moments: MomentsCollection | None = None
    block_chunks: int = 0

    @property
    def keeps_matrix(self) -> bool:
        """Whether `out` stays as it is: a further pass over the text, for the second moments of other layers."""
        return self.moments is not None and self.moments.extends and self.out.exists()

    @property
    def partial(self) -> Path:
        """Where the sums so far are kept until the end; a GGUF matrix that can be used as it is."""
        return partial_of(self.out)

    @property
    def folder(self) -> Path:
        """Where the sums of single blocks are kept until they are added up."""
        return self.out.with_name(f"{self.out.name}.blocks")

    def permit(self, *outputs: Path, replace: bool) -> Permit:
        """For one of the two files: never the model, the text or a matrix to add to, and not the other one."""
        inputs: tuple[Path, ...] = (*shards_of(Path(self.job.model)), Path(self.job.text), *self.merge)
        if self.moments is not None:
            inputs, outputs = (*inputs, *self.moments.merge), (*outputs, self.moments.out)
        return Permit(inputs, outputs, replace)


def partial_of(out: Path) -> Path:
    """Where a collection that was cut off left its sums."""
    return out.with_name(f"{out.name}.partial")


class ImatrixRun:
    """Collects as `collection` says; `current` is the newest state, for whoever shows it.

    elsewhere: collects the blocks where it is not this machine that does.
    """

    def __init__(
        self,
        engine: Engine,
        collection: Collection,
        cancelled: threading.Event | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.collection, self._engine, self._cancelled = collection, engine, cancelled
        self._elsewhere: Elsewhere = elsewhere or _ThisMachine(engine, cancelled)
        self.current: Part | None = None
        self.run: EngineRun | None = None
        self.moments = MomentsRun(collection.moments, collection.job) if collection.moments else None
        self._digest = ""
        self._keeps_matrix = collection.keeps_matrix
        self._chunks = 0  # of the text, that are kept on the disk

    def messages(self) -> Iterator[Message]:
        """The engine's messages, after each Snapshot is safe on the disk; Finished once the final file is there.

        A run that goes on from a partial file gives the same bits as one that was never interrupted. Raises
        WriteRefused for an output that must not be written, EngineError, ImatrixError, Cancelled; the partial file then
        stays.
        """
        wanted = self.collection
        if not wanted.keeps_matrix:
            may_write(wanted.out, Kind.IMATRIX, wanted.permit(wanted.partial, replace=wanted.overwrite))
        self._refuse_foreign_partial()
        if self.moments is not None:
            self.moments.check(replace(wanted.permit(replace=False), outputs=(wanted.out, wanted.partial)))
        self._digest = self._digest_now()
        state = self._state() if self._goes_on() else None
        before = [(load_imatrix(path), load_influence(path)) for path in wanted.merge]
        job = replace(wanted.job, run=self._digest)
        if state is not None:
            job = replace(job, done=state.done, arrays=state.arrays)
        if self.moments is not None:
            self._chunks = job.first_chunk + job.done
            job = self.moments.job(job, self._chunks if state else None)
        refuse_without_text(job.model)
        for message in self._collected(job):
            if isinstance(message, Snapshot):
                self._keep(before, message)
            if isinstance(message, Finished):
                yield from self._finish(message)
            else:
                yield message

    def _goes_on(self) -> bool:
        """Whether to begin with what an interrupted run left: when asked to, and in blocks whenever it is the same."""
        wanted = self.collection
        if not wanted.partial.exists():
            return False
        if wanted.resume:
            return True
        if wanted.block_chunks == 0 or not belongs_to(wanted.partial, self._digest):
            return False
        return self.moments is None or self.moments.has_kept(wanted.job.first_chunk + self._state().done)

    def _state(self) -> State:
        return read_state(self.collection.partial, self._digest)

    def _collected(self, job: ImatrixJob) -> Iterator[Message]:
        """The engine's messages, or those of the blocks together."""
        wanted = self.collection
        if not wanted.block_chunks:
            self.run = EngineRun(self._engine, job, self._cancelled)
            speeds, kind = Speeds.of(Path(job.model), self._engine), MOMENTS if job.moments else IMATRIX
            yield from timed(self.run.messages(), speeds, kind, job.n_ctx, done=job.done)
            return
        folder = block_folder(wanted.folder, self._digest)
        blocks = Blocks(job, self._elsewhere.count(count_job(job)), wanted.block_chunks, folder)
        yield from blocks.messages(self._elsewhere.collect)
        shutil.rmtree(folder, ignore_errors=True)

    def _refuse_foreign_partial(self) -> None:
        """The name beside the output is ours only where what lies there is ours. Raises SurgeonError."""
        partial = self.collection.partial
        may_write(partial, Kind.IMATRIX, self.collection.permit(self.collection.out, replace=True))
        if partial.exists() and partial.stat().st_size and not is_partial(partial):
            raise WriteRefused(f"{partial}: is not an interrupted collection; move it away, or choose another output")

    def _keep(self, before: list[Part], snapshot: Snapshot) -> None:
        part = _part(snapshot, self.collection, (self.collection.job.text,))
        self.current = merged([*before, part]) if before else part
        state = State(self._digest, snapshot.chunks, snapshot.arrays)
        permit = self.collection.permit(self.collection.out, replace=True)
        save(*self.current, self.collection.partial, state.keys, permit, state.tensors)
        self._chunks = self.collection.job.first_chunk + snapshot.chunks
        if self.moments is not None:
            self.moments.kept(self._chunks)

    def _finish(self, finished: Finished) -> Iterator[Message]:
        if self.current is None:
            raise EngineError(
                f"{self.collection.job.text}: no chunk is left to collect; lower --chunk or raise --chunks"
            )
        if self.moments is not None:
            yield from self.moments.finish(self._chunks, self._digest)
        imatrix, influence = self.current
        if influence is not None and not self.collection.dat:
            model = load_model(self.collection.job.model)
            scores = np.full(len(influence.layers), np.nan)
            for done, (layer, score) in enumerate(weight_zd(model)):
                if layer < len(scores):
                    scores[layer] = score
                yield Step(done + 1, len(model.layers), {"weight_zd": score})
            influence = with_weight_zd(influence, scores)
            self.current = imatrix, influence
        if not self._keeps_matrix:
            permit = self.collection.permit(self.collection.partial, replace=self.collection.overwrite)
            write_out(imatrix, influence, self.collection.out, dat=self.collection.dat, permit=permit)
        self.collection.partial.unlink(missing_ok=True)
        yield finished

    def _digest_now(self) -> str:
        """Of everything that must be the same for a run to be continued to the same bits."""
        job = replace(self.collection.job, n_chunks=0, save_every=0, text="", model="")
        digest = hashlib.sha256(Path(self.collection.job.text).read_bytes())
        with open_gguf(self.collection.job.model) as gguf:
            digest.update(repr((gguf.states, gguf.header_digest())).encode())
        for path in self.collection.merge:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        if self.moments is not None:
            digest.update(repr(self.moments.identity).encode())
        digest.update(repr((job, self._elsewhere.library, self._engine.n_gpu_layers)).encode())
        if self.collection.block_chunks:
            digest.update(repr(self.collection.block_chunks).encode())
        return digest.hexdigest()


class Elsewhere(Protocol):
    """Whoever counts and collects blocks. library: which llama.cpp it is."""

    @property
    def library(self) -> str: ...

    def count(self, job: CountJob) -> dict[str, int]: ...

    def collect(self, blocks: Mapping[int, BlockJob]) -> Iterator[int]: ...


class _ThisMachine:
    """Blocks one after the other, here."""

    def __init__(self, engine: Engine, cancelled: threading.Event | None) -> None:
        self._engine, self._cancelled = engine, cancelled

    @property
    def library(self) -> str:
        return find_libraries(self._engine.library).label

    def count(self, job: CountJob) -> dict[str, int]:
        return counted_by(self._engine, job, self._cancelled)

    def collect(self, blocks: Mapping[int, BlockJob]) -> Iterator[int]:
        for number, block in blocks.items():
            for _ in collect_block(self._engine, block, self._cancelled):
                pass
            yield number


def block_folder(folder: Path, digest: str) -> Path:
    """The folder for the blocks of this collection; one of another is emptied. Raises SurgeonError."""
    mark = folder / "collection"
    try:
        if folder.exists() and not mark.is_file() and any(folder.iterdir()):
            raise WriteRefused(f"{folder}: holds files of others; move it away, or choose another output")
        if mark.is_file() and mark.read_text() != digest:
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        mark.write_text(digest)
    except OSError as error:
        raise SurgeonError(f"{folder}: cannot be made: {error.strerror}") from error
    return folder


def write_out(imatrix: Imatrix, influence: Influence | None, out: Path, *, dat: bool, permit: Permit) -> None:
    """The final file; the old format keeps the matrix alone."""
    if dat:
        save_dat(imatrix, out, permit)
    else:
        save(imatrix, influence, out, permit=permit)


def _part(snapshot: Snapshot, wanted: Collection, datasets: tuple[str, ...]) -> Part:
    entries, channels = {}, {}
    for key, squares in snapshot.arrays.items():
        kind, _, name = key.partition(":")
        if kind != "squares":
            continue
        counts = snapshot.arrays[f"count:{name}"].astype(np.int64)
        # One count for several matrices: llama-imatrix stores them as one long row.
        rows = squares.astype(np.float32).reshape(len(counts), -1)
        entries[name] = ImatrixEntry(rows, counts)
        channels[name] = snapshot.arrays[f"sum:{name}"].astype(np.float32)
    most = max(int(entry.counts.max()) for entry in entries.values())
    imatrix = Imatrix(wanted.out, entries, datasets, most // snapshot.n_ctx, snapshot.n_ctx)
    layers = snapshot.arrays["layers"].astype(np.float64)
    sums = snapshot.arrays.get("experts")
    experts = None if sums is None else ExpertSums(*(part.astype(np.float64) for part in sums))
    return imatrix, Influence(layers, channels, experts=experts)
