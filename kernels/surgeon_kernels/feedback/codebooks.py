"""Points of codebooks: the nearest to a few weights at once, in the metric of their part of H, by trying all.

    value = d * scale * level,    level = +-point, or point + delta (IQ1)

Scales are whole numbers and a half, levels twice those of a format's formula, d * (2s + 1) * x = d * (s + 1/2) * 2x:
so the searches for scales (scales.py) have a step of one.

For the target y of v weights, their form M and a step S the point c loses (y - Sc)'M(y - Sc). With the signs of y
folded into M, that is y'My plus a product of `features` of c (c_i c_j and c_i) and coefficients of the row: a matrix
product, with no list of neighbours. IQ1 has no signs, so c'Mc is the same for all rows.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from ..compilation import helper
from ..lanes.arithmetic import (
    LANES,
    gather,
    int_splat,
    load_f32,
    select,
    splat,
    store_f32,
    to_float,
)
from ..lanes.fused import add_scaled, fused
from ..search.grids import CODEBOOKS
from .products import F32, STRIP

ZERO = np.float32(0)
_MOST = np.float32(3e38)
ANY_SIGNS, EVEN_SIGNS, DELTA_OF_GROUP, DELTA_OF_VECTOR = range(4)
"""Signs: free, or an even number of eight negative. IQ1: one delta for the columns of a scale, or for each vector."""


class Book(NamedTuple):
    """A codebook for the encoder.

    vector: weights chosen at once; length: coordinates of a point, all or half of them; features: of a point; strips:
    of six points; points: float32[points * length], levels; table: the features in strips, [strip, feature, 6].
    """

    vector: int
    length: int
    signs: int
    features: int
    strips: int
    points: Any
    table: Any


_i = types.int64
BOOK = types.NamedTuple([_i, _i, _i, _i, _i, F32, F32], Book)
DELTA = np.float32(0.25)  # twice an eighth, as all levels


@cache
def book(name: str, levels: tuple[float, ...], vector: int, signs: int) -> Book:
    """The codebook `name` of grids.py with these values of its levels."""
    points = np.array(levels, np.float32)[CODEBOOKS[name].points()]
    count, length = points.shape
    i, j = np.triu_indices(length)
    products = points[:, i] * points[:, j]
    features = points if signs >= DELTA_OF_GROUP else np.concatenate([products, points], 1)
    strips = -(-count // STRIP)
    padded = np.pad(features, ((0, strips * STRIP - count), (0, 0)), mode="edge")  # a point twice does no harm
    table = np.ascontiguousarray(padded.reshape(strips, STRIP, -1).swapaxes(1, 2))
    return Book(vector, length, signs, features.shape[1], strips, points.reshape(-1), table.reshape(-1))


def squares(book: Book, forms: NDArray[np.float32]) -> NDArray[np.float32]:
    """c'Mc of each point, for IQ1: float32[forms, six times strips], flat; forms: float32[forms, v, v]."""
    if book.signs < DELTA_OF_GROUP:
        return np.zeros(0, np.float32)
    i, j = np.triu_indices(book.vector)
    points = book.points.reshape(-1, book.vector)
    products = np.pad((points[:, i] * points[:, j]).T, ((0, 0), (0, -len(points) % STRIP)), mode="edge")
    factors = forms[:, i, j] * np.where(i == j, 1, 2).astype(np.float32)
    found: NDArray[np.float32] = np.einsum("fp,pn->fn", factors, products, optimize=False)  # BLAS might use threads
    return found.reshape(-1)


@helper
def nearer(found: Any, point: int, best: Any, number: Any) -> Any:
    better = found < best
    return select(better, found, best), select(better, int_splat(point), number)


@helper
def least(book: Any, coefficients: Any, square: Any, own: Any, at: int) -> Any:
    """The least product of a point's features and the coefficients, [features], and that point: the first of equals.

    own[at]...: a feature more (`squares`), whose coefficient is `square`; none where `own` is empty.
    """
    best, number = splat(_MOST), int_splat(0)
    for s in range(book.strips):
        t0 = t1 = t2 = t3 = t4 = t5 = splat(ZERO)
        if len(own) > 0:
            first = at + STRIP * s
            t0, t1 = add_scaled(t0, own, first, square), add_scaled(t1, own, first + 1, square)
            t2, t3 = add_scaled(t2, own, first + 2, square), add_scaled(t3, own, first + 3, square)
            t4, t5 = add_scaled(t4, own, first + 4, square), add_scaled(t5, own, first + 5, square)
        for f in range(book.features):
            x = load_f32(coefficients, LANES * f)
            row = STRIP * (book.features * s + f)
            t0 = add_scaled(t0, book.table, row, x)
            t1 = add_scaled(t1, book.table, row + 1, x)
            t2 = add_scaled(t2, book.table, row + 2, x)
            t3 = add_scaled(t3, book.table, row + 3, x)
            t4 = add_scaled(t4, book.table, row + 4, x)
            t5 = add_scaled(t5, book.table, row + 5, x)
        best, number = nearer(t0, STRIP * s, best, number)
        best, number = nearer(t1, STRIP * s + 1, best, number)
        best, number = nearer(t2, STRIP * s + 2, best, number)
        best, number = nearer(t3, STRIP * s + 3, best, number)
        best, number = nearer(t4, STRIP * s + 4, best, number)
        best, number = nearer(t5, STRIP * s + 5, best, number)
    return best, number


@helper
def choose_signs(book: Any, m: Any, y: Any, step: Any, sign: Any) -> Any:
    """sign[i] = 1 or -1 as y[i] / step; an odd number of negative ones flips the cheapest where they must be even.

    Returns the bits of the negative ones.
    """
    bits, odd = int_splat(0), int_splat(0)
    cheapest, cost = int_splat(0), splat(_MOST)
    for i in range(book.vector):
        negative = y[i] * step < ZERO
        sign[i] = select(negative, splat(np.float32(-1)), splat(np.float32(1)))
        one = select(negative, int_splat(1), int_splat(0))
        bits, odd = bits | one << i, odd ^ one
        price = y[i] * y[i] * m[i * book.vector + i]
        cheaper = price < cost
        cheapest, cost = select(cheaper, int_splat(i), cheapest), select(cheaper, price, cost)
    if book.signs == EVEN_SIGNS:
        for i in range(book.vector):
            flipped = (odd == 1) & (cheapest == i)
            sign[i] = select(flipped, -sign[i], sign[i])
            bits = select(flipped, bits ^ (1 << i), bits)
    return bits


@helper
def signed_points(book: Any, m: Any, y: Any, step: Any, level: Any, number: Any, sign: Any, coefficients: Any, own: Any,
                  at: int) -> Any:  # fmt: skip
    """Levels and points for the target y, and the bits of negative signs; two half points take turns, twice."""
    bits = choose_signs(book, m, y, step, sign)
    length, v = book.length, book.vector
    halves = v // length
    for i in range(v):
        level[i] = splat(ZERO)
    for turn in range(1 if halves == 1 else 2):
        for half in range(halves):
            first = half * length
            feature = 0
            for i in range(first, first + length):
                for j in range(i, first + length):
                    twice = m[i * v + j] * (np.float32(1) if i == j else np.float32(2))
                    store_f32(coefficients, LANES * feature, step * step * (sign[i] * sign[j]) * twice)
                    feature += 1
            for i in range(first, first + length):
                gradient = splat(ZERO)
                for j in range(v):
                    if first <= j < first + length:
                        gradient = fused(splat(m[i * v + j]), y[j], gradient)
                    elif turn == 1 or j < first:  # the later half is taken for met exactly at first
                        gradient = fused(splat(m[i * v + j]), y[j] - step * level[j], gradient)
                store_f32(coefficients, LANES * feature, np.float32(-2) * step * sign[i] * gradient)
                feature += 1
            _, found = least(book, coefficients, step, own, at)
            number[half] = found
            for i in range(length):
                level[first + i] = sign[first + i] * gather(book.points, found * length + i)
    return bits


@helper
def ternary_points(book: Any, m: Any, y: Any, step: Any, delta: Any, level: Any, number: Any, coefficients: Any,
                   own: Any, at: int) -> Any:  # fmt: skip
    """IQ1: levels and point for the target y with `delta`; returns what they lose, less y'My."""
    v = book.vector
    constant = splat(ZERO)
    for i in range(v):
        gradient, row = splat(ZERO), ZERO
        for j in range(v):
            gradient = fused(splat(m[i * v + j]), y[j], gradient)
            row += m[i * v + j]
        store_f32(coefficients, LANES * i, np.float32(2) * step * (step * delta * row - gradient))
        constant = constant + step * delta * (step * delta * row - np.float32(2) * gradient)
    score, found = least(book, coefficients, step * step, own, at)
    number[0] = found
    for i in range(v):
        level[i] = gather(book.points, found * v + i) + delta
    return score + constant


@helper
def choose(book: Any, m: Any, y: Any, step: Any, bits: Any, level: Any, number: Any, spare: Any, coefficients: Any,
           own: Any, at: int) -> Any:  # fmt: skip
    """Levels and points for the target y; returns bits of negative signs, or 1 for a negative delta, which
    DELTA_OF_GROUP takes from `bits`.

    m: float32[v * v]; y, level, spare: slots of v; number: slots of points; coefficients: [features]; own[at]...: of
    `squares`, those of this m.
    """
    if book.signs < DELTA_OF_GROUP:
        return signed_points(book, m, y, step, level, number, spare, coefficients, own, at)
    if book.signs == DELTA_OF_GROUP:
        delta = DELTA - np.float32(2) * DELTA * to_float(bits)
        ternary_points(book, m, y, step, delta, level, number, coefficients, own, at)
        return bits
    plus = ternary_points(book, m, y, step, splat(DELTA), level, number, coefficients, own, at)
    for i in range(book.vector):
        spare[i] = level[i]
    other = number[0]
    minus = ternary_points(book, m, y, step, splat(-DELTA), level, number, coefficients, own, at)
    better = minus < plus
    for i in range(book.vector):
        level[i] = select(better, level[i], spare[i])
    number[0] = select(better, number[0], other)
    return select(better, int_splat(1), int_splat(0))
