"""Q8_0: 32 weights in 34 bytes, 8.5 bits per weight.

    0   d   float16
    2   qs  32 int8

    w[j] = d * qs[j]

d = max|x| / 127 and q = round(x / d), halves away from zero, by the d that is not yet rounded to float16 (ggml's
quantize_row_q8_0_ref). An imatrix changes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compilation import DEQUANTIZE, QUANTIZE, helper, kernel
from ..dialect import Array, F
from ..formats import FORMATS
from ..lanes.arithmetic import (
    absolute,
    bits,
    from_bits,
    half_at,
    largest,
    load_f32,
    load_i8,
    maximum,
    put_half,
    select,
    splat,
    store_f32,
    store_u8,
    to_float,
    to_int,
)

BYTES = FORMATS["Q8_0"].block_bytes
_ZERO = F(0)


@helper
def _round_away(v: Any) -> Any:
    """Nearest integer (i32), halves away from zero: C's roundf; what to_int cannot hold stays as it gives it."""
    whole = to_int(v)
    # v - whole is exact; the sign bit of v turns a half into a step outwards
    outwards = from_bits((bits(v) & np.int32(-0x80000000)) | np.int32(0x3F800000))
    fraction = absolute(v - to_float(whole))
    step = select((fraction >= F(0.5)) & (fraction < F(1)), outwards, splat(_ZERO))
    return whole + to_int(step)


@kernel(QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array) -> None:
    for block in range(len(x) // 32):
        low, high = load_f32(x, 32 * block), load_f32(x, 32 * block + 16)
        d = largest(maximum(absolute(low), absolute(high))) / F(127)
        inverse = F(1) / d if d != _ZERO else _ZERO
        at = block * BYTES
        put_half(out, at, d)
        store_u8(out, at + 2, _round_away(low * inverse))
        store_u8(out, at + 18, _round_away(high * inverse))


@kernel(DEQUANTIZE)
def dequantize(blocks: Array, out: Array) -> None:
    for block in range(len(blocks) // BYTES):
        at = block * BYTES
        d = half_at(blocks, at)
        store_f32(out, 32 * block, to_float(load_i8(blocks, at + 2)) * d)
        store_f32(out, 32 * block + 16, to_float(load_i8(blocks, at + 18)) * d)
