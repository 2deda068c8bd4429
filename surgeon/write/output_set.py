"""All files of one write together: opened, reserved, checkpointed, checked, and only then given their names."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from surgeon import __version__
from surgeon.errors import SurgeonError
from surgeon.gguf.header import parse_shard
from surgeon.imatrix.imatrix import Imatrix
from surgeon.resolve.resolution import Resolution
from surgeon.write.layouts import OutputLayout
from surgeon.write.output_file import OutputFile, companion, sync_folder, write_error
from surgeon.write.resume_log import Checksum, Identity, Recorded, ResumeLog, read
from surgeon.write_guard import NEW, Kind, Permit, refuse_alias

Source = tuple[tuple[tuple[int, ...], ...], str]  # of Identity: inputs and headers


@dataclass(frozen=True, slots=True)
class Extra:
    """A file that gets its name together with the model: its path as the user named it, and what it holds.

    identity: what decides its bytes; pieces: gives them with their offsets, the same ones whenever it is called.
    """

    path: Path
    kind: Kind
    nbytes: int
    identity: bytes
    pieces: Callable[[], Iterable[tuple[int, bytes]]]

    @staticmethod
    def of(path: Path, kind: Kind, data: bytes) -> Extra:
        """One that is small."""
        return Extra(path, kind, len(data), data, lambda: [(0, data)])


class OutputSet:
    """The temporary files of `layouts` and `extras`, and their journal, which lies beside the first of them."""

    def __init__(self, layouts: Sequence[OutputLayout], extras: Sequence[Extra] = (), permit: Permit = NEW) -> None:
        self.layouts, self.extras = tuple(layouts), tuple(extras)
        self.shards = tuple(OutputFile(layout.path, layout.header.total_bytes) for layout in layouts)
        self.beside = tuple(OutputFile(extra.path, extra.nbytes, extra.kind) for extra in extras)
        self.files = self.shards + self.beside
        self._permit = permit
        self._journal = ResumeLog(resume_log_of(layouts[0].path))
        self._closing = (
            threading.Lock()
        )  # held while a thread left behind could write to a number that is closed by now
        self._closed = False
        self.recorded: dict[int, Checksum] = {}
        self.finished: set[int] = set()
        self.is_complete = False
        self._resumed = False
        self._failure: SurgeonError | None = None
        self.left_over = ""  # what lies there still although everything is complete

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.shards)

    @property
    def folder(self) -> Path:
        return self.shards[0].target.parent

    def open(self, digest: str, source: Source, resume: bool) -> None:
        """Open and lock the temporary files, reserve their space; `recorded` then holds what an earlier run says it
        has finished, to be checked by `verified` before it may be left out.

        Raises SurgeonError: a path that must not be written, another writer, no space, or with `resume` a left-over of
        something else, which stays as it was. A run that was killed while its files got their names is continued also
        without `resume`: the user may not see that some have theirs.
        """
        recorded = read(self._journal.path)
        if recorded is not None and not resume and not self._was_placing(recorded, digest, source):
            recorded = None
        ours = recorded.identity.outputs if recorded is not None else ()
        for file in self.files:
            file.placed = file.is_placed(ours)
            file.admit(self._permit_for(file), ours)
        refuse_alias(self._journal.path, Permit(self._permit.inputs, tuple(file.target for file in self.files)))
        try:
            for file in self.files:
                file.open()
            if recorded is not None:
                self._refuse_other(recorded.identity, Identity(digest, *source, self._inodes()))
                if recorded.finished:
                    self._refuse_short()
        except SurgeonError:
            self._back_out()
            raise
        self._claim(Identity(digest, *source, self._inodes()), recorded)

    def _permit_for(self, file: OutputFile) -> Permit:
        """The run's permit, with the other files of this set among what else it writes."""
        others = [path for other in self.files if other is not file for path in (other.target, other.part)]
        return replace(self._permit, outputs=(*self._permit.outputs, self._journal.path, *others))

    def _was_placing(self, recorded: Recorded, digest: str, source: Source) -> bool:
        """Whether this same write was killed while its files got their names, and they are all still there."""
        there = [file.part if file.part.exists() else file.target for file in self.files]
        inodes = tuple(path.stat().st_ino if path.is_file() else 0 for path in there)
        return recorded.placing and recorded.identity == Identity(digest, *source, inodes)

    def _claim(self, identity: Identity, recorded: Recorded | None) -> None:
        """From here on the temporary files are this run's to fill or to remove."""
        try:
            if recorded is not None:
                self._resumed = True
                self.recorded = dict(recorded.finished)
                self.is_complete = recorded.placing
                self._journal.continue_after(recorded.length)
            else:
                for file in self.files:
                    file.start_afresh()
                self._journal.begin(replace(identity, outputs=self._inodes()))
            self._reserve()
        except OSError as error:
            self.discard()
            raise write_error(self.files[0], error) from None
        except SurgeonError:
            if recorded is None:
                self.discard()
            else:
                self.keep()
            raise

    def _back_out(self) -> None:
        """Close what was opened; of the temporary files only those go that this run has just made."""
        for file in self.files:
            if file.fd >= 0 and not file.placed and os.fstat(file.fd).st_size == 0:
                file.discard()
            file.close()

    def _inodes(self) -> tuple[int, ...]:
        return tuple(file.inode for file in self.files)

    def _refuse_other(self, recorded: Identity, wanted: Identity) -> None:
        """A left-over of another input or plan is not continued; raises SurgeonError."""
        if (recorded.inputs, recorded.headers) != (wanted.inputs, wanted.headers):
            reason = "the model has changed since"
        elif recorded.digest != wanted.digest:
            reason = "the plan, the imatrix or the program has changed since"
        elif recorded.outputs != wanted.outputs:
            reason = f"{self.files[0].part.name} is not the file it was"
        else:
            return
        raise self._cannot_resume(reason)

    def _refuse_short(self) -> None:
        """A left-over of another size was cut off or written to by someone else."""
        for file in self.files:
            size = os.fstat(file.fd).st_size
            if size != file.nbytes:
                name = (file.target if file.placed else file.part).name
                raise self._cannot_resume(f"{name} has {size:,} bytes and not {file.nbytes:,} as it was left")

    def _cannot_resume(self, reason: str) -> SurgeonError:
        return SurgeonError(f"{self.files[0].target}: cannot resume, {reason}; start over without --resume")

    def _reserve(self) -> None:
        """Raises SurgeonError when the disk is too full for all the files together."""
        free = shutil.disk_usage(self.folder).free
        beside = [file for file in self.files if file.target.parent == self.folder]
        held = sum(os.fstat(file.fd).st_blocks * 512 for file in beside)
        needed = sum(file.nbytes for file in beside)
        if free + held < needed:
            raise write_error(self.files[0], OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), needed=needed)
        for file in self.files:
            file.reserve()

    def verified(self, number: int, same: bool) -> None:
        """Take the word of the journal for a tensor, now that its data was compared with its checksum.

        Raises SurgeonError where it is another and the file has its final name already.
        """
        if same:
            self.finished.add(number)
            return
        for layout, file in zip(self.layouts, self.shards, strict=True):
            if file.placed and number in layout.numbers:
                raise self._cannot_resume(f"{file.target.name} is not as it was left")

    def verify_placed(self) -> None:
        """Files that an earlier run gave their names must be whole; raises SurgeonError, and OSError."""
        headers = [[(0, layout.header.data)] for layout in self.layouts]
        wanted = [*headers, *(extra.pieces() for extra in self.extras)]
        for file, pieces in zip(self.files, wanted, strict=True):
            if file.placed and any(os.pread(file.fd, len(data), offset) != data for offset, data in pieces):
                raise self._cannot_resume(f"{file.target.name} is not as it was left")

    def checkpoint(self, numbers: Mapping[int, Checksum]) -> None:
        """Wait until the data of these tensors is on the disk, then record them as finished."""
        file = self.shards[0]
        try:
            for layout, file in zip(self.layouts, self.shards, strict=True):
                if not numbers.keys().isdisjoint(layout.numbers):
                    file.sync()
            with self._closing:
                if not self._closed:
                    self._journal.finished(numbers)
                    self.finished |= numbers.keys()
        except OSError as error:
            self._failure = write_error(file, error)
            raise self._failure from None

    def complete(self, numbers: Mapping[int, Checksum]) -> None:
        """Record the last tensors, write the headers and the extras, sync, and read the structure back.

        The headers come last, so that no unfinished file can be taken for a model. Only the structure is compared: what
        would come back of the data now is the same memory it was written from. A sync that failed earlier ends it here:
        the system reports lost data only once, and the next sync succeeds.
        """
        if self._failure is not None:
            raise self._failure
        self.checkpoint(numbers)
        for layout, file in zip(self.layouts, self.shards, strict=True):
            pieces = _padding(layout) if self._resumed else []
            self._finish(file, [(0, layout.header.data), *pieces])
            _compare(layout, file)
        for extra, file in zip(self.extras, self.beside, strict=True):
            self._finish(file, extra.pieces())
        self.is_complete = not self._closed

    def _finish(self, file: OutputFile, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Write what is still missing in a file, each piece at its offset, and sync it."""
        try:
            if file.placed:
                return
            for offset, data in pieces:
                with self._closing:
                    if self._closed:
                        return
                    file.pwrite(data, offset)
            file.sync()
        except OSError as error:
            raise write_error(file, error) from None

    def place(self) -> None:
        """Give all files their names, or none. The first shard comes last: without it nobody opens the others.

        A run that is killed meanwhile is continued by the next of the same options. Raises SurgeonError.
        """
        placed: list[OutputFile] = []
        file = self.shards[0]
        try:
            self._journal.placing()
            for file in (*self.beside, *reversed(self.shards)):
                file.place(self._permit_for(file), keep_old=len(self.files) > 1)
                placed.append(file)
        except (OSError, SurgeonError) as error:
            for done in reversed(placed):
                done.take_back()
            raise write_error(file, error) if isinstance(error, OSError) else error from None
        self._tidy()

    def _tidy(self) -> None:
        """Everything has its name: remove what is not needed any more. What cannot be removed is not a failure."""
        for folder in {file.target.parent for file in self.files}:
            with suppress(OSError):
                sync_folder(folder)
        for path in (self._journal.path, *(file.old for file in self.files)):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                self.left_over = f"{path}: could not be removed: {error.strerror}"
        self._journal.close()
        for file in self.files:
            self.left_over = self.left_over or file.left_over
            file.close()

    def abandon(self, keep: bool) -> str:
        """Remove everything, or leave it for `--resume`: with `keep` what is finished, always what only lacks its name.

        Returns what is left, as half a sentence.
        """
        done = self.finished or self.recorded  # the latter are not checked yet, but not ours to throw away either
        if self.is_complete or (keep and done):
            self.keep()
            tensors = sum(len(layout.numbers) for layout in self.layouts)
            return f"{len(done)} of {tensors} tensors are kept in {self.shards[0].part}: continue with --resume"
        self.discard()
        return "nothing was left behind"

    def keep(self) -> None:
        """Close everything and leave it for `--resume`."""
        with self._closing:
            self._closed = True
            self._journal.close()
            for file in self.files:
                file.close()

    def discard(self) -> None:
        """Remove the temporary files and the journal."""
        with self._closing:
            self._closed = True
            self._journal.remove()
            for file in self.files:
                file.discard()


def resume_log_of(path: Path) -> Path:
    """Where the log of an output lies that is written to `path` (of shards: to the first of them)."""
    return companion(Path(os.path.realpath(path)), ".surgeon-journal")


def _padding(layout: OutputLayout) -> Iterator[tuple[int, bytes]]:
    """The zeros after each tensor's data and where they go: in a left-over anything may be there."""
    ends = (*layout.header.offsets[1:], layout.header.total_bytes)
    for entry, offset, end in zip(layout.entries, layout.header.offsets, ends, strict=True):
        start = offset + entry.nbytes
        if end > start:
            yield start, bytes(end - start)


def _compare(layout: OutputLayout, file: OutputFile) -> None:
    """Raises SurgeonError when the written header does not read back as what it should say."""
    if file.fd < 0:
        return  # abandoned meanwhile
    shard = parse_shard(file.part, file.fd, os.fstat(file.fd).st_size)
    found = [(info.name, math.prod(info.ne), info.type_id, info.offset) for info in shard.tensors]
    entries = zip(layout.entries, layout.header.offsets, strict=True)
    wanted = [(entry.name, math.prod(entry.ne), entry.type_id, offset) for entry, offset in entries]
    if found != wanted or [*shard.kv.items()] != [*layout.kv] or shard.size != layout.header.total_bytes:
        raise SurgeonError(
            f"{file.target}: what was written does not read back as written; check the disk and try again"
        )


def digest(
    resolution: Resolution, layouts: Sequence[OutputLayout], imatrix: Imatrix | None, extras: Sequence[Extra] = ()
) -> str:
    """A hash of everything that decides the bytes of the output, apart from the input's tensor data."""
    state = hashlib.blake2b(digest_size=16)
    healing = resolution.plan.healing
    state.update(repr((__version__, resolution.plan.compat, healing.id if healing else None)).encode())
    for layout in layouts:
        state.update(layout.header.data)
    for extra in extras:
        state.update(extra.identity)
    if resolution.moments is not None and resolution.with_feedback:
        plan = resolution.plan
        state.update(repr((resolution.moments.digest, plan.shrink, plan.feedback_rounds)).encode())
    for op in resolution.kept:
        if op.feedback is not None:
            state.update(op.feedback.encode())
        state.update(
            repr(
                (op.source, op.name, op.action, op.from_type, op.to_type, op.imatrix_name, op.slice, op.scale)
            ).encode()
        )
        if imatrix is not None and op.action == "convert" and op.imatrix_name is not None:
            entry = imatrix.entries[op.imatrix_name]
            state.update(entry.sums.tobytes())
            state.update(entry.counts.tobytes())
    return state.hexdigest()
