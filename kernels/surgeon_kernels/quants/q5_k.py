"""Q5_K: 256 weights in 176 bytes, 5.5 bits per weight.

    0    d      float16   step of the scales
    2    dmin   float16   step of the minima
    4    scales 12 bytes  eight 6-bit scales and eight 6-bit minima (packed: min_superblocks.put_scales)
    16   qh     32 bytes  bit g of byte l: bit 4 of q[32g + l],  g = 0..7, l = 0..31
    48   qs     128 bytes byte 32c + l = low4(q[64c + l]) | low4(q[64c + 32 + l]) << 4,  c = 0..3

    w[32g + l] = d * scale[g] * q - dmin * minimum[g],  q = 0..31

Search: ggml's quantize_q5_K; that of Q4_K with 31 for 15, and a narrower one without an imatrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compilation import DEQUANTIZE, QUANTIZE, helper, kernel
from ..dialect import Array, F
from ..formats import FORMATS
from ..lanes.arithmetic import LANES, half_at, int_splat, load_u8, put_half, store_f32, store_u8, to_float
from ..search.min_superblocks import SIZE, fit_tile, group_codes, put_scales, scale_at, steps_of, workspace
from ..search.tiles import dead_slices, next_tile, pack

BYTES = FORMATS["Q5_K"].block_bytes
_NMAX = F(31)
_PLAIN_SEARCH = (F(-0.5), F(0.1), 15)


@helper
def _put_block(values: Any, fits: Any, codes: Any, lane: int, plain: bool, d: Any, dmin: Any, out: Array,
               at: int) -> None:  # fmt: skip
    put_half(out, at, d)
    put_half(out, at + 2, dmin)
    put_scales(codes, lane, out, at + 4)
    d, dmin = half_at(out, at), half_at(out, at + 2)
    for half in range(2):
        upper = int_splat(0)
        for chunk in range(4):
            d0, low0 = steps_of(out, at + 4, 2 * chunk, d, dmin)
            d1, low1 = steps_of(out, at + 4, 2 * chunk + 1, d, dmin)
            low = group_codes(values, fits, lane, 2 * chunk, half, d0, low0, 31, plain)
            high = group_codes(values, fits, lane, 2 * chunk + 1, half, d1, low1, 31, plain)
            store_u8(out, at + 48 + 32 * chunk + 16 * half, low & 15 | (high & 15) << 4)
            upper = upper | (low >> 4 | high >> 4 << 1) << 2 * chunk
        store_u8(out, at + 16 + 16 * half, upper)


@kernel(QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array) -> None:
    dead = dead_slices(weights, SIZE, compat)
    chosen = np.zeros(LANES, np.int64)
    values, importance, fits, codes = workspace()
    blocks = len(x) // SIZE
    for plain in range(2):
        block = 0
        while block < blocks:
            count, block = next_tile(dead, plain, block, blocks, chosen)
            if count > 0:
                pack(x, blocks, chosen, SIZE, values)
                if not plain:
                    pack(weights, columns // SIZE, chosen, SIZE, importance)
                d, dmin = fit_tile(values, importance, fits, codes, plain == 1, _NMAX, _PLAIN_SEARCH)
                for lane in range(count):
                    at = chosen[lane] * BYTES
                    _put_block(values, fits, codes, lane, plain == 1, d[lane], dmin[lane], out, at)


@kernel(DEQUANTIZE)
def dequantize(blocks: Array, out: Array) -> None:
    for block in range(len(blocks) // BYTES):
        at = block * BYTES
        d, dmin = half_at(blocks, at), half_at(blocks, at + 2)
        for group in range(8):
            scale, low = scale_at(blocks, at + 4, group)
            step, offset = d * F(scale), dmin * F(low)
            for half in range(2):
                byte = load_u8(blocks, at + 48 + 32 * (group >> 1) + 16 * half)
                upper = load_u8(blocks, at + 16 + 16 * half) >> group & 1
                q = to_float(byte >> 4 * (group & 1) & 15 | upper << 4)
                store_f32(out, block * SIZE + 32 * group + 16 * half, step * q - offset)
