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

from .cache import helper
from .iq_neighbours import make_nearest
from .iq_tiles import Array, F, Lanes
from .lanes import (
    LANES,
    absolute,
    any_lane,
    first_bit,
    gather,
    int_splat,
    lane_bits,
    lane_numbers,
    load_i32,
    maximum,
    select,
    slots,
    splat,
    store_f32,
    store_i32,
    to_float,
)

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
    """Groups in rising order and as they were, in memory; item j of lane l at 16j + l.

    value, place: float32 and int32[16 * (group + 1)], the sorted weights and where in the group they were; the last
    item is larger than all. w, x: float32[16 * group] as in the group. scale, delta: float32[16]; entry: int32[16].
    """

    value: Array
    place: Array
    w: Array
    x: Array
    scale: Array
    delta: Array
    entry: Array


@helper
def sorted_space(group: int) -> Sorted:
    return Sorted(
        np.empty(LANES * (group + 1), np.float32),
        np.empty(LANES * (group + 1), np.int32),
        np.empty(LANES * group, np.float32),
        np.empty(LANES * group, np.float32),
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
        np.empty(LANES, np.int32),
    )


@helper
def sort_groups(x: Lanes, w: Lanes, group: int, value: Lanes, place: Lanes, memory: Sorted) -> None:
    """Sort each lane's group into `value` and `place` and keep all in memory; equal weights stay in order."""
    for j in range(group):
        value[j] = x[j]
        place[j] = int_splat(j)
        store_f32(memory.x, LANES * j, x[j])
        store_f32(memory.w, LANES * j, w[j])
    network = NETWORK_16 if group == 16 else NETWORK_32
    for k in range(0, len(network), 2):
        a, b = network[k], network[k + 1]
        va, vb, pa, pb = value[a], value[b], place[a], place[b]
        exchange = (va > vb) | ((va == vb) & (pa > pb))
        value[a], value[b] = select(exchange, vb, va), select(exchange, va, vb)
        place[a], place[b] = select(exchange, pb, pa), select(exchange, pa, pb)
    for j in range(group):
        store_f32(memory.value, LANES * j, value[j])
        store_i32(memory.place, LANES * j, place[j])
    store_f32(memory.value, LANES * group, splat(F(np.inf)))
    store_i32(memory.place, LANES * group, int_splat(group))


@helper
def sorted_weights(memory: Sorted, place: Lanes) -> Lanes:
    """Per lane the error weight of the element at `place` of its group."""
    return gather(memory.w, place * LANES + lane_numbers())


@helper
def largest_size(x: Lanes, group: int) -> Lanes:
    """Per lane the largest |x| of its group."""
    size = absolute(x[0])
    for j in range(1, group):
        size = maximum(size, absolute(x[j]))
    return size


@helper
def cut_levels(x: Lanes, group: int, i1: Lanes, i2: Lanes, mirrored: Lanes, memory: Sorted, levels: Lanes) -> None:
    """Levels of the weights from the cuts; `mirrored` lanes get 2 - level."""
    at1, at2 = i1 * LANES + lane_numbers(), i2 * LANES + lane_numbers()
    value1, value2 = gather(memory.value, at1), gather(memory.value, at2)
    place1, place2 = gather(memory.place, at1), gather(memory.place, at2)
    for j in range(group):
        above1 = (x[j] > value1) | ((x[j] == value1) & (place1 <= j))
        above2 = (x[j] > value2) | ((x[j] == value2) & (place2 <= j))
        level = select(above2, int_splat(2), select(above1, int_splat(1), int_splat(0)))
        levels[j] = select(mirrored, 2 - level, level)


@helper
def _nearest(part: int, lane: int, memory: Sorted, tables: Lanes, grid: Any) -> Any:
    """The neighbour for one part of one lane's group whose `entry` is off the grid."""
    position = to_float(lane_numbers() - 1) + memory.delta[lane]
    for i in range(LENGTH):
        at = LANES * (part * LENGTH + i) + lane
        difference = memory.scale[lane] * position - memory.x[at]
        tables[i] = memory.w[at] * difference * difference
    place, _, _ = _nearest_neighbour(memory.entry[lane], tables, grid)
    return grid.members[place]


@helper
def choose_point(part: int, levels: Lanes, scale: Lanes, delta: Lanes, wanted: Lanes, memory: Sorted, grid: Any) -> Any:
    """Point numbers for part `part` of the groups in `wanted` lanes, and which of them were off the grid."""
    code = int_splat(0)
    for i in range(LENGTH):
        code = code * 3 + levels[part * LENGTH + LENGTH - 1 - i]
    number = gather(grid.lookup, code)
    off = (number < 0) & wanted
    if any_lane(off):
        tables = slots(8)
        store_i32(memory.entry, 0, number)
        store_f32(memory.scale, 0, scale)
        store_f32(memory.delta, 0, delta)
        pending = lane_bits(off)
        while pending != 0:
            lane = first_bit(pending)
            pending &= pending - 1
            memory.entry[lane] = _nearest(part, lane, memory, tables, grid)
        number = load_i32(memory.entry, 0)
    return select(wanted, number, int_splat(0)), off


@helper
def coordinate(packed: Lanes, i: int, delta: Lanes) -> Lanes:
    """level - 1 + delta of coordinate `i` of packed points."""
    return to_float((packed >> 4 * i & 15) - 3) * F(0.5) + delta


@helper
def fit_again(
    x: Lanes, w: Lanes, parts: int, points: Lanes, deltas: Lanes, scale: Lanes, off: Lanes, grid: Any
) -> Lanes:
    """The scale that fits the chosen points best, for lanes that are `off`; deltas[part] belongs to points[part]."""
    sumqx = splat(F(0))
    sumq2 = splat(F(0))
    for part in range(parts):
        packed = gather(grid.packed, points[part])
        for i in range(LENGTH):
            j = part * LENGTH + i
            wq = w[j] * coordinate(packed, i, deltas[part])
            sumqx = sumqx + wq * x[j]
            sumq2 = sumq2 + wq * coordinate(packed, i, deltas[part])
    return select(off & (sumqx > F(0)) & (sumq2 > F(0)), sumqx / sumq2, scale)


@helper
def choose_points(x: Lanes, w: Lanes, group: int, levels: Lanes, deltas: Lanes, scale: Lanes, active: Lanes,
                  memory: Sorted, points: Lanes, grid: Any) -> Lanes:  # fmt: skip
    """Point numbers of all parts into `points` (0 outside `active`); returns the scale fitted to them."""
    any_off = int_splat(0)
    for part in range(group // LENGTH):
        points[part], off = choose_point(part, levels, scale, deltas[part], active, memory, grid)
        any_off = select(off, int_splat(1), any_off)
    return fit_again(x, w, group // LENGTH, points, deltas, scale, any_off > 0, grid)
