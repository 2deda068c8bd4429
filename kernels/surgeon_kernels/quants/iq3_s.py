"""IQ3_S: grid points for 4 weights, sign bytes for 8, 4-bit scales for 32; 256 weights in 110 bytes.

    +-----------+--------------+-------------+-----------------+-----------------+
    | d float16 | qs: 64 bytes | qh: 8 bytes | signs: 32 bytes | scales: 4 bytes |
    +-----------+--------------+-------------+-----------------+-----------------+
      0           2              66            74                106

    Group g of 32 has the points k = 0 ... 7: number = qs[8g + k] | (bit k of qh[g]) << 8,
    the sign bytes signs[4g ... 4g + 3] (bit i: element i of 8) and the nibble g of scales: s.

    w = +-d * (1 + 2s) * (2 * level + 1)

Search: iq_search.py. In ggml a group of zeros does not advance the place where points and signs are written, so that
those of all later groups of the superblock go to the wrong places; `compat` does the same.
"""

from __future__ import annotations

import numpy as np

from ..compilation import DEQUANTIZE, QUANTIZE, helper
from ..dialect import Array, F
from ..formats import FORMATS
from ..lanes.arithmetic import LANES, half_at, int_slots, lane_bits, put_half, select, slots, splat, store_f32
from ..search.grid_kernels import kernel_with_grid
from ..search.iq_neighbours import grid_views
from ..search.iq_restore import grid_values, of_four, restore
from ..search.iq_search import ALL_IF_ANY, GroupSearch, make_search
from ..search.iq_signs import flip_signs, largest_of, split_signs
from ..search.iq_superblocks import Chosen, chosen_space, keep_chosen, keep_codes
from ..search.iq_tiles import load_superblock_tile, tile_space

BLOCK, BYTES = FORMATS["IQ3_S"].sizes
GROUP = 32
_search = make_search(GroupSearch(length=4, group=GROUP, levels=8, trials=9, step=0.2, top=15, refine=ALL_IF_ANY))


@helper
def put_group(out: Array, at: int, g: int, place: int, chosen: Chosen, lane: int) -> None:
    """Write group `g` of the superblock at `at`, its points and signs at place `place`."""
    high = 0
    for k in range(8):
        number = chosen.points[LANES * k + lane]
        out[at + 2 + 8 * place + k] = number & 255
        high |= number >> 8 << k
    out[at + 66 + g] = high
    for k in range(4):
        out[at + 74 + 4 * place + k] = chosen.signs[LANES * k + lane]


@helper
def put_block(out: Array, at: int, d: float, chosen: Chosen, lane: int, filled: int, compat: bool) -> None:
    """Write the superblock whose groups are the lanes from `lane` on; bit `lane` of `filled`: the group is not zero."""
    out[at : at + BYTES] = 0
    put_half(out, at, d * F(1.033))
    place = 0
    for g in range(8):
        if filled >> lane + g & 1:
            put_group(out, at, g, place if compat else g, chosen, lane + g)
            place += 1
        # Weights so small that their squares vanish leave every scale 0; ggml keeps the points of such a block.
        if d != F(0):
            out[at + 106 + g // 2] |= chosen.codes[lane + g] << 4 * (g % 2)


@kernel_with_grid("IQ3_S", QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array, grid: Array) -> None:
    xs, ws, points, signs = slots(32), slots(32), int_slots(8), int_slots(4)
    tile, chosen, views = tile_space(GROUP), chosen_space(), grid_views(grid)
    groups = len(x) // GROUP
    for first in range(0, groups, LANES):
        load_superblock_tile(x, columns, weights, first, GROUP, tile, xs, ws, F(2 / 256), F(0), compat)
        split_signs(xs, GROUP, signs)
        size = largest_of(xs, GROUP)
        active = size > F(0)
        scale = _search(xs, ws, size, size / F(15), active, points, views)
        scale = flip_signs(select(active, scale, splat(F(0))), GROUP, signs, 255)
        keep_chosen(chosen, 8, points, signs, active, GROUP)
        d = keep_codes(chosen, scale, GROUP, 15)
        for lane in range(0, min(LANES, groups - first), 8):
            put_block(out, BYTES * (first + lane) // 8, d[lane], chosen, lane, lane_bits(active), compat)


@kernel_with_grid("IQ3_S", DEQUANTIZE)
def dequantize(blocks: Array, out: Array, grid: Array) -> None:
    values = grid_values((1, 3, 5, 7, 9, 11, 13, 15))
    for block in range(len(blocks) // BYTES):
        at = BYTES * block
        d = half_at(blocks, at)
        for g in range(8):
            s = blocks[at + 106 + g // 2] >> 4 * (g % 2) & 15
            scale = d * F(1 + 2 * s)
            for half in range(2):
                low = at + 2 + 8 * g + 4 * half
                high = np.int32(blocks[at + 66 + g]) >> 4 * half
                signs = blocks[at + 74 + 4 * g + 2 * half] | blocks[at + 75 + 4 * g + 2 * half] << 8
                packed = of_four(
                    grid.packed[blocks[low] | (high & 1) << 8],
                    grid.packed[blocks[low + 1] | (high >> 1 & 1) << 8],
                    grid.packed[blocks[low + 2] | (high >> 2 & 1) << 8],
                    grid.packed[blocks[low + 3] | (high >> 3 & 1) << 8],
                )
                store_f32(out, BLOCK * block + GROUP * g + 16 * half, restore(packed, values, scale, signs))
