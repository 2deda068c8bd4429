"""The sweep: columns are rounded one after another, each at what the errors before it make of its target.

With H = (I + A) D (I + A)', A strictly upper triangular and D diagonal, the loss of a row of errors e is

    e H e' = sum over k of D[k] (t[k] - q[k])**2,    t[k] = w[k] + sum over j < k of e[j] A[j, k]

so that rounding t[k] to the nearest grid point, in the order of k, is LDLQ (Chee et al. 2023), which is GPTQ without an
inverse of H.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types

from ..compilation import helper, kernel
from ..lanes.arithmetic import LANES, load_f32, load_u8, splat, store_f32, store_u8
from ..lanes.fused import add_scaled, fused
from .products import BLOCK, F32, F64, I64, STRIP, earlier_errors, strip_product, strip_start
from .tiles import RULES, TILE, inverse, nearest_level, step_and_offset


@helper
def fed_forward(a: Any, at_a: int, e: Any, at_e: int, place: int, t: Any, at_t: int) -> Any:
    """What the errors of all earlier columns add to the target of column `place` of a strip, as lanes.

    a[at_a]: the strip's rows of its own columns; t[at_t]: the sums over the columns before the strip.
    """
    x = load_f32(t, at_t + LANES * place)
    for j in range(place):
        x = add_scaled(x, a, at_a + STRIP * j + place, load_f32(e, at_e + LANES * j))
    return x


@helper
def add_to_loss(loss: Any, v: int, amount: Any) -> None:
    """Add lanes to the float64 losses of the rows of vector v."""
    for lane in range(LANES):
        loss[LANES * v + lane] += amount[lane]


@helper
def gather_columns(source: Any, columns: int, vectors: int, order: Any, first: int, out: Any) -> None:
    """Columns order[first], ... of an array of the tile into `out`: [vectors, BLOCK columns].

    Apart from the sweep, whose steps wait for one another: so the loads do not.
    """
    for v in range(vectors):
        for k in range(min(BLOCK, columns - first)):
            store_f32(out, LANES * (v * BLOCK + k), load_f32(source, LANES * (v * columns + order[first + k])))


@helper
def restore_order(e: Any, codes: Any, padded: int, order: Any, tile: Any) -> None:
    """Errors and codes in the order of the sweep, [vectors, padded columns], to the tile in its own."""
    columns = tile.columns
    place = np.empty(columns, np.int64)
    for k in range(columns):
        place[order[k]] = k
    for v in range(tile.vectors):
        for k in range(columns):
            at = LANES * (v * padded + place[k])
            store_f32(tile.errors, LANES * (v * columns + k), load_f32(e, at))
            store_u8(tile.codes, LANES * (v * columns + k), load_u8(codes, at))


@kernel(types.void(F32, F32, I64, RULES, TILE))
def sweep(a: Any, d: Any, order: Any, rules: Any, tile: Any) -> None:
    """Codes, errors and losses of the tile by one sweep; a: the factor in strips, d: D, both by `order`."""
    columns, vectors = tile.columns, tile.vectors
    padded = -(-columns // STRIP) * STRIP
    e, codes = np.zeros(vectors * padded * LANES, np.float32), np.empty(vectors * padded * LANES, np.uint8)
    t, weights = np.empty(vectors * BLOCK * LANES, np.float32), np.empty(vectors * BLOCK * LANES, np.float32)
    tile.loss[:] = 0
    for block in range(-(-columns // BLOCK)):
        strips = min(BLOCK, padded - BLOCK * block) // STRIP
        gather_columns(tile.weights, columns, vectors, order, BLOCK * block, weights)
        earlier_errors(a, e, padded, vectors, block, strips, t)
        for v in range(vectors):
            loss = splat(np.float32(0))
            for s in range(strips):
                first = BLOCK * block + STRIP * s
                at_a = strip_start(block, strips, s, BLOCK * block)
                at_e, at_t = LANES * (v * padded + first), LANES * (v * BLOCK + STRIP * s)
                strip_product(a, at_a, e, at_e - LANES * STRIP * s, STRIP * s, t, at_t)
                at_a += STRIP * STRIP * s
                for place in range(min(STRIP, columns - first)):
                    x = fed_forward(a, at_a, e, at_e, place, t, at_t)
                    w = load_f32(weights, at_t + LANES * place)
                    step, offset = step_and_offset(rules, tile, v, order[first + place])
                    level, code = nearest_level(rules, (w + x + offset) * inverse(step))
                    error = w - (step * level - offset)
                    store_u8(codes, at_e + LANES * place, code)
                    store_f32(e, at_e + LANES * place, error)
                    missed = error + x
                    loss = fused(missed * d[first + place], missed, loss)
            add_to_loss(tile.loss, v, loss)
    restore_order(e, codes, padded, order, tile)


@kernel(types.void(F32, F32, I64, types.int64, types.int64, F32, F64, F64))
def add_losses(a: Any, d: Any, order: Any, columns: int, vectors: int, errors: Any, enough: Any, loss: Any) -> None:
    """Add e H e' of each row to `loss`, or only a part that is more than `enough`, once all rows have reached that."""
    padded = -(-columns // STRIP) * STRIP
    e = np.zeros(vectors * padded * LANES, np.float32)
    t = np.empty(vectors * BLOCK * LANES, np.float32)
    for v in range(vectors):
        for k in range(columns):
            store_f32(e, LANES * (v * padded + k), load_f32(errors, LANES * (v * columns + order[k])))
    for block in range(-(-columns // BLOCK)):
        strips = min(BLOCK, padded - BLOCK * block) // STRIP
        earlier_errors(a, e, padded, vectors, block, strips, t)
        for v in range(vectors):
            part = splat(np.float32(0))
            for s in range(strips):
                first = BLOCK * block + STRIP * s
                at_a = strip_start(block, strips, s, BLOCK * block)
                at_e, at_t = LANES * (v * padded + first), LANES * (v * BLOCK + STRIP * s)
                strip_product(a, at_a, e, at_e - LANES * STRIP * s, STRIP * s, t, at_t)
                at_a += STRIP * STRIP * s
                for place in range(min(STRIP, columns - first)):
                    missed = load_f32(e, at_e + LANES * place) + fed_forward(a, at_a, e, at_e, place, t, at_t)
                    part = fused(missed * d[first + place], missed, part)
            add_to_loss(loss, v, part)
        if np.all(loss > enough):
            return
