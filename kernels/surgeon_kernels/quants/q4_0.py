"""Q4_0: 32 weights in 18 bytes, 4.5 bits per weight.

    0   d   float16
    2   qs  16 bytes   byte j = q[j] | q[16 + j] << 4,  j = 0..15

    w[j] = d * (q[j] - 8),  q = 0..15

Search: ggml's quantize_q4_0. Without an imatrix the value of largest magnitude becomes q = 0; with one, make_qx.
"""

from __future__ import annotations

from typing import Any

from ..compilation import DEQUANTIZE, QUANTIZE, kernel
from ..lanes.arithmetic import half_at, load_u8, store_f32, to_float
from ..search.legacy_blocks import SIZE, quantize_blocks

_BYTES = 18


@kernel(QUANTIZE)
def quantize(x: Any, columns: int, weights: Any, compat: bool, out: Any) -> None:
    quantize_blocks(x, columns, weights, compat, out, 8, False, _BYTES)


@kernel(DEQUANTIZE)
def dequantize(blocks: Any, out: Any) -> None:
    for block in range(len(blocks) // _BYTES):
        at = block * _BYTES
        d = half_at(blocks, at)
        byte = load_u8(blocks, at + 2)
        low, high = byte & 15, byte >> 4
        store_f32(out, SIZE * block, to_float(low - 8) * d)
        store_f32(out, SIZE * block + 16, to_float(high - 8) * d)
