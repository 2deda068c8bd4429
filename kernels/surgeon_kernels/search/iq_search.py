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
from typing import Any

from ..compilation import helper
from ..dialect import F, Lanes
from ..lanes.arithmetic import (
    LANES,
    any_lane,
    int_slots,
    int_splat,
    lane_bits,
    maximum,
    minimum,
    nearest_int,
    select,
    slots,
    splat,
    square_root,
    to_float,
)
from ..lanes.views import view_gather
from .iq_neighbours import GridViews, Memory, make_settle, memory_views

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


def make_search(spec: GroupSearch) -> Any:
    """The search for one format: `search(x, w, size, scale, active, points, grid) -> scale`."""
    length, group, parts, levels = spec.length, spec.group, spec.group // spec.length, spec.levels
    trials, step, top, refine = 2 * spec.trials + 1, F(spec.step), F(spec.top), spec.refine
    all_trials, more_trials = trials * parts, trials + 1
    settle = make_settle(length)

    @helper
    def round_part(part: int, x: Lanes, inverse: Lanes, grid: GridViews) -> Any:
        """Levels of a part, packed as grid.packed has them, and their entry of grid.lookup."""
        code = int_splat(0)
        packed = int_splat(0)
        for i in range(length):
            v = x[part * length + length - 1 - i]
            level = nearest_int(F(0.5) * (inverse * v - F(1)))
            level = maximum(int_splat(0), minimum(int_splat(levels - 1), level))
            code = code * levels + level
            packed = packed << 4 | level
        ones = 0x11111111 if length == 8 else 0x1111
        return packed * 2 + ones, view_gather(grid.lookup, code)

    @helper
    def point_numbers(packed: Lanes, grid: GridViews) -> Lanes:
        """Numbers of packed points."""
        code = int_splat(0)
        for i in range(length):
            code = code * levels + (packed >> 4 * (length - 1 - i) + 1 & 7)
        return view_gather(grid.lookup, code)

    @helper
    def fit(packed: Lanes, w: Lanes, wx: Lanes) -> Any:
        """Weighted sums of q * x and q * q over the group, q = 2 * level + 1; packed[part]: the levels."""
        sumqx = splat(F(0))
        sumq2 = splat(F(0))
        for part in range(parts):
            for i in range(length):
                j = part * length + i
                q = to_float(packed[part] >> 4 * i & 15)
                sumqx = sumqx + wx[j] * q
                sumq2 = sumq2 + w[j] * q * q
        return sumqx, sumq2

    @helper
    def round_trials(
        part: int, x: Lanes, inverses: Lanes, count: int, wanted: Lanes, m: Memory, grid: GridViews
    ) -> Lanes:
        """Choose points of one part for `count` trial scales, into m.packed; bit t: trial t was off the grid.

        Only in the lanes that are `wanted`.
        """
        previous = int_splat(0)
        starts = int_splat(0)
        off = int_splat(0)
        for t in range(count):
            packed, entry = round_part(part, x, inverses[t], grid)
            starts = starts | select(packed != previous, int_splat(1 << t), int_splat(0))
            off = off | select((entry < 0) & wanted, int_splat(1 << t), int_splat(0))
            previous = packed
            m.packed[trials * part + t] = packed
            m.entry[t] = entry
        if any_lane(off != 0):
            energy = splat(F(0))
            for i in range(length):
                j = part * length + i
                energy = energy + m.root[j] * m.x[j] * m.x[j]
            m.energy[0] = energy
            m.starts[0], m.off[0] = starts, off
            settle(part, lane_bits(off != 0), count, LANES * trials * part, memory_views(m), grid)
        return off

    @helper
    def try_scales(x: Lanes, w: Lanes, wx: Lanes, size: Lanes, scale: Lanes, active: Lanes, points: Lanes, off: Lanes,
                   m: Memory, grid: GridViews) -> Any:  # fmt: skip
        """The best trial: its scale, its packed points and which were off the grid (not 0); as before where none is."""
        inverses = slots(32)
        for t in range(trials):
            inverses[t] = (top + F(t - trials // 2) * step) / size
            m.scales[t] = F(1) / inverses[t]
        trial_off = int_slots(8)
        for part in range(parts):
            trial_off[part] = round_trials(part, x, inverses, trials, active, m, grid)
        packed = int_slots(8)
        best = splat(F(0))
        for t in range(trials):
            for part in range(parts):
                packed[part] = m.packed[trials * part + t]
            sumqx, sumq2 = fit(packed, w, wx)
            better = active & (sumq2 > F(0)) & (sumqx * sumqx > best * sumq2)
            scale = select(better, sumqx / sumq2, scale)
            best = select(better, scale * sumqx, best)
            for part in range(parts):
                points[part] = select(better, packed[part], points[part])
                off[part] = select(better, trial_off[part] & 1 << t, off[part])
        return scale

    @helper
    def choose_again(x: Lanes, w: Lanes, wx: Lanes, scale: Lanes, active: Lanes, points: Lanes, off: Lanes, m: Memory,
                     grid: GridViews) -> Any:  # fmt: skip
        """Choose the parts that `refine` names with the scale found, and fit the scale to all points then."""
        any_off = int_splat(1) if refine == ALWAYS else int_splat(0)
        for part in range(parts):
            any_off = any_off | off[part]
        refined = active & (any_off != 0) & (scale > F(0))
        if any_lane(refined):
            inverses = slots(1)
            inverses[0] = F(1) / scale
            m.scales[0] = scale
            for part in range(parts):
                concerned = refined & (off[part] != 0) if refine == OFF_GRID else refined
                if any_lane(concerned):
                    round_trials(part, x, inverses, 1, concerned, m, grid)
                    packed = m.packed[trials * part]
                    points[part] = select(concerned, packed, points[part])
            sumqx, sumq2 = fit(points, w, wx)
            scale = select(refined & (sumq2 > F(0)), sumqx / sumq2, scale)
        return scale

    @helper
    def search(x: Lanes, w: Lanes, size: Lanes, scale: Lanes, active: Lanes, points: Lanes, grid: GridViews) -> Any:
        """Scales and point numbers of the groups in `active` lanes (in others point 0).

        x: sizes (one of eight may be negative), w: weights; size: what a trial scale divides; scale: returned, with
        points 0, if no trial explains anything (all weights vanish, or are so small that squares do).
        """
        wx = slots(32)
        off = int_slots(8)
        m = Memory(
            x, slots(group), slots(trials), int_slots(all_trials), slots(1), int_slots(1), int_slots(1),
            int_slots(trials), slots(trials), slots(trials), int_slots(more_trials), int_slots(trials),
            int_slots(trials),
        )  # fmt: skip
        for j in range(group):
            wx[j] = w[j] * x[j]
            m.root[j] = square_root(w[j])
        for part in range(parts):
            points[part] = int_splat(0x11111111 if length == 8 else 0x1111)
            off[part] = int_splat(1) if refine == ALL_IF_ANY else int_splat(0)
        scale = try_scales(x, w, wx, size, scale, active, points, off, m, grid)
        scale = choose_again(x, w, wx, scale, active, points, off, m, grid)
        for part in range(parts):
            points[part] = point_numbers(points[part], grid)
        return scale

    return search
