"""IQ2_S: grid points for 8 weights, sign bytes for 8, 4-bit scales for 16; 256 weights in 82 bytes.

    +-----------+--------------+-----------------+-------------+-----------------+
    | d float16 | qs: 32 bytes | signs: 32 bytes | qh: 8 bytes | scales: 8 bytes |
    +-----------+--------------+-----------------+-------------+-----------------+
      0           2              34                66            74

    The 8 elements from 8k have the point number qs[k] | (bits 2(k % 4), + 1 of qh[k // 4]) << 8 and the sign byte
    signs[k]. Group g of 16 has the nibble g of scales: s.

    w = +-d * (1 + 2s) / 8 * value,  value = 8, 25 or 43 for levels 0, 1, 2

Search: iq_search.py.
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
from ..search.iq_signs import flip_signs, largest_of, split_signs
from ..search.iq_superblocks import Chosen, chosen_space, keep_chosen, keep_codes
from ..search.iq_tiles import load_superblock_tile, tile_space

BLOCK, BYTES = FORMATS["IQ2_S"].sizes
GROUP = 16
_search = make_search(GroupSearch(length=8, group=GROUP, levels=3, trials=9, step=0.1, top=5, refine=OFF_GRID))


@helper
def put_block(out: Array, at: int, d: float, chosen: Chosen) -> None:
    """Write the superblock of the tile."""
    out[at : at + BYTES] = 0
    if d == F(0):
        return
    put_half(out, at, d * F(0.9875))
    for g in range(16):
        for half in range(2):
            k = 2 * g + half
            number = chosen.points[LANES * half + g]
            out[at + 2 + k] = number & 255
            out[at + 34 + k] = chosen.signs[LANES * half + g]
            out[at + 66 + k // 4] |= number >> 8 << 2 * (k % 4)
        out[at + 74 + g // 2] |= chosen.codes[g] << 4 * (g % 2)


@kernel_with_grid("IQ2_S", QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array, grid: Array) -> None:
    xs, ws, points, signs = slots(16), slots(16), int_slots(8), int_slots(4)
    tile, chosen, views = tile_space(GROUP), chosen_space(), grid_views(grid)
    for block in range(len(x) // BLOCK):
        first = LANES * block
        load_superblock_tile(x, columns, weights, first, GROUP, tile, xs, ws, F(2 / 256), F(0.25), compat)
        split_signs(xs, GROUP, signs)
        size = largest_of(xs, GROUP)
        active = size >= F(1e-8)
        scale = _search(xs, ws, size, size / F(5), active, points, views)
        scale = flip_signs(select(active, scale, splat(F(0))), GROUP, signs, 255)
        keep_chosen(chosen, 2, points, signs, active, GROUP)
        d = keep_codes(chosen, scale, GROUP, 15)
        put_block(out, BYTES * block, d[0], chosen)


@kernel_with_grid("IQ2_S", DEQUANTIZE)
def dequantize(blocks: Array, out: Array, grid: Array) -> None:
    values = grid_values((8, 25, 43))
    for block in range(len(blocks) // BYTES):
        at = BYTES * block
        d = half_at(blocks, at)
        for g in range(16):
            s = blocks[at + 74 + g // 2] >> 4 * (g % 2) & 15
            scale = d * (F(0.5) + F(s)) * F(0.25)
            high = blocks[at + 66 + g // 2] >> 4 * (g % 2)
            low = at + 2 + 2 * g
            packed = of_two(
                grid.packed[blocks[low] | (high & 3) << 8], grid.packed[blocks[low + 1] | (high >> 2 & 3) << 8]
            )
            signs = blocks[low + 32] | blocks[low + 33] << 8
            store_f32(out, BLOCK * block + GROUP * g, restore(packed, values, scale, signs))
