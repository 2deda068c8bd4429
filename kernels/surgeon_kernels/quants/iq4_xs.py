"""IQ4_XS: 4-bit codes into a table of sixteen uneven values, eight 6-bit scales for 256 weights, in 136 bytes.

    +-----------+---------------+---------------+---------------+      qs: 16 bytes for each group g of 32 weights;
    | d float16 | high: 2 bytes | low: 4 bytes  | qs: 128 bytes |          byte j: code[j] | code[j + 16] << 4
    +-----------+---------------+---------------+---------------+
      0           2               4               8                    s[g]: low 4 bits in nibble g of `low`,
                                                                           high 2 bits in bits 2g, 2g + 1 of `high`
    w = d * (s[g] - 32) * VALUES[code]

Each group's scale comes from the search in iq4_search.py. d makes the largest of them -32 steps; the groups' codes are
then chosen by the scales in steps of d.
"""

from __future__ import annotations

import numpy as np

from ..compilation import DEQUANTIZE, QUANTIZE, helper, kernel
from ..dialect import Array, F, Lanes
from ..formats import FORMATS
from ..lanes.arithmetic import (
    LANES,
    half_at,
    int_splat,
    lane_numbers,
    maximum,
    minimum,
    nearest_int,
    put_half,
    select,
    slots,
    splat,
    to_float,
)
from ..search.iq4_search import GROUP, best_scale, put_codes, restore_group, store_codes
from ..search.iq_tiles import load_superblock_tile, tile_space

BYTES = FORMATS["IQ4_XS"].block_bytes


@helper
def block_step(scale: Lanes) -> Lanes:
    """d of the two superblocks, in all lanes of each: the scale of largest size (the first of equals) over -32."""
    d = splat(F(0))
    for half in range(2):
        top = F(0)
        for lane in range(8 * half, 8 * half + 8):
            if abs(scale[lane]) > abs(top):
                top = scale[lane]
        d = select(lane_numbers() < 8 * half, d, splat(-top / F(32)))
    return d


@helper
def put_block(out: Array, at: int, d: Lanes, steps: Lanes, codes: Array, lane: int) -> None:
    """Write the superblock whose groups are the eight lanes from `lane` on."""
    put_half(out, at, d[lane])
    high = 0
    for g in range(8):
        step = steps[lane + g] + 32
        high |= step >> 4 << 2 * g
        if g % 2 == 0:
            out[at + 4 + g // 2] = step & 15
        else:
            out[at + 4 + g // 2] |= (step & 15) << 4
        put_codes(out, at + 8 + 16 * g, codes, lane + g)
    out[at + 2] = high & 255
    out[at + 3] = high >> 8


@kernel(QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array) -> None:
    xs, ws = slots(32), slots(32)
    tile = tile_space(GROUP)
    codes = np.empty(GROUP // 2 * LANES, np.uint8)
    groups = len(x) // GROUP
    for first in range(0, groups, LANES):
        load_superblock_tile(x, columns, weights, first, GROUP, tile, xs, ws, F(2 / 256), F(0), compat)
        scale = best_scale(xs, ws)
        d = block_step(scale)
        inverse = select(d != F(0), F(1) / d, splat(F(0)))
        steps = maximum(int_splat(-32), minimum(int_splat(31), nearest_int(inverse * scale)))
        store_codes(xs, d * to_float(steps), codes)
        for lane in range(0, min(LANES, groups - first), 8):
            put_block(out, BYTES * (first + lane) // 8, d, steps, codes, lane)


@kernel(DEQUANTIZE)
def dequantize(blocks: Array, out: Array) -> None:
    for block in range(len(blocks) // BYTES):
        at = BYTES * block
        d = half_at(blocks, at)
        high = blocks[at + 2] | blocks[at + 3] << 8
        for g in range(8):
            step = blocks[at + 4 + g // 2] >> 4 * (g % 2) & 15 | (high >> 2 * g & 3) << 4
            restore_group(blocks, at + 8 + 16 * g, d * F(step - 32), out, 256 * block + GROUP * g)
