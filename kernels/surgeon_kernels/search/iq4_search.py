"""The search that IQ4_NL and IQ4_XS share: the best scale of a group of 32 for a table of sixteen uneven values.

Sixteen trial scales, each with the best code for every weight; the one whose weighted least-squares fit explains most
is kept. (ggml: quantize_row_iq4_nl_impl.)
"""

from __future__ import annotations

import numpy as np

from ..compilation import helper
from ..dialect import Array, F, Lanes
from ..lanes.arithmetic import (
    LANES,
    absolute,
    int_splat,
    load_f32,
    load_u8,
    look_up,
    select,
    splat,
    store_f32,
    store_u8,
)

VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
# ggml bisects and then compares both distances; near a midpoint these are exact, so a midpoint decides (ties go up).
MIDPOINTS = (VALUES[:-1] + VALUES[1:]) / F(2)
GROUP = 32


@helper
def nearest_value(v: Lanes) -> Lanes:
    """The table's value nearest to `v`."""
    value = splat(VALUES[0])
    for k in range(15):
        value = select(v < MIDPOINTS[k], value, splat(VALUES[k + 1]))
    return value


@helper
def nearest_code(v: Lanes) -> Lanes:
    """The code of the table's value nearest to `v`."""
    code = int_splat(0)
    for k in range(15):
        code = select(v < MIDPOINTS[k], code, int_splat(k + 1))
    return code


@helper
def fit(x: Lanes, w: Lanes, inverse: Lanes) -> Lanes:
    """Weighted sums of value * x and of value * value with the codes that belong to the scale 1 / `inverse`."""
    sumqx = splat(F(0))
    sumq2 = splat(F(0))
    for j in range(GROUP):
        q = nearest_value(inverse * x[j])
        wq = w[j] * q
        sumqx = sumqx + wq * x[j]
        sumq2 = sumq2 + wq * q
    return sumqx, sumq2


@helper
def best_scale(x: Lanes, w: Lanes) -> Lanes:
    """The scale of each lane's group; 0 for a group of zeros."""
    top = x[0]
    size = absolute(top)
    for j in range(1, GROUP):
        larger = absolute(x[j]) > size
        size = select(larger, absolute(x[j]), size)
        top = select(larger, x[j], top)
    sumqx, sumq2 = fit(x, w, F(1) / (-top / VALUES[0]))
    scale = select(sumq2 > F(0), sumqx / sumq2, splat(F(0)))
    best = scale * sumqx
    for step in range(-7, 8):
        sumqx, sumq2 = fit(x, w, (F(step) + VALUES[0]) / top)
        better = (sumq2 > F(0)) & (sumqx * sumqx > best * sumq2)
        scale = select(better, sumqx / sumq2, scale)
        best = select(better, scale * sumqx, best)
    return select(size < F(1e-15), splat(F(0)), scale)


@helper
def store_codes(x: Lanes, scale: Lanes, codes: Array) -> None:
    """codes[16 * j + lane] = byte j of the codes of the lane's group."""
    inverse = select(scale != F(0), F(1) / scale, splat(F(0)))
    for j in range(GROUP // 2):
        low, high = nearest_code(inverse * x[j]), nearest_code(inverse * x[j + 16])
        store_u8(codes, LANES * j, low | high << 4)


@helper
def put_codes(out: Array, at: int, codes: Array, lane: int) -> None:
    """Write the 16 bytes of one group."""
    for j in range(GROUP // 2):
        out[at + j] = codes[LANES * j + lane]


@helper
def restore_group(blocks: Array, at: int, scale: float, out: Array, start: int) -> None:
    """out[start : start + 32] = the weights of the group whose 16 bytes of codes begin at `at`."""
    table = load_f32(VALUES, 0) * scale
    byte = load_u8(blocks, at)
    store_f32(out, start, look_up(table, byte & 15))
    store_f32(out, start + LANES, look_up(table, byte >> 4))
