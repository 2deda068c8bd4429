"""What an interrupted collection of an imatrix left, exactly: the sums unrounded, with a checksum, in the partial file.

They lie beside the matrix itself, which can be used as it is, in tensors called `state.…`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from surgeon.engine.errors import EngineError
from surgeon.gguf.file import GGUFError, TensorInfo, Value, ValueType, open_gguf

Arrays = dict[str, NDArray[np.generic]]
_PREFIX = "state."
_DIGEST, _DONE, _CHECKSUM = "surgeon.collect.digest", "surgeon.collect.done", "surgeon.collect.checksum"
_DTYPES = {"F32": "<f4", "F64": "<f8", "I64": "<i8"}


@dataclass(frozen=True)
class State:
    """digest: of everything that must be the same for a run to go on; done: chunks collected; arrays: a Snapshot's."""

    digest: str
    done: int
    arrays: Arrays

    @property
    def keys(self) -> tuple[tuple[str, Value], ...]:
        """The key-value pairs to save it with."""
        return (
            (_DIGEST, Value.of(ValueType.STRING, self.digest)),
            (_DONE, Value.of(ValueType.UINT32, self.done)),
            (_CHECKSUM, Value.of(ValueType.STRING, checksum(self.digest, self.done, self.arrays))),
        )

    @property
    def tensors(self) -> Arrays:
        """The tensors to save it with."""
        return {_PREFIX + name: values for name, values in self.arrays.items()}


def is_partial(path: Path) -> bool:
    """Whether a collection left this file. Raises GGUFError where it cannot be read."""
    with open_gguf(path) as gguf:
        return _DIGEST in gguf.kv


def belongs_to(path: Path, digest: str) -> bool:
    """Whether the collection with this digest left the file. Raises GGUFError where it cannot be read."""
    with open_gguf(path) as gguf:
        value = gguf.kv.get(_DIGEST)
        return value is not None and value.decode() == digest


def read_state(path: Path, digest: str) -> State:
    """The state in `path`. Raises EngineError where it belongs to another run or is not as it was left."""
    try:
        with open_gguf(path) as gguf:
            kept: list[Any] = [value.decode() if (value := gguf.kv.get(key)) else None for key in (_DIGEST, _DONE)]
            stored = gguf.kv.get(_CHECKSUM)
            if kept[0] != digest or not isinstance(kept[1], int):
                raise EngineError(
                    f"{path}: belongs to another model, text, matrix or setting; remove it, or leave --resume away"
                )
            infos = [info for info in gguf.tensors if info.name.startswith(_PREFIX)]
            arrays: Arrays = {}
            for info in infos:
                values = np.empty(tuple(reversed(info.ne)), _dtype(path, info))
                gguf.read_into(info, 0, values)
                arrays[info.name.removeprefix(_PREFIX)] = values
    except GGUFError as error:
        raise EngineError(f"{error}; remove it, or leave --resume away") from None
    if stored is None or stored.decode() != checksum(digest, kept[1], arrays):
        raise EngineError(f"{path}: is not as it was left (its checksum differs); remove it, or leave --resume away")
    return State(digest, kept[1], arrays)


def _dtype(path: Path, info: TensorInfo) -> str:
    if info.type_name not in _DTYPES:
        raise EngineError(f"{path}: {info.name} is {info.type_name}; remove the file, or leave --resume away")
    return _DTYPES[info.type_name]


def checksum(digest: str, done: int, arrays: Mapping[str, NDArray[np.generic]]) -> str:
    """XXH3 of it all, as 32 hexadecimal digits."""
    state = xxhash.xxh3_128(f"{digest} {done}".encode())
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        state.update(f"{name} {values.dtype.str} {values.size}".encode())  # a file keeps no dimensions of 1
        state.update(values.data.cast("B") if values.size else b"")
    return state.hexdigest()
