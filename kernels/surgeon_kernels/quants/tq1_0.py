"""TQ1_0: ternary weights, five to a byte in base 3, 256 in 54 bytes.

    +--------------+-------------+-----------+        byte m < 32 of qs: elements m + 32n,        n = 0 ... 4
    | qs: 48 bytes | qh: 4 bytes | d float16 |        byte 32 + m:       elements 160 + m + 16n,  m < 16
    +--------------+-------------+-----------+        byte m of qh:      elements 240 + m + 4n,   n = 0 ... 3
      0              48            52

    A byte holds the digits t as the fraction 0.t0 t1 t2 t3 t4 (base 3) of 256, rounded up: digit n is the integer part
    of 3 * (byte * 3**n mod 256) / 256.

    w = (t - 1) * d

d is the largest size: the format is meant for weights that are ternary already. An importance matrix changes nothing.
"""

from __future__ import annotations

import numpy as np

from ..compilation import DEQUANTIZE, QUANTIZE, helper, kernel
from ..dialect import Array, F
from ..formats import FORMATS
from ..lanes.arithmetic import LANES, half_at, load_u8, put_half, store_f32, to_float
from ..search.block_sizes import largest_size, ternary, ternary_inverse

BLOCK, BYTES = FORMATS["TQ1_0"].sizes


@helper
def put_digits(x: Array, start: int, stride: int, digits: int, inverse: float, out: Array, at: int) -> None:
    """`stride` bytes, each of the `digits` elements that lie `stride` apart."""
    for m in range(stride):
        number = np.int32(0)
        for n in range(digits):
            number = number * np.int32(3) + ternary(x[start + m + stride * n] * inverse)
        if digits == 4:
            number *= np.int32(3)
        out[at + m] = (number * np.int32(256) + np.int32(242)) // np.int32(243)


@helper
def restore_digits(blocks: Array, at: int, stride: int, d: float, out: Array, start: int) -> None:
    """The elements of `stride` bytes (a multiple of 16) with five digits each."""
    power = 1
    for n in range(5):
        for m in range(0, stride, LANES):
            digit = (load_u8(blocks, at + m) * power & 255) * 3 >> 8
            store_f32(out, start + m + stride * n, to_float(digit - 1) * d)
        power *= 3


@helper
def restore_last_digits(blocks: Array, at: int, d: float, out: Array, start: int) -> None:
    """The elements of the four bytes with four digits each."""
    power = 1
    for n in range(4):
        for m in range(4):
            digit = (blocks[at + m] * power & 255) * 3 >> 8
            out[start + m + 4 * n] = F(digit - 1) * d
        power *= 3


@kernel(QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array) -> None:
    for block in range(len(x) // BLOCK):
        start, at = BLOCK * block, BYTES * block
        d = largest_size(x, start, BLOCK)
        inverse = ternary_inverse(d)
        put_digits(x, start, 32, 5, inverse, out, at)
        put_digits(x, start + 160, 16, 5, inverse, out, at + 32)
        put_digits(x, start + 240, 4, 4, inverse, out, at + 48)
        put_half(out, at + 52, d)


@kernel(DEQUANTIZE)
def dequantize(blocks: Array, out: Array) -> None:
    for block in range(len(blocks) // BYTES):
        start, at = BLOCK * block, BYTES * block
        d = half_at(blocks, at + 52)
        restore_digits(blocks, at, 32, d, out, start)
        restore_digits(blocks, at + 32, 16, d, out, start + 160)
        restore_last_digits(blocks, at + 48, d, out, start + 240)
