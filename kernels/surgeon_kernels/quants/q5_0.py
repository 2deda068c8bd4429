"""Q5_0: 32 weights in 22 bytes, 5.5 bits per weight.

    0   d   float16
    2   qh  4 bytes    bit k of the little-endian word: bit 4 of q[k],  k = 0..31
    6   qs  16 bytes   byte j = low4(q[j]) | low4(q[16 + j]) << 4,  j = 0..15

    w[j] = d * (q[j] - 16),  q = 0..31

Search: ggml's quantize_q5_0; that of Q4_0 with twice the codes.
"""

from __future__ import annotations

from ..compilation import DEQUANTIZE, QUANTIZE, kernel
from ..dialect import Array
from ..formats import FORMATS
from ..lanes.arithmetic import half_at, load_u8, store_f32, to_float
from ..search.legacy_blocks import SIZE, fifth_bits, quantize_blocks

BYTES = FORMATS["Q5_0"].block_bytes


@kernel(QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array) -> None:
    quantize_blocks(x, columns, weights, compat, out, 16, False, BYTES)


@kernel(DEQUANTIZE)
def dequantize(blocks: Array, out: Array) -> None:
    for block in range(len(blocks) // BYTES):
        at = block * BYTES
        d = half_at(blocks, at)
        byte = load_u8(blocks, at + 6)
        low = byte & 15 | fifth_bits(blocks, at + 2)
        high = byte >> 4 | fifth_bits(blocks, at + 4)
        store_f32(out, SIZE * block, to_float(low - 16) * d)
        store_f32(out, SIZE * block + 16, to_float(high - 16) * d)
