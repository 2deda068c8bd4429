"""The journal of a running write: what `--resume` needs to know, beside the temporary file.

Lines of `CRC32 JSON`. The first says what is being written (`Identity`); each further one names tensors whose data is
on the disk. A line cut off by a crash fails its checksum and ends the journal there, so that no tensor is taken for
finished that may not be.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surgeon.json_text import read_json


@dataclass(frozen=True, slots=True)
class Identity:
    """What a temporary file belongs to.

    digest: of everything that decides the output's bytes; inputs: size, time, inode and device of each input file;
    outputs: the inode of each temporary file.
    """

    digest: str
    inputs: tuple[tuple[int, int, int, int], ...]
    outputs: tuple[int, ...]


class ResumeLog:
    """Appends to the journal file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def begin(self, identity: Identity) -> None:
        """Start a new journal; an old one is gone at once."""
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        self._append(asdict(identity))

    def continue_after(self, length: int) -> None:
        """Go on after the first `length` bytes, the whole lines that `read` found."""
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        os.ftruncate(self._fd, length)
        os.lseek(self._fd, length, os.SEEK_SET)

    def finished(self, tensors: Iterable[int]) -> None:
        """Record tensors whose data has been synced."""
        self._append({"finished": sorted(tensors)})

    def close(self) -> None:
        if self._fd >= 0:
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
    """What a journal says: length is that of its whole lines, in bytes."""

    identity: Identity
    finished: frozenset[int]
    length: int


def read(path: Path) -> Recorded | None:
    """The journal at `path`, or None when there is none, or no whole first line in it."""
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
    if not records:
        return None
    first = records[0]
    identity = Identity(str(first["digest"]), tuple(tuple(entry) for entry in first["inputs"]), tuple(first["outputs"]))
    finished = frozenset(number for record in records[1:] for number in record["finished"])
    return Recorded(identity, finished, length)


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
