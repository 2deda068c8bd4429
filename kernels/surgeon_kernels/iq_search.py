"""The search that IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S share: a scale and grid points for a group of weights.

A group of 16 or 32 sizes |x| is approximated by scale * (2 * level + 1), where every 8 (IQ2) or 4 (IQ3) levels, a part
of the group, must be a point of the grid. For a number of trial scales each part is rounded to levels; if those are no
point, the neighbour with the smallest weighted error is taken (grids.py). The trial whose least-squares scale explains
most is kept. Then the parts that were not points by themselves are chosen once more, with the final scale.

Sixteen groups go through this together, one per SIMD lane. Only the choice among neighbours, which differs from lane
to lane, puts sixteen neighbours of one part into the lanes instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .cache import helper
from .iq_tiles import Array, F, Lanes
from .lanes import (
    LANES,
    any_lane,
    first_bit,
    gather,
    int_slots,
    int_splat,
    lane_bits,
    lane_numbers,
    load_i32,
    load_u8,
    look_up,
    maximum,
    minimum,
    nearest_int,
    select,
    slots,
    smallest,
    splat,
    square_root,
    store_f32,
    store_i32,
    to_float,
)

OFF_GRID, ALL_IF_ANY, ALWAYS = range(3)  # which parts are chosen once more with the final scale


@dataclass(frozen=True, slots=True)
class GroupSearch:
    """What differs between the formats.

    length: weights per grid point; group: weights per scale; levels: of a coordinate; trial scales are
    (top + t * step) / size for t = -trials ... trials; refine: OFF_GRID, ALL_IF_ANY (off grid, which parts also are
    until a trial succeeds) or ALWAYS.
    """

    length: int
    group: int
    levels: int
    trials: int
    step: float
    top: float
    refine: int


def make_nearest_point(length: int) -> Any:
    """The choice among neighbours for points of `length` coordinates."""

    @helper
    def nearest_point(entry: int, tables: Lanes, grid: Any) -> Any:
        """Among the neighbours of a code (`entry` of grid.lookup) the first with the smallest error.

        tables[i] lane l: the error of coordinate i at level l.
        """
        first, count = -1 - entry >> 5, -1 - entry & 31
        least = splat(F(np.inf))
        order = lane_numbers()
        best = order
        for chunk in range(first, first + count):
            error = splat(F(0))
            for i in range(length):
                error = error + look_up(tables[i], load_u8(grid.levels, LANES * (chunk * length + i)))
            best = select(error < least, order, best)
            least = minimum(error, least)
            order = order + LANES
        is_least = least == splat(smallest(least))
        if count == 1:
            place = first_bit(lane_bits(is_least))
        else:
            place = np.int64(smallest(select(is_least, best, int_splat(LANES * 32))))
        return grid.members[LANES * first + min(place, LANES * count - 1)]

    return nearest_point


def make_choose(spec: GroupSearch) -> Any:
    """The choice of a grid point for one part of every group."""
    length, levels = spec.length, spec.levels
    nearest_point = make_nearest_point(length)

    @helper
    def error_tables(tables: Lanes, start: int, scale: float, flat: Any) -> None:
        """tables[i] lane l: error of level l for the weight at flat index start + 16 * i."""
        position = to_float(lane_numbers() * 2 + 1)
        for i in range(length):
            difference = scale * position - splat(flat.x[start + LANES * i])
            tables[i] = flat.root[start + LANES * i] * difference * difference

    @helper
    def choose(part: int, x: Lanes, scale: Lanes, inverse: Lanes, wanted: Lanes, flat: Any, grid: Any) -> Any:
        """Point numbers for part `part`, and which lanes (of those `wanted`) are off the grid."""
        code = int_splat(0)
        for i in range(length):
            v = x[part * length + length - 1 - i]
            level = nearest_int(F(0.5) * (inverse * v - F(1)))
            code = code * levels + maximum(int_splat(0), minimum(int_splat(levels - 1), level))
        number = gather(grid.lookup, code)
        off = (number < 0) & wanted
        if any_lane(off):
            tables = slots(8)
            store_i32(flat.entry, 0, number)
            store_f32(flat.scale, 0, scale)
            pending = lane_bits(off)
            while pending != 0:
                lane = first_bit(pending)
                pending &= pending - 1
                error_tables(tables, LANES * part * length + lane, flat.scale[lane], flat)
                flat.entry[lane] = nearest_point(flat.entry[lane], tables, grid)
            number = load_i32(flat.entry, 0)
        return maximum(number, int_splat(0)), off

    return choose


class Flat(NamedTuple):
    """What the lanes of a tile hold, once more in memory, to be read weight by weight (element i of lane l at 16i + l).

    x, root: float32[16 * group], sizes and square roots of the weights; scale: float32[16]; entry: int32[16].
    """

    x: Array
    root: Array
    scale: Array
    entry: Array


def make_search(spec: GroupSearch) -> Any:
    """The search for one format: `search(x, w, size, scale, active, points, flat, grid) -> scale`."""
    length, group, parts = spec.length, spec.group, spec.group // spec.length
    trials, step, top, refine = spec.trials, F(spec.step), F(spec.top), spec.refine
    choose = make_choose(spec)

    @helper
    def fit(points: Lanes, w: Lanes, wx: Lanes, grid: Any) -> Any:
        """Weighted sums of q * x and q * q over the group, q = 2 * level + 1."""
        sumqx = splat(F(0))
        sumq2 = splat(F(0))
        for part in range(parts):
            packed = gather(grid.packed, points[part])
            for i in range(length):
                j = part * length + i
                q = to_float(packed >> 4 * i & 15)
                sumqx = sumqx + wx[j] * q
                sumq2 = sumq2 + w[j] * q * q
        return sumqx, sumq2

    @helper
    def try_scales(x: Lanes, w: Lanes, wx: Lanes, size: Lanes, scale: Lanes, active: Lanes, points: Lanes, off: Lanes,
                   flat: Any, grid: Any) -> Any:  # fmt: skip
        """The best trial: its scale, its points and which of them were off the grid (as 1); as before where none is."""
        trial = int_slots(8)
        trial_off = int_slots(8)
        best = splat(F(0))
        for t in range(-trials, trials + 1):
            inverse = (top + F(t) * step) / size
            for part in range(parts):
                trial[part], is_off = choose(part, x, F(1) / inverse, inverse, active, flat, grid)
                trial_off[part] = select(is_off, int_splat(1), int_splat(0))
            sumqx, sumq2 = fit(trial, w, wx, grid)
            better = active & (sumq2 > F(0)) & (sumqx * sumqx > best * sumq2)
            scale = select(better, sumqx / sumq2, scale)
            best = select(better, scale * sumqx, best)
            for part in range(parts):
                points[part] = select(better, trial[part], points[part])
                off[part] = select(better, trial_off[part], off[part])
        return scale

    @helper
    def choose_again(x: Lanes, w: Lanes, wx: Lanes, scale: Lanes, active: Lanes, points: Lanes, off: Lanes, flat: Any,
                     grid: Any) -> Any:  # fmt: skip
        """Choose the parts that `refine` names with the scale found, and fit the scale to all points then."""
        any_off = int_splat(1) if refine == ALWAYS else int_splat(0)
        for part in range(parts):
            any_off = any_off | off[part]
        refined = active & (any_off > 0) & (scale > F(0))
        if any_lane(refined):
            for part in range(parts):
                concerned = refined & (off[part] > 0) if refine == OFF_GRID else refined
                if any_lane(concerned):
                    number, _ = choose(part, x, scale, F(1) / scale, concerned, flat, grid)
                    points[part] = select(concerned, number, points[part])
            sumqx, sumq2 = fit(points, w, wx, grid)
            scale = select(refined & (sumq2 > F(0)), sumqx / sumq2, scale)
        return scale

    @helper
    def search(
        x: Lanes, w: Lanes, size: Lanes, scale: Lanes, active: Lanes, points: Lanes, flat: Any, grid: Any
    ) -> Any:
        """Scales and points of the groups in `active` lanes.

        x: sizes (one of eight may be negative), w: weights; size: what a trial scale divides; scale: returned, with
        points 0, if no trial explains anything (all weights vanish, or are so small that squares do).
        """
        wx = slots(32)
        off = int_slots(8)
        for j in range(group):
            wx[j] = w[j] * x[j]
            store_f32(flat.x, LANES * j, x[j])
            store_f32(flat.root, LANES * j, square_root(w[j]))
        for part in range(parts):
            points[part] = int_splat(0)
            off[part] = int_splat(1) if refine == ALL_IF_ANY else int_splat(0)
        scale = try_scales(x, w, wx, size, scale, active, points, off, flat, grid)
        return choose_again(x, w, wx, scale, active, points, off, flat, grid)

    return search
