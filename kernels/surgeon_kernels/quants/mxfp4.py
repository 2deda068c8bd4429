"""MXFP4: 4-bit floats with a power of two as the scale, 32 weights in 17 bytes (OCP microscaling).

    +----------+--------------+        qs byte j: code[j] | code[j + 16] << 4
    | e: uint8 | qs: 16 bytes |
    +----------+--------------+        w = 2**(e - 128) * VALUES[code]
      0          1

e = floor(log2(largest size)) - 2 + 127, as a single-precision log2 gives it. An importance matrix changes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compilation import DEQUANTIZE, QUANTIZE, helper, kernel
from ..dialect import Array, F
from ..formats import FORMATS
from ..lanes.arithmetic import bits, from_bits, int_splat, load_f32, splat, store_u8
from ..search.block_sizes import largest_size
from ..search.fp4 import VALUES, nearest_codes

BLOCK, BYTES = FORMATS["MXFP4"].sizes


@helper
def _rounds_up(below: Any, k: Any) -> Any:
    """Whether log2 of 2**k * (1 - below * 2**-24) rounds to k in float32.

    It is k - below * 2**-24 / ln 2, to be compared with half the distance from k to the next float towards it.
    """
    unit = 1  # 2**24 times half that distance
    while 2 * unit <= abs(k):
        unit *= 2
    if k <= 0:
        return k < 0 and below < unit * 0.6931471805599453
    half = 0.5 if unit == k else 1.0  # floats lie closer below a power of two
    return below < half * unit * 0.6931471805599453


@helper
def scale_code(size: Any) -> Any:
    """The byte e for the largest size in a block; as on x86-64 it wraps for sizes below 2**-125."""
    if size == F(0):
        return 0
    raw = np.int64(bits(splat(size))[0])
    mantissa, k = raw & 0x7FFFFF, (raw >> 23) - 126  # 2**(k - 1) <= size < 2**k
    if raw >> 23 == 0:
        k += 1
        while mantissa < 0x800000:
            mantissa <<= 1
            k -= 1
    below = 0x1000000 - (mantissa | 0x800000)
    floor_log2 = k if _rounds_up(below, k) else k - 1
    return floor_log2 - 2 + 127 & 255


@helper
def step(e: Any) -> Any:
    """2**(e - 128), exact also where it is a denormal."""
    raw = 0x200000 << e if e < 2 else e - 1 << 23
    return from_bits(int_splat(raw))[0]


@kernel(QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array) -> None:
    for block in range(len(x) // BLOCK):
        start, at = BLOCK * block, BYTES * block
        e = scale_code(largest_size(x, start, BLOCK))
        d = step(e)
        low, high = nearest_codes(load_f32(x, start), d), nearest_codes(load_f32(x, start + 16), d)
        out[at] = e
        store_u8(out, at + 1, low | high << 4)


@kernel(DEQUANTIZE)
def dequantize(blocks: Array, out: Array) -> None:
    for block in range(len(blocks) // BYTES):
        at = BYTES * block
        d = step(np.int64(blocks[at]))
        for j in range(16):
            byte = blocks[at + 1 + j]
            out[BLOCK * block + j] = VALUES[byte & 15] * d
            out[BLOCK * block + 16 + j] = VALUES[byte >> 4] * d
