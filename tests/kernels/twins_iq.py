"""Twins (see twins.py) of the IQ2 and IQ3 formats, with their common search said once, and of the neighbours on a grid.

Only the errors of the neighbours of a part are worked out side by side, each summed in ggml's order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from twins import F, Twin, Vector, clip, fields, half, importance, make_qp, nearest_int, sequential_sum, squares

from surgeon_kernels.search.grids import CODEBOOKS

# How many of the smallest distinct distances make a point a neighbour.
RINGS = {"IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 1, "IQ3_XXS": 2, "IQ3_S": 3, "IQ1": 3}

Levels = tuple[int, ...]


@cache
def points(book: str) -> NDArray[np.int64]:
    """Levels of the points, in stored order."""
    return CODEBOOKS[book].points().astype(np.int64)


@cache
def numbers(book: str) -> dict[Levels, int]:
    """The point that levels are, where they are one."""
    return {tuple(levels): number for number, levels in enumerate(points(book).tolist())}


@cache
def neighbours(book: str, levels: Levels) -> NDArray[np.int64]:
    """Numbers of the points in the nearest rings around `levels`, by distance, then number."""
    distances = ((points(book) - np.array(levels)) ** 2).sum(1)
    rings = np.unique(distances)[: RINGS[book]]
    return np.concatenate([np.flatnonzero(distances == ring) for ring in rings])


def nearest_point(book: str, levels: Levels, values: Vector, x: Vector, w: Vector, scale: np.float32) -> int:
    """The neighbour with the smallest weighted error, the first of equals; level l stands for scale * values[l]."""
    near = neighbours(book, levels)
    q = np.array(values, F)[points(book)[near].T]
    error = np.zeros(len(near), F)
    for value, weight, q_ in zip(x, w, q, strict=True):
        difference = scale * q_ - value
        error = error + weight * difference * difference
    return int(near[np.argmin(error)])


@dataclass(frozen=True)
class Rules:
    """What differs between the formats.

    name: of the format and its codebook; group: values of one scale; length: values of one point; even_signs: the
    eighth of eight signs is not stored; zero: a group whose sizes are all below is stored as zeros; trials: how many
    scales above and below the middle one, `step` apart; refine: the parts to choose again with the final scale, those
    "off" the grid, "all" if one is off or no trial won, or "always" all; sigma: times the mean square, in the
    importance; fudge: times the d that is stored.
    """

    name: str
    group: int
    length: int
    levels: int
    even_signs: bool
    zero: float
    trials: int
    step: float
    refine: str
    sigma: int
    fudge: float


class Group(NamedTuple):
    """What a group stores, and whether it is live: not taken for zeros."""

    scale: np.float32
    points: list[int]
    signs: list[int]
    live: bool


def search(rules: Rules, x: Vector, w: Vector, size: np.float32, scale: np.float32) -> tuple[np.float32, list[int]]:
    """Scale and points of a group; a trial scale is what maps `size` to about the highest level.

    If no trial explains anything, they are the given scale and points 0.
    """
    values = [F(2 * level + 1) for level in range(rules.levels)]
    roots = [np.sqrt(weight) for weight in w]
    starts = range(0, rules.group, rules.length)

    def choose(start: int, inverse: np.float32, trial: np.float32) -> tuple[int, bool]:
        """A part's point and whether its levels were off the grid."""
        part = slice(start, start + rules.length)
        levels = tuple(clip(nearest_int(F(0.5) * (inverse * v - F(1))), 0, rules.levels - 1) for v in x[part])
        number = numbers(rules.name).get(levels)
        if number is not None:
            return number, False
        return nearest_point(rules.name, levels, values, x[part], roots[part], trial), True

    def fit(chosen: Sequence[int]) -> tuple[np.float32, np.float32]:
        q = [values[level] for level in points(rules.name)[list(chosen)].ravel()]
        sum_qx = sequential_sum([w_ * v * q_ for w_, v, q_ in zip(w, x, q, strict=True)])
        return sum_qx, sequential_sum([w_ * q_ * q_ for w_, q_ in zip(w, q, strict=True)])

    kept, off, best = [0 for _ in starts], [rules.refine == "all" for _ in starts], F(0)
    for step in range(-rules.trials, rules.trials + 1):
        inverse = (values[-1] + F(step) * F(rules.step)) / size
        choices = [choose(start, inverse, F(1) / inverse) for start in starts]
        sum_qx, sum_q2 = fit([number for number, _ in choices])
        if sum_q2 > 0 and sum_qx * sum_qx > best * sum_q2:
            scale = sum_qx / sum_q2
            best = scale * sum_qx
            kept, off = [number for number, _ in choices], [is_off for _, is_off in choices]
    if scale > 0 and (any(off) or rules.refine == "always"):
        for part, start in enumerate(starts):
            if off[part] or rules.refine != "off":
                kept[part], _ = choose(start, F(1) / scale, scale)
        sum_qx, sum_q2 = fit(kept)
        scale = sum_qx / sum_q2 if sum_q2 > 0 else scale
    return scale, kept


def split_signs(rules: Rules, x: Vector, w: Vector) -> tuple[list[np.float32], list[int]]:
    """Sizes and sign bytes; where signs must be even, the value that matters least may change its."""
    sizes, signs = [abs(v) for v in x], []
    for start in range(0, rules.group, 8):
        bits = [int(v < 0) for v in x[start : start + 8]]
        if rules.even_signs and sum(bits) % 2:
            least = min(range(8), key=lambda i: w[start + i] * x[start + i] * x[start + i])
            bits[least] ^= 1
            sizes[start + least] = -sizes[start + least]
        signs.append(fields(bits, 1) & (127 if rules.even_signs else 255))
    return sizes, signs


def first_fit(rules: Rules, sizes: Vector, w: Vector) -> tuple[np.float32, np.float32]:
    """What the trial scales divide, and the scale if no trial wins; the former is 0 for a group taken for zeros."""
    size = max(sizes)
    if size < F(rules.zero) or size == 0:
        return F(0), F(0)
    if rules.name != "IQ2_XXS":
        return size, size / F(2 * rules.levels - 1)
    scale, _ = make_qp(sizes, w, 4)
    return scale * F(3), scale


def quantize_group(rules: Rules, x: Vector, w: Vector) -> Group:
    sizes, signs = split_signs(rules, x, w)
    size, scale = first_fit(rules, sizes, w)
    if size <= 0:
        return Group(F(0), [0] * (rules.group // rules.length), [0] * len(signs), live=False)
    scale, chosen = search(rules, sizes, w, size, scale)
    if scale < 0:
        scale, signs = -scale, [bits ^ (127 if rules.even_signs else 255) for bits in signs]
    return Group(scale, chosen, signs, live=True)


def blend(rules: Rules, x: Vector, weights: Vector | None) -> list[np.float32]:
    """The weights of the squared errors of a superblock."""
    sigma2 = F(rules.sigma) * squares(x) / F(256)
    if weights is not None:
        return importance(x, weights, sigma2)
    return [F(0.25) * sigma2 + v * v if rules.name == "IQ2_S" else v * v for v in x]


def make_twin(rules: Rules, layout: Callable[[list[Group], list[int]], bytes]) -> Twin:
    """The twin of a format whose layout puts groups, and the codes of their scales, behind d."""

    def quantize(x: Vector, weights: Vector | None) -> bytes:
        w = blend(rules, x, weights)
        slices = [slice(g, g + rules.group) for g in range(0, 256, rules.group)]
        groups = [quantize_group(rules, x[s], w[s]) for s in slices]
        top = max(group.scale for group in groups)
        if top == 0:
            # ggml writes nothing then, except that it has already written the points and signs of IQ3_S.
            kept = layout(groups, [0] * len(groups))
            return bytes(2) + (kept if rules.name == "IQ3_S" else bytes(len(kept)))
        d = top / F(31)
        codes = [clip(nearest_int(F(0.5) * (F(1) / d * group.scale - F(1))), 0, 15) for group in groups]
        return half(d * F(rules.fudge)) + layout(groups, codes)

    return quantize


def joined(groups: Sequence[Group]) -> tuple[list[int], list[int]]:
    """The points of all groups, and their sign bytes."""
    return [k for group in groups for k in group.points], [bits for group in groups for bits in group.signs]


def signs_and_scale(group: Group, code: int) -> bytes:
    return (fields(group.signs, 7) | code << 28).to_bytes(4, "little")


def iq2_xxs(groups: list[Group], codes: list[int]) -> bytes:
    pairs = zip(groups, codes, strict=True)
    return b"".join(bytes(group.points) + signs_and_scale(group, code) for group, code in pairs)


def iq2_xs(groups: list[Group], codes: list[int]) -> bytes:
    words = [number | bits << 9 for number, bits in zip(*joined(groups), strict=True)]
    return fields(words, 16).to_bytes(64, "little") + fields(codes, 4).to_bytes(8, "little")


def iq2_s(groups: list[Group], codes: list[int]) -> bytes:
    chosen, signs = joined(groups)
    high = fields([number >> 8 for number in chosen], 2).to_bytes(8, "little")
    return bytes(number & 255 for number in chosen) + bytes(signs) + high + fields(codes, 4).to_bytes(8, "little")


def iq3_xxs(groups: list[Group], codes: list[int]) -> bytes:
    words = [signs_and_scale(group, code) for group, code in zip(groups, codes, strict=True)]
    return bytes(joined(groups)[0]) + b"".join(words)


def iq3_s(groups: list[Group], codes: list[int]) -> bytes:
    """ggml does not move on at a group of zeros: later low bits and signs come too early, high bits do not."""
    chosen, signs = joined([group for group in groups if group.live])
    low = bytes(number & 255 for number in chosen)
    high = fields([number >> 8 for number in joined(groups)[0]], 1).to_bytes(8, "little")
    return low.ljust(64, b"\0") + high + bytes(signs).ljust(32, b"\0") + fields(codes, 4).to_bytes(4, "little")


TWINS: dict[str, Twin] = {
    "IQ2_XXS": make_twin(
        Rules("IQ2_XXS", group=32, length=8, levels=3, even_signs=True, zero=1e-15, trials=6, step=0.1,
              refine="always", sigma=1, fudge=1), iq2_xxs),
    "IQ2_XS": make_twin(
        Rules("IQ2_XS", group=16, length=8, levels=3, even_signs=True, zero=1e-15, trials=9, step=0.1,
              refine="off", sigma=1, fudge=1), iq2_xs),
    "IQ2_S": make_twin(
        Rules("IQ2_S", group=16, length=8, levels=3, even_signs=False, zero=1e-8, trials=9, step=0.1,
              refine="off", sigma=2, fudge=0.9875), iq2_s),
    "IQ3_XXS": make_twin(
        Rules("IQ3_XXS", group=32, length=4, levels=8, even_signs=True, zero=1e-8, trials=15, step=0.2,
              refine="off", sigma=2, fudge=1.0125), iq3_xxs),
    "IQ3_S": make_twin(
        Rules("IQ3_S", group=32, length=4, levels=8, even_signs=False, zero=0, trials=9, step=0.2,
              refine="all", sigma=2, fudge=1.033), iq3_s),
}  # fmt: skip
