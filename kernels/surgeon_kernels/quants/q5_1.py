"""Q5_1: 32 weights in 24 bytes, 6 bits per weight.

    0   d   float16
    2   m   float16    minimum
    4   qh  4 bytes    bit k of the little-endian word: bit 4 of q[k],  k = 0..31
    8   qs  16 bytes   byte j = low4(q[j]) | low4(q[16 + j]) << 4,  j = 0..15

    w[j] = d * q[j] + m,  q = 0..31

Search: ggml's quantize_q5_1; that of Q4_1 with twice the codes.
"""

from __future__ import annotations

from ..compilation import DEQUANTIZE, QUANTIZE, kernel
from ..dialect import Array
from ..formats import FORMATS
from ..lanes.arithmetic import half_at, load_u8, store_f32, to_float
from ..search.legacy_blocks import SIZE, fifth_bits, quantize_blocks

BYTES = FORMATS["Q5_1"].block_bytes


@kernel(QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array) -> None:
    quantize_blocks(x, columns, weights, compat, out, 31, True, BYTES)


@kernel(DEQUANTIZE)
def dequantize(blocks: Array, out: Array) -> None:
    for block in range(len(blocks) // BYTES):
        at = block * BYTES
        d, m = half_at(blocks, at), half_at(blocks, at + 2)
        byte = load_u8(blocks, at + 8)
        low = byte & 15 | fifth_bits(blocks, at + 4)
        high = byte >> 4 | fifth_bits(blocks, at + 6)
        store_f32(out, SIZE * block, to_float(low) * d + m)
        store_f32(out, SIZE * block + 16, to_float(high) * d + m)
