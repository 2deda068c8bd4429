"""IQ1_S: grid points for 8 weights, one offset and a 3-bit scale for 32; 256 weights in 50 bytes.

    +-----------+--------------+-----------------+
    | d float16 | qs: 32 bytes | qh: 8 x 16 bits |
    +-----------+--------------+-----------------+
      0           2              34

    Group g of 32 has the points k = 0 ... 3: number = qs[4g + k] | (bits 3k ... 3k + 2 of qh[g]) << 8; its scale s in
    bits 12 ... 14 of qh[g], and delta = 1/8 or, with bit 15 set, -1/8.

    w = d * (2s + 1) * (level - 1 + delta)

Search: iq1_search.py with one delta for the group; needs an importance matrix. For a group whose importances are all
zero (without `compat`) errors are weighed by x * x, as IQ1_M does without a matrix.
"""

from __future__ import annotations

import numpy as np

from ..compilation import DEQUANTIZE, QUANTIZE, helper
from ..dialect import Array, F, Lanes
from ..formats import FORMATS
from ..lanes.arithmetic import (
    LANES,
    absolute,
    any_lane,
    half_at,
    int_slots,
    int_splat,
    put_half,
    select,
    slots,
    splat,
    store_f32,
    to_float,
)
from ..search.grid_kernels import kernel_with_grid
from ..search.iq1_search import DELTA, Sorted, choose_points, cut_levels, largest_size, sort_groups, sorted_weights
from ..search.iq_neighbours import grid_views
from ..search.iq_restore import of_two
from ..search.iq_superblocks import Chosen, chosen_space, keep_chosen, keep_codes
from ..search.iq_tiles import load_superblock_tile, tile_space

BLOCK, BYTES = FORMATS["IQ1_S"].sizes
GROUP = 32
# Values of the levels for either delta.
PLUS = (F(-0.875), F(0.125), F(1.125))
MINUS = (F(-1.125), F(-0.125), F(0.875))


@helper
def prefix_sums(groups: Sorted, value: Lanes, place: Lanes, sx: Lanes, sw: Lanes) -> None:
    """sx[j], sw[j]: sums of w * x and of w over the first j sorted weights."""
    sx[0] = splat(F(0))
    sw[0] = splat(F(0))
    for j in range(GROUP):
        w = sorted_weights(groups, place[j])
        sx[j + 1] = sx[j] + w * value[j]
        sw[j + 1] = sw[j] + w


@helper
def best_cuts(sx: Lanes, sw: Lanes) -> Lanes:
    """The cuts, the delta (as +1 or -1; 0 where there is no fit) and the scale that explain most."""
    best = splat(F(-3.4028234663852886e38))
    scale = splat(F(0))
    cut1 = cut2 = sign = int_splat(0)
    upper = slots(132)
    for i in range(GROUP + 1):
        x2, w2 = sx[GROUP] - sx[i], sw[GROUP] - sw[i]
        upper[4 * i] = x2 * PLUS[2]
        upper[4 * i + 1] = w2 * PLUS[2] * PLUS[2]
        upper[4 * i + 2] = x2 * MINUS[2]
        upper[4 * i + 3] = w2 * MINUS[2] * MINUS[2]
    for i1 in range(GROUP + 1):
        xp, wp = sx[i1] * PLUS[0], sw[i1] * PLUS[0] * PLUS[0]
        xm, wm = sx[i1] * MINUS[0], sw[i1] * MINUS[0] * MINUS[0]
        for i2 in range(i1, GROUP + 1):
            x1 = (sx[i2] - sx[i1]) * PLUS[1]  # for MINUS[1] the negative
            w1 = (sw[i2] - sw[i1]) * PLUS[1] * PLUS[1]
            qx, q2 = xp + x1 + upper[4 * i2], wp + w1 + upper[4 * i2 + 1]
            better = (q2 > F(0)) & (qx * qx > best * q2)
            if any_lane(better):
                scale = select(better, qx / q2, scale)
                best = select(better, scale * qx, best)
                cut1, cut2 = select(better, int_splat(i1), cut1), select(better, int_splat(i2), cut2)
                sign = select(better, int_splat(1), sign)
            qx, q2 = xm - x1 + upper[4 * i2 + 2], wm + w1 + upper[4 * i2 + 3]
            better = (q2 > F(0)) & (qx * qx > best * q2)
            if any_lane(better):
                scale = select(better, qx / q2, scale)
                best = select(better, scale * qx, best)
                cut1, cut2 = select(better, int_splat(i1), cut1), select(better, int_splat(i2), cut2)
                sign = select(better, int_splat(-1), sign)
    return cut1, cut2, sign, scale


@helper
def put_block(out: Array, at: int, d: float, chosen: Chosen, lane: int) -> None:
    """Write the superblock whose groups are the eight lanes from `lane` on. Where d is 0, points may still be set."""
    put_half(out, at, d * F(1.125))
    for g in range(8):
        high = chosen.codes[lane + g] << 12 | chosen.signs[lane + g] << 15 if d != F(0) else 0
        for k in range(4):
            number = chosen.points[LANES * k + lane + g]
            out[at + 2 + 4 * g + k] = number & 255
            high |= number >> 8 << 3 * k
        out[at + 34 + 2 * g] = high & 255
        out[at + 35 + 2 * g] = high >> 8


@kernel_with_grid("IQ1", QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array, grid: Array) -> None:
    xs, ws, sx, sw, value, deltas = slots(32), slots(32), slots(33), slots(33), slots(33), slots(4)
    place, levels, points, signs = int_slots(33), int_slots(32), int_slots(8), int_slots(4)
    tile, chosen, views = tile_space(GROUP), chosen_space(), grid_views(grid)
    count = len(x) // GROUP
    for first in range(0, count, LANES):
        load_superblock_tile(x, columns, weights, first, GROUP, tile, xs, ws, F(2 / 256), F(0), compat)
        groups = sort_groups(xs, ws, GROUP, value, place)
        prefix_sums(groups, value, place, sx, sw)
        cut1, cut2, sign, scale = best_cuts(sx, sw)
        active = (largest_size(xs, GROUP) >= F(1e-12)) & (sign != 0)
        mirrored = scale < F(0)
        cut_levels(xs, GROUP, cut1, cut2, mirrored, groups, levels)
        sign = select(active, select(mirrored, -sign, sign), int_splat(1))
        for part in range(4):
            deltas[part] = to_float(sign) * DELTA
            signs[part] = select(sign < 0, int_splat(1), int_splat(0))
        scale = choose_points(xs, ws, GROUP, levels, deltas, absolute(scale), active, groups, points, views)
        keep_chosen(chosen, 4, points, signs, active, GROUP)
        d = keep_codes(chosen, select(active, scale, splat(F(0))), GROUP, 7)
        for lane in range(0, min(LANES, count - first), 8):
            put_block(out, BYTES * (first + lane) // 8, d[lane], chosen, lane)


@kernel_with_grid("IQ1", DEQUANTIZE)
def dequantize(blocks: Array, out: Array, grid: Array) -> None:
    for block in range(len(blocks) // BYTES):
        at = BYTES * block
        d = half_at(blocks, at)
        for g in range(8):
            high = np.int32(blocks[at + 34 + 2 * g]) | np.int32(blocks[at + 35 + 2 * g]) << 8
            scale = d * F(2 * (high >> 12 & 7) + 1)
            delta = -DELTA if high >> 15 else DELTA
            for half in range(2):
                k = at + 2 + 4 * g + 2 * half
                low = high >> 6 * half
                a, b = blocks[k] | (low & 7) << 8, blocks[k + 1] | (low >> 3 & 7) << 8
                value = to_float(of_two(grid.packed[a], grid.packed[b]) - 3) * F(0.5)
                store_f32(out, BLOCK * block + GROUP * g + 16 * half, scale * (value + delta))
