"""Q4_1: 32 weights in 20 bytes, 5 bits per weight.

    0   d   float16
    2   m   float16    minimum
    4   qs  16 bytes   byte j = q[j] | q[16 + j] << 4,  j = 0..15

    w[j] = d * q[j] + m,  q = 0..15

Search: ggml's quantize_q4_1. Without an imatrix smallest and largest value become q = 0 and 15; with one, make_qkx.
Where that puts d or m beyond float16, which ggml stores as infinity, the block gets the fit without an imatrix.
"""

from __future__ import annotations

from ..compilation import DEQUANTIZE, QUANTIZE, kernel
from ..dialect import Array
from ..formats import FORMATS
from ..lanes.arithmetic import half_at, load_u8, store_f32, to_float
from ..search.legacy_blocks import SIZE, quantize_blocks

BYTES = FORMATS["Q4_1"].block_bytes


@kernel(QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array) -> None:
    quantize_blocks(x, columns, weights, compat, out, 15, True, BYTES)


@kernel(DEQUANTIZE)
def dequantize(blocks: Array, out: Array) -> None:
    for block in range(len(blocks) // BYTES):
        at = block * BYTES
        d, m = half_at(blocks, at), half_at(blocks, at + 2)
        byte = load_u8(blocks, at + 4)
        low, high = byte & 15, byte >> 4
        store_f32(out, SIZE * block, to_float(low) * d + m)
        store_f32(out, SIZE * block + 16, to_float(high) * d + m)
