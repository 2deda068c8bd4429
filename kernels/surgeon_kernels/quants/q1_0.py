"""Q1_0: one bit per weight, 128 weights in 18 bytes.

    +-----------+---------------+        bit k of qs byte j is element 8j + k: 1 for x >= 0
    | d float16 | qs: 16 bytes  |
    +-----------+---------------+        w = bit ? d : -d
      0           2

d is the mean size of the weights. There is nothing to search, and an importance matrix changes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compilation import DEQUANTIZE, QUANTIZE, kernel
from ..dialect import Array, F
from ..formats import FORMATS
from ..lanes.arithmetic import half_at, put_half

BLOCK, BYTES = FORMATS["Q1_0"].sizes


@kernel(QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array) -> None:
    for block in range(len(x) // BLOCK):
        start, at = BLOCK * block, BYTES * block
        total = F(0)
        for j in range(BLOCK):
            total += abs(x[start + j])
        put_half(out, at, total / F(BLOCK))
        for j in range(BLOCK // 8):
            byte: Any = 0
            for k in range(8):
                byte |= np.int32(x[start + 8 * j + k] >= F(0)) << k
            out[at + 2 + j] = byte


@kernel(DEQUANTIZE)
def dequantize(blocks: Array, out: Array) -> None:
    for block in range(len(blocks) // BYTES):
        start, at = BLOCK * block, BYTES * block
        d = half_at(blocks, at)
        for j in range(BLOCK // 8):
            for k in range(8):
                out[start + 8 * j + k] = d if blocks[at + 2 + j] >> k & 1 else -d
