"""The layout of a GGUF v3 file to be written: its header bytes and where each tensor's data goes."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from surgeon.gguf.header import MAGIC
from surgeon.gguf.values import LENGTH, Value

VERSION = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to be written. ne: row length first; type_id: the number of its format; nbytes: of its data."""

    name: str
    ne: tuple[int, ...]
    type_id: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """data: everything before the tensor data, padded; offsets: absolute, one per tensor; total_bytes: of the file."""

    data: bytes
    offsets: tuple[int, ...]
    total_bytes: int


def padded(size: int, alignment: int) -> int:
    """`size` rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment


def header(kv: Iterable[tuple[str, Value]], entries: Iterable[Entry], alignment: int) -> Header:
    """Lay a file out as ggml does: tensors in the given order, each padded to `alignment`, the last one too.

    The alignment is the caller's word: the reader goes by `general.alignment`, which `kv` should then hold.
    """
    pairs, entries = list(kv), list(entries)
    relative, end = [], 0
    for entry in entries:
        relative.append(end)
        end = padded(end + entry.nbytes, alignment)
    parts = [struct.pack("<4sIQQ", MAGIC, VERSION, len(entries), len(pairs))]
    parts += [_string(key) + struct.pack("<I", value.type) + value.raw for key, value in pairs]
    parts += [_description(entry, offset) for entry, offset in zip(entries, relative, strict=True)]
    data = b"".join(parts)
    data = data.ljust(padded(len(data), alignment), b"\0")
    return Header(data, tuple(len(data) + offset for offset in relative), len(data) + end)


def _string(text: str) -> bytes:
    raw = text.encode()
    return LENGTH.pack(len(raw)) + raw


def _description(entry: Entry, offset: int) -> bytes:
    ne = entry.ne
    while len(ne) > 1 and ne[-1] == 1:  # ggml writes no trailing dimensions of 1
        ne = ne[:-1]
    return _string(entry.name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, entry.type_id, offset)
