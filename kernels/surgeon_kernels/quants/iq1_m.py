"""IQ1_M: grid points and an offset for 8 weights, 3-bit scales for 16; 256 weights in 56 bytes.

    +--------------+--------------+------------------------+
    | qs: 32 bytes | qh: 16 bytes | scales: 4 x 16 bits    |
    +--------------+--------------+------------------------+
      0              32             48

    Group g of 16 has two points, k = 0, 1: number = qs[2g + k] | (bits 4k ... 4k + 2 of qh[g]) << 8, with delta = 1/8
    or, where bit 4k + 3 of qh[g] is set, -1/8. Its scale s: bits 3(g % 4) ... of scales[g // 4].
    The highest four bits of scales[i] are the nibble i of d, a float16.

    w = d * (2s + 1) * (level - 1 + delta)

Search: iq1_search.py with a delta for each half of the group; then d is fitted once more to the whole superblock.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compilation import DEQUANTIZE, QUANTIZE, helper
from ..dialect import Array, F, Lanes
from ..formats import FORMATS
from ..lanes.arithmetic import (
    LANES,
    absolute,
    any_lane,
    from_half_bits,
    half_bits,
    int_slots,
    int_splat,
    lane_numbers,
    load_i32,
    select,
    slots,
    splat,
    store_f32,
    to_float,
)
from ..lanes.views import view, view_gather
from ..search.grid_kernels import kernel_with_grid
from ..search.iq1_search import (
    DELTA,
    LENGTH,
    Sorted,
    choose_points,
    coordinate,
    cut_levels,
    largest_size,
    sort_groups,
    sorted_weights,
)
from ..search.iq_neighbours import GridViews, grid_views
from ..search.iq_restore import of_two
from ..search.iq_superblocks import Chosen, chosen_space, keep_chosen, keep_codes
from ..search.iq_tiles import load_superblock_tile, tile_space

BLOCK, BYTES = FORMATS["IQ1_M"].sizes
GROUP = 16
# Values of the lowest, middle and highest level for either delta, and differences of their squares.
PLUS = (F(-0.875), F(0.125), F(1.125))
MINUS = (F(-1.125), F(-0.125), F(0.875))
PLUS_SQUARES = (PLUS[0] * PLUS[0] - PLUS[1] * PLUS[1], PLUS[1] * PLUS[1] - PLUS[2] * PLUS[2])
MINUS_SQUARES = (MINUS[0] * MINUS[0] - MINUS[1] * MINUS[1], MINUS[1] * MINUS[1] - MINUS[2] * MINUS[2])


@helper
def prefix_sums(groups: Sorted, value: Lanes, place: Lanes, sx: Lanes, sw: Lanes) -> None:
    """sx[17h + j], sw[17h + j]: sums of w * x and of w over those of the first j sorted weights that are in half h."""
    for half in range(2):
        sx[17 * half] = splat(F(0))
        sw[17 * half] = splat(F(0))
    for j in range(GROUP):
        w = sorted_weights(groups, place[j])
        for half in range(2):
            at = 17 * half + j
            here = place[j] < 8 if half == 0 else place[j] >= 8
            sx[at + 1] = select(here, sx[at] + w * value[j], sx[at])
            sw[at + 1] = select(here, sw[at] + w, sw[at])


@helper
def squares(sw: Lanes, below: Lanes, above: Lanes) -> None:
    """Parts of the sum of w * q * q of half h for a cut at j: below[34h + 17k + j] for the first cut, with the constant
    part, and above[34h + 17k + j] for the second; k = 0 for a positive delta, 1 for a negative one.
    """
    for half in range(2):
        total = sw[17 * half + GROUP]
        for j in range(GROUP + 1):
            w = sw[17 * half + j]
            below[34 * half + j] = total * PLUS[2] * PLUS[2] + w * PLUS_SQUARES[0]
            below[34 * half + 17 + j] = total * MINUS[2] * MINUS[2] + w * MINUS_SQUARES[0]
            above[34 * half + j] = w * PLUS_SQUARES[1]
            above[34 * half + 17 + j] = w * MINUS_SQUARES[1]


@helper
def best_cuts(sx: Lanes, sw: Lanes) -> Any:
    """The cuts, the deltas (bit 1: negative in the first half, bit 0: in the second) and the scale that explain most.

    Last comes how much: the lowest float32 where nothing fits.
    """
    best = splat(F(-3.4028234663852886e38))
    scale = splat(F(0))
    cut1 = cut2 = negative = int_splat(0)
    below, above, qx, q2 = slots(68), slots(68), slots(4), slots(4)
    squares(sw, below, above)
    for i1 in range(GROUP + 1):
        for i2 in range(i1, GROUP + 1):
            for half in range(2):
                s = sx[17 * half + i1] + sx[17 * half + i2]
                total = sx[17 * half + GROUP]
                qx[2 * half] = total * PLUS[2] - s
                qx[2 * half + 1] = total * MINUS[2] - s
                for k in range(2):
                    q2[2 * half + k] = below[34 * half + 17 * k + i1] + above[34 * half + 17 * k + i2]
            for k in range(4):
                sumqx, sumq2 = qx[k >> 1] + qx[2 + (k & 1)], q2[k >> 1] + q2[2 + (k & 1)]
                better = (sumq2 > F(0)) & (sumqx * sumqx > best * sumq2)
                if any_lane(better):
                    scale = select(better, sumqx / sumq2, scale)
                    best = select(better, scale * sumqx, best)
                    cut1, cut2 = select(better, int_splat(i1), cut1), select(better, int_splat(i2), cut2)
                    negative = select(better, int_splat(k), negative)
    return cut1, cut2, negative, scale, best


@helper
def fit_block(xs: Lanes, ws: Lanes, points: Lanes, deltas: Lanes, chosen: Chosen, d: float, grid: GridViews) -> Any:
    """d once more, by least squares over the whole superblock with the codes that are stored (`d` if there is no fit).

    The sums go through the weights in order, so their terms pass through memory.
    """
    qx, q2 = slots(16), slots(16)
    step = to_float(load_i32(chosen.codes, 0) * 2 + 1)
    for half in range(2):
        packed = view_gather(grid.packed, points[half])
        for i in range(LENGTH):
            j = LENGTH * half + i
            q = coordinate(packed, i, deltas[half]) * step
            wq = ws[j] * q
            qx[j] = wq * xs[j]
            q2[j] = wq * q
    terms_x, terms_2 = view(qx), view(q2)
    sumqx = F(0)
    sumq2 = F(0)
    for lane in range(LANES):
        for j in range(GROUP):
            sumqx += terms_x[LANES * j + lane]
            sumq2 += terms_2[LANES * j + lane]
    return sumqx / sumq2 if sumq2 > F(0) else d


@helper
def put_block(out: Array, at: int, d: float, has_scales: bool, chosen: Chosen) -> None:
    """Write the superblock of the tile. Where all scales are 0, points may still be set."""
    for g in range(16):
        high = chosen.signs[g] << 3 | chosen.signs[LANES + g] << 7 if has_scales else 0
        for k in range(2):
            number = chosen.points[LANES * k + g]
            out[at + 2 * g + k] = number & 255
            high |= number >> 8 << 4 * k
        out[at + 32 + g] = high
    raw = half_bits(splat(d * F(1.1125)))[0]
    for i in range(4):
        word = (raw >> 4 * i & 15) << 12
        for g in range(4):
            word |= chosen.codes[4 * i + g] << 3 * g if has_scales else 0
        out[at + 48 + 2 * i] = word & 255
        out[at + 49 + 2 * i] = word >> 8


@kernel_with_grid("IQ1", QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array, grid: Array) -> None:
    xs, ws, sx, sw, value, deltas = slots(16), slots(16), slots(34), slots(34), slots(17), slots(2)
    place, levels, points, signs = int_slots(17), int_slots(16), int_slots(8), int_slots(4)
    tile, chosen, views = tile_space(GROUP), chosen_space(), grid_views(grid)
    for block in range(len(x) // BLOCK):
        load_superblock_tile(x, columns, weights, LANES * block, GROUP, tile, xs, ws, F(2 / 256), F(0), compat)
        groups = sort_groups(xs, ws, GROUP, value, place)
        prefix_sums(groups, value, place, sx, sw)
        cut1, cut2, negative, scale, best = best_cuts(sx, sw)
        active = (largest_size(xs, GROUP) >= F(1e-7)) & (best > F(-3e38))
        mirrored = scale < F(0)
        cut_levels(xs, GROUP, cut1, cut2, mirrored, groups, levels)
        negative = select(active, select(mirrored, 3 - negative, negative), int_splat(0))
        for half in range(2):
            signs[half] = negative >> 1 - half & 1
            deltas[half] = select(signs[half] > 0, splat(-DELTA), splat(DELTA))
        scale = choose_points(xs, ws, GROUP, levels, deltas, absolute(scale), active, groups, points, views)
        keep_chosen(chosen, 2, points, signs, active, GROUP)
        d = keep_codes(chosen, select(active, scale, splat(F(0))), GROUP, 7)[0]
        has_scales = d != F(0)
        if has_scales:
            d = fit_block(xs, ws, points, deltas, chosen, d, views)
        put_block(out, BYTES * block, d, has_scales, chosen)


@kernel_with_grid("IQ1", DEQUANTIZE)
def dequantize(blocks: Array, out: Array, grid: Array) -> None:
    for block in range(len(blocks) // BYTES):
        at = BYTES * block
        raw = np.int32(0)
        for i in range(4):
            raw |= np.int32(blocks[at + 49 + 2 * i] >> 4) << 4 * i
        d = from_half_bits(int_splat(raw))[0]
        for g in range(16):
            word = np.int32(blocks[at + 48 + g // 4 * 2]) | np.int32(blocks[at + 49 + g // 4 * 2]) << 8
            scale = d * F(2 * (word >> 3 * (g % 4) & 7) + 1)
            high = np.int32(blocks[at + 32 + g])
            a, b = blocks[at + 2 * g] | (high & 7) << 8, blocks[at + 2 * g + 1] | (high >> 4 & 7) << 8
            low = splat(-DELTA if high & 8 else DELTA)
            delta = select(lane_numbers() < 8, low, splat(-DELTA if high & 128 else DELTA))
            value = to_float(of_two(grid.packed[a], grid.packed[b]) - 3) * F(0.5)
            store_f32(out, BLOCK * block + GROUP * g, scale * (value + delta))
