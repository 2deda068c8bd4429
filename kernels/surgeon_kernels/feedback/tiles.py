"""A tile of rows on its way through the kernels: what is fixed for its type, and what changes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types

from ..compilation import helper, kernel
from ..lanes.arithmetic import (
    LANES,
    absolute,
    int_splat,
    load_f32,
    load_transposed,
    look_up,
    nearest_within,
    select,
    slots,
    splat,
    store_f32,
    to_float,
    to_int,
)
from .products import F32, F64, U8

FIXED, PER_GROUP, PER_SUPERBLOCK = range(3)
"""What of the scales a round may change: nothing; d (and the minimum) of a group; integers, and d of a superblock."""

_TINY = np.float32(1e-30)


class Rules(NamedTuple):
    """What a type allows: value = d * scale * level - dmin * minimum.

    group: columns that share a scale; group_shift, superblock_shift: the power of two that these are, and those that
    share d (dividing takes long); scaling: what a round may change of them.
    phase: what scales have beyond a whole number; lowest ... highest: of the scales; most: the largest minimum; minima:
    whether there are any. uniform: levels are -zero ... top - zero in steps of one; if not, the first `known` of
    `levels`, float32[16], ascending.
    """

    group: int
    group_shift: int
    superblock_shift: int
    scaling: int
    uniform: bool
    zero: np.float32
    top: np.float32
    phase: np.float32
    lowest: np.float32
    highest: np.float32
    minima: bool
    most: np.float32
    known: int
    levels: Any


class Tile(NamedTuple):
    """The arrays of a tile (see products.py), float32 unless noted.

    weights, errors: [columns] what is to be approximated, and what is missing; codes: uint8[columns]; d, dmin:
    [superblocks]; scales, minima: [groups], whole numbers; loss: float64[rows], e H e' of each row.
    """

    columns: int
    vectors: int
    weights: Any
    errors: Any
    codes: Any
    d: Any
    dmin: Any
    scales: Any
    minima: Any
    loss: Any


_i, _f = types.int64, types.float32
RULES = types.NamedTuple([_i, _i, _i, _i, types.boolean, _f, _f, _f, _f, _f, types.boolean, _f, _i, F32], Rules)
TILE = types.NamedTuple([_i, _i, F32, F32, U8, F32, F32, F32, F32, F64], Tile)


@helper
def step_and_offset(rules: Any, tile: Any, v: int, column: int) -> Any:
    """Lanes of d * scale and of dmin * minimum of a column, as a decoder multiplies them."""
    block = LANES * (v * (tile.columns >> rules.superblock_shift) + (column >> rules.superblock_shift))
    group = LANES * (v * (tile.columns >> rules.group_shift) + (column >> rules.group_shift))
    step = load_f32(tile.d, block) * load_f32(tile.scales, group)
    return step, load_f32(tile.dmin, block) * load_f32(tile.minima, group)


@helper
def inverse(step: Any) -> Any:
    """1 / step, and 0 where the step is too small to divide by: any code then restores the same value."""
    return select(absolute(step) > _TINY, np.float32(1) / step, splat(np.float32(0)))


@helper
def nearest_level(rules: Any, x: Any) -> Any:
    """The level nearest to x, as f32 lanes, and its code, as i32."""
    if rules.uniform:
        level = nearest_within(x, -rules.zero, rules.top - rules.zero)
        return level, to_int(level + rules.zero)
    level, code = splat(rules.levels[0]), int_splat(0)
    for k in range(1, rules.known):
        above = x > np.float32(0.5) * (rules.levels[k - 1] + rules.levels[k])
        level, code = select(above, splat(rules.levels[k]), level), select(above, int_splat(k), code)
    return level, code


@helper
def level_of(rules: Any, code: Any) -> Any:
    """The levels of i32 codes."""
    if rules.uniform:
        return to_float(code) - rules.zero
    return look_up(load_f32(rules.levels, 0), code)


@kernel(types.void(F32, types.int64, types.int64, F32))
def to_lanes(rows: Any, columns: int, vectors: int, out: Any) -> None:
    """float32[16 * vectors rows, columns], flat, as an array of the tile; columns are a multiple of 16."""
    x = slots(16)
    for v in range(vectors):
        for k in range(0, columns, LANES):
            load_transposed(x, 0, rows, LANES * v * columns + k, columns)
            for j in range(LANES):
                store_f32(out, LANES * (v * columns + k + j), x[j])
