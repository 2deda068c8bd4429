"""The grids of the types whose weights have a code of their own: scales and minima from blocks, and blocks of codes.

    value = d * scale * level[code] - dmin * minimum

A row of `LAYOUTS` says where the bits of the codes lie, which levels there are, and what a round may change; a pair of
functions reads and writes the scales. Codes are the levels' places, in ascending order of the levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..search.iq4_search import VALUES
from .tiles import FIXED, PER_GROUP, PER_SUPERBLOCK, Rules

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Blocks = NDArray[np.uint8]  # [rows, blocks, bytes]


@dataclass(slots=True)
class Scales:
    """float32[rows, blocks of d] d and dmin, float32[rows, groups] scales and minima; all are whole but d and dmin."""

    d: Floats
    dmin: Floats
    scales: Floats
    minima: Floats


@dataclass(frozen=True, slots=True)
class Plane:
    """Some bits of every code: of `span` weights in a row, `bits` each, in span * bits / 8 bytes.

    Weight l of the span is in byte l % bytes, `bits` * (l / bytes) up; the bits go to bit `shift` of the code.
    """

    at: int
    bits: int
    span: int
    shift: int = 0


Read = Callable[[Blocks], Scales]
Write = Callable[[Blocks, Scales], None]


@dataclass(frozen=True, slots=True)
class Layout:
    """One type. block, block_bytes: as in formats.py; levels: ascending, or (zero, top) for -zero ... top - zero."""

    block: int
    block_bytes: int
    group: int
    levels: tuple[float, ...] | tuple[int, int]
    planes: tuple[Plane, ...]
    read: Read
    write: Write
    scaling: int = PER_GROUP
    scale_range: tuple[int, int] = (1, 1)
    largest_minimum: int = 1
    minima: bool = False
    stored_codes: tuple[int, ...] = ()
    """What is stored for each code, where it is not the code."""

    @property
    def uniform(self) -> bool:
        return isinstance(self.levels[0], int)

    @property
    def superblock(self) -> int:
        """Columns that share d."""
        return self.block if self.scaling == PER_SUPERBLOCK else self.group

    def rules(self) -> Rules:
        levels = np.zeros(16, np.float32)
        zero, top = self.levels[:2]
        if not self.uniform:
            levels[: len(self.levels)] = self.levels
        low, high = self.scale_range
        return Rules(
            self.group, shift_of(self.group), shift_of(self.superblock), self.scaling, self.uniform,
            np.float32(zero), np.float32(top), np.float32(0), np.float32(low), np.float32(high), self.minima,
            np.float32(self.largest_minimum), len(self.levels), levels,
        )  # fmt: skip

    def pack(self, codes: Bytes, scales: Scales) -> Bytes:
        """uint8[rows, columns] codes and their scales as uint8[rows, row bytes]."""
        rows, columns = codes.shape
        blocks = np.zeros((rows, columns // self.block, self.block_bytes), np.uint8)
        if self.stored_codes:
            codes = np.array(self.stored_codes, np.uint8)[codes]
        for plane in self.planes:
            _put_plane(plane, codes, self.block, blocks)
        if not self.planes:
            _put_ternary(codes, blocks)
        self.write(blocks, scales)
        return blocks.reshape(rows, -1)


def shift_of(size: int) -> int:
    """The power of two that `size` is."""
    return size.bit_length() - 1


def _put_plane(plane: Plane, codes: Bytes, block: int, blocks: Blocks) -> None:
    width = plane.span * plane.bits // 8
    fields = codes >> plane.shift if plane.shift else codes
    if plane.bits < 8:
        fields = fields & ((1 << plane.bits) - 1)
    fields = fields.reshape(*blocks.shape[:2], block // plane.span, 8 // plane.bits, width)
    packed = fields[..., 0, :]
    for k in range(1, 8 // plane.bits):
        packed = packed | fields[..., k, :] << plane.bits * k
    size = block * plane.bits // 8
    blocks[..., plane.at : plane.at + size] = packed.reshape(*blocks.shape[:2], size)


def _put_ternary(codes: Bytes, blocks: Blocks) -> None:
    """TQ1_0: five codes to a byte in base 3, rounded up to a fraction of 256."""
    codes = codes.reshape(*blocks.shape[:2], 256)
    for first, stride, digits, at in ((0, 32, 5, 0), (160, 16, 5, 32), (240, 4, 4, 48)):
        part = codes[..., first : first + stride * digits].reshape(*blocks.shape[:2], digits, stride)
        number = np.zeros((*blocks.shape[:2], stride), np.int32)
        for n in range(5):
            number = 3 * number + (part[..., n, :] if n < digits else 0)
        blocks[..., at : at + stride] = (number * 256 + 242) // 243


def halves(blocks: Blocks, at: int) -> Floats:
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0].astype(np.float32)


def put_halves(blocks: Blocks, at: int, values: Floats) -> None:
    blocks[..., at : at + 2] = values.astype(np.float16)[..., None].view(np.uint8)


def _plain(d: Floats, dmin: Floats | None = None) -> Scales:
    one = np.ones_like(d)
    return Scales(d, np.zeros_like(d) if dmin is None else dmin, one, one.copy())


def _half_only(at: int) -> tuple[Read, Write]:
    def write(blocks: Blocks, scales: Scales) -> None:
        put_halves(blocks, at, scales.d)

    return lambda blocks: _plain(halves(blocks, at)), write


def _half_and_offset() -> tuple[Read, Write]:
    """Q4_1, Q5_1: what is added is kept as minus a minimum."""

    def write(blocks: Blocks, scales: Scales) -> None:
        put_halves(blocks, 0, scales.d)
        put_halves(blocks, 2, -scales.dmin)

    return lambda blocks: _plain(halves(blocks, 0), -halves(blocks, 2)), write


def flat(numbers: NDArray[Any]) -> Floats:
    return numbers.astype(np.float32).reshape(len(numbers), -1)


def _whole(values: Floats, blocks: Blocks) -> NDArray[np.int32]:
    return values.astype(np.int32).reshape(*blocks.shape[:2], -1)


def _read_q2_k(blocks: Blocks) -> Scales:
    both = blocks[..., :16]
    return Scales(halves(blocks, 80), halves(blocks, 82), flat(both & 15), flat(both >> 4))


def _write_q2_k(blocks: Blocks, scales: Scales) -> None:
    blocks[..., :16] = _whole(scales.scales, blocks) | _whole(scales.minima, blocks) << 4
    put_halves(blocks, 80, scales.d)
    put_halves(blocks, 82, scales.dmin)


def _no_minima(d: Floats, scales: Floats) -> Scales:
    return Scales(d, np.zeros_like(d), scales, np.zeros_like(scales))


def _read_q3_k(blocks: Blocks) -> Scales:
    low, high = blocks[..., 96:104], blocks[..., 104:108]
    fours = np.concatenate([low & 15, low >> 4], -1)
    twos = np.concatenate([high >> 2 * k & 3 for k in range(4)], -1)
    return _no_minima(halves(blocks, 108), flat(fours | twos << 4) - np.float32(32))


def _write_q3_k(blocks: Blocks, scales: Scales) -> None:
    codes = _whole(scales.scales, blocks) + 32
    blocks[..., 96:104] = codes[..., :8] & 15 | (codes[..., 8:] & 15) << 4
    blocks[..., 104:108] = sum(codes[..., 4 * k : 4 * k + 4] >> 4 << 2 * k for k in range(4))
    put_halves(blocks, 108, scales.d)


def _read_q4_k(blocks: Blocks) -> Scales:
    first, second, mixed = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scales = np.concatenate([first & 63, mixed & 15 | first >> 6 << 4], -1)
    minima = np.concatenate([second & 63, mixed >> 4 | second >> 6 << 4], -1)
    return Scales(halves(blocks, 0), halves(blocks, 2), flat(scales), flat(minima))


def _write_q4_k(blocks: Blocks, scales: Scales) -> None:
    put_halves(blocks, 0, scales.d)
    put_halves(blocks, 2, scales.dmin)
    codes, lows = _whole(scales.scales, blocks), _whole(scales.minima, blocks)
    blocks[..., 4:8] = codes[..., :4] | codes[..., 4:] >> 4 << 6
    blocks[..., 8:12] = lows[..., :4] | lows[..., 4:] >> 4 << 6
    blocks[..., 12:16] = codes[..., 4:] & 15 | (lows[..., 4:] & 15) << 4


def _read_q6_k(blocks: Blocks) -> Scales:
    return _no_minima(halves(blocks, 208), flat(blocks[..., 192:208].view(np.int8)))


def _write_q6_k(blocks: Blocks, scales: Scales) -> None:
    blocks[..., 192:208] = _whole(scales.scales, blocks) & 255
    put_halves(blocks, 208, scales.d)


def _read_iq4_xs(blocks: Blocks) -> Scales:
    high = blocks[..., 2:3].astype(np.int32) | blocks[..., 3:4].astype(np.int32) << 8
    low = blocks[..., 4:8]
    fours = np.stack([low & 15, low >> 4], -1).reshape(*blocks.shape[:2], 8)
    return _no_minima(halves(blocks, 0), flat(fours | (high >> 2 * np.arange(8) & 3) << 4) - np.float32(32))


def _write_iq4_xs(blocks: Blocks, scales: Scales) -> None:
    codes = _whole(scales.scales, blocks) + 32
    high = (codes >> 4 << 2 * np.arange(8)).sum(-1)
    blocks[..., 2], blocks[..., 3] = high & 255, high >> 8
    blocks[..., 4:8] = codes[..., 0::2] & 15 | (codes[..., 1::2] & 15) << 4
    put_halves(blocks, 0, scales.d)


def _read_mxfp4(blocks: Blocks) -> Scales:
    return _kept(np.ldexp(np.float32(1), blocks[..., 0].astype(np.int32) - 128), blocks[..., :1])


def _read_nvfp4(blocks: Blocks) -> Scales:
    """Half of a UE4M3 number: four bits of exponent, three of mantissa; 0x7F is none, and counts as 0."""
    codes = blocks[..., :4].astype(np.int32)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    value = np.where(exponent == 0, np.ldexp(mantissa, -10), np.ldexp(1 + mantissa / 8, exponent - 8))
    return _kept(np.where(codes == 0x7F, 0, value), blocks[..., :4])


def _kept(d: NDArray[Any], stored: Bytes) -> Scales:
    """Scales that no round changes: their bytes go along as the scales' `minima`, which multiply nothing."""
    d = flat(d)
    return Scales(d, np.zeros_like(d), np.ones_like(d), flat(stored))


def _write_kept(blocks: Blocks, scales: Scales) -> None:
    codes = _whole(scales.minima, blocks)
    blocks[..., : codes.shape[-1]] = codes


_FP4 = (-12.0, -8.0, -6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
_FP4_CODES = (15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7)
_IQ4 = tuple(float(value) for value in VALUES)
_SUPER: dict[str, Any] = {"scaling": PER_SUPERBLOCK}
_Q2_K, _Q3_K = (_read_q2_k, _write_q2_k), (_read_q3_k, _write_q3_k)
_Q4_K, _Q6_K, _IQ4_XS = (_read_q4_k, _write_q4_k), (_read_q6_k, _write_q6_k), (_read_iq4_xs, _write_iq4_xs)

LAYOUTS: dict[str, Layout] = {
    "Q4_0": Layout(32, 18, 32, (8, 15), (Plane(2, 4, 32),), *_half_only(0)),
    "Q4_1": Layout(32, 20, 32, (0, 15), (Plane(4, 4, 32),), *_half_and_offset(), minima=True),
    "Q5_0": Layout(32, 22, 32, (16, 31), (Plane(6, 4, 32), Plane(2, 1, 8, 4)), *_half_only(0)),
    "Q5_1": Layout(32, 24, 32, (0, 31), (Plane(8, 4, 32), Plane(4, 1, 8, 4)), *_half_and_offset(), minima=True),
    "Q8_0": Layout(32, 34, 32, (127, 254), (Plane(2, 8, 32),), *_half_only(0),
                   stored_codes=tuple((code - 127) % 256 for code in range(255))),
    "Q2_K": Layout(256, 84, 16, (0, 3), (Plane(16, 2, 128),), *_Q2_K, **_SUPER, scale_range=(0, 15),
                   largest_minimum=15, minima=True),
    "Q3_K": Layout(256, 110, 16, (4, 7), (Plane(32, 2, 128), Plane(0, 1, 256, 2)), *_Q3_K, **_SUPER,
                   scale_range=(-32, 31)),
    "Q4_K": Layout(256, 144, 32, (0, 15), (Plane(16, 4, 64),), *_Q4_K, **_SUPER, scale_range=(0, 63),
                   largest_minimum=63, minima=True),
    "Q5_K": Layout(256, 176, 32, (0, 31), (Plane(48, 4, 64), Plane(16, 1, 256, 4)), *_Q4_K, **_SUPER,
                   scale_range=(0, 63), largest_minimum=63, minima=True),
    "Q6_K": Layout(256, 210, 16, (32, 63), (Plane(0, 4, 128), Plane(128, 2, 128, 4)), *_Q6_K, **_SUPER,
                   scale_range=(-128, 127)),
    "IQ4_NL": Layout(32, 18, 32, _IQ4, (Plane(2, 4, 32),), *_half_only(0)),
    "IQ4_XS": Layout(256, 136, 32, _IQ4, (Plane(8, 4, 32),), *_IQ4_XS, **_SUPER, scale_range=(-32, 31)),
    "MXFP4": Layout(32, 17, 32, _FP4, (Plane(1, 4, 32),), _read_mxfp4, _write_kept, FIXED, stored_codes=_FP4_CODES),
    "NVFP4": Layout(64, 36, 16, _FP4, (Plane(4, 4, 16),), _read_nvfp4, _write_kept, FIXED, stored_codes=_FP4_CODES),
    "Q1_0": Layout(128, 18, 128, (-1.0, 1.0), (Plane(2, 1, 8),), *_half_only(0)),
    "Q2_0": Layout(64, 18, 64, (1, 3), (Plane(2, 2, 4),), *_half_only(0)),
    "TQ1_0": Layout(256, 54, 256, (1, 2), (), *_half_only(52)),
    "TQ2_0": Layout(256, 66, 256, (1, 2), (Plane(0, 2, 128),), *_half_only(64)),
}  # fmt: skip
