"""Q4_0: 32 weights in 18 bytes, 4.5 bits per weight.

    0   d   float16
    2   qs  16 bytes   byte j = q[j] | q[16 + j] << 4,  j = 0..15

    w[j] = d * (q[j] - 8),  q = 0..15

Search: ggml's quantize_q4_0. Without an imatrix the value of largest magnitude becomes q = 0; with one, make_qx.
"""

from __future__ import annotations

from ..compilation import DEQUANTIZE, QUANTIZE, kernel
from ..dialect import Array
from ..formats import FORMATS
from ..lanes.arithmetic import half_at, load_u8, store_f32, to_float
from ..search.legacy_blocks import SIZE, quantize_blocks

BYTES = FORMATS["Q4_0"].block_bytes


@kernel(QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array) -> None:
    quantize_blocks(x, columns, weights, compat, out, 8, False, BYTES)


@kernel(DEQUANTIZE)
def dequantize(blocks: Array, out: Array) -> None:
    for block in range(len(blocks) // BYTES):
        at = block * BYTES
        d = half_at(blocks, at)
        byte = load_u8(blocks, at + 2)
        low, high = byte & 15, byte >> 4
        store_f32(out, SIZE * block, to_float(low - 8) * d)
        store_f32(out, SIZE * block + 16, to_float(high - 8) * d)
