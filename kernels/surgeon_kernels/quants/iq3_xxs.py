"""IQ3_XXS: grid points for 4 weights, 7 sign bits for 8, 4-bit scales for 32; 256 weights in 98 bytes.

    +-----------+--------------+-------------------------------+
    | d float16 | qs: 64 bytes | signs and scales: 8 x 4 bytes |
    +-----------+--------------+-------------------------------+
      0           2              66

    Group g of 32 has the points qs[8g ... 8g + 7] and a 32-bit number: bits 7k ... 7k + 6 are the signs of its
    elements 8k ... 8k + 7 (the eighth sign makes their number even), bits 28 ... 31 are its scale s.

    w = +-d * (1 + 2s) / 4 * value,  value = 4, 12, 20, 28, 36, 44, 52 or 62 for levels 0 ... 7

Search: iq_search.py.
"""

from __future__ import annotations

from ..compilation import DEQUANTIZE, QUANTIZE, helper
from ..dialect import Array, F
from ..formats import FORMATS
from ..lanes.arithmetic import LANES, half_at, int_slots, put_half, select, slots, splat, store_f32
from ..search.grid_kernels import kernel_with_grid
from ..search.iq_neighbours import grid_views
from ..search.iq_restore import grid_values, of_four, restore, word_at
from ..search.iq_search import OFF_GRID, GroupSearch, make_search
from ..search.iq_signs import even_signs, flip_signs, largest_of, make_signs_even, split_signs
from ..search.iq_superblocks import Chosen, chosen_space, keep_chosen, keep_codes, put_signs_and_scale
from ..search.iq_tiles import load_superblock_tile, tile_space

BLOCK, BYTES = FORMATS["IQ3_XXS"].sizes
GROUP = 32
_search = make_search(GroupSearch(length=4, group=GROUP, levels=8, trials=15, step=0.2, top=15, refine=OFF_GRID))


@helper
def put_block(out: Array, at: int, d: float, chosen: Chosen, lane: int) -> None:
    """Write the superblock whose groups are the eight lanes from `lane` on."""
    out[at : at + BYTES] = 0
    if d == F(0):
        return
    put_half(out, at, d * F(1.0125))
    for g in range(8):
        for k in range(8):
            out[at + 2 + 8 * g + k] = chosen.points[LANES * k + lane + g]
        put_signs_and_scale(out, at + 66 + 4 * g, chosen, lane + g)


@kernel_with_grid("IQ3_XXS", QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array, grid: Array) -> None:
    xs, ws, points, signs = slots(32), slots(32), int_slots(8), int_slots(4)
    tile, chosen, views = tile_space(GROUP), chosen_space(), grid_views(grid)
    groups = len(x) // GROUP
    for first in range(0, groups, LANES):
        load_superblock_tile(x, columns, weights, first, GROUP, tile, xs, ws, F(2 / 256), F(0), compat)
        split_signs(xs, GROUP, signs)
        make_signs_even(xs, ws, GROUP, signs)
        size = largest_of(xs, GROUP)
        active = size >= F(1e-8)
        scale = _search(xs, ws, size, size / F(15), active, points, views)
        scale = flip_signs(select(active, scale, splat(F(0))), GROUP, signs, 127)
        keep_chosen(chosen, 8, points, signs, active, GROUP)
        d = keep_codes(chosen, scale, GROUP, 15)
        for lane in range(0, min(LANES, groups - first), 8):
            put_block(out, BYTES * (first + lane) // 8, d[lane], chosen, lane)


@kernel_with_grid("IQ3_XXS", DEQUANTIZE)
def dequantize(blocks: Array, out: Array, grid: Array) -> None:
    values = grid_values((4, 12, 20, 28, 36, 44, 52, 62))
    for block in range(len(blocks) // BYTES):
        at = BYTES * block
        d = half_at(blocks, at)
        for g in range(8):
            word = word_at(blocks, at + 66 + 4 * g)
            scale = d * (F(0.5) + F(word >> 28)) * F(0.5)
            for half in range(2):
                signs = even_signs(word, 14 * half)
                low = at + 2 + 8 * g + 4 * half
                packed = of_four(
                    grid.packed[blocks[low]],
                    grid.packed[blocks[low + 1]],
                    grid.packed[blocks[low + 2]],
                    grid.packed[blocks[low + 3]],
                )
                store_f32(out, BLOCK * block + GROUP * g + 16 * half, restore(packed, values, scale, signs))
