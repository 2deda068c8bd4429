"""The header of one GGUF file, parsed and checked; nothing here keeps the file open.

    "GGUF" | u32 version | u64 tensors | u64 key-value pairs
    per pair    string key | u32 type | value
    per tensor  string name | u32 n_dims | n_dims x u64 (row length first) | u32 type | u64 offset into the data
    padding to the alignment | data

Every count is compared with the bytes that are left before anything loops over it, so that a damaged file costs
neither time nor memory.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from surgeon.gguf.strangers import HEAD_BYTES, what_is
from surgeon.gguf.values import ARRAY_HEAD, LENGTH, SIZES, GGUFError, Value, ValueType
from surgeon_kernels.formats import BY_NUMBER, Format

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
# More than ggml's own 4 and 63: image and video models are written with them. `verify` says what llama.cpp refuses.
MAX_DIMS = 8
MAX_NAME_BYTES = 127
MAX_KEY_BYTES = 65535
# Real headers stay below 64 MiB (a vocabulary of a million tokens with merges). The limit keeps a sparse file full of
# zero-length strings from being walked for minutes.
HEADER_LIMIT = 256 << 20
MAX_NESTING = 8

_START = struct.Struct("<4sIQQ")
_U32 = struct.Struct("<I")
_DESCRIPTION = tuple(struct.Struct(f"<{n}QIQ") for n in range(MAX_DIMS + 1))  # of a tensor, after its n_dims
_AGAIN = "download or convert it again"


class TensorInfo(NamedTuple):
    """One tensor of a file.

    ne: dimensions, row length first; offset: absolute, in bytes, in its file; nbytes: bytes of its data, for unknown
    types up to the next tensor or the end of the file; shard: index into `GGUFFile.paths`.
    """

    name: str
    ne: tuple[int, ...]
    type_id: int
    offset: int
    nbytes: int
    shard: int = 0

    @property
    def format(self) -> Format | None:
        """The tensor format, None for ids this program does not know."""
        return BY_NUMBER.get(self.type_id)

    @property
    def type_name(self) -> str:
        known = self.format
        return known.name if known else f"type {self.type_id}"

    @property
    def n_elements(self) -> int:
        return math.prod(self.ne)

    @property
    def n_rows(self) -> int:
        return math.prod(self.ne[1:])


@dataclass(frozen=True, slots=True)
class Shard:
    """The header of one file. data_start: where the data section begins, in bytes; size: of the whole file."""

    path: Path
    version: int
    alignment: int
    kv: dict[str, Value]
    tensors: tuple[TensorInfo, ...]
    data_start: int
    size: int


def parse_shard(path: Path, fd: int, size: int) -> Shard:
    """Parse the header of the open file `fd` of `size` bytes; raises GGUFError for every kind of damage."""
    with _parser(path, fd, size) as parser:
        return parser.parse()


def parse_metadata(path: Path, fd: int, size: int) -> dict[str, Value]:
    """The key-value pairs alone: what stands behind them may be damaged. Raises GGUFError."""
    with _parser(path, fd, size) as parser:
        _, _, n_kv = parser.start()
        return parser.key_values(n_kv)


@contextlib.contextmanager
def _parser(path: Path, fd: int, size: int) -> Iterator[_Parser]:
    if 0 < size < _START.size and (known := what_is(os.pread(fd, HEAD_BYTES, 0), size)) is not None:
        raise GGUFError(f"{path}: is {known[0]}; {known[1]}")
    if size < _START.size:
        what = "is empty" if size == 0 else f"is only {size} bytes long"
        raise GGUFError(f"{path}: {what}, so it is not a GGUF file; {_AGAIN}")
    with mmap.mmap(fd, min(size, HEADER_LIMIT), access=mmap.ACCESS_READ) as buffer:
        yield _Parser(path, buffer, size)


class _Parser:
    """Walks the header once; `where` names what is being read, for the error line: made into words only then, since
    there may be 32,000 tensors."""

    def __init__(self, path: Path, buffer: mmap.mmap, size: int) -> None:
        self.path = path
        self.buffer = buffer
        self.end = len(buffer)
        self.size = size
        self.position = 0
        self.where: tuple[str, ...] = ("the header",)

    def parse(self) -> Shard:
        version, n_tensors, n_kv = self.start()
        kv = self.key_values(n_kv)
        alignment = self.alignment(kv)
        infos = self.tensor_infos(n_tensors)
        data_start = -(-self.position // alignment) * alignment
        tensors = _placed(self.path, infos, data_start, self.size)
        return Shard(self.path, version, alignment, kv, tensors, data_start, self.size)

    def error(self, what: str, remedy: str = _AGAIN) -> GGUFError:
        return GGUFError(f"{self.path}: {what}; {remedy}")

    def ends_here(self) -> GGUFError:
        what, *name = self.where
        where = f"{what} {name[0]!r}" if name else what
        if self.end < self.size:
            return self.error(f"the header does not end within {HEADER_LIMIT >> 20} MiB, in {where}")
        return self.error(f"the file ends inside {where}, at byte {self.size}")

    def start(self) -> tuple[int, int, int]:
        magic, version, n_tensors, n_kv = _START.unpack_from(self.buffer)
        known = None if magic == MAGIC else what_is(self.buffer[:HEAD_BYTES], self.size)
        if known is not None:
            raise self.error(f"is {known[0]}", known[1])
        if magic != MAGIC:
            raise self.error(f"starts with {magic!r}, not with {MAGIC!r}: not a GGUF file", "name a .gguf file")
        if version and version & 0xFFFF == 0:
            raise self.error("is big-endian", "convert it for this machine with gguf-py's gguf_convert_endian")
        if version not in (2, 3):
            raise self.error(f"is GGUF version {version}; versions 2 and 3 can be read", "convert the model again")
        self.position = _START.size
        return version, n_tensors, n_kv

    def check_count(self, count: int, least: int, what: str) -> None:
        """Refuse `count` things of at least `least` bytes each that cannot fit in what is left of the file."""
        if count * least > self.end - self.position:
            if count * least <= self.size - self.position:
                raise self.ends_here()
            raise self.error(f"{what}, but only {self.size - self.position} bytes are left in the file")

    def u32(self) -> int:
        start = self.skip(4)
        return int(_U32.unpack_from(self.buffer, start)[0])

    def u64(self) -> int:
        start = self.skip(8)
        return int(LENGTH.unpack_from(self.buffer, start)[0])

    def skip(self, n: int) -> int:
        """Move on by `n` bytes and return where they start."""
        start = self.position
        if n > self.end - start:
            raise self.ends_here()
        self.position = start + n
        return start

    def text(self, kind: str, index: int, count: int) -> str:
        """A key or a tensor name: valid UTF-8 and printable, or it could not be shown safely on a terminal."""
        start = self.position + 8
        if start <= self.end:
            end = start + int(LENGTH.unpack_from(self.buffer, start - 8)[0])
            raw = self.buffer[start:end] if end - start <= MAX_KEY_BYTES and end <= self.end else b""
            try:
                name = raw.decode()
            except UnicodeDecodeError:
                name = ""
            if name and name.isprintable():
                self.position = end
                return name
        raise self.no_text(f"{kind} {index + 1} of {count}")

    def no_text(self, what: str) -> GGUFError:
        """Why what stands here is no name."""
        self.where = (what,)
        length = self.u64()
        self.check_count(length, 1, f"{what} claims a name of {length} bytes")
        if length > MAX_KEY_BYTES:
            return self.error(f"{what} has a name of {length} bytes; at most {MAX_KEY_BYTES} are possible")
        raw = self.buffer[self.position : self.position + length]
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            return self.error(f"{what} has the name {raw[:40]!r}, which is not UTF-8")
        if not name:
            return self.error(f"{what} has an empty name")
        return self.error(f"{what} has control characters in its name {name[:40]!a}")

    def key_values(self, count: int) -> dict[str, Value]:
        self.check_count(count, 8 + 1 + 4 + 1, f"claims {count} key-value pairs")
        kv: dict[str, Value] = {}
        for index in range(count):
            key = self.text("key", index, count)
            if key in kv:
                raise self.error(f"key {key!r} appears twice")
            self.where = ("the value of", key)
            type_ = self.value_type(f"key {key!r}")
            start = self.position
            self.skip_value(type_, key, 0)
            kv[key] = Value(type_, self.buffer[start : self.position])
        return kv

    def value_type(self, what: str) -> ValueType:
        number = self.u32()
        if number > ValueType.FLOAT64:
            raise self.error(f"{what} has value type {number}; 0 to 12 exist")
        return ValueType(number)

    def skip_value(self, type_: ValueType, key: str, depth: int) -> None:
        if type_ is ValueType.STRING:
            self.skip(self.u64())
        elif type_ is ValueType.ARRAY:
            self.skip_array(key, depth)
        else:
            self.skip(SIZES[type_])

    def skip_array(self, key: str, depth: int) -> None:
        if depth >= MAX_NESTING:
            raise self.error(f"key {key!r} nests arrays deeper than {MAX_NESTING}")
        element = self.value_type(f"the array of key {key!r}")
        count = self.u64()
        least = SIZES.get(element, LENGTH.size if element is ValueType.STRING else ARRAY_HEAD.size)
        self.check_count(count, least, f"key {key!r} claims {count} elements of {element.name.lower()}")
        if element is ValueType.STRING:
            self.skip_strings(count)
        elif element is ValueType.ARRAY:
            for _ in range(count):
                self.skip_array(key, depth + 1)
        else:
            self.skip(count * least)

    def skip_strings(self, count: int) -> None:
        """The hot loop of opening a model: one step per token and per merge of the vocabulary."""
        buffer, position, unpack = self.buffer, self.position, LENGTH.unpack_from
        try:
            for _ in range(count):
                position += 8 + unpack(buffer, position)[0]
        except (struct.error, OverflowError):  # the length before this one pointed outside
            raise self.ends_here() from None
        self.skip(position - self.position)

    def alignment(self, kv: dict[str, Value]) -> int:
        value = kv.get("general.alignment")
        if value is None:
            return DEFAULT_ALIGNMENT
        alignment = 0 if value.type is ValueType.ARRAY else value.decode()
        if value.type is not ValueType.UINT32 or alignment < 1 or alignment & (alignment - 1):
            kind = value.type.name.lower()
            found = f"{kind} of {value.count}" if value.type is ValueType.ARRAY else f"{kind} {alignment!r:.40}"
            raise self.error(f"general.alignment is {found}; it must be a uint32 and a power of two")
        return int(alignment)

    def tensor_infos(self, count: int) -> list[TensorInfo]:
        """Tensors as stored: offsets still count from the start of the data, unknown types have 0 bytes."""
        self.check_count(count, 8 + 1 + 4 + 4 + 8, f"claims {count} tensors")
        infos: dict[str, TensorInfo] = {}
        for index in range(count):
            name = self.text("tensor", index, count)
            if len(name.encode()) > MAX_NAME_BYTES:
                raise self.error(f"tensor {name!r} has a name longer than {MAX_NAME_BYTES} bytes")
            if name in infos:
                raise self.error(f"tensor {name!r} appears twice")
            self.where = ("the description of tensor", name)
            infos[name] = self.tensor_info(name)
        return list(infos.values())

    def tensor_info(self, name: str) -> TensorInfo:
        n_dims = self.u32()
        if n_dims > MAX_DIMS:
            raise self.error(f"tensor {name!r} has {n_dims} dimensions; at most {MAX_DIMS} are possible")
        fields = _DESCRIPTION[n_dims]
        *dims, type_id, offset = fields.unpack_from(self.buffer, self.skip(fields.size))
        ne = tuple(dims) or (1,)
        n_elements = math.prod(ne)
        if n_elements == 0 or n_elements >= 1 << 63:
            raise self.error(f"tensor {name!r} has an impossible shape {' × '.join(map(str, ne))}")
        known = BY_NUMBER.get(type_id)
        try:
            nbytes = 0 if known is None else known.row_bytes(ne[0]) * (n_elements // ne[0])
        except ValueError as error:
            raise self.error(f"tensor {name!r}: {error}") from None
        return TensorInfo(name, ne, type_id, offset, nbytes)


def _placed(path: Path, infos: list[TensorInfo], data_start: int, size: int) -> tuple[TensorInfo, ...]:
    """Absolute offsets and the sizes of unknown types, checked against the file's end and each other."""
    by_offset = sorted(range(len(infos)), key=lambda i: (infos[i].offset, infos[i].nbytes))
    limits = [size] * len(infos)
    for index, following in itertools.pairwise(by_offset):
        limits[index] = min(size, data_start + infos[following].offset)
    placed = []
    for info, limit in zip(infos, limits, strict=True):
        start = data_start + info.offset
        nbytes = info.nbytes if info.format else max(0, limit - start)
        if start > size or start + nbytes > size:
            raise GGUFError(
                f"{path}: tensor {info.name!r} needs bytes {start} to {start + nbytes}, but the file ends at {size}; "
                "it was cut short: download or copy it again"
            )
        if start + nbytes > limit or nbytes == 0:  # none left for an unknown type
            raise GGUFError(f"{path}: tensor {info.name!r} overlaps the tensor behind it, at byte {limit}; {_AGAIN}")
        placed.append(TensorInfo(info.name, info.ne, info.type_id, start, nbytes))
    return tuple(placed)
