"""Q4_K and Q5_K: superblocks of eight groups of 32, each with a 6-bit scale and a 6-bit minimum.

    w = d * scale * q - dmin * minimum

The search finds a float scale and minimum per group; the sixteen superblocks of a tile then quantize theirs in lanes,
and every weight is coded anew with the scale and minimum as they are stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compilation import helper
from ..dialect import Array, F
from ..lanes.arithmetic import (
    LANES,
    absolute,
    int_slots,
    int_splat,
    lane_numbers,
    load_f32,
    load_transposed,
    maximum,
    minimum,
    nearest_int,
    select,
    slots,
    splat,
    square_root,
    store_f32,
    store_i32,
    to_int,
)
from .scales import kept_code, make_qkx, make_qp
from .tiles import sums_of_squares

SIZE = 256
GROUPS = 8  # per superblock
TILE_GROUPS = LANES * GROUPS
_ZERO = F(0)


@helper
def workspace() -> Any:
    """Arrays of a tile: packed values and weights, and per group the results of the search."""
    values = np.empty(LANES * SIZE, np.float32)
    importance = np.empty(LANES * SIZE, np.float32)
    # per group scale, minimum, sum of weights, inverse scale and offset of the codes; then d and dmin per superblock
    fits = np.zeros(5 * TILE_GROUPS + 2 * LANES, np.float32)
    codes = np.empty(2 * GROUPS * LANES, np.int32)  # 6-bit scales, then minima: [group, superblock]
    return values, importance, fits, codes


@helper
def _weigh(x: Array, w: Any, plain: bool, sigma2: Any) -> Any:
    """Turn the importance in `w` into weights of the error; returns their sums."""
    if plain:
        squares = splat(_ZERO)
        for i in range(32):
            squares = squares + x[i] * x[i]
        deviation = square_root(squares / F(32))
        for i in range(32):
            w[i] = deviation + absolute(x[i])
    else:
        for i in range(32):
            w[i] = w[i] * square_root(sigma2 + x[i] * x[i])
    total = splat(_ZERO)
    for i in range(32):
        total = total + w[i]
    return total


@helper
def _search_groups(values: Any, importance: Any, fits: Any, plain: bool, nmax: Any, rmin: Any, rdelta: Any,
                   steps: int) -> None:  # fmt: skip
    """Scale and minimum of all 128 groups of the tile, sixteen (two superblocks) at a time."""
    x = slots(32)
    w = slots(32)
    sigma2 = sums_of_squares(values, SIZE, x) * F(2) / F(SIZE)
    for pair in range(LANES // 2):
        for half in range(2):
            load_transposed(x, 16 * half, values, 2 * SIZE * pair + 16 * half, 32)
            load_transposed(w, 16 * half, importance, 2 * SIZE * pair + 16 * half, 32)
        spread = select(lane_numbers() < GROUPS, splat(sigma2[2 * pair]), splat(sigma2[2 * pair + 1]))
        sum_w = _weigh(x, w, plain, spread)
        scale, low, iscale, offset = make_qkx(x, w, 32, nmax, rmin, rdelta, steps, False, plain)
        at = LANES * pair
        store_f32(fits, at, scale)
        store_f32(fits, TILE_GROUPS + at, low)
        store_f32(fits, 2 * TILE_GROUPS + at, sum_w)
        store_f32(fits, 3 * TILE_GROUPS + at, iscale)
        store_f32(fits, 4 * TILE_GROUPS + at, offset)


@helper
def _plain_codes(x: Array, codes: Any) -> Any:
    """6-bit codes by the largest of the eight; returns the step."""
    highest = splat(_ZERO)
    for j in range(GROUPS):
        highest = maximum(x[j], highest)
    inverse = select(highest > _ZERO, F(63) / highest, splat(_ZERO))
    for j in range(GROUPS):
        codes[j] = minimum(nearest_int(inverse * x[j]) & 255, int_splat(63))
    return highest / F(63)


@helper
def _quantize_fits(fits: Any, first: int, plain: bool, limit: int, codes: Any, at: int) -> Any:
    """Quantize the scales (or minima) that start at fits[first]; lane = superblock. Returns the steps.

    A negative scale wraps to a code near 255; ggml cuts that of Q5_K to 63 (`limit`), that of Q4_K it does not.
    """
    x = slots(16)
    w = slots(16)
    result = int_slots(32)
    load_transposed(x, 0, fits, first, GROUPS)
    load_transposed(w, 0, fits, 2 * TILE_GROUPS, GROUPS)
    step = _plain_codes(x, result) if plain else make_qp(x, w, GROUPS, 63, result)
    for j in range(GROUPS):
        store_i32(codes, at + LANES * j, minimum(result[j], int_splat(limit)))
    return step


@helper
def fit_tile(values: Any, importance: Any, fits: Any, codes: Any, plain: bool, nmax: Any, plain_search: Any) -> Any:
    """Fit all superblocks of the tile; returns their (d, dmin) as lanes and fills `codes` and `fits`.

    plain_search: (rmin, rdelta, steps) of the search without importance matrix.
    """
    rmin, rdelta, steps = plain_search if plain else (F(-0.9), F(0.05), 36)
    _search_groups(values, importance, fits, plain, nmax, rmin, rdelta, steps)
    steps_at = 5 * TILE_GROUPS
    limit = 63 if nmax == F(31) else 255
    for which in range(2):  # the scales, then the minima
        step = _quantize_fits(fits, TILE_GROUPS * which, plain, limit, codes, GROUPS * LANES * which)
        store_f32(fits, steps_at + LANES * which, step)
    return load_f32(fits, steps_at), load_f32(fits, steps_at + LANES)


@helper
def put_scales(codes: Any, lane: int, out: Array, at: int) -> None:
    """Pack eight 6-bit scales and minima of superblock `lane` into twelve bytes.

    Bytes 0-3: scales 0-3, bytes 4-7: minima 0-3, bytes 8-11: low nibbles of scale | minimum << 4 of groups 4-7, whose
    upper two bits are the upper two bits of bytes 0-3 (scale) and 4-7 (minimum).
    """
    for j in range(4):
        scale, low = codes[LANES * j + lane], codes[LANES * (GROUPS + j) + lane]
        scale4, low4 = codes[LANES * (j + 4) + lane], codes[LANES * (GROUPS + j + 4) + lane]
        out[at + j] = scale | scale4 >> 4 << 6
        out[at + 4 + j] = low | low4 >> 4 << 6
        out[at + 8 + j] = scale4 & 15 | (low4 & 15) << 4


@helper
def scale_at(blocks: Array, at: int, group: int) -> tuple[int, int]:
    """The 6-bit scale and minimum of `group` from the twelve bytes at `at`."""
    if group < 4:
        return blocks[at + group] & 63, blocks[at + group + 4] & 63
    mixed = blocks[at + group + 4]
    return mixed & 15 | blocks[at + group - 4] >> 6 << 4, mixed >> 4 | blocks[at + group] >> 6 << 4


@helper
def steps_of(blocks: Array, at: int, group: int, d: Any, dmin: Any) -> Any:
    """Step and minimum of a group as they are restored from the twelve bytes at `at`.

    Not from the codes before they are packed: those of the rare negative scale do not fit into six bits.
    """
    scale, low = scale_at(blocks, at, group)
    return d * F(scale), dmin * F(low)


@helper
def group_codes(values: Any, fits: Any, lane: int, group: int, half: int, d: Any, low: Any, nmax: int,
                plain: bool) -> Any:  # fmt: skip
    """Codes (i32) of sixteen weights with the stored step `d` and minimum `low` of their group.

    A step of zero leaves the codes of the search, as ggml does.
    """
    v = load_f32(values, lane * SIZE + 32 * group + 16 * half)
    if d != _ZERO:
        return minimum(maximum(nearest_int((v + low) / d), int_splat(0)), int_splat(nmax))
    at = lane * GROUPS + group
    iscale, offset = fits[3 * TILE_GROUPS + at], fits[4 * TILE_GROUPS + at]
    return to_int(kept_code(iscale * (v - offset), iscale, F(nmax), plain))
