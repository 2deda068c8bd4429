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

from ..compilation import helper, inlined
from ..dialect import F, Lanes
from ..lanes.arithmetic import (
    LANES,
    first_bit,
    int_splat,
    lane_bits,
    lane_numbers,
    look_up_eight,
    maximum,
    minimum,
    select,
    slots,
    smallest,
    splat,
    to_float,
    two_smallest,
)
from ..lanes.views import view, view_i32

View = Any  # what views are to the type checker

# A sum of at most 8 terms w * d * d, d = scale * q - x, with every operation rounded, is wrong by less than
# 2**-24 * (16 * error + sum of w * x * x); 2**-16 leaves room for the ends' own rounding and for what the lead may lose
# between them (it stays above the ratio of the scales, 2/3, of the smaller one).
_SAFE_LEAD = F(2**-16)
_SMALLEST_LEAD = F(1e-30)  # below, products may have lost bits to underflow


class GridViews(NamedTuple):
    """Views of the arrays of a `Grid`."""

    packed: View
    lookup: View
    neighbours: View
    members: View


@helper
def grid_views(grid: Any) -> GridViews:
    return GridViews(view(grid.packed), view(grid.lookup), view(grid.neighbours), view(grid.members))


class Memory(NamedTuple):
    """What the search keeps of a tile: slots, or views of them, which have item i of lane l at 16i + l.

    Of the whole group: x, root: sizes and square roots of the weights; scales: of the trials;
    packed[trials * part + t]: levels of the points chosen.
    Of the part at hand: energy: sum of root * x * x; starts, off: bit t: in trial t a run starts, the code is no point;
    entry[t]: of grid.lookup; error[t], lead[t]: error of the second best neighbour and how much less the best has, for
    trials that have been looked at.
    Lists of places 16t + l: task: trials to be looked at; low, high: ends of intervals that are not decided.
    """

    x: Lanes
    root: Lanes
    scales: Lanes
    packed: Lanes
    energy: Lanes
    starts: Lanes
    off: Lanes
    entry: Lanes
    error: Lanes
    lead: Lanes
    task: Lanes
    low: Lanes
    high: Lanes


@inlined
def memory_views(m: Memory) -> Memory:
    """Views of slots."""
    return Memory(
        view(m.x), view(m.root), view(m.scales), view(m.packed), view(m.energy), view(m.starts), view(m.off),
        view(m.entry), view(m.error), view(m.lead), view(m.task), view(m.low), view(m.high),
    )  # fmt: skip


def make_nearest(length: int) -> Any:
    """The choice among the neighbours of one code, for points of `length` coordinates."""

    @inlined
    def errors_of(chunk: int, tables: Lanes, grid: GridViews) -> Lanes:
        """The errors of the sixteen neighbours of a chunk; infinite where there are no more."""
        packed = view_i32(grid.neighbours, LANES * chunk)
        error = select(packed == 0, splat(F(np.inf)), splat(F(0)))
        for i in range(length):
            error = error + look_up_eight(tables[i], packed >> 4 * i + 1)
        return error

    @inlined
    def nearest(entry: int, tables: Lanes, grid: GridViews) -> Any:
        """The first neighbour with the smallest error (its place in grid.neighbours), and the two smallest errors.

        entry: of grid.lookup, negative; tables[i] lanes l and l + 8: the error of coordinate i at level l.
        """
        first, count = -1 - entry >> 5, -1 - entry & 31
        least = errors_of(first, tables, grid)
        second = splat(F(np.inf))
        order = best = lane_numbers()
        for chunk in range(first + 1, first + count):
            error = errors_of(chunk, tables, grid)
            order = order + LANES
            best = select(error < least, order, best)
            second = minimum(second, maximum(error, least))
            least = minimum(error, least)
        smallest_error, second_error = two_smallest(least, second)
        if count == 1:
            place = first_bit(lane_bits(least == splat(smallest_error)))
        else:
            place = np.int64(smallest(select(least == splat(smallest_error), best, int_splat(LANES * 32))))
        return LANES * first + min(place, LANES * count - 1), smallest_error, second_error

    return nearest


def make_settle(length: int) -> Any:
    """The choice for one part of all groups of a tile, in all trials in which the code is no point."""
    nearest = make_nearest(length)

    @inlined
    def evaluate(part: int, count: int, base: int, m: Memory, grid: GridViews) -> None:
        """Look at the trials in m.task, all by themselves: the processor works on several at once."""
        tables = slots(8)
        position = to_float((lane_numbers() & 7) * 2 + 1)
        for n in range(count):
            at = m.task[n]
            scale = m.scales[at]
            for i in range(length):
                weight = LANES * (part * length + i) + (at & 15)
                difference = scale * position - splat(m.x[weight])
                tables[i] = m.root[weight] * difference * difference
            place, least, second = nearest(m.entry[at], tables, grid)
            m.packed[base + at] = grid.neighbours[place]
            m.lead[at] = second - least
            m.error[at] = second

    @inlined
    def both_ends(lanes: int, trials: int, m: Memory) -> Any:
        """Put the ends of all runs off the grid into the lists; returns how many tasks and intervals there are."""
        tasks = 0
        intervals = 0
        while lanes != 0:
            lane = first_bit(lanes)
            lanes &= lanes - 1
            starts = np.int64(m.starts[lane]) & 0xFFFFFFFF
            while starts != 0:
                start = first_bit(starts)
                starts &= starts - 1
                end = (first_bit(starts) if starts != 0 else trials) - 1
                if m.off[lane] >> start & 1:
                    m.task[tasks] = LANES * start + lane
                    m.task[tasks + 1] = LANES * end + lane
                    m.low[intervals], m.high[intervals] = LANES * start + lane, LANES * end + lane
                    tasks += 2 if end > start else 1
                    intervals += 1 if end > start + 1 else 0
        return tasks, intervals

    @inlined
    def is_decided(low: int, high: int, base: int, m: Memory) -> Any:
        """Whether the neighbour chosen at both ends of an interval is the choice for all of it."""
        lead, error = min(m.lead[low], m.lead[high]), max(m.error[low], m.error[high])
        is_clear = lead > max(_SMALLEST_LEAD, _SAFE_LEAD * (error + m.energy[low & 15]))
        return is_clear and m.packed[base + low] == m.packed[base + high]

    @inlined
    def settle(part: int, lanes: int, trials: int, base: int, m: Memory, grid: GridViews) -> None:
        """Put the packed chosen neighbours of all trials off the grid of the `lanes` (bits) into m.packed[base:].

        First both ends of every run; then the middle of what they leave open, and so on.
        """
        tasks, intervals = both_ends(lanes, trials, m)
        done = 0
        while tasks > 0:
            evaluate(part, tasks, base, m, grid)
            tasks = 0
            queued = intervals
            for n in range(done, queued):
                low, high = np.int64(m.low[n]), np.int64(m.high[n])
                if is_decided(low, high, base, m):
                    for at in range(low + LANES, high, LANES):
                        m.packed[base + at] = m.packed[base + low]
                else:
                    middle = ((low >> 4) + (high >> 4) >> 1 << 4) + (low & 15)
                    m.task[tasks] = middle
                    tasks += 1
                    for left, right in ((low, middle), (middle, high)):
                        if right - left > LANES:
                            m.low[intervals], m.high[intervals] = left, right
                            intervals += 1
            done = queued

    return settle
