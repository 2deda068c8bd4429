"""NVFP4: 4-bit floats with an 8-bit float (UE4M3) as the scale of every 16, 64 weights in 36 bytes.

    +---------------------+--------------+        qs: 8 bytes for each group g of 16;
    | s: 4 UE4M3, 1 byte  | qs: 32 bytes |            byte j: code[j] | code[j + 8] << 4
    +---------------------+--------------+
      0                     4                     UE4M3: 4 bits of exponent (bias 7), 3 of mantissa, no sign

    w = s[g] / 2 * VALUES[code]

s[g] is a sixth of the group's largest size (6 is the largest E2M1). The second scale that the format knows, one for a
whole tensor, is not written by llama-quantize. An importance matrix changes nothing.
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

BLOCK, BYTES = FORMATS["NVFP4"].sizes
GROUP = 16
_LARGEST = 0x7E  # 448; 0x7F is NaN


@helper
def ue4m3(v: Any) -> Any:
    """The byte for v >= 0, halves rounded up, too large ones cut to 448."""
    if not v > F(0):
        return 0
    v = min(v, F(448))
    raw = np.int64(bits(splat(v))[0])
    exponent = (raw >> 23) - 127 + 7
    if exponent <= 0:
        return min(np.int64(v * F(512) + F(0.5)), 7)
    # A carry out of the mantissa goes into the exponent, where it belongs. ggml does not use exponent 15 but for 448.
    code = (exponent << 3 | raw >> 20 & 7) + (raw >> 19 & 1)
    return code if code < 15 << 3 else _LARGEST


@helper
def step(code: Any) -> Any:
    """Half the value of a UE4M3 byte; 0 for NaN, as ggml has it. The highest bit is ignored."""
    if code == 0x7F or code == 0:
        return F(0)
    exponent, mantissa = code >> 3 & 15, code & 7
    if exponent == 0:
        return F(mantissa) * F(2**-10)
    return from_bits(int_splat(exponent - 1 - 7 + 127 << 23 | mantissa << 20))[0]


@kernel(QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array) -> None:
    codes = np.empty(GROUP, np.uint8)
    for block in range(len(x) // BLOCK):
        at = BYTES * block
        for g in range(BLOCK // GROUP):
            start = BLOCK * block + GROUP * g
            s = ue4m3(largest_size(x, start, GROUP) / F(6))
            store_u8(codes, 0, nearest_codes(load_f32(x, start), step(s)))
            out[at + g] = s
            for j in range(8):
                out[at + 4 + 8 * g + j] = codes[j] | codes[j + 8] << 4


@kernel(DEQUANTIZE)
def dequantize(blocks: Array, out: Array) -> None:
    for block in range(len(blocks) // BYTES):
        at = BYTES * block
        for g in range(BLOCK // GROUP):
            d = step(np.int64(blocks[at + g]))
            start = BLOCK * block + GROUP * g
            for j in range(8):
                byte = blocks[at + 4 + 8 * g + j]
                out[start + j] = VALUES[byte & 15] * d
                out[start + 8 + j] = VALUES[byte >> 4] * d
