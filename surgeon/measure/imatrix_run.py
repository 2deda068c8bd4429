"""A collection from the parent's side: saves as it goes, goes on where it stopped, merges, writes the final file."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from surgeon.engine.client import EngineRun
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import Engine, Finished, ImatrixJob, Message, Snapshot, Step
from surgeon.errors import UsageError
from surgeon.gguf.file import Value, ValueType, open_gguf
from surgeon.imatrix.experts import ExpertSums
from surgeon.imatrix.files import load_imatrix, save_dat
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.imatrix.influence import Influence, load_influence, merged, save, with_weight_zd
from surgeon.imatrix.weight_scores import weight_zd
from surgeon.measure.moments_run import MomentsCollection, MomentsRun
from surgeon.model.model import load_model

Part = tuple[Imatrix, Influence | None]
_DIGEST, _NEXT = "surgeon.collect.digest", "surgeon.collect.next_chunk"


@dataclass(frozen=True)
class Collection:
    """What is wanted. merge: matrices to add to; dat: the old format; resume: go on with `<out>.partial`.

    moments: second moments of the same rows, in a file of their own.
    """

    job: ImatrixJob
    out: Path
    merge: tuple[Path, ...] = ()
    dat: bool = False
    resume: bool = False
    overwrite: bool = False
    moments: MomentsCollection | None = None

    @property
    def keeps_matrix(self) -> bool:
        """Whether `out` stays as it is: a further pass over the text, for the second moments of other layers."""
        return self.moments is not None and self.moments.extends and self.out.exists()

    @property
    def partial(self) -> Path:
        """Where the sums so far are kept until the end; a GGUF matrix that can be used as it is."""
        return self.out.with_name(f"{self.out.name}.partial")


class ImatrixRun:
    """Collects as `collection` says; `current` is the newest state, for whoever shows it."""

    def __init__(self, engine: Engine, collection: Collection, cancelled: threading.Event | None = None) -> None:
        self.collection, self._engine, self._cancelled = collection, engine, cancelled
        self.current: Part | None = None
        self.run: EngineRun | None = None
        self.moments = MomentsRun(collection.moments, collection.job) if collection.moments else None
        self._resumed = False
        self._keeps_matrix = collection.keeps_matrix
        self._chunks = 0  # of the text, that are kept on the disk

    def messages(self) -> Iterator[Message]:
        """The engine's messages, after each Snapshot is safe on the disk; Finished once the final file is there.

        Raises UsageError for an output that exists, EngineError, ImatrixError, Cancelled; the partial file then stays.
        """
        wanted = self.collection
        if wanted.out.exists() and not wanted.overwrite and not wanted.keeps_matrix:
            raise UsageError(f"{wanted.out}: already exists; choose another name or pass --overwrite")
        if self.moments is not None:
            self.moments.check()
        before, first_chunk = self._before()
        job = replace(wanted.job, first_chunk=first_chunk, n_chunks=self._chunks_left(first_chunk))
        if self.moments is not None:
            self._chunks = first_chunk
            job = self.moments.job(job, first_chunk if self._resumed else None)
        self.run = EngineRun(self._engine, job, self._cancelled)
        for message in self.run.messages():
            if isinstance(message, Snapshot):
                self._keep(before, message)
            if isinstance(message, Finished):
                if self.current is None and self._resumed:  # every chunk was there already
                    self.current = before[0]
                yield from self._finish(message)
            else:
                yield message

    def _before(self) -> tuple[list[Part], int]:
        """What was collected earlier, and the first chunk to run."""
        wanted = self.collection
        if wanted.resume and wanted.partial.exists():
            with open_gguf(wanted.partial) as gguf:
                digest, following = gguf.kv.get(_DIGEST), gguf.kv.get(_NEXT)
            if digest is None or following is None or digest.decode() != self._digest():
                raise EngineError(
                    f"{wanted.partial}: belongs to another model, text or -c; remove it, or leave --resume away"
                )
            self._resumed = True
            return [(load_imatrix(wanted.partial), load_influence(wanted.partial))], int(following.decode())
        return [(load_imatrix(path), load_influence(path)) for path in wanted.merge], wanted.job.first_chunk

    def _chunks_left(self, first_chunk: int) -> int:
        job = self.collection.job
        return job.n_chunks if job.n_chunks < 0 else max(0, job.n_chunks - (first_chunk - job.first_chunk))

    def _keep(self, before: list[Part], snapshot: Snapshot) -> None:
        datasets = () if self._resumed else (self.collection.job.text,)
        part = _part(snapshot, self.collection, datasets)
        self.current = merged([*before, part]) if before else part
        extra = (
            (_DIGEST, Value.of(ValueType.STRING, self._digest())),
            (_NEXT, Value.of(ValueType.UINT32, snapshot.chunks)),
        )
        save(*self.current, self.collection.partial, extra)
        self._chunks = snapshot.chunks
        if self.moments is not None:
            self.moments.kept(snapshot.chunks)

    def _finish(self, finished: Finished) -> Iterator[Message]:
        if self.current is None:
            raise EngineError(
                f"{self.collection.job.text}: no chunk is left to collect; lower --chunk or raise --chunks"
            )
        if self.moments is not None:
            yield from self.moments.finish(self._chunks)
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
            write_out(imatrix, influence, self.collection.out, dat=self.collection.dat)
        self.collection.partial.unlink(missing_ok=True)
        yield finished

    def _digest(self) -> str:
        """Of everything that must be the same for a run to be continued."""
        job = self.collection.job
        digest = hashlib.sha256(Path(job.text).read_bytes())
        stat = os.stat(job.model)
        merge = [str(path) for path in self.collection.merge]
        wanted: tuple[object, ...] = (
            stat.st_size,
            stat.st_mtime_ns,
            job.n_ctx,
            job.first_chunk,
            job.process_output,
            job.parse_special,
            merge,
        )
        if self.moments is not None:
            wanted += self.moments.identity
        digest.update(repr(wanted).encode())
        return digest.hexdigest()


def write_out(imatrix: Imatrix, influence: Influence | None, out: Path, *, dat: bool) -> None:
    """The final file; the old format keeps the matrix alone."""
    if dat:
        save_dat(imatrix, out)
    else:
        save(imatrix, influence, out)


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
