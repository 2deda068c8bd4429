"""Q2_0: four levels -1, 0, 1, 2 with one scale, 64 weights in 18 bytes.

    +-----------+---------------+        qs byte j: code[4j] | code[4j + 1] << 2 | code[4j + 2] << 4 | code[4j + 3] << 6
    | d float16 | qs: 16 bytes  |
    +-----------+---------------+        w = (code - 1) * d
      0           2

d is the largest size, so the code 3 is never written. An importance matrix changes nothing.
"""

from __future__ import annotations

import numpy as np

from ..compilation import DEQUANTIZE, QUANTIZE, kernel
from ..dialect import Array, F
from ..formats import FORMATS
from ..lanes.arithmetic import half_at, put_half
from ..search.block_sizes import largest_size, ternary

BLOCK, BYTES = FORMATS["Q2_0"].sizes


@kernel(QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array) -> None:
    for block in range(len(x) // BLOCK):
        start, at = BLOCK * block, BYTES * block
        d = largest_size(x, start, BLOCK)
        put_half(out, at, d)
        inverse = F(1) / d if d > F(0) else F(0)
        # A denormal d has an infinite inverse; ggml's conversion of infinity ends in code 0 (d is stored as 0 anyway).
        overflow = inverse == F(np.inf)
        for j in range(BLOCK // 4):
            byte = np.int32(0)
            for k in range(4):
                byte |= ternary(x[start + 4 * j + k] * inverse) << np.int32(2 * k)
            out[at + 2 + j] = np.int32(0) if overflow else byte


@kernel(DEQUANTIZE)
def dequantize(blocks: Array, out: Array) -> None:
    for block in range(len(blocks) // BYTES):
        start, at = BLOCK * block, BYTES * block
        d = half_at(blocks, at)
        for j in range(BLOCK // 4):
            for k in range(4):
                code = np.int32(blocks[at + 2 + j] >> 2 * k & 3)
                out[start + 4 * j + k] = F(code - np.int32(1)) * d
