"""Twins (see twins.py) of IQ4_NL and IQ4_XS."""

from __future__ import annotations

import numpy as np
from twins import (
    TINY,
    F,
    Twin,
    Vector,
    clip,
    fields,
    half,
    importance,
    largest_signed,
    nearest_int,
    nibbles,
    scale_sums,
    squares,
)

VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def nearest(value: np.float32) -> int:
    """Code of the nearest of VALUES, the upper one in the middle; 15 for a NaN."""
    if value <= VALUES[0]:
        return 0
    if value >= VALUES[15]:
        return 15
    low, high = 0, 15
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if value < VALUES[middle] else (middle, high)
    return low if value - F(VALUES[low]) < F(VALUES[high]) - value else high


def codes_of(x: Vector, scale: np.float32) -> list[int]:
    inverse = F(1) / scale if scale != 0 else F(0)
    return [nearest(inverse * v) for v in x]


def best_scale(x: Vector, w: Vector) -> np.float32:
    top = largest_signed(x)
    if abs(top) < TINY:
        return F(0)

    def fit(inverse: np.float32) -> tuple[np.float32, np.float32]:
        return scale_sums(w, [F(VALUES[nearest(inverse * v)]) for v in x], x)

    sum_qx, sum_q2 = fit(F(1) / (-top / F(VALUES[0])))
    scale = sum_qx / sum_q2 if sum_q2 > 0 else F(0)
    best = scale * sum_qx
    for step in range(-7, 8):
        sum_qx, sum_q2 = fit((F(step) + F(VALUES[0])) / top)
        if sum_q2 > 0 and sum_qx * sum_qx > best * sum_q2:
            scale = sum_qx / sum_q2
            best = scale * sum_qx
    return scale


def group_scales(x: Vector, weights: Vector | None) -> list[np.float32]:
    """The best scale of every 32 of a block."""
    sigma2 = squares(x) * (F(2) / F(len(x)))
    w = [v * v for v in x] if weights is None else importance(x, weights, sigma2)
    return [best_scale(x[g : g + 32], w[g : g + 32]) for g in range(0, len(x), 32)]


def iq4_nl(x: Vector, weights: Vector | None) -> bytes:
    (scale,) = group_scales(x, weights)
    return half(scale) + nibbles(codes_of(x, scale))


def iq4_xs(x: Vector, weights: Vector | None) -> bytes:
    scales = group_scales(x, weights)
    d = -largest_signed(scales) / F(32)
    inverse = F(1) / d if d != 0 else F(0)
    codes = [clip(nearest_int(inverse * scale), -32, 31) for scale in scales]
    quants = [nibbles(codes_of(x[32 * g : 32 * g + 32], d * F(code))) for g, code in enumerate(codes)]
    high = fields([code + 32 >> 4 for code in codes], 2)
    low = fields([code + 32 & 15 for code in codes], 4)
    return half(d) + high.to_bytes(2, "little") + low.to_bytes(4, "little") + b"".join(quants)


TWINS: dict[str, Twin] = {"IQ4_NL": iq4_nl, "IQ4_XS": iq4_xs}
