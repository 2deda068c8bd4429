"""The metadata values of GGUF: 13 types, kept as the bytes they were read as until somebody asks for them.

scalar   little-endian, bool is one byte
string   u64 length | UTF-8 bytes
array    u32 element type | u64 count | elements back to back (an element may be an array again)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from surgeon.errors import SurgeonError


class GGUFError(SurgeonError):
    """A GGUF file that cannot be read: the line names the file, the key or tensor, what was found and the remedy."""


class ValueType(IntEnum):
    """The type ids of metadata values, as stored."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# struct codes of the types of fixed size
CODES: dict[ValueType, str] = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
SIZES: dict[ValueType, int] = {type_: struct.calcsize("<" + code) for type_, code in CODES.items()}
LENGTH = struct.Struct("<Q")
ARRAY_HEAD = struct.Struct("<IQ")
LARGEST_SMALL = 1 << 20
LONGEST_BRIEF = 60  # characters of a value in a list


@dataclass(frozen=True, slots=True)
class Value:
    """One metadata value: `raw` is everything after the type id, byte for byte as stored."""

    type: ValueType
    raw: bytes

    @classmethod
    def of(cls, type_: ValueType, value: Any) -> Value:
        """The value of a scalar or string type; raises ValueError when `value` does not fit the type."""
        if type_ is ValueType.ARRAY:
            raise ValueError("Value.of makes no arrays; use Value.array(element type, elements)")
        return cls(type_, _encode(type_, value))

    @classmethod
    def array(cls, element: ValueType, elements: Sequence[Any]) -> Value:
        """An array; for arrays of arrays `element` is ARRAY and the elements are array `Value`s."""
        head = ARRAY_HEAD.pack(element, len(elements))
        if element is ValueType.ARRAY:
            return cls(ValueType.ARRAY, head + b"".join(_raw_array(item) for item in elements))
        if element is ValueType.STRING:
            return cls(ValueType.ARRAY, head + b"".join(_encode(element, item) for item in elements))
        return cls(ValueType.ARRAY, head + _pack(f"<{len(elements)}{CODES[element]}", element, elements))

    @property
    def element_type(self) -> ValueType | None:
        """The element type of an array, None for everything else."""
        return ValueType(ARRAY_HEAD.unpack_from(self.raw)[0]) if self.type is ValueType.ARRAY else None

    @property
    def count(self) -> int:
        """Elements of an array, 1 for everything else."""
        return int(ARRAY_HEAD.unpack_from(self.raw)[1]) if self.type is ValueType.ARRAY else 1

    def small(self) -> Any:
        """As `decode`, but None for an array no model is made by: one of arrays, or of more than LARGEST_SMALL bytes.

        For keys of which a number, a word or one entry per layer is expected: a file may hold anything there.
        """
        if self.type is ValueType.ARRAY and (len(self.raw) > LARGEST_SMALL or self.element_type is ValueType.ARRAY):
            return None
        return self.decode()

    def brief(self) -> str:
        """In a few words: long texts and arrays by their length."""
        if self.element_type is not None:
            return f"{self.count} × {self.element_type.name.lower()}"
        if self.type is ValueType.FLOAT32:
            return f"{self.decode():.7g}"
        text = str(self.decode()).replace("\n", "⏎")
        return text if len(text) <= LONGEST_BRIEF else f"{text[: LONGEST_BRIEF - 1]}… ({len(text)} characters)"

    def decode(self) -> Any:
        """The Python value: int, float, bool, str or a list of these.

        Bytes of a string that are not UTF-8 show as U+FFFD; `raw` has them still.
        """
        value, _ = _decode(self.type, self.raw, 0)
        return value


def _raw_array(item: Any) -> bytes:
    if not isinstance(item, Value) or item.type is not ValueType.ARRAY:
        raise ValueError(f"an array of arrays holds array Values, not {item!r}")
    return item.raw


def _pack(code: str, type_: ValueType, values: Sequence[Any]) -> bytes:
    try:
        return struct.pack(code, *values)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"{list(values)!r:.60} does not fit {type_.name.lower()}: {error}") from None


def _encode(type_: ValueType, value: Any) -> bytes:
    if type_ is ValueType.STRING:
        # surrogateescape: a file name that is not UTF-8 is stored as the bytes it is
        text = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
        return LENGTH.pack(len(text)) + text
    return _pack("<" + CODES[type_], type_, [value])


def _decode(type_: ValueType, raw: bytes, start: int) -> tuple[Any, int]:
    """The value of `type_` at `start` and the position after it."""
    if type_ is ValueType.STRING:
        begin = start + LENGTH.size
        end = begin + LENGTH.unpack_from(raw, start)[0]
        return raw[begin:end].decode("utf-8", "replace"), end
    if type_ is ValueType.ARRAY:
        return _decode_array(raw, start)
    return struct.unpack_from("<" + CODES[type_], raw, start)[0], start + SIZES[type_]


def _decode_array(raw: bytes, start: int) -> tuple[list[Any], int]:
    number, count = ARRAY_HEAD.unpack_from(raw, start)
    element, position = ValueType(number), start + ARRAY_HEAD.size
    if element in CODES:
        values = struct.unpack_from(f"<{count}{CODES[element]}", raw, position)
        return list(values), position + count * SIZES[element]
    items = []
    for _ in range(count):
        item, position = _decode(element, raw, position)
        items.append(item)
    return items, position
