"""GGUF files for reading: versions 2 and 3, little-endian, a single file or a set of shards.

`open_gguf(path)` parses the header only; tensor data stays on disk until it is asked for.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from surgeon.gguf.header import MAGIC, Shard, TensorInfo, parse_metadata, parse_shard
from surgeon.gguf.values import GGUFError, Value, ValueType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["GGUFError", "GGUFFile", "TensorInfo", "Value", "ValueType", "metadata_of", "open_gguf"]

Parsed = TypeVar("Parsed")
SHARD_NAME = re.compile(r"(?P<prefix>.*)-(?P<number>[0-9]{5,})-of-(?P<count>[0-9]{5,})\.gguf", re.DOTALL)


class GGUFFile:
    """An open GGUF: metadata of the first shard, tensors of all of them in stored order.

    paths: all shards; kv: key -> raw value, in stored order; alignment: of the first shard, in bytes; nbytes: size of
    all files on disk.
    """

    def __init__(self, path: Path, shards: list[Shard], fds: list[int]) -> None:
        self.path = path
        self.shards = tuple(shards)
        self.paths = tuple(shard.path for shard in shards)
        self.version = shards[0].version
        self.alignment = shards[0].alignment
        self.kv = shards[0].kv
        self.tensors = tuple(info for shard in shards for info in shard.tensors)
        self.nbytes = sum(shard.size for shard in shards)
        self._fds = fds
        self._maps: dict[int, NDArray[np.uint8]] = {}
        self._finalizer = weakref.finalize(self, _close_all, fds)
        self.states = self._states_now()

    def _states_now(self) -> tuple[tuple[int, ...], ...]:
        """Size, times of the last change of data and of anything in ns, inode and device of every shard.

        The time of the data alone can be set back by whoever changes it (rsync -t, touch -r); the other cannot.
        """
        found = map(os.fstat, self._fds)
        return tuple((stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev) for stat in found)

    def header_digest(self) -> str:
        """A hash of the bytes before the tensor data, of every shard, as they are now. Raises GGUFError."""
        import hashlib  # loads OpenSSL: a twentieth of `surgeon show`

        digest = hashlib.blake2b(digest_size=16)
        for shard, fd in zip(self.shards, self._fds, strict=True):
            try:
                digest.update(os.pread(fd, shard.data_start, 0))
            except OSError as error:
                raise _unreadable(shard.path, error) from None
        return digest.hexdigest()

    def changed(self) -> list[Path]:
        """The shards that someone has written to since they were opened (`states` is how they were then)."""
        now = zip(self.paths, self.states, self._states_now(), strict=True)
        return [path for path, before, after in now if before != after]

    def data(self, info: TensorInfo) -> NDArray[np.uint8]:
        """The bytes of a tensor, uint8[info.nbytes], read-only and memory-mapped."""
        import numpy as np

        if info.shard not in self._maps:
            self._descriptor(info.shard, info.name)
            self._maps[info.shard] = np.memmap(self.paths[info.shard], np.uint8, "r")
        return self._maps[info.shard][info.offset : info.offset + info.nbytes]

    def read_data(self, number: int) -> NDArray[np.uint8]:
        """uint8[n]: what stands behind the header of a shard up to the end of its last tensor, in memory.

        Raises GGUFError.
        """
        import numpy as np

        shard = self.shards[number]
        end = max((info.offset + info.nbytes for info in shard.tensors), default=shard.data_start)
        data = np.empty(end - shard.data_start, np.uint8)
        self._fill(data, number, shard.data_start, "its data")
        return data

    def read_into(self, info: TensorInfo, start: int, buffer: Any) -> None:
        """Fill `buffer` (writable, contiguous) with the tensor's bytes from `start`; no page stays mapped.

        Raises ValueError when the tensor has fewer bytes, GGUFError when the file has or cannot be read.
        """
        length = memoryview(buffer).nbytes
        if start < 0 or start + length > info.nbytes:
            raise ValueError(f"{info.name} has {info.nbytes} bytes, not {start + length}")
        self._fill(buffer, info.shard, info.offset + start, info.name)

    def _fill(self, buffer: Any, shard: int, position: int, what: str) -> None:
        view, fd = memoryview(buffer).cast("B"), self._descriptor(shard, what)
        while view:
            try:
                got = os.preadv(fd, [view], position)
            except OSError as error:
                raise GGUFError(f"{self.paths[shard]}: cannot read {what}: {error.strerror}") from None
            if got == 0:
                raise GGUFError(f"{self.paths[shard]}: the file was cut short while {what} was being read")
            view, position = view[got:], position + got

    def _descriptor(self, shard: int, what: str) -> int:
        if not self._fds:
            raise GGUFError(f"{self.path}: was closed before {what} was read")
        return self._fds[shard]

    def close(self) -> None:
        """Close the files; views given out by `data` stay valid."""
        self._maps.clear()
        self._finalizer()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def shards_of(path: Path) -> tuple[Path, ...]:
    """The files that a set consists of, by the name of one of them; just that one where it is not named like a shard.

    Only the name is looked at: a set that lacks files, or is none, is for `open_gguf` to report.
    """
    match = SHARD_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) > 99_999:
        return (path,)
    count = int(match["count"])
    names = (f"{match['prefix']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1))
    return (path, *(sibling for name in names if (sibling := path.with_name(name)).exists() and name != path.name))


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Open a GGUF file, or the whole set when `path` is one of its shards; raises GGUFError for any damage."""
    path = Path(path)
    fds: list[int] = []
    with contextlib.ExitStack() as on_error:
        on_error.callback(_close_all, fds)
        shard = _parsed(path, fds, parse_shard)
        count = _split_number(shard, "split.count", 0)
        shards = [shard] if count <= 1 else _open_set(shard, count, fds)
        file = GGUFFile(path, shards, fds)
        on_error.pop_all()
    return file


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def shard_header(path: Path) -> Shard:
    """The header of this one file, be it a shard or a whole model; raises GGUFError."""
    fds: list[int] = []
    try:
        return _parsed(path, fds, parse_shard)
    finally:
        _close_all(fds)


def metadata_of(path: str | os.PathLike[str]) -> dict[str, Value]:
    """The key-value pairs of one GGUF file, whatever its tensors are; raises GGUFError."""
    fds: list[int] = []
    try:
        return _parsed(Path(path), fds, parse_metadata)
    finally:
        _close_all(fds)


def _parsed(path: Path, fds: list[int], parse: Callable[[Path, int, int], Parsed]) -> Parsed:
    """What `parse` makes of a file, which stays open in `fds`."""
    try:
        # Looked at before it is opened: opening a pipe would wait for ever.
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            if stat.S_ISDIR(mode):
                raise GGUFError(f"{path}: is a folder; name a .gguf file, or make one with `surgeon convert`")
            raise GGUFError(f"{path}: is not a regular file; name a .gguf file")
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        fds.append(fd)
        size = os.fstat(fd).st_size
    except ValueError as error:
        raise GGUFError(f"{str(path)!r}: cannot be a file name: {error}; name a .gguf file") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        return parse(path, fd, size)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> GGUFError:
    return GGUFError(f"{path}: cannot be read: {error.strerror or error}; check the name and its permissions")


def _split_number(shard: Shard, key: str, missing: int) -> int:
    value = shard.kv.get(key)
    if value is None:
        return missing
    number = value.decode() if value.type is not ValueType.ARRAY else None
    if not isinstance(number, int) or number < 0:
        raise GGUFError(f"{shard.path}: {key} is not a valid count; split the model again with llama-gguf-split")
    return number


def _open_set(opened: Shard, count: int, fds: list[int]) -> list[Shard]:
    """All shards of the set of `count` that `opened` (its descriptor is fds[0]) belongs to, in order."""
    number = _split_number(opened, "split.no", 0)
    match = SHARD_NAME.fullmatch(opened.path.name)
    if _is_followed_by_another(opened, fds[0]):
        raise GGUFError(
            f"{opened.path}: is several shards of a split model one after the other, as cat makes it; download the "
            "shards and open the first of them, or join them with llama-gguf-split --merge"
        )
    if match is None or int(match["count"]) != count or int(match["number"]) != number + 1:
        raise GGUFError(
            f"{opened.path}: is part {number + 1} of {count} of a split model, but is not named like one; "
            f"name it …-{number + 1:05d}-of-{count:05d}.gguf as llama-gguf-split does, beside its siblings"
        )
    siblings = [opened.path.with_name(f"{match['prefix']}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]
    missing = [path.name for path in siblings if not path.exists()]
    if missing:
        raise GGUFError(
            f"{opened.path}: {len(missing)} of {count} shards are missing beside it, first {missing[0]}; "
            "put all shards into one folder"
        )
    ordered: list[int] = []
    shards = []
    for index, path in enumerate(siblings):
        if index == number:
            ordered.append(fds[0])
            shards.append(opened)
            continue
        shards.append(_parsed(path, fds, parse_shard))
        ordered.append(fds[-1])
    fds[:] = ordered
    return _checked_set(shards)


def _is_followed_by_another(shard: Shard, fd: int) -> bool:
    """Whether another GGUF begins where the data of this one ends."""
    end = max((info.offset + info.nbytes for info in shard.tensors), default=shard.data_start)
    try:
        return MAGIC in os.pread(fd, 2 * shard.alignment + len(MAGIC), end)
    except (OSError, OverflowError):
        return False


def _checked_set(shards: list[Shard]) -> list[Shard]:
    """The shards with their index in every tensor; raises GGUFError when they do not belong together."""
    seen: dict[str, Path] = {}
    for index, shard in enumerate(shards):
        number, count = _split_number(shard, "split.no", -1), _split_number(shard, "split.count", -1)
        if (number, count) != (index, len(shards)):
            raise GGUFError(
                f"{shard.path}: says it is part {number + 1} of {count}, its name says {index + 1} of {len(shards)}; "
                "download the shards again"
            )
        for info in shard.tensors:
            if info.name in seen:
                raise GGUFError(f"{shard.path}: tensor {info.name!r} is in {seen[info.name].name} too; download again")
            seen[info.name] = shard.path
    declared = _split_number(shards[0], "split.tensors.count", len(seen))
    if declared != len(seen):
        raise GGUFError(
            f"{shards[0].path}: split.tensors.count is {declared}, the shards have {len(seen)} tensors; "
            "download the shards again"
        )
    return [
        replace(shard, tensors=tuple(info._replace(shard=index) for info in shard.tensors))
        for index, shard in enumerate(shards)
    ]
