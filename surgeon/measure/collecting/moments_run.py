"""Second moments beside a collection of an importance matrix: what is asked of the child, and their file at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from surgeon.engine.protocol import ImatrixJob, Step
from surgeon.engine.raw_moments import RawMoments, raw_path, remove_raw
from surgeon.gguf.identity import open_identity, same_identity
from surgeon.model.model import load_model
from surgeon.moments.account import Account, reckon, refuse_too_large
from surgeon.moments.files import Source, load_moments, write_moments
from surgeon.moments.moments import Head, Moments, MomentsError
from surgeon.moments.sources import Collected
from surgeon.write_guard import NEW, Kind, Permit, may_write


@dataclass(frozen=True)
class MomentsCollection:
    """What is wanted. block, halves: as `moments.moments.Head` has them; merge: files to add to the result.

    layers: None for all; otherwise their inputs join those in `out`, if that is there (the head's with the last layer).
    """

    out: Path
    block: int = 0
    halves: int = 2
    layers: frozenset[int] | None = None
    merge: tuple[Path, ...] = ()
    overwrite: bool = False

    @property
    def extends(self) -> bool:
        """Whether the inputs of some layers join a file that is there."""
        return self.layers is not None and self.out.exists() and not self.overwrite


class MomentsRun:
    """One collection's second moments."""

    def __init__(self, wanted: MomentsCollection, job: ImatrixJob) -> None:
        self.wanted, self._job, self._permit = wanted, job, NEW
        self._stem = f"{wanted.out}.partial"
        model = load_model(job.model)
        with model.file:
            self._identity, self._name = open_identity(model.file), model.file.path.name
            self._layers = [layer.index for layer in model.layers]
            self.account: Account = reckon(model, wanted.block, wanted.halves, wanted.layers)

    @property
    def identity(self) -> tuple[object, ...]:
        """What must be the same for a run to be continued."""
        wanted = self.wanted
        return str(wanted.out), wanted.block, wanted.halves, sorted(wanted.layers or ()), [str(p) for p in wanted.merge]

    def check(self, permit: Permit) -> None:
        """Raises WriteRefused or MomentsError for what must not be overwritten or joined, SurgeonError for too much.

        permit: what else the run reads and writes.
        """
        wanted = self.wanted
        self._permit = replace(permit, replace=wanted.overwrite or wanted.extends)
        may_write(wanted.out, Kind.MOMENTS, self._permit)
        if wanted.extends:
            with load_moments(wanted.out).file:
                pass  # damage stops the run now, not after an hour
        refuse_too_large(self.account, wanted.out.absolute().parent, len(self._layers))

    def job(self, job: ImatrixJob, resumed_at: int | None) -> ImatrixJob:
        """The child's job; resumed_at: the first chunk that an interrupted run has not added up."""
        wanted = self.wanted
        layers = None if wanted.layers is None else sorted(wanted.layers)
        if resumed_at is None:
            remove_raw(self._stem)
        return replace(
            job, moments=self._stem, moments_from="" if resumed_at is None else str(raw_path(self._stem, resumed_at)),
            moments_block=wanted.block, moments_halves=wanted.halves, moments_layers=layers,
            moments_head=layers is None or self._layers[-1:] == layers[-1:],
        )  # fmt: skip

    def has_kept(self, chunks: int) -> bool:
        """Whether the sums of the text's first `chunks` chunks are there."""
        return raw_path(self._stem, chunks).is_file()

    def kept(self, chunks: int) -> None:
        """The matrix of as many chunks is on the disk: sums of fewer are not needed any more."""
        remove_raw(self._stem, chunks)

    def finish(self, chunks: int, run: str) -> Iterator[Step]:
        """Write the file: the sums of the collection `run`, and what is merged or joined.

        Raises MomentsError, EngineError.
        """
        raw = RawMoments(raw_path(self._stem, chunks), run)
        files = [load_moments(path) for path in self.wanted.merge]
        head = self._head(chunks - self._job.first_chunk, files)
        if self.wanted.extends:
            before = load_moments(self.wanted.out)
            _refuse_other(before, head, self.wanted.out)
            files.append(before)
        try:
            sources: list[Source] = [Collected(raw), *files]
            for done, total in write_moments(self.wanted.out, head, sources, self._permit):
                yield Step(done, total)
        finally:
            for moments in files:
                moments.file.close()
        remove_raw(self._stem)

    def _head(self, chunks: int, merged: Sequence[Moments]) -> Head:
        mine = Head(
            self.wanted.block, self.wanted.halves, self._identity, self._name, (self._job.text,), chunks,
            self._job.n_ctx,
        )  # fmt: skip
        return _joined(self.wanted.out, [mine, *(moments.head for moments in merged)])


def merge_moments(paths: Sequence[Path], out: Path, *, overwrite: bool = False) -> Iterator[Step]:
    """Add up several files. Raises MomentsError where they do not belong together, WriteRefused for `out`."""
    permit = Permit(tuple(paths), replace=overwrite)
    may_write(out, Kind.MOMENTS, permit)
    files = [load_moments(path) for path in paths]
    try:
        head = _joined(out, [moments.head for moments in files])
        for done, total in write_moments(out, head, files, permit):
            yield Step(done, total)
    finally:
        for moments in files:
            moments.file.close()


def _joined(out: Path, heads: Sequence[Head]) -> Head:
    first = heads[0]
    for other in heads[1:]:
        if (other.block, other.halves) != (first.block, first.halves):
            raise MomentsError(
                f"{out}: one file has blocks of {first.block} columns and {first.halves} halves, another {other.block} "
                f"and {other.halves}; collect both with the same --moments-block and halves"
            )
        if not same_identity(other.model, first.model):
            raise MomentsError(f"{out}: {first.model_name} and {other.model_name} are different models; no sum of both")
    datasets = tuple(name for head in heads for name in head.datasets)
    model = max((head.model for head in heads), key=len)  # the newer form tells more models apart
    return replace(first, model=model, datasets=datasets, chunk_count=sum(head.chunk_count for head in heads))


def _refuse_other(before: Moments, head: Head, out: Path) -> None:
    """Inputs of other layers must come from the same tokens of the same model."""
    if not same_identity(before.head.model, head.model) or replace(before.head, model=head.model) != head:
        raise MomentsError(
            f"{out}: its layers were collected from another model, text, -c, number of chunks or --moments-block; "
            "name another file, or give --overwrite"
        )
