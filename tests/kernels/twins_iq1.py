"""Twins (see twins.py) of IQ1_S and IQ1_M.

The splits of the sorted values are tried side by side; the prefix sums they are made of are in ggml's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from twins import F, Twin, Vector, clip, fields, half, importance, nearest_int, scale_sums, squares
from twins_iq import nearest_point, numbers, points

# Values of the three levels, all moved up or down by an eighth.
UP = [F(-0.875), F(0.125), F(1.125)]
DOWN = [F(-1.125), F(-0.125), F(0.875)]

Floats = NDArray[np.float32]


class Group(NamedTuple):
    """What a group stores; `tables`: UP or DOWN for each of its equal parts, one (IQ1_S) or two (IQ1_M)."""

    scale: np.float32
    tables: list[list[np.float32]]
    points: list[int]


def prefix_sums(terms: Vector) -> Floats:
    """Sums of the first 0, 1, 2 ... terms."""
    sums = [F(0)]
    for term in terms:
        sums.append(sums[-1] + term)
    return np.array(sums)


@cache
def all_splits(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where levels 1 and 2 begin among `size` sorted values, in ggml's order."""
    first, second = np.array([(i, j) for i in range(size + 1) for j in range(i, size + 1)]).T
    return first, second


def best_of(sum_qx: Sequence[Floats], sum_q2: Sequence[Floats]) -> tuple[int, int, np.float32] | None:
    """The best split, which choice of tables is best there, and their scale; given are each choice's sums by split."""
    best, found = np.finfo(F).min, None
    for split, sums in enumerate(zip(zip(*sum_qx, strict=True), zip(*sum_q2, strict=True), strict=True)):
        for choice, (qx, q2) in enumerate(zip(*sums, strict=True)):
            if q2 > 0 and qx * qx > best * q2:
                best = qx / q2 * qx
                found = split, choice, qx / q2
    return found


def levels_of(order: Sequence[int], first: int, second: int) -> list[int]:
    """Of each value, from the order of the values and where levels 1 and 2 begin in it."""
    levels = [0] * len(order)
    for place, i in enumerate(order):
        levels[i] = 0 if place < first else 1 if place < second else 2
    return levels


def finish(x: Vector, w: Vector, levels: Sequence[int], tables: list[list[np.float32]], scale: np.float32) -> Group:
    """Make the scale positive and go to points of the grid; where one must move, fit the scale again."""
    if scale < 0:
        scale, levels = -scale, [2 - level for level in levels]
        tables = [DOWN if table is UP else UP for table in tables]
    chosen: list[int] = []
    q: list[np.float32] = []
    moved = False
    for start in range(0, len(x), 8):
        part, table = slice(start, start + 8), tables[start * len(tables) // len(x)]
        number = numbers("IQ1").get(tuple(levels[part]))
        if number is None:
            number, moved = nearest_point("IQ1", tuple(levels[part]), table, x[part], w[part], scale), True
        chosen.append(number)
        q += [table[level] for level in points("IQ1")[number]]
    if moved:
        sum_qx, sum_q2 = scale_sums(w, q, x)
        scale = sum_qx / sum_q2 if sum_qx > 0 and sum_q2 > 0 else scale
    return Group(scale, tables, chosen)


def down_bits(group: Group) -> int:
    """The highest bit of a nibble for each part that takes its values from DOWN."""
    return fields([8 if table is DOWN else 0 for table in group.tables], 4)


def scale_codes(groups: Sequence[Group], d: np.float32) -> list[int]:
    return [clip(nearest_int(F(0.5) * (F(1) / d * group.scale - F(1))), 0, 7) for group in groups]


def iq1_s_group(x: Vector, w: Vector) -> Group:
    nothing = Group(F(0), [UP], [0] * 4)
    if max(abs(v) for v in x) < F(1e-12):
        return nothing
    order = sorted(range(32), key=lambda i: x[i])
    sum_x, sum_w = prefix_sums([w[i] * x[i] for i in order]), prefix_sums([w[i] for i in order])
    first, second = all_splits(32)

    def terms(sums: Floats) -> list[Floats]:
        """A sum over the values of each level."""
        return [sums[first] - sums[0], sums[second] - sums[first], sums[32] - sums[second]]

    x0, x1, x2 = terms(sum_x)
    w0, w1, w2 = terms(sum_w)
    found = best_of(
        [x0 * t[0] + x1 * t[1] + x2 * t[2] for t in (UP, DOWN)],
        [w0 * t[0] * t[0] + w1 * t[1] * t[1] + w2 * t[2] * t[2] for t in (UP, DOWN)],
    )
    if found is None:
        return nothing
    split, choice, scale = found
    levels = levels_of(order, first[split], second[split])
    return finish(x, w, levels, [(UP, DOWN)[choice]], scale)


def iq1_s(x: Vector, weights: Vector | None) -> bytes:
    assert weights is not None
    w = importance(x, weights, F(2) * squares(x) / F(256))
    groups = [iq1_s_group(x[g : g + 32], w[g : g + 32]) for g in range(0, 256, 32)]
    low = bytes(number & 255 for group in groups for number in group.points)
    d = max(group.scale for group in groups) / F(15)
    high = [fields([number >> 8 for number in group.points], 3) for group in groups]
    if d != 0:
        codes = [code | down_bits(group) for code, group in zip(scale_codes(groups, d), groups, strict=True)]
        high = [word | code << 12 for word, code in zip(high, codes, strict=True)]
    return half(d * F(1.125)) + low + fields(high, 16).to_bytes(16, "little")


# IQ1_M's choices of tables for its two halves.
TABLES = [[UP, UP], [UP, DOWN], [DOWN, UP], [DOWN, DOWN]]


def half_sums(x: Vector, w: Vector, order: Sequence[int], start: int) -> list[tuple[Floats, Floats]]:
    """Of the eight values from `start` on, for UP and DOWN: weighted sums of q * x and q * q at every split."""
    mine = [(w[i], x[i]) if start <= i < start + 8 else None for i in order]
    sum_x = prefix_sums([pair[0] * pair[1] if pair else F(0) for pair in mine])
    sum_w = prefix_sums([pair[0] if pair else F(0) for pair in mine])
    first, second = all_splits(16)
    sums = []
    for t in (UP, DOWN):
        sum_qx = sum_x[16] * t[2] - (sum_x[first] + sum_x[second])
        sum_q2 = sum_w[16] * t[2] * t[2]
        sum_q2 = sum_q2 + sum_w[first] * (t[0] * t[0] - t[1] * t[1]) + sum_w[second] * (t[1] * t[1] - t[2] * t[2])
        sums.append((sum_qx, sum_q2))
    return sums


def iq1_m_group(x: Vector, w: Vector) -> Group:
    nothing = Group(F(0), [UP, UP], [0] * 2)
    if max(abs(v) for v in x) < F(1e-7):
        return nothing
    order = sorted(range(16), key=lambda i: x[i])
    pairs = [(a, b) for a in half_sums(x, w, order, 0) for b in half_sums(x, w, order, 8)]
    found = best_of([a[0] + b[0] for a, b in pairs], [a[1] + b[1] for a, b in pairs])
    if found is None:
        return nothing
    split, choice, scale = found
    first, second = all_splits(16)
    levels = levels_of(order, first[split], second[split])
    return finish(x, w, levels, TABLES[choice], scale)


def refit(x: Vector, w: Vector, groups: Sequence[Group], codes: Sequence[int], d: np.float32) -> np.float32:
    """The d that suits the points and scale codes of all groups best."""
    q = []
    for group, code in zip(groups, codes, strict=True):
        for table, number in zip(group.tables, group.points, strict=True):
            q += [table[level] * F(2 * code + 1) for level in points("IQ1")[number]]
    sum_qx, sum_q2 = scale_sums(w, q, x)
    return sum_qx / sum_q2 if sum_q2 > 0 else d


def iq1_m(x: Vector, weights: Vector | None) -> bytes:
    w = [v * v for v in x] if weights is None else importance(x, weights, F(2) * squares(x) / F(256))
    groups = [iq1_m_group(x[g : g + 16], w[g : g + 16]) for g in range(0, 256, 16)]
    low = bytes(number & 255 for group in groups for number in group.points)
    high = [fields([number >> 8 for number in group.points], 4) for group in groups]
    d = max(group.scale for group in groups) / F(15)
    if d == 0:
        return low + bytes(high) + bytes(8)
    codes = scale_codes(groups, d)
    high = [bits | down_bits(group) for bits, group in zip(high, groups, strict=True)]
    stored = int.from_bytes(half(refit(x, w, groups, codes, d) * F(1.1125)), "little")
    words = [fields(codes[4 * k : 4 * k + 4], 3) | (stored >> 4 * k & 15) << 12 for k in range(4)]
    return low + bytes(high) + fields(words, 16).to_bytes(8, "little")


TWINS: dict[str, Twin] = {"IQ1_S": iq1_s, "IQ1_M": iq1_m}
