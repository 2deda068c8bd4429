"""All files of one write together: opened, reserved, checkpointed, checked, and only then given their names."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from surgeon import __version__
from surgeon.errors import SurgeonError
from surgeon.gguf.header import parse_shard
from surgeon.imatrix.imatrix import Imatrix
from surgeon.resolve.resolution import Resolution
from surgeon.write.layouts import OutputLayout
from surgeon.write.output_file import OutputFile, companion, refuse_existing, sync_folder, write_error
from surgeon.write.resume_log import Identity, Recorded, ResumeLog, read


class OutputSet:
    """The temporary files of `layouts` and their journal, which lies beside the first of them."""

    def __init__(self, layouts: Sequence[OutputLayout]) -> None:
        self.layouts = tuple(layouts)
        self.files = tuple(OutputFile(layout.path, layout.header.total_bytes) for layout in layouts)
        self._journal = ResumeLog(companion(layouts[0].path, ".surgeon-journal"))
        self._closing = (
            threading.Lock()
        )  # held while a thread left behind could write to a number that is closed by now
        self._closed = False
        self.finished: set[int] = set()
        self.is_complete = False
        self._failure: SurgeonError | None = None

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    @property
    def folder(self) -> Path:
        return self.files[0].target.parent

    def open(self, digest: str, inputs: tuple[tuple[int, int, int, int], ...], resume: bool, overwrite: bool) -> None:
        """Open and lock the temporary files, reserve their space; `finished` then holds what need not be done again.

        Raises SurgeonError: a file of that name, another writer, no space, or with `resume` a left-over of something
        else, which stays as it was.
        """
        recorded = read(self._journal.path) if resume else None
        for file in self.files:
            file.placed = recorded is not None and file.is_placed(recorded.identity.outputs)
            if not overwrite and not file.placed:
                refuse_existing(file.target, recorded.identity.outputs if recorded else ())
        try:
            for file in self.files:
                file.open()
            if recorded is not None:
                self._refuse_other(recorded.identity, Identity(digest, inputs, self._inodes()))
        except SurgeonError:
            self._back_out()
            raise
        self._claim(Identity(digest, inputs, self._inodes()), recorded)

    def _claim(self, identity: Identity, recorded: Recorded | None) -> None:
        """From here on the temporary files are this run's to fill or to remove."""
        try:
            if recorded is not None:
                self.finished = set(recorded.finished)
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
        if recorded.inputs != wanted.inputs:
            reason = "the model has changed since"
        elif recorded.digest != wanted.digest:
            reason = "the plan, the imatrix or the program has changed since"
        elif recorded.outputs != wanted.outputs:
            reason = f"{self.files[0].part.name} is not the file it was"
        else:
            return
        raise SurgeonError(f"{self.files[0].target}: cannot resume, {reason}; start over without --resume")

    def _reserve(self) -> None:
        """Raises SurgeonError when the disk is too full for all the files together."""
        free = shutil.disk_usage(self.folder).free
        held = sum(os.fstat(file.fd).st_blocks * 512 for file in self.files)
        if free + held < self.nbytes:
            raise write_error(self.files[0], OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), needed=self.nbytes)
        for file in self.files:
            file.reserve()

    def checkpoint(self, numbers: Iterable[int]) -> None:
        """Wait until the data of these tensors is on the disk, then record them as finished."""
        numbers = set(numbers)
        file = self.files[0]
        try:
            for layout, file in zip(self.layouts, self.files, strict=True):
                if numbers.intersection(layout.numbers):
                    file.sync()
            with self._closing:
                if not self._closed:
                    self._journal.finished(numbers)
                    self.finished |= numbers
        except OSError as error:
            self._failure = write_error(file, error)
            raise self._failure from None

    def complete(self, numbers: Iterable[int]) -> None:
        """Record the last tensors, write the headers, sync, and read the structure back.

        The headers come last, so that no unfinished file can be taken for a model. Only the structure is compared: what
        would come back of the data now is the same memory it was written from. A sync that failed earlier ends it here:
        the system reports lost data only once, and the next sync succeeds.
        """
        if self._failure is not None:
            raise self._failure
        self.checkpoint(numbers)
        for layout, file in zip(self.layouts, self.files, strict=True):
            if file.placed:
                continue
            try:
                with self._closing:
                    if self._closed:
                        return
                    file.pwrite(layout.header.data, 0)
                file.sync()
            except OSError as error:
                raise write_error(file, error) from None
            _compare(layout, file)
        self.is_complete = True

    def place(self, overwrite: bool) -> None:
        """Give all files their names, the first shard last: without it nobody opens the others. Raises SurgeonError."""
        for file in reversed(self.files):
            try:
                file.place(overwrite)
            except OSError as error:
                raise write_error(file, error) from None
        sync_folder(self.folder)
        self._journal.remove()
        for file in self.files:
            file.close()

    def abandon(self, keep: bool) -> str:
        """Remove everything, or leave it for `--resume`: with `keep` what is finished, always what only lacks its name.

        Returns what is left, as half a sentence.
        """
        if self.is_complete or (keep and self.finished):
            self.keep()
            tensors = sum(len(layout.numbers) for layout in self.layouts)
            return f"{len(self.finished)} of {tensors} tensors are kept in {self.files[0].part}: continue with --resume"
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


def _compare(layout: OutputLayout, file: OutputFile) -> None:
    """Raises SurgeonError when the written header does not read back as what it should say."""
    shard = parse_shard(file.part, file.fd, os.fstat(file.fd).st_size)
    found = [(info.name, math.prod(info.ne), info.type_id, info.offset) for info in shard.tensors]
    entries = zip(layout.entries, layout.header.offsets, strict=True)
    wanted = [(entry.name, math.prod(entry.ne), entry.type_id, offset) for entry, offset in entries]
    if found != wanted or [*shard.kv.items()] != [*layout.kv] or shard.size != layout.header.total_bytes:
        raise SurgeonError(
            f"{file.target}: what was written does not read back as written; check the disk and try again"
        )


def digest(resolution: Resolution, layouts: Sequence[OutputLayout], imatrix: Imatrix | None) -> str:
    """A hash of everything that decides the bytes of the output, apart from the input's tensor data."""
    state = hashlib.blake2b(digest_size=16)
    healing = resolution.plan.healing
    state.update(repr((__version__, resolution.plan.compat, healing.id if healing else None)).encode())
    for layout in layouts:
        state.update(layout.header.data)
    for op in resolution.kept:
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
