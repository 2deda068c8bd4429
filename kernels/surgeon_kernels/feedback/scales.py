"""Better scales for codes that are held: each step takes the minimum of a parabola, rounded as it will be stored.

The loss of a row of errors e is e H e'. Where a change of e is -x a, with a known direction a and G = H e, the loss
falls by 2 x a'G - x**2 a'H a. A step is taken only where that is more than nothing after rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compilation import helper
from ..lanes.arithmetic import (
    LANES,
    absolute,
    from_half_bits,
    half_bits,
    load_f32,
    maximum,
    nearest_within,
    select,
    splat,
    store_f32,
)
from ..lanes.fused import add_scaled, fused
from .products import (
    PANEL,
    PANEL_STRIPS,
    PANEL_WIDTH,
    STRIP,
    clear,
    four_products,
    square_start,
    strip_product,
)
from .tiles import PER_SUPERBLOCK, step_and_offset

ZERO = np.float32(0)
_LARGEST_HALF = np.float32(65504)


@helper
def parabola(gradient: Any, curvature: Any) -> Any:
    """Where x * gradient - x**2 / 2 * curvature is largest; 0 where there is no curvature."""
    return select(curvature > ZERO, gradient / curvature, splat(ZERO))


@helper
def stored(value: Any, old: Any) -> Any:
    """`value` as a float16; `old` where that is none."""
    half = from_half_bits(half_bits(value))
    return select(absolute(half) <= _LARGEST_HALF, half, old)


@helper
def new_steps(sums: Any, d: Any, dmin: Any, minima: bool, signed: bool) -> Any:
    """d and dmin by the normal equations, rounded to float16: their changes, and by how much the loss falls.

    sums: aHa, cHc, aHc, aG, cG as lanes, a what d multiplies and c what dmin does. Lanes that would not gain stay.
    """
    aa, cc, ac, ga, gc = sums
    x, y = parabola(ga, aa), splat(ZERO)
    if minima:
        determinant = aa * cc - ac * ac
        independent = determinant > np.float32(1e-6) * aa * cc
        x = select(independent, (ga * cc - gc * ac) / determinant, x)
        y = select(independent, (gc * aa - ga * ac) / determinant, y)
    x = stored(d + x, d) - d
    if minima:
        y = stored(dmin + y, dmin) if signed else stored(maximum(dmin + y, splat(ZERO)), dmin)
        y = y - dmin
    twice = np.float32(2)
    gain = twice * x * ga - x * x * aa + twice * y * gc - y * y * cc - twice * x * y * ac
    better = gain > ZERO
    return select(better, x, splat(ZERO)), select(better, y, splat(ZERO)), select(better, gain, splat(ZERO))


@helper
def superblock_step(h: Any, sums: Any, rules: Any, tile: Any, v: int, start: int, level: Any, g: Any, at_g: int,
                    a: Any, ha: Any) -> Any:  # fmt: skip
    """d and dmin of the superblock at `start`, and what they make of G; returns by how much the loss falls.

    level, a, ha: [PANEL_WIDTH] of one vector; g: G of the superblock. sums: float32[columns, groups of a
    superblock], H summed over the columns of a group.
    """
    groups = PANEL // rules.group
    at_group = LANES * (v * (tile.columns >> rules.group_shift) + (start >> rules.group_shift))
    for k in range(PANEL):
        store_f32(
            a,
            LANES * k,
            load_f32(level, LANES * k) * load_f32(tile.scales, at_group + LANES * (k >> rules.group_shift)),
        )
    clear(ha, PANEL_WIDTH)
    at_h = square_start(tile.columns, start)
    for s in range(PANEL_STRIPS):
        strip_product(h, at_h + STRIP * PANEL * s, a, 0, PANEL, ha, s * STRIP * LANES)
    aa = cc = ac = ga = gc = splat(ZERO)
    for k in range(PANEL):
        x, hx, gradient = load_f32(a, LANES * k), load_f32(ha, LANES * k), load_f32(g, at_g + LANES * k)
        aa, ga = fused(x, hx, aa), fused(x, gradient, ga)
        if rules.minima:
            hc = _h_minima(sums, tile, at_group, start + k, groups)
            c = -load_f32(tile.minima, at_group + LANES * (k >> rules.group_shift))
            cc, ac, gc = fused(c, hc, cc), fused(x, hc, ac), fused(c, gradient, gc)
            store_f32(a, LANES * k, hc)
    block = LANES * (v * (tile.columns // PANEL) + start // PANEL)
    d, dmin = load_f32(tile.d, block), load_f32(tile.dmin, block)
    dx, dy, gain = new_steps((aa, cc, ac, ga, gc), d, dmin, rules.minima, False)
    store_f32(tile.d, block, d + dx)
    store_f32(tile.dmin, block, dmin + dy)
    for k in range(PANEL):
        change = dx * load_f32(ha, LANES * k)
        if rules.minima:
            change = fused(dy, load_f32(a, LANES * k), change)
        store_f32(g, at_g + LANES * k, load_f32(g, at_g + LANES * k) - change)
    return gain


@helper
def _h_minima(sums: Any, tile: Any, at_group: int, column: int, groups: int) -> Any:
    """H times minus the minima of a superblock, at one column."""
    total = splat(ZERO)
    for group in range(groups):
        total = add_scaled(total, sums, groups * column + group, load_f32(tile.minima, at_group + LANES * group))
    return -total


@helper
def group_step(h: Any, sums: Any, rules: Any, tile: Any, v: int, start: int, first: int, level: Any, g: Any, at_g: int,
               ha: Any) -> Any:  # fmt: skip
    """Scale and minimum of the group at column `first` of the panel at `start`; G and errors are not touched.

    level: as of the panel; g: G of the group, which follows. Returns by how much the loss falls.
    """
    size = rules.group
    clear(ha, size)
    for k in range(0, size, 4):
        four_products(h, tile.columns, start + first + k, first, level, LANES * first, size, ha, LANES * k)
    aa = cc = ac = ga = gc = splat(ZERO)
    per_panel = PANEL // size
    for k in range(size):
        x, hx, gradient = load_f32(level, LANES * (first + k)), load_f32(ha, LANES * k), load_f32(g, at_g + LANES * k)
        aa, ga = fused(x, hx, aa), fused(x, gradient, ga)
        if rules.minima:
            hc = splat(-sums[per_panel * (start + first + k) + first // size])
            cc, ac, gc = cc - hc, fused(x, hc, ac), gc - gradient
    group = LANES * (v * (tile.columns // size) + (start + first) // size)
    if rules.scaling == PER_SUPERBLOCK:
        block = LANES * (v * (tile.columns // PANEL) + start // PANEL)
        d, dmin = load_f32(tile.d, block), load_f32(tile.dmin, block)
        x, gain = _whole_step(tile.scales, group, d, ga, aa, rules.phase, rules.lowest, rules.highest)
        y = splat(ZERO)
        if rules.minima:
            y, more = _whole_step(tile.minima, group, dmin, gc - x * ac, cc, ZERO, ZERO, rules.most)
            gain = gain + more
    else:
        d, dmin = load_f32(tile.d, group), load_f32(tile.dmin, group)
        x, y, gain = new_steps((aa, cc, ac, ga, gc), d, dmin, rules.minima, True)
        store_f32(tile.d, group, d + x)
        store_f32(tile.dmin, group, dmin + y)
    for k in range(size):
        change = x * load_f32(ha, LANES * k)
        if rules.minima:
            change = change - y * sums[per_panel * (start + first + k) + first // size]
        store_f32(g, at_g + LANES * k, load_f32(g, at_g + LANES * k) - change)
    return gain


@helper
def _whole_step(numbers: Any, at: int, unit: Any, gradient: Any, curvature: Any, phase: Any, low: Any,
                high: Any) -> Any:  # fmt: skip
    """The best number at numbers[at], which multiplies `unit`: the change of the product, and what it gains.

    Numbers are `phase` more than whole ones.
    """
    old = load_f32(numbers, at)
    wanted = old + select(absolute(unit) > np.float32(1e-30), parabola(gradient, curvature) / unit, splat(ZERO))
    new = nearest_within(wanted - phase, low - phase, high - phase) + phase
    x = (new - old) * unit
    gain = np.float32(2) * x * gradient - x * x * curvature
    better = gain > ZERO
    store_f32(numbers, at, select(better, new, old))
    return select(better, x, splat(ZERO)), select(better, gain, splat(ZERO))


@helper
def refresh_errors(rules: Any, tile: Any, v: int, start: int, first: int, count: int, level: Any, delta: Any) -> None:
    """Errors of `count` columns by the scales as they are now; `delta` takes in how they change."""
    for k in range(first, first + count):
        step, offset = step_and_offset(rules, tile, v, start + k)
        at = LANES * (v * tile.columns + start + k)
        error = load_f32(tile.weights, at) - (step * load_f32(level, LANES * k) - offset)
        store_f32(delta, LANES * k, load_f32(delta, LANES * k) + (error - load_f32(tile.errors, at)))
        store_f32(tile.errors, at, error)
