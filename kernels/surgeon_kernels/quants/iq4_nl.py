"""IQ4_NL: 4-bit codes into a table of sixteen uneven values, one scale for 32 weights, in 18 bytes.

    +-----------+---------------+        qs byte j: code[j] | code[j + 16] << 4
    | d float16 | qs: 16 bytes  |
    +-----------+---------------+        w = d * VALUES[code]
      0           2

The group's scale comes from the search in iq4_search.py; codes are then chosen by the scale before it is rounded.
"""

from __future__ import annotations

import numpy as np

from ..compilation import DEQUANTIZE, QUANTIZE, kernel
from ..dialect import Array, F
from ..formats import FORMATS
from ..lanes.arithmetic import LANES, half_at, put_half, slots, splat
from ..search.iq4_search import GROUP, best_scale, put_codes, restore_group, store_codes
from ..search.iq_tiles import load_groups, stage, sum_of_squares, tile_space, weigh

BYTES = FORMATS["IQ4_NL"].block_bytes


@kernel(QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array) -> None:
    xs, ws = slots(32), slots(32)
    tile = tile_space(GROUP)
    codes = np.empty(GROUP // 2 * LANES, np.uint8)
    blocks = len(x) // GROUP
    for first in range(0, blocks, LANES):
        stage(x, columns, weights, first, GROUP, tile)
        load_groups(xs, tile.x, GROUP)
        load_groups(ws, tile.importance, GROUP)
        weigh(xs, ws, GROUP, sum_of_squares(xs, GROUP) * F(2 / 32), splat(F(0)), len(weights) > 0, compat)
        scale = best_scale(xs, ws)
        store_codes(xs, scale, codes)
        for lane in range(min(LANES, blocks - first)):
            put_half(out, BYTES * (first + lane), scale[lane])
            put_codes(out, BYTES * (first + lane) + 2, codes, lane)


@kernel(DEQUANTIZE)
def dequantize(blocks: Array, out: Array) -> None:
    for block in range(len(blocks) // BYTES):
        restore_group(blocks, BYTES * block + 2, half_at(blocks, BYTES * block), out, GROUP * block)
