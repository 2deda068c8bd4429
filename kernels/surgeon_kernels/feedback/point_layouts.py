"""The grids of the codebook types: scales from their blocks, and blocks of points, signs and scales.

    value = d * scale * level,    scale = s + 1/2, levels as of codebooks.py

All have superblocks of 256. Numbers of points come as int32[rows, columns / length], bits of signs (or of a negative
delta) as int32[rows, columns / v].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .codebooks import ANY_SIGNS, DELTA_OF_GROUP, DELTA_OF_VECTOR, EVEN_SIGNS, Book, book
from .layouts import Blocks, Bytes, Floats, Scales, flat, halves, put_halves, shift_of
from .tiles import PER_SUPERBLOCK, Rules

Ints = NDArray[np.int32]
Read = Callable[[Blocks], Scales]
Write = Callable[[Blocks, Scales, Ints, Ints], None]
"""write(blocks, scales, numbers, bits): numbers, bits int32[rows, blocks, per block]"""


@dataclass(frozen=True, slots=True)
class PointLayout:
    """One type. codebook: the arguments of `book`; group: columns of a scale; most: the largest s."""

    block_bytes: int
    group: int
    most: int
    codebook: tuple[str, tuple[float, ...], int, int]
    read: Read
    write: Write
    block: int = 256

    def book(self) -> Book:
        return book(*self.codebook)

    def rules(self) -> Rules:
        half, none = np.float32(0.5), np.float32(0)
        return Rules(
            self.group, shift_of(self.group), shift_of(self.block), PER_SUPERBLOCK, False, none, none, half, half,
            np.float32(self.most) + half, False, none, 0, np.zeros(16, np.float32),
        )  # fmt: skip

    def deltas(self, blocks: Blocks) -> Ints:
        """Bits to begin with: IQ1_S's of a negative delta, else zeros."""
        vectors = self.block // self.codebook[2]
        if self.codebook[3] == DELTA_OF_GROUP:
            return np.repeat(_words(blocks, 34, 8) >> 15, vectors // 8, -1).reshape(len(blocks), -1)
        return np.zeros((len(blocks), blocks.shape[1] * vectors), np.int32)

    def pack(self, numbers: Ints, bits: Ints, scales: Scales) -> Bytes:
        """uint8[rows, row bytes]"""
        rows, count = scales.d.shape
        blocks = np.zeros((rows, count, self.block_bytes), np.uint8)
        self.write(blocks, scales, numbers.reshape(rows, count, -1), bits.reshape(rows, count, -1))
        return blocks.reshape(rows, -1)


def _words(blocks: Blocks, at: int, count: int) -> Ints:
    """`count` little-endian 16-bit numbers."""
    pairs = blocks[..., at : at + 2 * count].astype(np.int32).reshape(*blocks.shape[:2], count, 2)
    return pairs[..., 0] | pairs[..., 1] << 8


def _put_words(blocks: Blocks, at: int, words: Ints, size: int = 2) -> None:
    """Little-endian numbers of `size` bytes."""
    parts = np.stack([words >> 8 * k & 255 for k in range(size)], -1)
    blocks[..., at : at + size * words.shape[-1]] = parts.reshape(*blocks.shape[:2], -1)


def _scales(d: Floats, codes: NDArray[Any]) -> Scales:
    scales = flat(codes) + np.float32(0.5)
    return Scales(d, np.zeros_like(d), scales, np.zeros_like(scales))


def _codes(scales: Scales, blocks: Blocks) -> Ints:
    return np.floor(scales.scales).astype(np.int32).reshape(*blocks.shape[:2], -1)


def _packed(fields: Ints, count: int, bits: int) -> Ints:
    """`count` neighbouring fields of so many bits in one number each, the first lowest."""
    apart = fields.reshape(*fields.shape[:2], -1, count).astype(np.int64) << bits * np.arange(count)
    found: Ints = apart.sum(-1)
    return found


def _nibble_scales(at: int, size: int) -> tuple[Read, Callable[[Blocks, Scales], None]]:
    """d at the start, and scales in nibbles: of `size` bytes."""

    def read(blocks: Blocks) -> Scales:
        found = blocks[..., at : at + size]
        return _scales(halves(blocks, 0), np.stack([found & 15, found >> 4], -1))

    def write(blocks: Blocks, scales: Scales) -> None:
        put_halves(blocks, 0, scales.d)
        blocks[..., at : at + size] = _packed(_codes(scales, blocks), 2, 4)

    return read, write


def _iq2_xs() -> tuple[Read, Write]:
    read, write_scales = _nibble_scales(66, 8)

    def write(blocks: Blocks, scales: Scales, numbers: Ints, bits: Ints) -> None:
        write_scales(blocks, scales)
        _put_words(blocks, 2, numbers | (bits & 127) << 9)

    return read, write


def _iq2_s() -> tuple[Read, Write]:
    read, write_scales = _nibble_scales(74, 8)

    def write(blocks: Blocks, scales: Scales, numbers: Ints, bits: Ints) -> None:
        write_scales(blocks, scales)
        blocks[..., 2:34], blocks[..., 34:66] = numbers & 255, bits
        blocks[..., 66:74] = _packed(numbers >> 8, 4, 2)

    return read, write


def _iq3_s() -> tuple[Read, Write]:
    read, write_scales = _nibble_scales(106, 4)

    def write(blocks: Blocks, scales: Scales, numbers: Ints, bits: Ints) -> None:
        write_scales(blocks, scales)
        blocks[..., 2:66] = numbers & 255
        blocks[..., 66:74], blocks[..., 74:106] = _packed(numbers >> 8, 8, 1), _packed(bits, 2, 4)

    return read, write


def _signs_and_scales(at: int, apart: int) -> tuple[Read, Callable[[Blocks, Scales, Ints], None]]:
    """d at the start, and per group a number of four times seven signs and the scale, every `apart` bytes from `at`."""

    def read(blocks: Blocks) -> Scales:
        return _scales(halves(blocks, 0), blocks[..., at + 3 : at + 3 + 7 * apart + 1 : apart] >> 4)

    def write(blocks: Blocks, scales: Scales, bits: Ints) -> None:
        put_halves(blocks, 0, scales.d)
        numbers = _packed(bits & 127, 4, 7) | _codes(scales, blocks).astype(np.int64) << 28
        for k in range(4):
            blocks[..., at + k : at + k + 7 * apart + 1 : apart] = numbers >> 8 * k & 255

    return read, write


def _iq2_xxs() -> tuple[Read, Write]:
    read, write_rest = _signs_and_scales(6, 8)

    def write(blocks: Blocks, scales: Scales, numbers: Ints, bits: Ints) -> None:
        write_rest(blocks, scales, bits)
        for k in range(4):
            blocks[..., 2 + k : 66 : 8] = numbers[..., k::4]

    return read, write


def _iq3_xxs() -> tuple[Read, Write]:
    read, write_rest = _signs_and_scales(66, 4)

    def write(blocks: Blocks, scales: Scales, numbers: Ints, bits: Ints) -> None:
        write_rest(blocks, scales, bits)
        blocks[..., 2:66] = numbers

    return read, write


def _read_iq1_s(blocks: Blocks) -> Scales:
    return _scales(halves(blocks, 0), _words(blocks, 34, 8) >> 12 & 7)


def _write_iq1_s(blocks: Blocks, scales: Scales, numbers: Ints, bits: Ints) -> None:
    put_halves(blocks, 0, scales.d)
    blocks[..., 2:34] = numbers & 255
    _put_words(blocks, 34, _packed(numbers >> 8, 4, 3) | _codes(scales, blocks) << 12 | bits[..., ::4] << 15)


def _read_iq1_m(blocks: Blocks) -> Scales:
    words = _words(blocks, 48, 4)
    nibbles = (words >> 12 << 4 * np.arange(4)).sum(-1).astype(np.uint16)
    return _scales(nibbles.view(np.float16).astype(np.float32), words[..., None] >> 3 * np.arange(4) & 7)


def _write_iq1_m(blocks: Blocks, scales: Scales, numbers: Ints, bits: Ints) -> None:
    blocks[..., :32] = numbers & 255
    blocks[..., 32:48] = _packed(numbers >> 8 | bits << 3, 2, 4)
    d = scales.d.astype(np.float16).view(np.uint16).astype(np.int32)
    high = d[..., None] >> 4 * np.arange(4) & 15
    _put_words(blocks, 48, _packed(_codes(scales, blocks), 4, 3) | high << 12)


_IQ2 = (2.0, 6.25, 10.75)
_IQ3_XXS = (2.0, 6.0, 10.0, 14.0, 18.0, 22.0, 26.0, 31.0)
_IQ3_S = tuple(float(2 * (2 * level + 1)) for level in range(8))
_IQ1 = (-2.0, 0.0, 2.0)

POINT_LAYOUTS: dict[str, PointLayout] = {
    "IQ2_XXS": PointLayout(66, 32, 15, ("IQ2_XXS", _IQ2, 8, EVEN_SIGNS), *_iq2_xxs()),
    "IQ2_XS": PointLayout(74, 16, 15, ("IQ2_XS", _IQ2, 8, EVEN_SIGNS), *_iq2_xs()),
    "IQ2_S": PointLayout(82, 16, 15, ("IQ2_S", _IQ2, 8, ANY_SIGNS), *_iq2_s()),
    "IQ3_XXS": PointLayout(98, 32, 15, ("IQ3_XXS", _IQ3_XXS, 8, EVEN_SIGNS), *_iq3_xxs()),
    "IQ3_S": PointLayout(110, 32, 15, ("IQ3_S", _IQ3_S, 4, ANY_SIGNS), *_iq3_s()),
    "IQ1_S": PointLayout(50, 32, 7, ("IQ1", _IQ1, 8, DELTA_OF_GROUP), _read_iq1_s, _write_iq1_s),
    "IQ1_M": PointLayout(56, 16, 7, ("IQ1", _IQ1, 8, DELTA_OF_VECTOR), _read_iq1_m, _write_iq1_m),
}
