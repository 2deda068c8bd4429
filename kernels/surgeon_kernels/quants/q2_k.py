"""Q2_K: 256 weights in 84 bytes, 2.625 bits per weight.

    0    scales  16 bytes  scale[g] | minimum[g] << 4 of the group of 16 number g
    16   qs      64 bytes  byte 32c + l holds q[128c + l], q[128c + 32 + l], q[128c + 64 + l] and q[128c + 96 + l],
                           lowest first,  c = 0..1, l = 0..31
    80   d       float16   step of the scales
    82   dmin    float16   step of the minima

    w[16g + l] = d * scale[g] * q - dmin * minimum[g],  q = 0..3

Search: ggml's quantize_q2_K. Per group of 16 scale and minimum by make_qkx, weighing errors by imatrix *
sqrt(mean(x^2) + x^2); then 4-bit scales and minima by make_qp. Without an imatrix absolute errors weighed by |x|, and
scales rounded to the largest. The sixteen groups of a superblock are the lanes of the search, the sixteen superblocks
of a tile those of the scales.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compilation import DEQUANTIZE, QUANTIZE, helper, kernel
from ..dialect import Array, F
from ..formats import FORMATS
from ..lanes.arithmetic import (
    LANES,
    absolute,
    half_at,
    int_slots,
    int_splat,
    load_f32,
    load_i32,
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
)
from ..search.scales import kept_code, make_qkx, make_qp
from ..search.tiles import dead_slices, next_tile, pack, sums_of_squares

_SIZE = 256
BYTES = FORMATS["Q2_K"].block_bytes
_TILE = 16 * LANES  # groups of a tile
_ZERO = F(0)


@helper
def _search_groups(values: Any, importance: Any, fits: Any, plain: bool) -> None:
    """Per group of the tile: scale, minimum, sum of weights, and inverse scale and offset of the codes."""
    x = slots(16)
    w = slots(16)
    sigma2 = sums_of_squares(values, _SIZE, x) / F(_SIZE)
    rmin, rdelta, steps = (F(-0.5), F(0.1), 15) if plain else (F(-0.9), F(0.05), 36)
    for block in range(LANES):
        load_transposed(x, 0, values, _SIZE * block, 16)
        load_transposed(w, 0, importance, _SIZE * block, 16)
        sum_w = splat(_ZERO)
        for i in range(16):
            w[i] = absolute(x[i]) if plain else w[i] * square_root(sigma2[block] + x[i] * x[i])
            sum_w = sum_w + w[i]
        fit = make_qkx(x, w, 16, F(3), rmin, rdelta, steps, plain, plain)
        store_f32(fits, 16 * block, fit[0])
        store_f32(fits, _TILE + 16 * block, fit[1])
        store_f32(fits, 2 * _TILE + 16 * block, sum_w)
        store_f32(fits, 3 * _TILE + 16 * block, fit[2])
        store_f32(fits, 4 * _TILE + 16 * block, fit[3])


@helper
def _quantize_fits(fits: Any, first: int, plain: bool, codes: Any) -> Any:
    """4-bit codes of the scales (or minima) at fits[first]; lane = superblock. Returns the steps."""
    x = slots(16)
    w = slots(16)
    load_transposed(x, 0, fits, first, 16)
    load_transposed(w, 0, fits, 2 * _TILE, 16)
    if not plain:
        return make_qp(x, w, 16, 15, codes)
    highest = splat(_ZERO)
    for j in range(16):
        highest = maximum(x[j], highest)
    inverse = select(highest > _ZERO, F(15) / highest, splat(_ZERO))
    for j in range(16):
        codes[j] = nearest_int(inverse * x[j])
    return highest / F(15)


@helper
def _fit_tile(values: Any, importance: Any, fits: Any, scales: Any, plain: bool) -> tuple[Any, Any]:
    """Fit the tile; `scales` (int32[16 * 16], [group, superblock]) get the stored bytes. Returns (d, dmin)."""
    _search_groups(values, importance, fits, plain)
    codes = int_slots(32)
    for which in range(2):  # the scales, then the minima
        store_f32(fits, 5 * _TILE + LANES * which, _quantize_fits(fits, _TILE * which, plain, codes))
        for j in range(16):
            before = load_i32(scales, LANES * j) if which else int_splat(0)
            store_i32(scales, LANES * j, (before | codes[j] << 4 * which) & 255)
    return load_f32(fits, 5 * _TILE), load_f32(fits, 5 * _TILE + LANES)


@helper
def _codes(values: Any, fits: Any, lane: int, group: int, plain: bool, scale: int, d: Any, dmin: Any) -> Any:
    """Codes (i32) of a group by its stored scale and minimum; step zero leaves the codes of the search."""
    v = load_f32(values, lane * _SIZE + 16 * group)
    step = d * F(scale & 15)
    if step != _ZERO:
        scaled = (v + dmin * F(scale >> 4)) / step
        return minimum(maximum(nearest_int(scaled), int_splat(0)), int_splat(3))
    at = 16 * lane + group
    iscale, offset = fits[3 * _TILE + at], fits[4 * _TILE + at]
    return to_int(kept_code(iscale * (v - offset), iscale, F(3), plain))


@helper
def _put_block(values: Any, fits: Any, scales: Any, lane: int, plain: bool, d: Any, dmin: Any, out: Array,
               at: int) -> None:  # fmt: skip
    put_half(out, at + 80, d)
    put_half(out, at + 82, dmin)
    d, dmin = half_at(out, at + 80), half_at(out, at + 82)
    for j in range(16):
        out[at + j] = scales[LANES * j + lane]
    for c in range(2):
        for h in range(2):
            byte = int_splat(0)
            for k in range(4):
                group = 8 * c + h + 2 * k
                scale = scales[LANES * group + lane]
                byte = byte | _codes(values, fits, lane, group, plain, scale, d, dmin) << 2 * k
            store_u8(out, at + 16 + 32 * c + 16 * h, byte)


@kernel(QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array) -> None:
    dead = dead_slices(weights, _SIZE, compat)
    chosen = np.zeros(LANES, np.int64)
    values, importance = np.empty(LANES * _SIZE, np.float32), np.empty(LANES * _SIZE, np.float32)
    fits, scales = np.empty(5 * _TILE + 2 * LANES, np.float32), np.empty(_TILE, np.int32)
    blocks = len(x) // _SIZE
    for plain in range(2):
        block = 0
        while block < blocks:
            count, block = next_tile(dead, plain, block, blocks, chosen)
            if count > 0:
                pack(x, blocks, chosen, _SIZE, values)
                if not plain:
                    pack(weights, columns // _SIZE, chosen, _SIZE, importance)
                d, dmin = _fit_tile(values, importance, fits, scales, plain == 1)
                for lane in range(count):
                    at = chosen[lane] * BYTES
                    _put_block(values, fits, scales, lane, plain == 1, d[lane], dmin[lane], out, at)


@kernel(DEQUANTIZE)
def dequantize(blocks: Array, out: Array) -> None:
    for block in range(len(blocks) // BYTES):
        at = block * BYTES
        d, dmin = half_at(blocks, at + 80), half_at(blocks, at + 82)
        for c in range(2):
            for h in range(2):
                byte = load_u8(blocks, at + 16 + 32 * c + 16 * h)
                for k in range(4):
                    group = 8 * c + h + 2 * k
                    scale = blocks[at + group]
                    step, low = d * F(scale & 15), dmin * F(scale >> 4)
                    store_f32(out, block * _SIZE + 16 * group, step * to_float(byte >> 2 * k & 3) - low)
