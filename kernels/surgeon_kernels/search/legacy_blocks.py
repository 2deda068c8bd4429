"""Q4_0, Q4_1, Q5_0 and Q5_1: blocks of 32 weights in 4 or 5 bits, symmetric (d) or with a minimum (d and m).

Without an importance matrix a block is coded by its extremes, sixteen elements at a time. With one, a block is a lane
and sixteen blocks are a tile: make_qx or make_qkx fit it with the weights imatrix * sqrt(mean(row^2) + x^2).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compilation import helper
from ..dialect import Array, F
from ..lanes.arithmetic import (
    LANES,
    absolute,
    first_lane,
    int_splat,
    lane_bits,
    lane_numbers,
    largest,
    load_f32,
    load_transposed,
    maximum,
    minimum,
    put_half,
    select,
    slots,
    smallest,
    splat,
    square_root,
    store_f32,
    store_u8,
    to_int,
)
from .scales import kept_code, make_qkx, make_qx, signed_code
from .tiles import dead_slices, next_tile, pack

SIZE = 32
_ZERO = F(0)
_HALF_OVERFLOW = F(65520)  # rounds to infinity in float16


@helper
def row_mean_squares(x: Array, columns: int) -> Any:
    """Mean square of each row, summed in order; float32[rows]."""
    rows = len(x) // columns
    means = np.empty(rows, np.float32)
    in_lanes = rows // LANES * LANES
    values = slots(16)
    for first in range(0, in_lanes, LANES):
        result = splat(_ZERO)
        for column in range(0, columns, LANES):
            load_transposed(values, 0, x, first * columns + column, columns)
            for j in range(LANES):
                result = result + values[j] * values[j]
        store_f32(means, first, result / F(columns))
    for row in range(in_lanes, rows):
        square_sum = _ZERO
        for i in range(row * columns, (row + 1) * columns):
            square_sum += x[i] * x[i]
        means[row] = square_sum / F(columns)
    return means


@helper
def _load_tile(x: Array, w: Any, values: Any, importance: Any, sigma2: Any) -> None:
    """Transpose a packed tile into slots: values, and weights imatrix * sqrt(sigma2 + x**2)."""
    for half in range(2):
        load_transposed(x, 16 * half, values, 16 * half, SIZE)
        load_transposed(w, 16 * half, importance, 16 * half, SIZE)
    for i in range(SIZE):
        w[i] = w[i] * square_root(sigma2 + x[i] * x[i])


@helper
def put_codes(low: Any, high: Any, five_bits: bool, out: Array, at: int) -> None:
    """Write codes 0-15 and 16-31 of a block: [fifth bits as a 32-bit word,] byte j = low[j] & 15 | high[j] << 4."""
    if five_bits:
        upper = lane_bits((low & 16) != 0) | lane_bits((high & 16) != 0) << 16
        for i in range(4):
            out[at + i] = upper >> 8 * i & 255
        at += 4
    store_u8(out, at, low & 15 | (high & 15) << 4)


@helper
def _plain_symmetric(x: Array, first: int, nmax: int, out: Array, at: int) -> None:
    """d = (value of largest magnitude, the first of several) / -nmax; q = x / d + nmax + 0.5, cut."""
    low, high = load_f32(x, first), load_f32(x, first + 16)
    top = largest(maximum(absolute(low), absolute(high)))
    lane = first_lane(absolute(low) == top)
    if lane == LANES:
        lane += first_lane(absolute(high) == top)
    extreme = x[first + lane] if top > _ZERO else _ZERO
    d = extreme / F(-nmax)
    inverse = F(1) / d if d != _ZERO else _ZERO
    put_half(out, at, d)
    offset = F(nmax) + F(0.5)
    limit = int_splat(2 * nmax - 1)
    # ggml casts to int8: only the last byte of what does not fit counts
    low_codes = minimum(limit, to_int(low * inverse + offset) << 24 >> 24)
    high_codes = minimum(limit, to_int(high * inverse + offset) << 24 >> 24)
    put_codes(low_codes, high_codes, nmax == 16, out, at + 2)


@helper
def _plain_affine(x: Array, first: int, nmax: int, out: Array, at: int) -> None:
    """m = smallest value (the first of several: zeros have signs), d = range / nmax; q = (x - m) / d + 0.5, cut."""
    low, high = load_f32(x, first), load_f32(x, first + 16)
    bottom = smallest(minimum(low, high))
    top = largest(maximum(low, high))
    d = (top - bottom) / F(nmax) if top != bottom else _ZERO
    inverse = F(1) / d if d != _ZERO else _ZERO
    lane = first_lane(low == bottom)
    if lane == LANES:
        lane += first_lane(high == bottom)
    put_half(out, at, d)
    put_half(out, at + 2, x[first + lane])
    limit = int_splat(15 if nmax == 15 else 255)
    low_codes = minimum(limit, to_int((low - bottom) * inverse + F(0.5)) << 24 >> 24)
    high_codes = minimum(limit, to_int((high - bottom) * inverse + F(0.5)) << 24 >> 24)
    put_codes(low_codes, high_codes, nmax == 31, out, at + 4)


@helper
def _fitted_codes(v: Any, iscale: Any, nmax: int) -> Any:
    return to_int(signed_code(iscale * v, F(nmax))) + nmax


@helper
def _symmetric_tile(values: Any, importance: Any, sigma2: Any, chosen: Any, count: int, nmax: int, out: Array,
                    block_bytes: int) -> None:  # fmt: skip
    x = slots(32)
    w = slots(32)
    _load_tile(x, w, values, importance, sigma2)
    scale, iscale = make_qx(x, w, SIZE, F(nmax))
    for lane in range(count):
        at = chosen[lane] * block_bytes
        put_half(out, at, scale[lane])
        low, high = int_splat(0), int_splat(0)
        if iscale[lane] != _ZERO:
            low = _fitted_codes(load_f32(values, lane * SIZE), iscale[lane], nmax)
            high = _fitted_codes(load_f32(values, lane * SIZE + 16), iscale[lane], nmax)
        put_codes(low, high, nmax == 16, out, at + 2)


@helper
def _affine_tile(values: Any, importance: Any, sigma2: Any, chosen: Any, count: int, nmax: int, compat: bool,
                 out: Array, block_bytes: int) -> None:  # fmt: skip
    x = slots(32)
    w = slots(32)
    _load_tile(x, w, values, importance, sigma2)
    fit = make_qkx(x, w, SIZE, F(nmax), F(-0.9), F(0.05), 36, False, False)
    scale, themin, iscale, offset = fit
    for lane in range(count):
        at = chosen[lane] * block_bytes
        # The weighted fit of finite values can put the minimum beyond float16, which makes it infinite.
        if not compat and not (abs(scale[lane]) < _HALF_OVERFLOW and abs(themin[lane]) < _HALF_OVERFLOW):
            _plain_affine(values, lane * SIZE, nmax, out, at)
            continue
        put_half(out, at, scale[lane])
        put_half(out, at + 2, -themin[lane])
        step = iscale[lane]
        low = kept_code(step * (load_f32(values, lane * SIZE) - offset[lane]), step, F(nmax), False)
        high = kept_code(step * (load_f32(values, lane * SIZE + 16) - offset[lane]), step, F(nmax), False)
        put_codes(to_int(low), to_int(high), nmax == 31, out, at + 4)


@helper
def quantize_blocks(x: Array, columns: int, weights: Array, compat: bool, out: Array, nmax: int, affine: bool,
                    block_bytes: int) -> None:  # fmt: skip
    """Quantize a slab. Symmetric codes are 0 .. 2 * nmax - 1, affine ones 0 .. nmax."""
    blocks = len(x) // SIZE
    if len(weights) == 0:
        for block in range(blocks):
            if affine:
                _plain_affine(x, block * SIZE, nmax, out, block * block_bytes)
            else:
                _plain_symmetric(x, block * SIZE, nmax, out, block * block_bytes)
        return
    per_row = columns // SIZE
    dead = dead_slices(weights, SIZE, compat)
    means = row_mean_squares(x, columns)
    chosen = np.zeros(LANES, np.int64)
    sigma2 = np.empty(LANES, np.float32)
    values, importance = np.empty(LANES * SIZE, np.float32), np.empty(LANES * SIZE, np.float32)
    block = 0
    while block < blocks:
        count, block = next_tile(dead, 0, block, blocks, chosen)
        if count > 0:
            for lane in range(LANES):
                sigma2[lane] = means[chosen[lane] // per_row]
            pack(x, blocks, chosen, SIZE, values)
            pack(weights, per_row, chosen, SIZE, importance)
            if affine:
                _affine_tile(values, importance, load_f32(sigma2, 0), chosen, count, nmax, compat, out, block_bytes)
            else:
                _symmetric_tile(values, importance, load_f32(sigma2, 0), chosen, count, nmax, out, block_bytes)
    for block in range(blocks):
        if dead[block % per_row]:
            if affine:
                _plain_affine(x, block * SIZE, nmax, out, block * block_bytes)
            else:
                _plain_symmetric(x, block * SIZE, nmax, out, block * block_bytes)


@helper
def fifth_bits(blocks: Array, at: int) -> Any:
    """16 where the bit of the 16-bit word at byte `at` is set, else 0; bit k for lane k."""
    word = np.int32(blocks[at]) | np.int32(blocks[at + 1]) << 8
    return select((int_splat(word) & (int_splat(1) << lane_numbers())) != 0, int_splat(16), int_splat(0))
