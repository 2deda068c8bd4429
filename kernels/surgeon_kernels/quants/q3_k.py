"""Q3_K: 256 weights in 110 bytes, 3.4375 bits per weight.

    0    hmask   32 bytes  bit g of byte l: bit 2 of q[32g + l],  g = 0..7, l = 0..31
    32   qs      64 bytes  low two bits of q: byte 32c + l holds those of q[128c + l], q[128c + 32 + l],
                           q[128c + 64 + l] and q[128c + 96 + l], lowest first,  c = 0..1
    96   scales  12 bytes  sixteen 6-bit scales s: bytes 0-7: low4(s[j]) | low4(s[j + 8]) << 4;
                           byte 8 + j % 4 holds bits 4-5 of s[j] at bit 2 * (j / 4)
    108  d       float16   step of the scales

    w[16g + l] = d * (s[g] - 32) * (q - 4),  q = 0..7

Search: ggml's quantize_q3_K. A scale per group of 16 by make_qx, weighing errors by imatrix * sqrt(2 mean(x^2) + x^2),
and 6-bit scales by make_qx again; without an imatrix make_q3, and scales rounded to the largest. The sixteen groups of
a superblock are the lanes of the search, the sixteen superblocks of a tile those of the scales.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compilation import DEQUANTIZE, QUANTIZE, helper, kernel
from ..dialect import Array, F
from ..formats import FORMATS
from ..lanes.arithmetic import (
    LANES,
    half_at,
    int_slots,
    int_splat,
    load_f32,
    load_transposed,
    load_u8,
    maximum,
    minimum,
    nearest_int,
    put_half,
    select,
    slots,
    splat,
    square_root,
    store_f32,
    store_i32,
    store_u8,
    to_float,
    to_int,
    with_lane,
)
from ..search.scales import fill_dead_lanes, largest_signed, make_q3, make_qx, signed_code
from ..search.tiles import dead_slices, next_tile, pack, sums_of_squares

_SIZE = 256
BYTES = FORMATS["Q3_K"].block_bytes
_TILE = 16 * LANES  # groups of a tile
_ZERO = F(0)


@helper
def _search_groups(values: Any, importance: Any, fits: Any, kept: Any, plain: bool, compat: bool) -> None:
    """Per group of the tile scale and sum of weights, and in `kept` the codes: [superblock, element, group]."""
    x = slots(16)
    w = slots(16)
    codes = int_slots(16)
    sigma2 = sums_of_squares(values, _SIZE, x) * F(2) / F(_SIZE)
    for block in range(LANES):
        load_transposed(x, 0, values, _SIZE * block, 16)
        sum_w = splat(_ZERO)
        if plain:
            scale = make_q3(x, 16, F(4), codes)
        else:
            load_transposed(w, 0, importance, _SIZE * block, 16)
            for i in range(16):
                w[i] = w[i] * square_root(sigma2[block] + x[i] * x[i])
            fill_dead_lanes(x, w, 16, compat)
            for i in range(16):
                sum_w = sum_w + w[i]
            scale, iscale = make_qx(x, w, 16, F(4))
            for i in range(16):
                code = to_int(signed_code(iscale * x[i], F(4))) + 4
                codes[i] = select(iscale != _ZERO, code, int_splat(0))
        store_f32(fits, 16 * block, scale)
        store_f32(fits, _TILE + 16 * block, sum_w)
        for i in range(16):
            store_u8(kept, _SIZE * block + 16 * i, codes[i])


@helper
def _fit_tile(fits: Any, scales: Any, plain: bool) -> Any:
    """6-bit scales of the tile (int32[16 * 16], [group, superblock]); returns their steps, lane = superblock."""
    x = slots(16)
    w = slots(16)
    load_transposed(x, 0, fits, 0, 16)
    if plain:
        top, _ = largest_signed(x, 16)
        inverse = F(-32) / top
        for j in range(16):
            code = nearest_int(inverse * x[j]) << 24 >> 24
            code = maximum(minimum(code, int_splat(31)), int_splat(-32)) + 32
            store_i32(scales, LANES * j, select(top != _ZERO, code, int_splat(0)))
        return select(top != _ZERO, F(1) / inverse, splat(_ZERO))
    load_transposed(w, 0, fits, _TILE, 16)
    step, inverse = make_qx(x, w, 16, F(32))
    for j in range(16):
        code = to_int(signed_code(inverse * x[j], F(32))) + 32
        store_i32(scales, LANES * j, select(inverse != _ZERO, code, int_splat(0)))
    return step


@helper
def _put_scales(scales: Any, lane: int, out: Array, at: int) -> None:
    for j in range(8):
        out[at + j] = scales[LANES * j + lane] & 15 | (scales[LANES * (j + 8) + lane] & 15) << 4
    for j in range(4):
        upper = 0
        for k in range(4):
            upper |= scales[LANES * (j + 4 * k) + lane] >> 4 << 2 * k
        out[at + 8 + j] = upper


@helper
def _codes(values: Any, kept: Any, lane: int, group: int, step: Any) -> Any:
    """Codes (i32) of a group by its stored scale; step zero leaves the codes of the search."""
    at = lane * _SIZE
    if step != _ZERO:
        scaled = nearest_int(load_f32(values, at + 16 * group) / step)
        return maximum(minimum(scaled, int_splat(3)), int_splat(-4)) + 4
    result = int_splat(0)
    for i in range(16):
        result = with_lane(result, i, np.int32(kept[at + 16 * i + group]))
    return result


@helper
def _put_block(values: Any, kept: Any, scales: Any, lane: int, d: Any, out: Array, at: int) -> None:
    put_half(out, at + 108, d)
    d = half_at(out, at + 108)
    _put_scales(scales, lane, out, at + 96)
    for h in range(2):
        upper = int_splat(0)
        for c in range(2):
            byte = int_splat(0)
            for k in range(4):
                group = 8 * c + h + 2 * k
                step = d * F(scales[LANES * group + lane] - 32)
                codes = _codes(values, kept, lane, group, step)
                byte = byte | (codes & 3) << 2 * k
                upper = upper | codes >> 2 << 4 * c + k
            store_u8(out, at + 32 + 32 * c + 16 * h, byte)
        store_u8(out, at + 16 * h, upper)


@kernel(QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array) -> None:
    dead = dead_slices(weights, _SIZE, compat)
    chosen = np.zeros(LANES, np.int64)
    values, importance = np.empty(LANES * _SIZE, np.float32), np.empty(LANES * _SIZE, np.float32)
    fits, scales = np.empty(2 * _TILE, np.float32), np.empty(_TILE, np.int32)
    kept = np.empty(LANES * _SIZE, np.uint8)
    blocks = len(x) // _SIZE
    for plain in range(2):
        block = 0
        while block < blocks:
            count, block = next_tile(dead, plain, block, blocks, chosen)
            if count > 0:
                pack(x, blocks, chosen, _SIZE, values)
                if not plain:
                    pack(weights, columns // _SIZE, chosen, _SIZE, importance)
                _search_groups(values, importance, fits, kept, plain == 1, compat)
                d = _fit_tile(fits, scales, plain == 1)
                for lane in range(count):
                    _put_block(values, kept, scales, lane, d[lane], out, chosen[lane] * BYTES)


@kernel(DEQUANTIZE)
def dequantize(blocks: Array, out: Array) -> None:
    for block in range(len(blocks) // BYTES):
        at = block * BYTES
        d = half_at(blocks, at + 108)
        for h in range(2):
            upper = load_u8(blocks, at + 16 * h)
            for c in range(2):
                byte = load_u8(blocks, at + 32 + 32 * c + 16 * h)
                for k in range(4):
                    group = 8 * c + h + 2 * k
                    scale = blocks[at + 96 + (group & 7)] >> 4 * (group >> 3) & 15
                    scale |= (blocks[at + 104 + (group & 3)] >> 2 * (group >> 2) & 3) << 4
                    q = (byte >> 2 * k & 3) + (upper >> 4 * c + k & 1) * 4 - 4
                    store_f32(out, block * _SIZE + 16 * group, d * F(np.int32(scale) - 32) * to_float(q))
