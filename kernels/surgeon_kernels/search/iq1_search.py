"""What IQ1_S and IQ1_M share: sorting a group, levels from two cuts through the sorted weights, grid points.

A weight is approximated by scale * (level - 1 + delta), level 0, 1 or 2, delta +1/8 or -1/8. For given weights of the
errors the best levels rise with the weight, so a search over all pairs of cuts i1 <= i2 in the sorted group (level 0
below i1, 1 below i2, 2 above) finds the best; each format does that with its own sums. Then every 8 levels, a part,
must be a point of the grid; if not, the neighbour with the smallest weighted error is taken and the scale fitted again.

Lanes hold one group each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..compilation import helper, inlined
from ..dialect import F, Lanes
from ..lanes.arithmetic import (
    LANES,
    absolute,
    any_lane,
    first_bit,
    int_slots,
    int_splat,
    lane_bits,
    lane_numbers,
    maximum,
    select,
    slots,
    splat,
    to_float,
)
from ..lanes.views import view, view_gather
from .iq_neighbours import GridViews, make_nearest

DELTA = F(0.125)
LENGTH = 8
_nearest_neighbour = make_nearest(LENGTH)


def _sorting_network(n: int) -> Iterator[tuple[int, int]]:
    """Batcher's odd-even merge sort: pairs to compare and exchange, in order."""
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                for i in range(min(k, n - j - k)):
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p):
                        yield i + j, i + j + k
            k //= 2
        p *= 2


NETWORKS = {n: np.array(list(_sorting_network(n)), np.int64).ravel() for n in (16, 32)}
NETWORK_16, NETWORK_32 = NETWORKS[16], NETWORKS[32]


class Sorted(NamedTuple):
    """Groups as they are and in rising order, in slots, or views of these: item j of lane l at 16j + l.

    x, w: the model's weights and the weights of their errors; value, place: the sorted weights and where in the group
    they are, with a last item larger than all.
    """

    x: Lanes
    w: Lanes
    value: Lanes
    place: Lanes


@helper
def sort_groups(x: Lanes, w: Lanes, group: int, value: Lanes, place: Lanes) -> Sorted:
    """Sort each lane's group into `value` and `place`, equal weights in the order they have; returns all as views."""
    for j in range(group):
        value[j] = x[j]
        place[j] = int_splat(j)
    network = NETWORK_16 if group == 16 else NETWORK_32
    for k in range(0, len(network), 2):
        a, b = network[k], network[k + 1]
        va, vb, pa, pb = value[a], value[b], place[a], place[b]
        exchange = (va > vb) | ((va == vb) & (pa > pb))
        value[a], value[b] = select(exchange, vb, va), select(exchange, va, vb)
        place[a], place[b] = select(exchange, pb, pa), select(exchange, pa, pb)
    value[group] = splat(F(np.inf))
    place[group] = int_splat(group)
    return Sorted(view(x), view(w), view(value), view(place))


@helper
def sorted_weights(groups: Sorted, place: Lanes) -> Lanes:
    """Per lane the error weight of the element at `place` of its group."""
    return view_gather(groups.w, place * LANES + lane_numbers())


@helper
def largest_size(x: Lanes, group: int) -> Lanes:
    """Per lane the largest |x| of its group."""
    size = absolute(x[0])
    for j in range(1, group):
        size = maximum(size, absolute(x[j]))
    return size


@helper
def cut_levels(x: Lanes, group: int, i1: Lanes, i2: Lanes, mirrored: Lanes, groups: Sorted, levels: Lanes) -> None:
    """Levels of the weights from the cuts; `mirrored` lanes get 2 - level."""
    at1, at2 = i1 * LANES + lane_numbers(), i2 * LANES + lane_numbers()
    value1, value2 = view_gather(groups.value, at1), view_gather(groups.value, at2)
    place1, place2 = view_gather(groups.place, at1), view_gather(groups.place, at2)
    for j in range(group):
        above1 = (x[j] > value1) | ((x[j] == value1) & (place1 <= j))
        above2 = (x[j] > value2) | ((x[j] == value2) & (place2 <= j))
        level = select(above2, int_splat(2), select(above1, int_splat(1), int_splat(0)))
        levels[j] = select(mirrored, 2 - level, level)


@inlined
def _nearest(
    part: int, lane: int, entry: int, scale: Any, delta: Any, groups: Sorted, tables: Lanes, grid: GridViews
) -> Any:
    """The neighbour for one part of one lane's group that is off the grid."""
    position = to_float((lane_numbers() & 7) - 1) + delta
    for i in range(LENGTH):
        at = LANES * (part * LENGTH + i) + lane
        difference = scale * position - groups.x[at]
        tables[i] = groups.w[at] * difference * difference
    place, _, _ = _nearest_neighbour(entry, tables, grid)
    return grid.members[place]


@helper
def choose_point(
    part: int, levels: Lanes, scale: Lanes, delta: Lanes, wanted: Lanes, groups: Sorted, grid: GridViews
) -> Any:
    """Point numbers for part `part` of the groups in `wanted` lanes, and which of them were off the grid."""
    code = int_splat(0)
    for i in range(LENGTH):
        code = code * 3 + levels[part * LENGTH + LENGTH - 1 - i]
    number = int_slots(1)
    number[0] = view_gather(grid.lookup, code)
    off = (number[0] < 0) & wanted
    if any_lane(off):
        tables, scales, deltas = slots(8), slots(1), slots(1)
        scales[0], deltas[0] = scale, delta
        entry, scale_of, delta_of = view(number), view(scales), view(deltas)
        pending = lane_bits(off)
        while pending != 0:
            lane = first_bit(pending)
            pending &= pending - 1
            entry[lane] = _nearest(part, lane, entry[lane], scale_of[lane], delta_of[lane], groups, tables, grid)
    return select(wanted, number[0], int_splat(0)), off


@helper
def coordinate(packed: Lanes, i: int, delta: Lanes) -> Lanes:
    """level - 1 + delta of coordinate `i` of packed points."""
    return to_float((packed >> 4 * i & 15) - 3) * F(0.5) + delta


@helper
def fit_again(
    x: Lanes, w: Lanes, parts: int, points: Lanes, deltas: Lanes, scale: Lanes, off: Lanes, grid: GridViews
) -> Lanes:
    """The scale that fits the chosen points best, for lanes that are `off`; deltas[part] belongs to points[part]."""
    sumqx = splat(F(0))
    sumq2 = splat(F(0))
    for part in range(parts):
        packed = view_gather(grid.packed, points[part])
        for i in range(LENGTH):
            j = part * LENGTH + i
            wq = w[j] * coordinate(packed, i, deltas[part])
            sumqx = sumqx + wq * x[j]
            sumq2 = sumq2 + wq * coordinate(packed, i, deltas[part])
    return select(off & (sumqx > F(0)) & (sumq2 > F(0)), sumqx / sumq2, scale)


@helper
def choose_points(x: Lanes, w: Lanes, group: int, levels: Lanes, deltas: Lanes, scale: Lanes, active: Lanes,
                  groups: Sorted, points: Lanes, grid: GridViews) -> Lanes:  # fmt: skip
    """Point numbers of all parts into `points` (0 outside `active`); returns the scale fitted to them."""
    any_off = int_splat(0)
    for part in range(group // LENGTH):
        points[part], off = choose_point(part, levels, scale, deltas[part], active, groups, grid)
        any_off = select(off, int_splat(1), any_off)
    return fit_again(x, w, group // LENGTH, points, deltas, scale, any_off > 0, grid)
