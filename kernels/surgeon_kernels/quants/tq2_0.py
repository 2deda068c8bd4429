"""TQ2_0: ternary weights, two bits each, 256 in 66 bytes.

    +--------------+-----------+        byte 32c + m of qs, c = 0, 1: elements 128c + m + 32n in bits 2n, 2n + 1
    | qs: 64 bytes | d float16 |
    +--------------+-----------+        w = (code - 1) * d
      0              64

d is the largest size: the format is meant for weights that are ternary already. An importance matrix changes nothing.
"""

from __future__ import annotations

import numpy as np

from ..compilation import DEQUANTIZE, QUANTIZE, kernel
from ..dialect import Array
from ..formats import FORMATS
from ..lanes.arithmetic import LANES, half_at, load_u8, put_half, store_f32, to_float
from ..search.block_sizes import largest_size, ternary, ternary_inverse

BLOCK, BYTES = FORMATS["TQ2_0"].sizes


@kernel(QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array) -> None:
    for block in range(len(x) // BLOCK):
        at = BYTES * block
        d = largest_size(x, BLOCK * block, BLOCK)
        inverse = ternary_inverse(d)
        for c in range(2):
            start = BLOCK * block + 128 * c
            for m in range(32):
                byte = np.int32(0)
                for n in range(4):
                    byte |= ternary(x[start + m + 32 * n] * inverse) << np.int32(2 * n)
                out[at + 32 * c + m] = byte
        put_half(out, at + 64, d)


@kernel(DEQUANTIZE)
def dequantize(blocks: Array, out: Array) -> None:
    for block in range(len(blocks) // BYTES):
        at = BYTES * block
        d = half_at(blocks, at + 64)
        for c in range(2):
            start = BLOCK * block + 128 * c
            for m in range(0, 32, LANES):
                byte = load_u8(blocks, at + 32 * c + m)
                for n in range(4):
                    store_f32(out, start + 32 * n + m, to_float((byte >> 2 * n & 3) - 1) * d)
