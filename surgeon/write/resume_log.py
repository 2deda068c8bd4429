"""The journal of a running write: what `--resume` needs to know, beside the temporary file.

Lines of `CRC32 JSON`. The first says what is being written (`Identity`); each further one names tensors whose data is
on the disk, with a checksum of it, or says that the files are getting their names. A line cut off by a crash fails its
checksum and ends the journal there, so that no tensor is taken for finished that may not be.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from surgeon.json_text import read_json


class Checksum(NamedTuple):
    """Of a tensor's data in the output. slab_rows: rows that were hashed together; total: the sum of their hashes."""

    slab_rows: int
    total: int


@dataclass(frozen=True, slots=True)
class Identity:
    """What a temporary file belongs to.

    digest: of everything that decides the output's bytes; inputs: size, times of the last change of data and of
    anything, inode and device of each input file; headers: a hash of the bytes before their tensor data; outputs: the
    inode of each temporary file.
    """

    digest: str
    inputs: tuple[tuple[int, ...], ...]
    headers: str
    outputs: tuple[int, ...]


class ResumeLog:
    """Appends to the journal file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def begin(self, identity: Identity) -> None:
        """Start a new journal in a new file; an old one is gone at once."""
        self.remove()
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        self._append(asdict(identity))

    def continue_after(self, length: int) -> None:
        """Go on after the first `length` bytes, the whole lines that `read` found."""
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        os.ftruncate(self._fd, length)
        os.lseek(self._fd, length, os.SEEK_SET)

    def finished(self, tensors: Mapping[int, Checksum]) -> None:
        """Record tensors whose data has been synced."""
        self._append({"finished": [[number, *checksum] for number, checksum in sorted(tensors.items())]})

    def placing(self) -> None:
        """Record that everything is complete and the files get their names now."""
        self._append({"placing": True})

    def close(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # every line was synced
                os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        self.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def _append(self, record: object) -> None:
        text = json.dumps(record, separators=(",", ":")).encode()
        os.write(self._fd, b"%08x %s\n" % (zlib.crc32(text), text))
        os.fsync(self._fd)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a journal says. placing: the files were getting their names; length: of its whole lines, in bytes."""

    identity: Identity
    finished: dict[int, Checksum] = field(default_factory=dict)
    placing: bool = False
    length: int = 0


def read(path: Path) -> Recorded | None:
    """The journal at `path`, or None when there is none, or no whole first line of ours in it."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError:
        return None
    records = []
    length = 0
    for line in lines:
        record = _checked(line)
        if record is None:
            break
        records.append(record)
        length += len(line)
    try:
        return _recorded(records, length) if records else None
    except (ArithmeticError, KeyError, TypeError, ValueError):
        return None  # another version's


def _recorded(records: list[dict[str, Any]], length: int) -> Recorded:
    first = records[0]
    inputs = tuple(tuple(map(int, entry)) for entry in first["inputs"])
    identity = Identity(str(first["digest"]), inputs, str(first["headers"]), tuple(map(int, first["outputs"])))
    finished = {
        int(number): Checksum(int(slab_rows), int(total))
        for record in records[1:]
        for number, slab_rows, total in record.get("finished", ())
    }
    return Recorded(identity, finished, any("placing" in record for record in records[1:]), length)


def _checked(line: bytes) -> dict[str, Any] | None:
    """The record of a line that is whole, else None."""
    text = line[9:-1]
    if line[-1:] != b"\n" or line[:9] != b"%08x " % zlib.crc32(text):
        return None
    try:
        record = read_json(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
