"""Messages as bytes on a pipe.

A frame is: uint32 little-endian length of a JSON header, the header, then the raw bytes of the arrays it announces.
The header is {"kind": class name, "fields": {...}, "arrays": [[name, dtype, shape], ...]}.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from typing import IO, TYPE_CHECKING

from surgeon.engine.protocol import KINDS, Message

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ARRAY_LIMIT = 64 << 30
_LIMIT = 64 << 20  # of a header: anything longer is not one of ours


class ProtocolError(Exception):
    """The other side sent something that is not a frame."""


def write_message(stream: IO[bytes], message: Message) -> None:
    """Send one message and flush. Raises OSError (BrokenPipeError) where the other side is gone."""
    fields = {name: getattr(message, name) for name in _field_names(type(message))}
    arrays: dict[str, NDArray[np.generic]] = fields.pop("arrays", {})
    table = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    header = json.dumps({"kind": type(message).__name__, "fields": fields, "arrays": table}).encode()
    stream.write(struct.pack("<I", len(header)) + header)
    for array in arrays.values():
        stream.write(array.tobytes())
    stream.flush()


def _field_names(kind: type[Message]) -> list[str]:
    return [item.name for item in dataclasses.fields(kind)]


def read_message(stream: IO[bytes]) -> Message | None:
    """The next message, or None at the end of the stream. Raises ProtocolError for anything else."""
    head = stream.read(4)
    if not head:
        return None
    try:
        return _read_frame(stream, head)
    except (AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise ProtocolError(f"no frame of ours ({type(error).__name__})") from error


def _read_frame(stream: IO[bytes], head: bytes) -> Message:
    (length,) = struct.unpack("<I", _whole(head, 4))
    if length > _LIMIT:
        raise ProtocolError(f"a header of {length} bytes")
    header = json.loads(_whole(stream.read(length), length))
    kind = KINDS.get(header["kind"])
    if kind is None:
        raise ProtocolError(f"unknown message {header['kind']!r:.40}")
    fields = header["fields"]
    if header["arrays"] or "arrays" in _field_names(kind):
        fields["arrays"] = {name: _read_array(stream, dtype, shape) for name, dtype, shape in header["arrays"]}
    return kind(**fields)


def _read_array(stream: IO[bytes], dtype: str, shape: list[int]) -> NDArray[np.generic]:
    import numpy as np

    kind = np.dtype(dtype)
    nbytes = math.prod(shape) * kind.itemsize
    if kind.hasobject or min(shape, default=0) < 0 or nbytes > _ARRAY_LIMIT:
        raise ProtocolError(f"an array of {nbytes} bytes")
    return np.frombuffer(_whole(stream.read(nbytes), nbytes), kind).reshape(shape)


def _whole(data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise ProtocolError(f"cut off after {len(data)} of {length} bytes")
    return data
