"""Q6_K: 256 weights in 210 bytes, 6.5625 bits per weight.

    0    ql      128 bytes  low four bits of q:   byte 64c + l       = q[128c + l]      | q[128c + 64 + l] << 4
                                                  byte 64c + 32 + l  = q[128c + 32 + l] | q[128c + 96 + l] << 4
    128  qh      64 bytes   upper two bits of q:  byte 32c + l holds those of l, 32 + l, 64 + l and 96 + l, lowest first
    192  scales  16 int8    one per group of 16
    208  d       float16    step of the scales                       c = 0..1, l = 0..31

    w[16g + l] = d * scale[g] * (q - 32),  q = 0..63

Search: ggml's quantize_q6_K. A scale per group of 16 by make_qx, weighing errors by the imatrix itself, without one by
x**2; then 8-bit scales by rounding to the largest. The sixteen groups of a superblock are the sixteen lanes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compilation import DEQUANTIZE, QUANTIZE, helper, kernel
from ..dialect import Array, F
from ..formats import FORMATS
from ..lanes.arithmetic import (
    absolute,
    first_lane,
    half_at,
    int_splat,
    largest,
    load_f32,
    load_transposed,
    load_u8,
    maximum,
    minimum,
    nearest_int,
    put_half,
    slots,
    store_f32,
    store_u8,
    to_float,
)
from ..search.scales import TINY, fill_dead_lanes, make_qx

_SIZE = 256
BYTES = FORMATS["Q6_K"].block_bytes
_NMAX = F(32)
_ZERO = F(0)


@helper
def extreme_scale(scales: Any) -> Any:
    """The scale of largest magnitude, the first of several."""
    sizes = absolute(scales)
    return scales[first_lane(sizes == largest(sizes))]


@helper
def _codes(x: Array, at: int, step: Any, iscale: Any) -> Any:
    """Codes (i32) of sixteen weights with the stored step of their group; step zero leaves the search's codes."""
    v = load_f32(x, at)
    if step != _ZERO:
        scaled = v / step
    elif iscale != _ZERO:
        scaled = iscale * v
    else:
        return int_splat(0)
    return minimum(maximum(nearest_int(scaled), int_splat(-32)), int_splat(31)) + 32


@helper
def _put_block(x: Array, first: int, scales: Any, iscales: Any, out: Array, at: int) -> None:
    top = extreme_scale(scales)
    if abs(top) < TINY:
        for i in range(BYTES):
            out[at + i] = 0
        return
    inverse = F(-128) / top
    put_half(out, at + 208, F(1) / inverse)
    d = half_at(out, at + 208)
    codes = minimum(nearest_int(inverse * scales), int_splat(127))
    store_u8(out, at + 192, codes)
    steps = d * to_float(codes << 24 >> 24)
    for c in range(2):
        for h in range(2):
            g = 8 * c + h
            q0 = _codes(x, first + 16 * g, steps[g], iscales[g])
            q1 = _codes(x, first + 16 * g + 32, steps[g + 2], iscales[g + 2])
            q2 = _codes(x, first + 16 * g + 64, steps[g + 4], iscales[g + 4])
            q3 = _codes(x, first + 16 * g + 96, steps[g + 6], iscales[g + 6])
            store_u8(out, at + 64 * c + 16 * h, q0 & 15 | (q2 & 15) << 4)
            store_u8(out, at + 64 * c + 32 + 16 * h, q1 & 15 | (q3 & 15) << 4)
            store_u8(out, at + 128 + 32 * c + 16 * h, q0 >> 4 | q1 >> 4 << 2 | q2 >> 4 << 4 | q3 >> 4 << 6)


@kernel(QUANTIZE)
def quantize(values: Any, columns: int, weights: Array, compat: bool, out: Array) -> None:
    x = slots(16)
    w = slots(16)
    for block in range(len(values) // _SIZE):
        load_transposed(x, 0, values, block * _SIZE, 16)
        if len(weights) > 0:
            load_transposed(w, 0, weights, block * _SIZE % columns, 16)
            fill_dead_lanes(x, w, 16, compat)
        else:
            for i in range(16):
                w[i] = x[i] * x[i]
        scales, iscales = make_qx(x, w, 16, _NMAX)
        _put_block(values, block * _SIZE, scales, iscales, out, block * BYTES)


@kernel(DEQUANTIZE)
def dequantize(blocks: Array, out: Array) -> None:
    for block in range(len(blocks) // BYTES):
        at = block * BYTES
        d = half_at(blocks, at + 208)
        for c in range(2):
            for h in range(2):
                low0 = load_u8(blocks, at + 64 * c + 16 * h)
                low1 = load_u8(blocks, at + 64 * c + 32 + 16 * h)
                high = load_u8(blocks, at + 128 + 32 * c + 16 * h)
                g = 8 * c + h
                first = block * _SIZE + 16 * g
                _restore(blocks, at + 192 + g, d, low0 & 15 | (high & 3) << 4, out, first)
                _restore(blocks, at + 194 + g, d, low1 & 15 | (high >> 2 & 3) << 4, out, first + 32)
                _restore(blocks, at + 196 + g, d, low0 >> 4 | (high >> 4 & 3) << 4, out, first + 64)
                _restore(blocks, at + 198 + g, d, low1 >> 4 | (high >> 6) << 4, out, first + 96)


@helper
def _restore(blocks: Array, scale_at: int, d: Any, q: Any, out: Array, at: int) -> None:
    step = d * F(np.int8(blocks[scale_at]))
    store_f32(out, at, step * to_float(q - 32))
