"""IQ2_XS: grid points for 8 weights, 7 sign bits for 8, 4-bit scales for 16; 256 weights in 74 bytes.

    +-----------+---------------------+-----------------+
    | d float16 | qs: 32 x 16 bits    | scales: 8 bytes |
    +-----------+---------------------+-----------------+
      0           2                     66

    The 8 elements from 8k have qs[k]: the point number in bits 0 ... 8, their signs in bits 9 ... 15 (the eighth sign
    makes their number even). Group g of 16 has the nibble g of scales: s.

    w = +-d * (1 + 2s) / 8 * value,  value = 8, 25 or 43 for levels 0, 1, 2

Search: iq_search.py; needs an importance matrix. For a group whose importances are all zero (without `compat`) errors
are weighed by x * x, as the formats of this family do without a matrix.
"""

from __future__ import annotations

from ..compilation import DEQUANTIZE, QUANTIZE, helper
from ..dialect import Array, F
from ..formats import FORMATS
from ..lanes.arithmetic import LANES, half_at, int_slots, put_half, select, slots, splat, store_f32
from ..search.grid_kernels import kernel_with_grid
from ..search.iq_neighbours import grid_views
from ..search.iq_restore import grid_values, of_two, restore
from ..search.iq_search import OFF_GRID, GroupSearch, make_search
from ..search.iq_signs import even_signs, flip_signs, largest_of, make_signs_even, split_signs
from ..search.iq_superblocks import Chosen, chosen_space, keep_chosen, keep_codes
from ..search.iq_tiles import load_superblock_tile, tile_space

BLOCK, BYTES = FORMATS["IQ2_XS"].sizes
GROUP = 16
_search = make_search(GroupSearch(length=8, group=GROUP, levels=3, trials=9, step=0.1, top=5, refine=OFF_GRID))


@helper
def put_block(out: Array, at: int, d: float, chosen: Chosen) -> None:
    """Write the superblock of the tile."""
    out[at : at + BYTES] = 0
    if d == F(0):
        return
    put_half(out, at, d)
    for g in range(16):
        for k in range(2):
            word = chosen.points[LANES * k + g] | chosen.signs[LANES * k + g] << 9
            out[at + 2 + 4 * g + 2 * k] = word & 255
            out[at + 3 + 4 * g + 2 * k] = word >> 8
        out[at + 66 + g // 2] |= chosen.codes[g] << 4 * (g % 2)


@kernel_with_grid("IQ2_XS", QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array, grid: Array) -> None:
    xs, ws, points, signs = slots(16), slots(16), int_slots(8), int_slots(4)
    tile, chosen, views = tile_space(GROUP), chosen_space(), grid_views(grid)
    for block in range(len(x) // BLOCK):
        first = LANES * block
        load_superblock_tile(x, columns, weights, first, GROUP, tile, xs, ws, F(1 / 256), F(0), compat)
        split_signs(xs, GROUP, signs)
        make_signs_even(xs, ws, GROUP, signs)
        size = largest_of(xs, GROUP)
        active = size >= F(1e-15)
        scale = _search(xs, ws, size, size / F(5), active, points, views)
        scale = flip_signs(select(active, scale, splat(F(0))), GROUP, signs, 127)
        keep_chosen(chosen, 2, points, signs, active, GROUP)
        d = keep_codes(chosen, scale, GROUP, 15)
        put_block(out, BYTES * block, d[0], chosen)


@kernel_with_grid("IQ2_XS", DEQUANTIZE)
def dequantize(blocks: Array, out: Array, grid: Array) -> None:
    values = grid_values((8, 25, 43))
    for block in range(len(blocks) // BYTES):
        at = BYTES * block
        d = half_at(blocks, at)
        for g in range(16):
            s = blocks[at + 66 + g // 2] >> 4 * (g % 2) & 15
            scale = d * (F(0.5) + F(s)) * F(0.25)
            low = blocks[at + 2 + 4 * g] | blocks[at + 3 + 4 * g] << 8
            high = blocks[at + 4 + 4 * g] | blocks[at + 5 + 4 * g] << 8
            packed = of_two(grid.packed[low & 511], grid.packed[high & 511])
            signs = even_signs(low >> 9 | high >> 9 << 7, 0)
            store_f32(out, BLOCK * block + GROUP * g, restore(packed, values, scale, signs))
