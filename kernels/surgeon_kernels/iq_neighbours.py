"""Choosing among the neighbours of a code that is no grid point: the one with the smallest weighted error.

The error of a neighbour is the sum over its coordinates of root * (scale * (2 * level + 1) - x)**2; root is the square
root of the weight. Sixteen neighbours go into the lanes; the terms come from one table per coordinate.

A search tries many scales, and in a run of neighbouring scales the code of a part often stays the same. The difference
of two neighbours' errors, divided by the scale, is a linear function of the scale. So the neighbour that wins at both
ends of the run wins everywhere between them, if rounding cannot hide it: its lead at the ends must exceed a bound on
the rounding errors. Otherwise each scale of the run is looked at by itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .cache import helper, inlined
from .iq_tiles import Array, F, Lanes
from .lanes import (
    LANES,
    first_bit,
    int_splat,
    lane_bits,
    lane_numbers,
    load_u8,
    look_up,
    maximum,
    minimum,
    select,
    smallest,
    splat,
    to_float,
)

# A sum of at most 8 terms w * d * d, d = scale * q - x, with every operation rounded, is wrong by less than
# 2**-24 * (16 * error + sum of w * x * x); 2**-16 leaves room for the ends' own rounding and for what the lead may lose
# between them (it stays above the ratio of the scales, 2/3, of the smaller one).
_SAFE_LEAD = F(2**-16)
_SMALLEST_LEAD = F(1e-30)  # below, products may have lost bits to underflow


class Flat(NamedTuple):
    """What the lanes of a tile hold, once more in memory, to be read weight by weight (element i of lane l at 16i + l).

    x, root: float32[16 * group], sizes and square roots of the weights; energy: float32[16], sum of root * x * x of the
    part at hand; scale: float32[16 * trials]; entry, packed: int32[16 * trials], lookup entry and packed levels of the
    part at hand in every trial; starts, off: int32[16], bit t: in trial t a run starts, the code is no point.
    """

    x: Array
    root: Array
    energy: Array
    scale: Array
    entry: Array
    packed: Array
    starts: Array
    off: Array


@helper
def flat_space(group: int, parts: int, trials: int) -> Flat:
    return Flat(
        np.empty(LANES * group, np.float32),
        np.empty(LANES * group, np.float32),
        np.empty(LANES, np.float32),
        np.empty(LANES * trials, np.float32),
        np.empty(LANES * trials, np.int32),
        np.empty(LANES * trials * parts, np.int32),
        np.empty(LANES, np.int32),
        np.empty(LANES, np.int32),
    )


def make_nearest(length: int) -> Any:
    """The choice among the neighbours of one code, for points of `length` coordinates."""

    @inlined
    def nearest(entry: int, tables: Lanes, grid: Any) -> Any:
        """The first neighbour with the smallest error (its place in grid.members), that error and the next smallest.

        entry: of grid.lookup, negative; tables[i] lane l: the error of coordinate i at level l.
        """
        first, count = -1 - entry >> 5, -1 - entry & 31
        infinite = splat(F(np.inf))
        # A chunk that is not full is filled up with level 15 in coordinate 0.
        tables[0] = select(lane_numbers() == 15, infinite, tables[0])
        least = second = infinite
        order = best = lane_numbers()
        for chunk in range(first, first + count):
            error = splat(F(0))
            for i in range(length):
                error = error + look_up(tables[i], load_u8(grid.levels, LANES * (chunk * length + i)))
            best = select(error < least, order, best)
            second = minimum(second, maximum(error, least))
            least = minimum(error, least)
            order = order + LANES
        smallest_error = smallest(least)
        if count == 1:
            place = first_bit(lane_bits(least == splat(smallest_error)))
        else:
            place = np.int64(smallest(select(least == splat(smallest_error), best, int_splat(LANES * 32))))
        place = min(place, LANES * count - 1)
        second = select(lane_numbers() == int_splat(place & 15), second, least)
        return LANES * first + place, smallest_error, smallest(second)

    return nearest


def make_settle(length: int) -> Any:
    """The choice for one part of one group, in all trials in which its code is no point."""
    nearest = make_nearest(length)

    @inlined
    def evaluate(part: int, lane: int, entry: int, scale: float, flat: Flat, tables: Lanes, grid: Any) -> Any:
        """What `nearest` gives for a part of the lane's group at this scale."""
        position = to_float(lane_numbers() * 2 + 1)
        for i in range(length):
            at = LANES * (part * length + i) + lane
            difference = scale * position - splat(flat.x[at])
            tables[i] = flat.root[at] * difference * difference
        return nearest(entry, tables, grid)

    @inlined
    def settle_run(part: int, lane: int, start: int, end: int, base: int, flat: Flat, tables: Lanes, grid: Any) -> None:
        """Put the packed chosen neighbours for the trials `start ... end` with one code into flat.packed."""
        entry = flat.entry[LANES * start + lane]
        at_start = 0
        lead, error = F(np.inf), F(0)
        for k in range(end - start + 1):
            t = end if k == 1 else start + max(k - 1, 0)  # both ends first
            place, least, second = evaluate(part, lane, entry, flat.scale[LANES * t + lane], flat, tables, grid)
            flat.packed[base + LANES * t + lane] = grid.packed[grid.members[place]]
            lead, error = min(lead, second - least), max(error, second)
            if k == 0:
                at_start = place
            elif k == 1 and place == at_start and lead > max(_SMALLEST_LEAD, _SAFE_LEAD * (error + flat.energy[lane])):
                for inner in range(start + 1, end):
                    flat.packed[base + LANES * inner + lane] = grid.packed[grid.members[place]]
                break

    @inlined
    def settle(part: int, lane: int, trials: int, base: int, flat: Flat, tables: Lanes, grid: Any) -> None:
        """`settle_run` for all runs of one lane."""
        starts = np.int64(flat.starts[lane]) & 0xFFFFFFFF
        while starts != 0:
            start = first_bit(starts)
            starts &= starts - 1
            end = (first_bit(starts) if starts != 0 else trials) - 1
            if flat.off[lane] >> start & 1:
                settle_run(part, lane, start, end, base, flat, tables, grid)

    return settle
