"""Which file is which, without reading gigabytes.

The figures of a model are kept under this name, so two models must not share one. Prunings of one model can be of
equal size, with the same vocabulary in front and the same norms behind: only a few tensors in the middle differ.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from weakref import WeakKeyDictionary

from surgeon.errors import SurgeonError
from surgeon.gguf.file import GGUFError, GGUFFile, TensorInfo, shard_header, shards_of

_END = 1 << 20  # bytes at each end of a file that are looked at
_PLACE = 4096  # bytes at every place between: a page, which is what a disk reads anyway
_STARTS = 1024  # of matrices, at most
_PLACES = 512  # at even distances
_HALF = 16  # hex digits

_of_open: WeakKeyDictionary[GGUFFile, str] = WeakKeyDictionary()


def model_identity(path: Path) -> str:
    """32 hex digits that identify a model by its content, whichever of its shards is named.

    The first 16 are what `before_places` knew it by. Raises SurgeonError where it cannot be read.
    """
    identities = [file_identity(shard) for shard in sorted(shards_of(path))]
    if len(identities) == 1:
        return identities[0]
    return identities[0][:_HALF] + hashlib.sha256("".join(identities).encode()).hexdigest()[:_HALF]


def open_identity(file: GGUFFile) -> str:
    """`model_identity` of an open model, read once: resolving a plan asks for it on every key. Raises SurgeonError."""
    if file not in _of_open:
        _of_open[file] = model_identity(file.paths[0])
    return _of_open[file]


def file_identity(path: Path) -> str:
    """32 hex digits that identify one file: 16 of its size and both ends, 16 of places between.

    Of a GGUF file, those are all bytes before the data and the starts of its matrices. Raises SurgeonError.
    """
    try:
        state = os.stat(path)
        times = state.st_mtime_ns, state.st_ctime_ns
        return _identity(path.absolute(), state.st_dev, state.st_ino, state.st_size, *times)
    except OSError as error:
        raise SurgeonError(f"{path}: cannot be read: {error.strerror or error}") from error


def before_places(identity: str) -> str:
    """What versions that looked at nothing between a file's ends called it: the name of what they kept."""
    return identity[:_HALF]


def same_identity(one: str, other: str) -> bool:
    """Whether two identities from files are of one model, as far as the older form of both tells."""
    return one == other or (_HALF in (len(one), len(other)) and before_places(one) == before_places(other))


@lru_cache(256)  # a set of shards may be as many files
def _identity(path: Path, *_state: int) -> str:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        ends = hashlib.sha256(size.to_bytes(8, "little") + file.read(_END))
        file.seek(max(0, size - _END))
        ends.update(file.read(_END))
        between = hashlib.sha256()
        places = sorted(_places(path, size))
        if hasattr(os, "posix_fadvise"):  # else a disk that is far away answers one after the other
            for start, length in places:
                os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_WILLNEED)
        for start, length in places:
            between.update(os.pread(file.fileno(), length, start))
    return ends.hexdigest()[:_HALF] + between.hexdigest()[:_HALF]


def _matrices(tensor: TensorInfo) -> range:
    """Where the matrices of a tensor begin: one, or one for each expert."""
    size = tensor.nbytes // max(1, math.prod(tensor.ne[2:]))
    whole = size < _PLACE  # the many small kernels of a convolution
    return range(tensor.offset, tensor.offset + tensor.nbytes, max(1, tensor.nbytes) if whole else size)


def _places(path: Path, size: int) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of what is looked at between the ends."""
    data_start = 0
    try:
        header = shard_header(path)
    except GGUFError:
        pass  # a text, or damaged: only the even places
    else:
        data_start = header.data_start
        yield 0, data_start
        starts = [start for tensor in header.tensors for start in _matrices(tensor)]
        yield from ((start, _PLACE) for start in starts[:: -(-len(starts) // _STARTS) or 1])
    step = max(_PLACE, (size - data_start) // _PLACES)
    yield from ((start, _PLACE) for start in range(data_start, size, step))
