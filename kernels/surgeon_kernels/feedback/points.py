"""Codebook types: the sweep over vectors of weights, and rounds of scales and points.

The sweep is block-LDLQ (Tseng et al. 2024): H = (I + A) D (I + A)' with D of v x v blocks, so that the loss of a row is
the sum of (t - q)'D(t - q) over its vectors, t = w plus what earlier errors add; each vector takes the nearest point in
the metric of its block. A round is that of rounds.py, with the point of least loss for each vector, all others held.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types

from ..compilation import helper, kernel
from ..lanes.arithmetic import LANES, int_slots, load_f32, load_i32, select, slots, splat, store_f32, store_i32
from ..lanes.fused import fused
from .codebooks import BOOK, choose
from .products import (
    BLOCK,
    F32,
    F64,
    I64,
    PANEL,
    PANEL_WIDTH,
    STRIP,
    clear,
    column_start,
    earlier_errors,
    four_columns,
    four_products,
    panel_products,
    strip_start,
)
from .scales import group_step, refresh_errors, superblock_step
from .sweep import add_to_loss, gather_columns
from .tiles import RULES, step_and_offset

_PANEL_LANES = PANEL_WIDTH * LANES
_MOST_FEATURES = 44


class PointTile(NamedTuple):
    """As `Tile` of tiles.py; instead of codes the levels, float32[columns], the numbers of the points,
    int32[columns / length], and the bits of signs or deltas, int32[columns / v].
    """

    columns: int
    vectors: int
    weights: Any
    errors: Any
    levels: Any
    numbers: Any
    bits: Any
    d: Any
    dmin: Any
    scales: Any
    minima: Any
    loss: Any


_i, _I32 = types.int64, types.Array(types.int32, 1, "C")
POINT_TILE = types.NamedTuple([_i, _i, F32, F32, F32, _I32, _I32, F32, F32, F32, F32, F64], PointTile)


@helper
def own_columns(a: Any, block: int, strips: int, local: int, size: int, e: Any, at_e: int, t: Any, at_t: int) -> None:
    """Add to the vector of `size` columns, `local` of them into its block, the errors of the block's before it."""
    top = BLOCK * block
    for k in range(local, local + size, 4):
        starts = (
            strip_start(block, strips, k // STRIP, top) + k % STRIP,
            strip_start(block, strips, (k + 1) // STRIP, top) + (k + 1) % STRIP,
            strip_start(block, strips, (k + 2) // STRIP, top) + (k + 2) % STRIP,
            strip_start(block, strips, (k + 3) // STRIP, top) + (k + 3) % STRIP,
        )
        four_columns(a, starts, e, at_e, local, t, at_t + LANES * (k - local))


@helper
def form_of(m: Any, v: int, missed: Any) -> Any:
    """missed' m missed, as lanes."""
    total = splat(np.float32(0))
    for i in range(v):
        row = splat(np.float32(0))
        for j in range(v):
            row = fused(splat(m[i * v + j]), missed[j], row)
        total = fused(missed[i], row, total)
    return total


@helper
def keep(book: Any, tile: Any, vector: int, column: int, level: Any, number: Any, bits: Any) -> None:
    """Levels, points and bits of the vector at `column`."""
    for i in range(book.vector):
        store_f32(tile.levels, LANES * (vector * tile.columns + column + i), level[i])
    halves = book.vector // book.length
    for half in range(halves):
        at = vector * (tile.columns // book.length) + column // book.length + half
        store_i32(tile.numbers, LANES * at, number[half])
    store_i32(tile.bits, LANES * (vector * (tile.columns // book.vector) + column // book.vector), bits)


@helper
def to_own_order(e: Any, padded: int, order: Any, tile: Any) -> None:
    """Errors in the order of the sweep to the tile."""
    for v in range(tile.vectors):
        for k in range(tile.columns):
            store_f32(tile.errors, LANES * (v * tile.columns + order[k]), load_f32(e, LANES * (v * padded + k)))


@kernel(types.void(F32, F32, I64, F32, RULES, BOOK, POINT_TILE))
def sweep_points(a: Any, d: Any, order: Any, squares: Any, rules: Any, book: Any, tile: Any) -> None:
    """Points, errors and losses of the tile by one sweep; a, d: the factor for vectors of the book's length."""
    columns, vectors, size = tile.columns, tile.vectors, book.vector
    padded = -(-columns // STRIP) * STRIP
    e = np.zeros(vectors * padded * LANES, np.float32)
    t, weights = np.empty(vectors * BLOCK * LANES, np.float32), np.empty(vectors * BLOCK * LANES, np.float32)
    coefficients = np.empty(_MOST_FEATURES * LANES, np.float32)
    y, level, spare, missed, number = slots(8), slots(8), slots(8), slots(8), int_slots(2)
    tile.loss[:] = 0
    for block in range(-(-columns // BLOCK)):
        top = BLOCK * block
        strips = min(BLOCK, padded - top) // STRIP
        gather_columns(tile.weights, columns, vectors, order, top, weights)
        earlier_errors(a, e, padded, vectors, block, strips, t)
        for first in range(top, min(top + BLOCK, columns), size):
            m = d[first * size : (first + size) * size]
            at_squares = first // size * STRIP * book.strips
            for v in range(vectors):
                at_t = LANES * (v * BLOCK + first - top)
                own_columns(a, block, strips, first - top, size, e, LANES * (v * padded + top), t, at_t)
                step, _ = step_and_offset(rules, tile, v, order[first])
                for i in range(size):
                    y[i] = load_f32(weights, at_t + LANES * i) + load_f32(t, at_t + LANES * i)
                bits = load_i32(tile.bits, LANES * (v * (columns // size) + order[first] // size))
                bits = choose(book, m, y, step, bits, level, number, spare, coefficients, squares, at_squares)
                for i in range(size):
                    value = step * level[i]
                    missed[i] = y[i] - value
                    store_f32(e, LANES * (v * padded + first + i), load_f32(weights, at_t + LANES * i) - value)
                keep(book, tile, v, order[first], level, number, bits)
                add_to_loss(tile.loss, v, form_of(m, size, missed))
    to_own_order(e, padded, order, tile)


@kernel(types.void(F32, F32, I64, _i, _i, _i, F32, F64, F64))
def add_point_losses(a: Any, d: Any, order: Any, columns: int, vectors: int, size: int, errors: Any, enough: Any,
                     loss: Any) -> None:  # fmt: skip
    """As add_losses of sweep.py, by the factor for vectors of `size`."""
    padded = -(-columns // STRIP) * STRIP
    e = np.zeros(vectors * padded * LANES, np.float32)
    t = np.empty(vectors * BLOCK * LANES, np.float32)
    missed = slots(8)
    for v in range(vectors):
        for k in range(columns):
            store_f32(e, LANES * (v * padded + k), load_f32(errors, LANES * (v * columns + order[k])))
    for block in range(-(-columns // BLOCK)):
        top = BLOCK * block
        strips = min(BLOCK, padded - top) // STRIP
        earlier_errors(a, e, padded, vectors, block, strips, t)
        for first in range(top, min(top + BLOCK, columns), size):
            m = d[first * size : (first + size) * size]
            for v in range(vectors):
                at_t = LANES * (v * BLOCK + first - top)
                own_columns(a, block, strips, first - top, size, e, LANES * (v * padded + top), t, at_t)
                for i in range(size):
                    own = load_f32(e, LANES * (v * padded + first + i))
                    missed[i] = own + load_f32(t, at_t + LANES * i)
                add_to_loss(loss, v, form_of(m, size, missed))
        if np.all(loss > enough):
            return


@helper
def _descend(h: Any, inverses: Any, squares: Any, rules: Any, book: Any, tile: Any, v: int, start: int, first: int,
             g: Any, at_g: int, delta: Any, moved: Any, m: Any, coefficients: Any) -> Any:  # fmt: skip
    """Points of one group, vector after vector; returns by how much the loss falls. Arrays as of rounds.py."""
    size, columns = book.vector, tile.columns
    gain = splat(np.float32(0))
    y, level, spare, gradient, move, number = slots(8), slots(8), slots(8), slots(8), slots(8), int_slots(2)
    for k in range(0, rules.group, size):
        column = start + first + k
        for i in range(0, size, 4):
            four_products(h, columns, column + i, first, moved, 0, k, g, at_g + LANES * (k + i))
        for i in range(size):
            gradient[i] = load_f32(g, at_g + LANES * (k + i))
            at_h = column_start(columns, column + i) + STRIP * (first + k)
            for j in range(size):
                m[i * size + j] = h[at_h + STRIP * j]
        for i in range(size):
            at = LANES * (v * columns + column + i)
            best = load_f32(tile.weights, at) - load_f32(tile.errors, at)
            for j in range(size):
                best = fused(splat(inverses[(column + i) * size + j]), gradient[j], best)
            y[i] = best
        step, _ = step_and_offset(rules, tile, v, column)
        at_bits = LANES * (v * (columns // size) + column // size)
        old_bits = load_i32(tile.bits, at_bits)
        at_squares = column // size * STRIP * book.strips
        bits = choose(book, m, y, step, old_bits, level, number, spare, coefficients, squares, at_squares)
        fall = splat(np.float32(0))
        for i in range(size):
            at = LANES * (v * columns + column + i)
            move[i] = load_f32(tile.weights, at) - step * level[i] - load_f32(tile.errors, at)
            fall = fused(np.float32(-2) * move[i], gradient[i], fall)
        fall = fall - form_of(m, size, move)
        better = fall > np.float32(0)
        gain = gain + select(better, fall, splat(np.float32(0)))
        for i in range(size):
            at = LANES * (v * columns + column + i)
            level[i] = select(better, level[i], load_f32(tile.levels, at))
            change = select(better, move[i], splat(np.float32(0)))
            store_f32(moved, LANES * (k + i), change)
            store_f32(delta, LANES * (first + k + i), load_f32(delta, LANES * (first + k + i)) + change)
            error = load_f32(tile.weights, at) - step * level[i]
            store_f32(tile.errors, at, select(better, error, load_f32(tile.errors, at)))
        for half in range(size // book.length):
            at = LANES * (v * (columns // book.length) + column // book.length + half)
            number[half] = select(better, number[half], load_i32(tile.numbers, at))
        keep(book, tile, v, column, level, number, select(better, bits, old_bits))
    return gain


@kernel(types.void(F32, F32, F32, RULES, BOOK, POINT_TILE, _i, _i))
def improve_points(h: Any, inverses: Any, squares: Any, rules: Any, book: Any, tile: Any, begin: int,
                   end: int) -> None:  # fmt: skip
    """A round over columns `begin` (of a panel) to `end` of the tile; its loss follows.

    h: H in strips; inverses: of its diagonal blocks, float32[columns / v, v, v]; squares: of those blocks.
    """
    g = np.empty(tile.vectors * _PANEL_LANES, np.float32)
    level, delta = np.empty(_PANEL_LANES, np.float32), np.empty(_PANEL_LANES, np.float32)
    a, ha = np.empty(_PANEL_LANES, np.float32), np.empty(_PANEL_LANES, np.float32)
    m, coefficients = np.empty(64, np.float32), np.empty(_MOST_FEATURES * LANES, np.float32)
    for start in range(begin, end, PANEL):
        panel_products(h, tile.errors, tile.columns, tile.vectors, start, PANEL, g)
        for v in range(tile.vectors):
            for k in range(PANEL):
                store_f32(level, LANES * k, load_f32(tile.levels, LANES * (v * tile.columns + start + k)))
            clear(delta, PANEL)
            at_g = v * _PANEL_LANES
            gain = superblock_step(h, h, rules, tile, v, start, level, g, at_g, a, ha)
            refresh_errors(rules, tile, v, start, 0, PANEL, level, ha)
            for first in range(0, PANEL, rules.group):
                at = at_g + LANES * first
                for k in range(0, rules.group, 4):
                    four_products(h, tile.columns, start + first + k, 0, delta, 0, first, g, at + LANES * k)
                gain = gain + group_step(h, h, rules, tile, v, start, first, level, g, at, ha)
                refresh_errors(rules, tile, v, start, first, rules.group, level, delta)
                gain = gain + _descend(
                    h, inverses, squares, rules, book, tile, v, start, first, g, at, delta, a, m, coefficients
                )
            add_to_loss(tile.loss, v, -gain)
