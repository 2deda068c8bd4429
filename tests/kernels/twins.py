"""The quantizers of the 32-blocks and the K-quants said again, one element at a time, with nothing clever.

numpy float32 scalars do the arithmetic, so every operation rounds as in C. A twin takes one row of one superblock (or
block) and its importance or None, and returns the block's bytes as ggml would write them. The other formats are in
twins_small.py, twins_iq4.py, twins_iq.py and twins_iq1.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import numpy as np

F = np.float32
Vector = Sequence[np.float32]
TINY = F(1e-15)
ONE_AND_A_HALF_2_TO_23 = F(12582912)


def half(value: np.float32) -> bytes:
    return struct.pack("<H", int(np.float16(value).view(np.uint16)))


def stored(value: np.float32) -> np.float32:
    return F(np.float16(value))


def nearest_int(value: np.float32) -> int:
    return (int((value + ONE_AND_A_HALF_2_TO_23).view(np.uint32)) & 0x7FFFFF) - 0x400000


def round_away(value: np.float32) -> int:
    """C's roundf: halves away from zero."""
    whole = int(value)
    if abs(value - F(whole)) < F(0.5):
        return whole
    return whole + 1 if value > 0 else whole - 1


def clip(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


def sequential_sum(terms: Sequence[np.float32]) -> np.float32:
    total = F(0)
    for term in terms:
        total = total + term
    return total


def scale_sums(w: Vector, q: Vector, x: Vector) -> tuple[np.float32, np.float32]:
    """Sums of w * q * x and w * q * q: their quotient is the scale with which q is nearest to x."""
    sum_qx = sequential_sum([w_ * q_ * v for w_, q_, v in zip(w, q, x, strict=True)])
    return sum_qx, sequential_sum([w_ * q_ * q_ for w_, q_ in zip(w, q, strict=True)])


def largest_signed(x: Vector) -> np.float32:
    best = F(0)
    for value in x:
        if abs(value) > abs(best):
            best = value
    return best


def make_qx(x: Vector, w: Vector, nmax: int) -> tuple[np.float32, list[int]]:
    top = largest_signed(x)
    if abs(top) < TINY:
        return F(0), [0] * len(x)

    def attempt(step: float) -> tuple[list[int], np.float32, np.float32]:
        iscale = -(F(nmax) + F(0.1) * F(step)) / top
        codes = [clip(nearest_int(iscale * v), -nmax, nmax - 1) for v in x]
        sum_lx = sequential_sum([w_ * v * F(q) for w_, v, q in zip(w, x, codes, strict=True)])
        return codes, sum_lx, sequential_sum([w_ * F(q) * F(q) for w_, q in zip(w, codes, strict=True)])

    kept, sum_lx, sum_l2 = attempt(0)
    scale = sum_lx / sum_l2 if sum_l2 != 0 else F(0)
    best = scale * sum_lx
    for step in (*range(-9, 0), *range(1, 10)):
        codes, sum_lx, sum_l2 = attempt(step)
        if sum_l2 > 0 and sum_lx * sum_lx > best * sum_l2:
            kept, scale = codes, sum_lx / sum_l2
            best = scale * sum_lx
    return scale, [q + nmax for q in kept]


def make_qp(x: Vector, w: Vector, nmax: int) -> tuple[np.float32, list[int]]:
    top = max([F(0), *x])
    if top < TINY:
        return F(0), [0] * len(x)
    iscale = F(nmax) / top
    scale = F(1) / iscale
    best = F(0)
    for value, weight in zip(x, w, strict=True):
        difference = value - scale * F(nearest_int(iscale * value) & 255)
        best = best + weight * difference * difference
    for step in (-4, -3, -2, -1, 1, 2, 3, 4):
        trial = (F(0.1) * F(step) + F(nmax)) / top
        scale = F(1) / trial
        error = F(0)
        for value, weight in zip(x, w, strict=True):
            difference = value - scale * F(min(nmax, nearest_int(trial * value)))
            error = error + weight * difference * difference
        if error < best:
            best, iscale = error, trial
    codes, sum_lx, sum_l2 = [], F(0), F(0)
    for value, weight in zip(x, w, strict=True):
        q = min(nmax, nearest_int(iscale * value))
        codes.append(q & 255)
        sum_lx = sum_lx + weight * value * F(q)
        sum_l2 = sum_l2 + weight * F(q) * F(q)
    for _ in range(5):
        changed = False
        for i, (value, weight) in enumerate(zip(x, w, strict=True)):
            slx = sum_lx - weight * value * F(codes[i])
            sl2 = sum_l2 - weight * F(codes[i]) * F(codes[i])
            if not (slx > 0 and sl2 > 0):
                continue
            new = min(nmax, nearest_int(value * sl2 / slx))
            if new == codes[i]:
                continue
            slx = slx + weight * value * F(new)
            sl2 = sl2 + weight * F(new) * F(new)
            if slx * slx * sum_l2 > sum_lx * sum_lx * sl2:
                codes[i], sum_lx, sum_l2, changed = new & 255, slx, sl2, True
        if not changed:
            break
    return (sum_lx / sum_l2 if sum_l2 > 0 else F(0)), codes


def make_q3(x: Vector) -> tuple[np.float32, list[int]]:
    top = largest_signed(x)
    if abs(top) < TINY:
        return F(0), [0] * len(x)
    codes, sum_lx, sum_l2 = [], F(0), F(0)
    for value in x:
        q = clip(nearest_int(F(-4) / top * value), -4, 3)
        codes.append(q)
        sum_lx = sum_lx + value * value * value * F(q)
        sum_l2 = sum_l2 + value * value * F(q) * F(q)
    for _ in range(5):
        changed = False
        for i, value in enumerate(x):
            w = value * value
            slx = sum_lx - w * value * F(codes[i])
            if not slx > 0:
                continue
            sl2 = sum_l2 - w * F(codes[i]) * F(codes[i])
            new = clip(nearest_int(value * sl2 / slx), -4, 3)
            if new == codes[i]:
                continue
            slx = slx + w * value * F(new)
            sl2 = sl2 + w * F(new) * F(new)
            if sl2 > 0 and slx * slx * sum_l2 > sum_lx * sum_lx * sl2:
                codes[i], sum_lx, sum_l2, changed = new, slx, sl2, True
        if not changed:
            break
    return (sum_lx / sum_l2 if sum_l2 > 0 else F(0)), [q + 4 for q in codes]


def make_qkx(
    x: Vector, w: Vector, nmax: int, rmin: float, rdelta: float, steps: int, *, mad: bool = False, wraps: bool = False
) -> tuple[np.float32, np.float32, list[int]]:
    low, top = min(x), max(x)
    sum_w = sequential_sum(w)
    sum_x = sequential_sum([w_ * v for w_, v in zip(w, x, strict=True)])
    low = F(0) if low > 0 else low
    if top <= low:
        return F(0), -low, [0] * len(x)

    def codes_of(iscale: np.float32, wraps: bool) -> list[int]:
        values = [iscale * (v - low) for v in x]
        if wraps:
            return [clip(nearest_int(v), 0, nmax) for v in values]
        return [nearest_int(min(v, F(nmax))) if v > 0 else 0 for v in values]

    def error_of(codes: list[int], scale: np.float32, offset: np.float32) -> np.float32:
        error = F(0)
        for value, weight, q in zip(x, w, codes, strict=True):
            difference = scale * F(q) + offset - value
            error = error + weight * (abs(difference) if mad else difference * difference)
        return error

    iscale = F(nmax) / (top - low)
    scale, kept = F(1) / iscale, codes_of(iscale, True)
    best = error_of(kept, scale, low)
    for step in range(steps + 1):
        codes = codes_of((F(rmin) + F(rdelta) * F(step) + F(nmax)) / (top - low), wraps)
        triples = list(zip(w, x, codes, strict=True))
        sum_l = sequential_sum([w_ * F(q) for w_, _, q in triples])
        sum_l2 = sequential_sum([w_ * F(q) * F(q) for w_, _, q in triples])
        sum_xl = sequential_sum([w_ * F(q) * v for w_, v, q in triples])
        determinant = sum_w * sum_l2 - sum_l * sum_l
        if not determinant > 0:
            continue
        this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        this_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        if this_low > 0:
            this_scale, this_low = sum_xl / sum_l2, F(0)
        error = error_of(codes, this_scale, this_low)
        if error < best:
            best, kept, scale, low = error, codes, this_scale, this_low
    return scale, -low, kept


def squares(x: Vector) -> np.float32:
    return sequential_sum([v * v for v in x])


def importance(x: Vector, weights: Vector, sigma2: np.float32) -> list[np.float32]:
    return [qw * np.sqrt(sigma2 + v * v) for qw, v in zip(weights, x, strict=True)]


def fields(codes: Sequence[int], bits: int) -> int:
    """Codes of `bits` bits beside each other, the first lowest."""
    return sum(code << bits * k for k, code in enumerate(codes))


def nibbles(codes: Sequence[int]) -> bytes:
    return bytes(codes[j] & 15 | (codes[j + 16] & 15) << 4 for j in range(16))


def fifth_bits(codes: Sequence[int]) -> bytes:
    return sum((q >> 4 & 1) << k for k, q in enumerate(codes)).to_bytes(4, "little")


def symmetric(x: Vector, weights: Vector | None, nmax: int) -> tuple[bytes, list[int]]:
    if weights is not None:
        scale, codes = make_qx(x, importance(x, weights, squares(x) / F(len(x))), nmax)
        return half(scale), codes
    d = largest_signed(x) / F(-nmax)
    inverse = F(1) / d if d != 0 else F(0)
    return half(d), [min(2 * nmax - 1, int(v * inverse + F(nmax + 0.5))) for v in x]


def affine(x: Vector, weights: Vector | None, nmax: int) -> tuple[bytes, list[int]]:
    if weights is not None:
        sigma2 = squares(x) / F(len(x))
        scale, themin, codes = make_qkx(x, importance(x, weights, sigma2), nmax, -0.9, 0.05, 36)
        return half(scale) + half(-themin), codes
    low, d = min(x), (max(x) - min(x)) / F(nmax)
    inverse = F(1) / d if d != 0 else F(0)
    return half(d) + half(low), [min(nmax, int((v - low) * inverse + F(0.5))) for v in x]


def q4_0(x: Vector, weights: Vector | None) -> bytes:
    head, codes = symmetric(x, weights, 8)
    return head + nibbles(codes)


def q5_0(x: Vector, weights: Vector | None) -> bytes:
    head, codes = symmetric(x, weights, 16)
    return head + fifth_bits(codes) + nibbles(codes)


def q4_1(x: Vector, weights: Vector | None) -> bytes:
    head, codes = affine(x, weights, 15)
    return head + nibbles(codes)


def q5_1(x: Vector, weights: Vector | None) -> bytes:
    head, codes = affine(x, weights, 31)
    return head + fifth_bits(codes) + nibbles(codes)


def q8_0(x: Vector, weights: Vector | None) -> bytes:
    d = max(abs(v) for v in x) / F(127)
    inverse = F(1) / d if d != 0 else F(0)
    return half(d) + bytes(round_away(v * inverse) & 255 for v in x)


def two_bits(codes: Sequence[int]) -> bytes:
    return bytes(sum((codes[128 * c + 32 * k + j] & 3) << 2 * k for k in range(4)) for c in range(2) for j in range(32))


def q2_k(x: Vector, weights: Vector | None) -> bytes:
    groups = [list(x[g : g + 16]) for g in range(0, 256, 16)]
    if weights is None:
        fits = [make_qkx(g, [abs(v) for v in g], 3, -0.5, 0.1, 15, mad=True, wraps=True) for g in groups]
        steps, sixteen = [], []
        for which in (0, 1):
            top = max([F(0)] + [fit[which] for fit in fits])
            steps.append(top / F(15) if top > 0 else F(0))
            sixteen.append([nearest_int(F(15) / top * fit[which]) & 255 if top > 0 else 0 for fit in fits])
    else:
        w = importance(x, weights, squares(x) / F(256))
        slices = [w[g : g + 16] for g in range(0, 256, 16)]
        fits = [make_qkx(g, s, 3, -0.9, 0.05, 36) for g, s in zip(groups, slices, strict=True)]
        sums = [sequential_sum(s) for s in slices]
        (d, scales), (dmin, mins) = (make_qp([fit[which] for fit in fits], sums, 15) for which in (0, 1))
        steps, sixteen = [d, dmin], [scales, mins]
    packed = [(s | m << 4) & 255 for s, m in zip(*sixteen, strict=True)]
    codes: list[int] = []
    for group, fit, byte in zip(groups, fits, packed, strict=True):
        step, low = stored(steps[0]) * F(byte & 15), stored(steps[1]) * F(byte >> 4)
        codes += fit[2] if step == 0 else [clip(nearest_int((v + low) / step), 0, 3) for v in group]
    return bytes(packed) + two_bits(codes) + half(steps[0]) + half(steps[1])


def q3_k(x: Vector, weights: Vector | None) -> bytes:
    groups = [list(x[g : g + 16]) for g in range(0, 256, 16)]
    if weights is None:
        fits = [make_q3(g) for g in groups]
        top = largest_signed([fit[0] for fit in fits])
        d, scales = F(0), [0] * 16
        if top != 0:
            inverse = F(-32) / top
            d = F(1) / inverse
            scales = [clip((nearest_int(inverse * fit[0]) + 128) % 256 - 128, -32, 31) + 32 for fit in fits]
    else:
        w = importance(x, weights, F(2) * squares(x) / F(256))
        slices = [w[g : g + 16] for g in range(0, 256, 16)]
        fits = [make_qx(g, s, 4) for g, s in zip(groups, slices, strict=True)]
        d, scales = make_qx([fit[0] for fit in fits], [sequential_sum(s) for s in slices], 32)
    codes: list[int] = []
    for group, fit, scale in zip(groups, fits, scales, strict=True):
        step = stored(d) * F(scale - 32)
        codes += fit[1] if step == 0 else [clip(nearest_int(v / step), -4, 3) + 4 for v in group]
    mask = bytes(sum((codes[32 * g + j] > 3) << g for g in range(8)) for j in range(32))
    low = [scales[j] & 15 | (scales[j + 8] & 15) << 4 for j in range(8)]
    high = [sum((scales[j + 4 * k] >> 4) << 2 * k for k in range(4)) for j in range(4)]
    return mask + two_bits(codes) + bytes(low + high) + half(d)


def _min_superblock(
    x: Vector, weights: Vector | None, nmax: int, plain: tuple[float, float, int]
) -> tuple[bytes, list[int]]:
    groups = [list(x[g : g + 32]) for g in range(0, 256, 32)]
    if weights is None:
        fits = []
        for group in groups:
            deviation = np.sqrt(squares(group) / F(32))
            fits.append(make_qkx(group, [deviation + abs(v) for v in group], nmax, *plain, wraps=True))
        steps, eights = [], []
        for which in (0, 1):
            top = max([F(0)] + [fit[which] for fit in fits])
            inverse = F(63) / top if top > 0 else F(0)
            steps.append(top / F(63))
            eights.append([min(63, nearest_int(inverse * fit[which]) & 255) for fit in fits])
    else:
        w = importance(x, weights, F(2) * squares(x) / F(256))
        slices = [w[g : g + 32] for g in range(0, 256, 32)]
        fits = [make_qkx(g, s, nmax, -0.9, 0.05, 36) for g, s in zip(groups, slices, strict=True)]
        sums = [sequential_sum(s) for s in slices]
        (d, scales), (dmin, mins) = (make_qp([fit[which] for fit in fits], sums, 63) for which in (0, 1))
        if nmax == 31:
            scales, mins = ([min(63, code) for code in codes_] for codes_ in (scales, mins))
        steps, eights = [d, dmin], [scales, mins]
    scales, mins = eights
    packed = [scales[j] | scales[j + 4] >> 4 << 6 for j in range(4)]
    packed += [mins[j] | mins[j + 4] >> 4 << 6 for j in range(4)]
    packed += [scales[j] & 15 | (mins[j] & 15) << 4 for j in range(4, 8)]
    packed = [value & 255 for value in packed]
    kept_scales = [packed[j] & 63 for j in range(4)] + [packed[8 + j] & 15 | packed[j] >> 6 << 4 for j in range(4)]
    kept_mins = [packed[4 + j] & 63 for j in range(4)]
    kept_mins += [packed[8 + j] >> 4 | packed[4 + j] >> 6 << 4 for j in range(4)]
    codes: list[int] = []
    for group, fit, scale, low in zip(groups, fits, kept_scales, kept_mins, strict=True):
        step, offset = stored(steps[0]) * F(scale), stored(steps[1]) * F(low)
        codes += fit[2] if step == 0 else [clip(nearest_int((v + offset) / step), 0, nmax) for v in group]
    return half(steps[0]) + half(steps[1]) + bytes(packed), codes


def _four_bits(codes: Sequence[int]) -> bytes:
    return bytes(codes[64 * c + j] & 15 | (codes[64 * c + 32 + j] & 15) << 4 for c in range(4) for j in range(32))


def q4_k(x: Vector, weights: Vector | None) -> bytes:
    head, codes = _min_superblock(x, weights, 15, (-1.0, 0.1, 20))
    return head + _four_bits(codes)


def q5_k(x: Vector, weights: Vector | None) -> bytes:
    head, codes = _min_superblock(x, weights, 31, (-0.5, 0.1, 15))
    upper = bytes(sum((codes[32 * g + j] >> 4) << g for g in range(8)) for j in range(32))
    return head + upper + _four_bits(codes)


def q6_k(x: Vector, weights: Vector | None) -> bytes:
    w = [v * v for v in x] if weights is None else list(weights)
    groups = [list(x[g : g + 16]) for g in range(0, 256, 16)]
    fits = [make_qx(group, w[16 * g : 16 * g + 16], 32) for g, group in enumerate(groups)]
    top = largest_signed([fit[0] for fit in fits])
    if abs(top) < TINY:
        return bytes(210)
    inverse = F(-128) / top
    d = F(1) / inverse
    scales = [min(127, nearest_int(inverse * fit[0])) for fit in fits]
    q: list[int] = []
    for group, fit, scale in zip(groups, fits, scales, strict=True):
        step = stored(d) * F(scale)
        q += fit[1] if step == 0 else [clip(nearest_int(v / step), -32, 31) + 32 for v in group]
    low = bytearray()
    for c in (0, 128):
        low += bytes(q[c + j] & 15 | (q[c + 64 + j] & 15) << 4 for j in range(64))
    high = bytes(sum((q[c + 32 * k + j] >> 4) << 2 * k for k in range(4)) for c in (0, 128) for j in range(32))
    return bytes(low) + high + bytes(scale & 255 for scale in scales) + half(d)


Twin = Callable[[Vector, Vector | None], bytes]
TWINS: dict[str, Twin] = {
    "Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "Q8_0": q8_0,
    "Q2_K": q2_k, "Q3_K": q3_k, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k,
}  # fmt: skip
