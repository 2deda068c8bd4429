"""Sums over columns, the bulk of the work: float32 matrix products with rows in lanes.

A tile is up to `VECTORS` vectors of sixteen rows; an array over its columns holds vector after vector, and in each of
them column after column: element (vector v, column k, lane) of n columns is at 16 * (n * v + k) + lane.

Matrices that multiply tiles lie in the order in which they are read: strips of six columns, row after row (six sums of
sixteen rows fill the registers of AVX2), for up to 256 rows, then the next strip; then the next rows.

    H       panels of 256 columns: 43 strips, the last two columns of the last are zero; rows 256 by 256
    factor  blocks of 96 columns: 16 strips of the rows before the block, 256 by 256; then each strip's rows within the
            block, as far as its own columns (the factor is triangular)

Each lane is one sum over its row's columns in ascending order, whatever the other lanes hold: bytes do not depend on
how rows are cut into tiles, nor on threads. BLAS would be no faster here: its panels are this thin too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types

from ..compilation import helper
from ..lanes.arithmetic import LANES, load_f32, splat, store_f32
from ..lanes.fused import add_scaled

STRIP = 6
VECTORS = 12  # H is read once for so many; measured: 8 are 5 % slower, 4 a quarter
ROWS = VECTORS * LANES
PANEL = 256
PANEL_STRIPS = -(-PANEL // STRIP)
PANEL_WIDTH = PANEL_STRIPS * STRIP
DEPTH = PANEL  # rows of a strip taken at once: a vector's part of the tile, 16 KiB, stays in the nearest cache
BLOCK = 96  # columns of the factor that share one passage over the errors before them

F32 = types.Array(types.float32, 1, "C")
F64 = types.Array(types.float64, 1, "C")
I64 = types.Array(types.int64, 1, "C")
U8 = types.Array(types.uint8, 1, "C")


@helper
def strip_product(a: Any, at_a: int, e: Any, at_e: int, count: int, t: Any, at_t: int) -> None:
    """Add to the six columns at t[at_t] the sums over `count` rows of the strip at a[at_a] times those at e[at_e]."""
    t0, t1, t2 = load_f32(t, at_t), load_f32(t, at_t + 16), load_f32(t, at_t + 32)
    t3, t4, t5 = load_f32(t, at_t + 48), load_f32(t, at_t + 64), load_f32(t, at_t + 80)
    for j in range(count):
        x = load_f32(e, at_e + 16 * j)
        row = at_a + 6 * j
        t0 = add_scaled(t0, a, row, x)
        t1 = add_scaled(t1, a, row + 1, x)
        t2 = add_scaled(t2, a, row + 2, x)
        t3 = add_scaled(t3, a, row + 3, x)
        t4 = add_scaled(t4, a, row + 4, x)
        t5 = add_scaled(t5, a, row + 5, x)
    store_f32(t, at_t, t0)
    store_f32(t, at_t + 16, t1)
    store_f32(t, at_t + 32, t2)
    store_f32(t, at_t + 48, t3)
    store_f32(t, at_t + 64, t4)
    store_f32(t, at_t + 80, t5)


def strip_place(block: int, strips: int, strip: int, top: int) -> int:
    """Where the rows from `top` on begin in a strip of the factor.

    strips, strip: how many the block has, and which; top: a multiple of DEPTH, or the first row of the block.
    """
    each = BLOCK // STRIP
    rows = BLOCK * block
    start = rows * (rows - BLOCK) // 2 + block * STRIP * STRIP * (each * (each + 1) // 2)
    if top < rows:
        return start + STRIP * (strips * top + strip * min(DEPTH, rows - top))
    return start + STRIP * strips * rows + STRIP * STRIP * (strip * (strip + 1) // 2)


strip_start = helper(strip_place)


@helper
def clear(t: Any, count: int) -> None:
    """Zeros in the first `count` columns of an array."""
    for i in range(count):
        store_f32(t, LANES * i, splat(np.float32(0)))


@helper
def earlier_errors(a: Any, e: Any, padded: int, vectors: int, block: int, strips: int, t: Any) -> None:
    """t = sums of the factor's `block`, of so many strips, over the errors of all columns before it.

    e: [vectors, padded columns]; t: [vectors, BLOCK columns].
    """
    clear(t, vectors * BLOCK)
    rows = BLOCK * block
    for top in range(0, rows, DEPTH):
        count = min(DEPTH, rows - top)
        for v in range(vectors):
            for s in range(strips):
                at_e, at_t = LANES * (v * padded + top), LANES * (v * BLOCK + STRIP * s)
                strip_product(a, strip_start(block, strips, s, top), e, at_e, count, t, at_t)


@helper
def panel_products(h: Any, e: Any, columns: int, vectors: int, start: int, width: int, g: Any) -> None:
    """g = H[panel] e for the panel of `width` columns that begins at column `start`.

    e: [vectors, columns]; g: [vectors, PANEL_WIDTH columns].
    """
    clear(g, vectors * PANEL_WIDTH)
    for top in range(0, columns, DEPTH):
        count = min(DEPTH, columns - top)
        at_h = PANEL_WIDTH * (start // PANEL * columns + top)
        for v in range(vectors):
            for s in range(-(-width // STRIP)):
                at_e, at_g = LANES * (v * columns + top), LANES * (v * PANEL_WIDTH + STRIP * s)
                strip_product(h, at_h + STRIP * count * s, e, at_e, count, g, at_g)


@helper
def square_start(columns: int, start: int) -> int:
    """Where the rows of a panel's own columns begin in the panel of H at column `start`."""
    return PANEL_WIDTH * (start // PANEL * columns + start)


@helper
def column_start(columns: int, column: int) -> int:
    """Where a column of H begins in the rows of its own panel; the next rows lie six further each."""
    place = column % PANEL
    start = column - place
    strip = PANEL_WIDTH * (start // PANEL * columns + start) + STRIP * min(PANEL, columns - start) * (place // STRIP)
    return strip + place % STRIP


@helper
def four_columns(a: Any, starts: Any, e: Any, at_e: int, count: int, t: Any, at_t: int) -> None:
    """Add to four columns at t[at_t] the sums over `count` rows, six apart from `starts` on in a, times e[at_e]..."""
    a0, a1, a2, a3 = starts
    t0, t1, t2, t3 = load_f32(t, at_t), load_f32(t, at_t + 16), load_f32(t, at_t + 32), load_f32(t, at_t + 48)
    for j in range(count):
        x = load_f32(e, at_e + 16 * j)
        t0 = add_scaled(t0, a, a0 + 6 * j, x)
        t1 = add_scaled(t1, a, a1 + 6 * j, x)
        t2 = add_scaled(t2, a, a2 + 6 * j, x)
        t3 = add_scaled(t3, a, a3 + 6 * j, x)
    store_f32(t, at_t, t0)
    store_f32(t, at_t + 16, t1)
    store_f32(t, at_t + 32, t2)
    store_f32(t, at_t + 48, t3)


@helper
def four_products(h: Any, columns: int, column: int, row: int, e: Any, at_e: int, count: int, g: Any,
                  at_g: int) -> None:  # fmt: skip
    """Add to four columns at g[at_g] the sums of H[row + j, column ...] times e[at_e + 16 j], j < count.

    row: counted from the first of the columns' panel.
    """
    starts = (
        column_start(columns, column) + STRIP * row,
        column_start(columns, column + 1) + STRIP * row,
        column_start(columns, column + 2) + STRIP * row,
        column_start(columns, column + 3) + STRIP * row,
    )
    four_columns(h, starts, e, at_e, count, g, at_g)
