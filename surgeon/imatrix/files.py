"""The two file formats of importance matrices (their layout: `surgeon.imatrix.imatrix`)."""

from __future__ import annotations

import contextlib
import os
import struct
from math import floor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from surgeon.gguf.file import GGUFFile, TensorInfo, Value, ValueType, open_gguf
from surgeon.gguf.header import DEFAULT_ALIGNMENT, MAGIC
from surgeon.gguf.layout import Entry, header
from surgeon.imatrix.imatrix import COUNTS, DEFAULT_CHUNK_SIZE, SUMS, Imatrix, ImatrixEntry, ImatrixError
from surgeon.whole_files import write_whole
from surgeon.write_guard import NEW, Kind, Permit
from surgeon_kernels.formats import FORMATS

_F32 = FORMATS["F32"].number
_FLOAT = np.dtype("<f4")
_I32 = struct.Struct("<i")
_KEYS = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
MOST_ROWS = 2**53  # of activations; keeps sums of counts exact
_COLLECT = "collect it again with llama-imatrix"


def is_old_format(path: Path) -> bool:
    """Whether the file begins as an importance matrix in the old format does: entries, and a first name."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            count, length = struct.unpack("<ii", head)
            name = file.read(max(0, min(length, 1 << 16)))
    except (OSError, ValueError, struct.error):
        return False
    return 0 < count < 1 << 20 and 0 < length == len(name) and name.isascii() and name.decode().isprintable()


def read(path: Path) -> Imatrix:
    """Read either format, detected from the first four bytes; entries that cannot be used are in `bad`."""
    with contextlib.suppress(OSError, ValueError):  # open_gguf says what is wrong with the name
        if path.is_file():
            with path.open("rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    return _DatReader(path, os.fstat(file.fileno()).st_size).read()
    with open_gguf(path) as gguf:
        return _read_gguf(path, gguf)


def _read_gguf(path: Path, file: GGUFFile) -> Imatrix:
    missing = [key for key in _KEYS if key not in file.kv]
    if missing:
        if "general.architecture" in file.kv:
            raise ImatrixError(f"{path}: is a model, not an importance matrix; name the file llama-imatrix wrote")
        raise ImatrixError(
            f"{path}: lacks {', '.join(missing)}, without which llama-quantize refuses an importance matrix; {_COLLECT}"
        )
    infos = {info.name: info for info in file.tensors}
    names = [name.removesuffix(SUMS) for name in infos if name.endswith(SUMS)]
    alone = [name for name in infos if name.endswith(COUNTS) and name.removesuffix(COUNTS) + SUMS not in infos]
    if not names and not alone:
        raise ImatrixError(f"{path}: holds no entries; {_COLLECT}")
    bad = {name.removesuffix(COUNTS): f"{name} has no partner {name.removesuffix(COUNTS)}{SUMS}" for name in alone}
    entries: dict[str, ImatrixEntry] = {}
    values = _Values(file)
    for name in names:
        try:
            entries[name] = _read_entry(values, infos, name)
        except _BadEntryError as error:
            bad[name] = str(error)
    datasets, chunk_count, chunk_size = (file.kv[key] for key in _KEYS)
    if datasets.element_type is not ValueType.STRING:
        raise ImatrixError(f"{path}: imatrix.datasets must be a list of names; {_COLLECT}")
    known = tuple(datasets.small() or ())
    return Imatrix(path, entries, known, _number(path, chunk_count), _number(path, chunk_size), bad=bad)


def _number(path: Path, value: Value) -> int:
    if value.type is not ValueType.UINT32:
        kind = value.type.name.lower()
        raise ImatrixError(f"{path}: imatrix.chunk_count and imatrix.chunk_size are uint32, not {kind}; {_COLLECT}")
    return int(value.decode())


class _BadEntryError(Exception):
    """What is wrong with one entry, beginning with its name."""


class _Values:
    """The F32 tensors of a file, read and looked through at once: there may be 32,000 of them.

    sound: no value is negative, infinite or no number.
    """

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self._starts = [shard.data_start for shard in file.shards]
        # Anything else between them may be large, and is nothing to be read.
        starts = self._starts
        simple = all(info.type_id == _F32 and (info.offset - starts[info.shard]) % 4 == 0 for info in file.tensors)
        self._data = [file.read_data(number) for number in range(len(file.shards))] if simple else []
        self.sound = simple and all(map(_sound, self._data))

    def of(self, info: TensorInfo) -> NDArray[np.float32]:
        if not self._data:
            values = np.empty(info.n_elements, _FLOAT)
            self._file.read_into(info, 0, values)
            return values.astype(np.float32, copy=False)
        start = info.offset - self._starts[info.shard]
        return self._data[info.shard][start : start + info.nbytes].view(_FLOAT).astype(np.float32, copy=False)


def _sound(data: NDArray[np.uint8]) -> bool:
    floats = data[: len(data) // 4 * 4].view(_FLOAT)
    return not len(floats) or bool(floats.min() >= 0 and np.isfinite(floats.max()))  # a NaN is the least of all


def _read_entry(values: _Values, infos: dict[str, TensorInfo], name: str) -> ImatrixEntry:
    """Raises _BadEntryError."""
    if name + COUNTS not in infos:
        raise _BadEntryError(f"{name}{SUMS} has no partner {name}{COUNTS}")
    sums, counts = infos[name + SUMS], infos[name + COUNTS]
    for info in (sums, counts):
        if info.type_id != _F32:
            raise _BadEntryError(f"{info.name} is {info.type_name}, not F32")
    if counts.n_elements != sums.n_rows:
        raise _BadEntryError(f"{name} has sums for {sums.n_rows} matrices, but {counts.n_elements} counts")
    sizes = values.of(sums) if values.sound else _usable(name, values.of(sums))
    return ImatrixEntry(sizes.reshape(-1, sums.ne[0]), _rows_seen(name, values.of(counts)))


def _rows_seen(name: str, counts: NDArray[np.float32]) -> NDArray[np.int64]:
    """Whole numbers. Raises _BadEntryError."""
    if len(counts) == 1 and 0 <= (only := float(counts[0])) <= MOST_ROWS:
        return np.array([floor(only + 0.5)], np.int64)  # lround: halves away from zero
    wrong = counts[~((counts >= 0) & (counts <= MOST_ROWS))]
    if len(wrong):
        what = "an impossible count" if np.isfinite(wrong[0]) else "the value"
        raise _BadEntryError(f"{name} has {what} {wrong[0]}{'' if np.isfinite(wrong[0]) else ' as a count'}")
    return np.floor(counts.astype(np.float64) + 0.5).astype(np.int64)


def _usable(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums of squares are finite and not negative. Raises _BadEntryError."""
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(bad):
        raise _BadEntryError(f"{name} has the value {values[bad[0]]} in channel {bad[0]}")
    return values


def _finite(path: Path, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ImatrixError(f"{path}: {name} has the value {values[bad[0]]} in channel {bad[0]}; {_COLLECT}")
    return values


class _DatReader:
    """Walks an old-format file once; every length is checked before it is believed."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.buffer = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
        self.position = 0

    def read(self) -> Imatrix:
        if len(self.buffer) == 0:
            raise self.error("is empty")
        count = self.number("the number of entries")
        if count < 1 or count * 17 > len(self.buffer):
            raise self.error("is neither a GGUF nor an importance matrix in the old format")
        entries: dict[str, ImatrixEntry] = {}
        bad: dict[str, str] = {}
        for index in range(count):
            what = f"entry {index + 1} of {count}"
            name = self.text(what)
            if name in entries or name in bad:
                raise self.error(f"{name} appears twice")
            try:
                entries[name] = self.entry(name)
            except _BadEntryError as error:
                bad[name] = str(error)
        chunks, datasets = self.tail()
        return Imatrix(self.path, entries, datasets, chunks, DEFAULT_CHUNK_SIZE, is_legacy=True, bad=bad)

    def error(self, what: str) -> ImatrixError:
        return ImatrixError(f"{self.path}: {what}; {_COLLECT}")

    def take(self, n: int, what: str) -> bytes:
        start = self.position
        if n < 0:
            raise self.error(f"{what} claims {n} bytes")
        if n > len(self.buffer) - start:
            raise self.error(f"the file ends inside {what}, at byte {len(self.buffer)}")
        self.position = start + n
        return self.buffer[start : start + n].tobytes()

    def number(self, what: str) -> int:
        return int(_I32.unpack(self.take(4, what))[0])

    def text(self, what: str) -> str:
        raw = self.take(self.number(what), what)
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            name = ""
        if not name or not name.isprintable():
            raise self.error(f"{what} has the name {raw[:40]!r}, which no tensor can have")
        return name

    def entry(self, name: str) -> ImatrixEntry:
        calls, n = self.number(name), self.number(name)
        if n < 1:
            raise self.error(f"{name} has {n} values")
        values = np.frombuffer(self.take(4 * n, name), "<f4").astype(np.float32)
        return ImatrixEntry(_usable(name, values)[None, :], np.array([calls], np.int64))

    def tail(self) -> tuple[int, tuple[str, ...]]:
        """Number of chunks and the dataset; older files end without them."""
        if self.position == len(self.buffer):
            return 0, ()
        chunks = self.number("the number of chunks")
        if self.position == len(self.buffer):
            return chunks, ()
        length = self.number("the dataset's name")
        name = self.take(length, "the dataset's name").decode("utf-8", "replace")
        return chunks, (name,) if name else ()


def gguf_bytes(imatrix: Imatrix) -> bytes:
    """The GGUF file of a matrix of raw sums."""
    kv = [
        ("general.type", Value.of(ValueType.STRING, "imatrix")),
        ("imatrix.datasets", Value.array(ValueType.STRING, imatrix.datasets)),
        ("imatrix.chunk_count", Value.of(ValueType.UINT32, imatrix.chunk_count)),
        ("imatrix.chunk_size", Value.of(ValueType.UINT32, imatrix.chunk_size)),
    ]
    tensors: list[tuple[Entry, bytes]] = []
    for name in _sorted(imatrix):
        entry = imatrix.entries[name]
        _finite(imatrix.path, name, entry.sums.ravel())  # merging may have passed the end of float32
        n_mat, n_per_mat = entry.sums.shape
        sums, counts = entry.sums.astype("<f4").tobytes(), entry.counts.astype("<f4").tobytes()
        tensors.append((Entry(name + SUMS, (n_per_mat, n_mat), _F32, len(sums)), sums))
        tensors.append((Entry(name + COUNTS, (1, n_mat), _F32, len(counts)), counts))
    layout = header(kv, [entry for entry, _ in tensors], DEFAULT_ALIGNMENT)
    out = bytearray(layout.total_bytes)
    out[: len(layout.data)] = layout.data
    for (_, data), offset in zip(tensors, layout.offsets, strict=True):
        out[offset : offset + len(data)] = data
    return bytes(out)


def dat_bytes(imatrix: Imatrix) -> bytes:
    """The old format: per value (sum / count) * calls; entries that saw no data are left out."""
    parts = [part for name in _sorted(imatrix) if (part := _dat_entry(imatrix, name))]
    if not parts:
        raise ImatrixError(f"{imatrix.path}: no entry saw any data, so the old format has nothing to hold; {_COLLECT}")
    dataset = imatrix.datasets[-1].encode() if imatrix.datasets else b""
    tail = _i32(imatrix, "the number of chunks", imatrix.chunk_count) + _I32.pack(len(dataset)) + dataset
    return _I32.pack(len(parts)) + b"".join(parts) + tail


def _i32(imatrix: Imatrix, what: str, value: int) -> bytes:
    if not -(2**31) <= value < 2**31:
        raise ImatrixError(f"{imatrix.path}: {what} is {value}, too many for the old format; save it as GGUF")
    return _I32.pack(value)


def _dat_entry(imatrix: Imatrix, name: str) -> bytes:
    entry = imatrix.entries[name]
    if imatrix.is_legacy:
        calls, values = int(entry.counts[0]), entry.sums
    else:
        calls = -(-int(entry.counts.max()) // max(imatrix.chunk_size, 1))
        if calls == 0:
            return b""
        with np.errstate(over="ignore"):
            values = imatrix.weights(name) * np.float32(calls)
    _finite(imatrix.path, name, values.ravel())
    raw = name.encode()
    data = values.astype("<f4").tobytes()
    calls_field = _i32(imatrix, f"the number of calls of {name}", calls)
    return _I32.pack(len(raw)) + raw + calls_field + _I32.pack(values.size) + data


def _sorted(imatrix: Imatrix) -> list[str]:
    return sorted(imatrix.entries, key=str.encode)


def load_imatrix(path: str | os.PathLike[str], *, judged: bool = False) -> Imatrix:
    """Read an importance matrix of either format; raises ImatrixError or GGUFError.

    judged: entries that cannot be used are left to the caller, in `bad`, instead of being an error.
    """
    imatrix = read(Path(path))
    if imatrix.bad and not judged:
        raise ImatrixError(f"{path}: {next(iter(imatrix.bad.values()))}; {_COLLECT}")
    return imatrix


def save_gguf(imatrix: Imatrix, path: str | os.PathLike[str], permit: Permit = NEW) -> None:
    """Write the GGUF format as llama-imatrix does, in one step and by default only where there is no file."""
    write_whole(Path(path), gguf_bytes(imatrix.raw_sums()), Kind.IMATRIX, permit)


def save_dat(imatrix: Imatrix, path: str | os.PathLike[str], permit: Permit = NEW) -> None:
    """Write the old format, likewise: counts per expert and all but the last dataset's name are lost."""
    write_whole(Path(path), dat_bytes(imatrix), Kind.IMATRIX, permit)
