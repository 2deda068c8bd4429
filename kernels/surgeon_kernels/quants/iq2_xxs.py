"""IQ2_XXS: grid points for 8 weights, 7 sign bits for 8, 4-bit scales for 32; 256 weights in 66 bytes.

    +-----------+-------------------+        Group g of 32 has two 32-bit numbers. The first: four point numbers of 8
    | d float16 | groups: 8 x 8     |        bits. The second: bits 7k ... 7k + 6 are the signs of its elements
    +-----------+-------------------+        8k ... 8k + 7 (the eighth sign makes their number even), bits 28 ... 31
      0           2                          its scale s.

    w = +-d * (1 + 2s) / 8 * value,  value = 8, 25 or 43 for levels 0, 1, 2

Search: iq_search.py, around the scale that make_qp gives; needs an importance matrix. For a group whose importances are
all zero (without `compat`) errors are weighed by x * x, as the formats of this family do without a matrix.
"""

from __future__ import annotations

from ..compilation import DEQUANTIZE, QUANTIZE, helper
from ..dialect import Array, F
from ..formats import FORMATS
from ..lanes.arithmetic import LANES, half_at, int_slots, put_half, select, slots, splat, store_f32
from ..search.grid_kernels import kernel_with_grid
from ..search.iq_neighbours import grid_views
from ..search.iq_restore import grid_values, of_two, restore, word_at
from ..search.iq_search import ALWAYS, GroupSearch, make_search
from ..search.iq_signs import even_signs, flip_signs, make_signs_even, split_signs
from ..search.iq_superblocks import Chosen, chosen_space, keep_chosen, keep_codes, put_signs_and_scale
from ..search.iq_tiles import load_superblock_tile, tile_space
from ..search.scales import make_qp

BLOCK, BYTES = FORMATS["IQ2_XXS"].sizes
GROUP = 32
_search = make_search(GroupSearch(length=8, group=GROUP, levels=3, trials=6, step=0.1, top=5, refine=ALWAYS))


@helper
def put_block(out: Array, at: int, d: float, chosen: Chosen, lane: int) -> None:
    """Write the superblock whose groups are the eight lanes from `lane` on."""
    out[at : at + BYTES] = 0
    if d == F(0):
        return
    put_half(out, at, d)
    for g in range(8):
        for k in range(4):
            out[at + 2 + 8 * g + k] = chosen.points[LANES * k + lane + g]
        put_signs_and_scale(out, at + 6 + 8 * g, chosen, lane + g)


@kernel_with_grid("IQ2_XXS", QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array, grid: Array) -> None:
    xs, ws, points, signs, codes = slots(32), slots(32), int_slots(8), int_slots(4), int_slots(32)
    tile, chosen, views = tile_space(GROUP), chosen_space(), grid_views(grid)
    groups = len(x) // GROUP
    for first in range(0, groups, LANES):
        load_superblock_tile(x, columns, weights, first, GROUP, tile, xs, ws, F(1 / 256), F(0), compat)
        split_signs(xs, GROUP, signs)
        make_signs_even(xs, ws, GROUP, signs)
        scale = make_qp(xs, ws, GROUP, 4, codes)  # 0 where all sizes are below 1e-15
        size = scale * F(3)
        active = size > F(0)
        scale = _search(xs, ws, size, scale, active, points, views)
        scale = flip_signs(select(active, scale, splat(F(0))), GROUP, signs, 127)
        keep_chosen(chosen, 4, points, signs, active, GROUP)
        d = keep_codes(chosen, scale, GROUP, 15)
        for lane in range(0, min(LANES, groups - first), 8):
            put_block(out, BYTES * (first + lane) // 8, d[lane], chosen, lane)


@kernel_with_grid("IQ2_XXS", DEQUANTIZE)
def dequantize(blocks: Array, out: Array, grid: Array) -> None:
    values = grid_values((8, 25, 43))
    for block in range(len(blocks) // BYTES):
        at = BYTES * block
        d = half_at(blocks, at)
        for g in range(8):
            word = word_at(blocks, at + 6 + 8 * g)
            scale = d * (F(0.5) + F(word >> 28)) * F(0.25)
            for half in range(2):
                k = at + 2 + 8 * g + 2 * half
                packed = of_two(grid.packed[blocks[k]], grid.packed[blocks[k + 1]])
                weights = restore(packed, values, scale, even_signs(word, 14 * half))
                store_f32(out, BLOCK * block + GROUP * g + 16 * half, weights)
