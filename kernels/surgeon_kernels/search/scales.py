"""The searches for scales and minima that ggml's formats share, over lanes: one sub-block per lane.

Each function states one of ggml's `make_*_quants` in its order of float32 operations. What ggml keeps as codes is kept
here as the inverse scale that produced them: the few callers that need codes compute them again from it, and the
search need not copy 32 codes for every better candidate.

`x` and `w` are slots: x[i] holds element i of all sixteen sub-blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compilation import helper, inlined
from ..dialect import Array, F
from ..lanes.arithmetic import (
    absolute,
    any_lane,
    int_splat,
    maximum,
    minimum,
    nearest,
    nearest_int,
    nearest_within,
    select,
    slots,
    splat,
    to_float,
    to_int,
)

_ZERO = F(0)
_ONE = F(1)
TINY = F(1e-15)  # ggml's GROUP_MAX_EPS: a group this small is zero
_SAFE = F(4.0e6)  # below 2**22 the quick rounding is exact


@helper
def wrapped_code(v: Any, nmax: Any) -> Any:
    """`v` rounded by ggml's nearest_int, which wraps beyond 2**22, then cut to 0 .. nmax; as f32."""
    return minimum(maximum(to_float(nearest_int(v)), splat(_ZERO)), splat(nmax))


@helper
def cut_code(v: Any, nmax: Any) -> Any:
    """`v` cut to 0 .. nmax (NaN to 0), then rounded; as f32."""
    return nearest(minimum(maximum(v, splat(_ZERO)), splat(nmax)))


@helper
def kept_code(v: Any, iscale: Any, nmax: Any, wraps: bool) -> Any:
    """The code that `make_qkx` found for a weight with v = iscale * (x - low), as f32.

    An infinite iscale is that of the first attempt, which wraps in both of ggml's variants.
    """
    if wraps or iscale == np.inf:
        return wrapped_code(v, nmax)
    return cut_code(v, nmax)


@helper
def _is_wild(iscale: Any, lowest: Any, highest: Any, low: Any) -> Any:
    """Whether iscale * (x - low) leaves the exact range of `nearest` for any x in lowest .. highest."""
    reach = maximum(absolute(iscale * (highest - low)), absolute(iscale * (lowest - low)))
    return any_lane(~(reach < splat(_SAFE)))  # also where it is NaN


@helper
def _affine_error(x: Array, w: Any, codes: Any, n: int, scale: Any, low: Any, mad: Any) -> Any:
    """Weighted sum over the group of (scale * code + low - x) squared, or of its absolute value (`mad`)."""
    error = splat(_ZERO)
    if mad:
        for i in range(n):
            error = error + w[i] * absolute(scale * codes[i] + low - x[i])
    else:
        for i in range(n):
            difference = scale * codes[i] + low - x[i]
            error = error + w[i] * (difference * difference)
    return error


@helper
def _affine_codes(x: Array, codes: Any, n: int, nmax: Any, iscale: Any, low: Any, wraps: bool) -> None:
    """Codes where iscale * (x - low) may be anything."""
    for i in range(n):
        v = iscale * (x[i] - low)
        codes[i] = wrapped_code(v, nmax) if wraps else cut_code(v, nmax)


@helper
def _affine_sums(x: Array, w: Any, codes: Any, n: int, nmax: Any, iscale: Any, low: Any, known: bool) -> Any:
    """Fill `codes`, unless they are `known`, and return the sums of w * code, w * code**2 and w * code * x."""
    sum_l = splat(_ZERO)
    sum_l2 = splat(_ZERO)
    sum_xl = splat(_ZERO)
    for i in range(n):
        value = x[i]
        q = codes[i] if known else nearest_within(iscale * (value - low), _ZERO, nmax)
        codes[i] = q
        wq = w[i] * q
        sum_l = sum_l + wq
        sum_l2 = sum_l2 + wq * q
        sum_xl = sum_xl + wq * value
    return sum_l, sum_l2, sum_xl


@helper
def make_qkx(x: Array, w: Any, n: int, nmax: Any, rmin: Any, rdelta: Any, steps: int, mad: Any, wraps: bool) -> Any:
    """x ~ scale * code - themin with codes 0 .. nmax: ggml's make_qkx2_quants (`wraps`) and make_qkx3_quants.

    Tries steps + 1 inverse scales (rmin + rdelta * step + nmax) / range, fits scale and minimum to the codes of each
    by least squares, and keeps the best. Returns (scale, themin, iscale, low); `kept_code` restores the codes.
    The two variants differ in what they make of a value too large to round.
    """
    low = x[0]
    highest = x[0]
    sum_w = w[0]
    sum_x = sum_w * x[0]
    for i in range(1, n):
        low = minimum(x[i], low)
        highest = maximum(x[i], highest)
        sum_w = sum_w + w[i]
        sum_x = sum_x + w[i] * x[i]
    lowest = low
    low = select(low > _ZERO, splat(_ZERO), low)  # keeps the sign of -0.0
    active = highest > low
    scale = splat(_ZERO)
    best = splat(_ZERO)
    best_iscale = splat(_ZERO)
    best_low = low
    codes = slots(32)
    for step in range(-1, steps + 1):  # -1: the whole range, without a fit
        reach = rmin + rdelta * F(step) + nmax if step >= 0 else nmax
        iscale = select(active, splat(reach) / (highest - low), splat(_ZERO))
        wild = _is_wild(iscale, lowest, highest, low)
        if wild:
            _affine_codes(x, codes, n, nmax, iscale, low, wraps or step < 0)
        sum_l, sum_l2, sum_xl = _affine_sums(x, w, codes, n, nmax, iscale, low, wild)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        better = active & (determinant > _ZERO)
        this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        this_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        above = this_low > _ZERO
        this_scale = select(above, sum_xl / sum_l2, this_scale)
        this_low = select(above, splat(_ZERO), this_low)
        if step < 0:
            better = active
            this_scale = splat(_ONE) / iscale
            this_low = low
        error = _affine_error(x, w, codes, n, this_scale, this_low, mad)
        if step >= 0:
            better = better & (error < best)
        if any_lane(better):
            best = select(better, error, best)
            scale = select(better, this_scale, scale)
            best_iscale = select(better, iscale, best_iscale)
            best_low = select(better, low, best_low)
            low = select(better, this_low, low)
    return scale, -low, best_iscale, best_low


@helper
def make_qp(x: Array, w: Any, n: int, nmax: int, codes: Any) -> Any:
    """x ~ scale * code with codes 0 .. nmax for values that are mostly positive (ggml's make_qp_quants).

    Returns scale; `codes` are int slots. ggml stores codes as bytes, so that a negative one wraps around: it does here.
    """
    top = F(nmax)
    highest = splat(_ZERO)
    for i in range(n):
        highest = maximum(highest, x[i])
    active = ~(highest < TINY)
    iscale = select(active, top / highest, splat(_ZERO))
    scale = splat(_ONE) / iscale
    best = splat(_ZERO)
    for i in range(n):
        q = nearest_int(iscale * x[i]) & 255
        difference = x[i] - scale * to_float(q)
        best = best + w[i] * difference * difference
    for step in range(-4, 5):
        if step != 0:
            this_iscale = (F(0.1) * F(step) + top) / highest
            error = _qp_error(x, w, n, nmax, this_iscale)
            better = error < best
            best = select(better, error, best)
            iscale = select(better & active, this_iscale, iscale)
    sum_lx = splat(_ZERO)
    sum_l2 = splat(_ZERO)
    for i in range(n):
        q = minimum(nearest_int(iscale * x[i]), int_splat(nmax))
        codes[i] = select(active, q & 255, int_splat(0))
        wq = w[i] * to_float(q)
        sum_lx = sum_lx + w[i] * x[i] * to_float(q)
        sum_l2 = sum_l2 + wq * to_float(q)
    sum_lx, sum_l2 = _qp_sweeps(x, w, n, nmax, codes, active, sum_lx, sum_l2)
    return select(active & (sum_l2 > _ZERO), sum_lx / sum_l2, splat(_ZERO))


@helper
def _qp_error(x: Array, w: Any, n: int, nmax: int, iscale: Any) -> Any:
    """Weighted squared error of the codes that `iscale` gives; here ggml does not wrap negative codes."""
    scale = splat(_ONE) / iscale
    error = splat(_ZERO)
    for i in range(n):
        q = minimum(nearest_int(iscale * x[i]), int_splat(nmax))
        difference = x[i] - scale * to_float(q)
        error = error + w[i] * difference * difference
    return error


@helper
def _qp_sweeps(x: Array, w: Any, n: int, nmax: int, codes: Any, active: Any, sum_lx: Any, sum_l2: Any) -> Any:
    """Move one code at a time to where the others' best scale puts it, while that improves the fit."""
    for _ in range(5):
        changed = active & ~active
        for i in range(n):
            old = codes[i]
            q = to_float(old)
            slx = sum_lx - w[i] * x[i] * q
            sl2 = sum_l2 - w[i] * q * q
            new = minimum(nearest_int(x[i] * sl2 / slx), int_splat(nmax))
            moved = active & (slx > _ZERO) & (sl2 > _ZERO) & (new != old)
            q = to_float(new)
            slx = slx + w[i] * x[i] * q
            sl2 = sl2 + w[i] * q * q
            moved = moved & (slx * slx * sum_l2 > sum_lx * sum_lx * sl2)
            codes[i] = select(moved, new & 255, old)
            sum_lx = select(moved, slx, sum_lx)
            sum_l2 = select(moved, sl2, sum_l2)
            changed = changed | moved
        if not any_lane(changed):
            break
    return sum_lx, sum_l2


@helper
def largest_signed(x: Array, n: int) -> tuple[Any, Any]:
    """The value of largest magnitude with its sign, the first of several, and its magnitude."""
    top = splat(_ZERO)
    size = splat(_ZERO)
    for i in range(n):
        magnitude = absolute(x[i])
        top = select(size < magnitude, x[i], top)
        size = maximum(magnitude, size)
    return top, size


@helper
def signed_code(v: Any, nmax: Any) -> Any:
    """Rounded `v` within -nmax .. nmax - 1, as f32."""
    return nearest_within(v, -nmax, nmax - _ONE)


@inlined
def _symmetric_sums(x: Array, w: Any, wx: Any, n: int, nmax: Any, iscale: Any) -> Any:
    """Sums of w * x * code and w * code**2 for the codes of an inverse scale."""
    sum_lx = splat(_ZERO)
    sum_l2 = splat(_ZERO)
    for i in range(n):
        q = signed_code(iscale * x[i], nmax)
        sum_lx = sum_lx + wx[i] * q
        sum_l2 = sum_l2 + w[i] * q * q
    return sum_lx, sum_l2


@inlined
def _take_better(sum_lx: Any, sum_l2: Any, iscale: Any, active: Any, kept: Any) -> Any:
    """Replace (scale, best, iscale) in the lanes where the candidate's fit is better."""
    scale, best, best_iscale = kept
    better = active & (sum_l2 > _ZERO) & (sum_lx * sum_lx > best * sum_l2)
    this_scale = sum_lx / sum_l2
    return (
        select(better, this_scale, scale),
        select(better, this_scale * sum_lx, best),
        select(better, iscale, best_iscale),
    )


@helper
def _inverse_scale(top: Any, nmax: Any, step: int) -> Any:
    return splat(-(nmax + F(0.1) * F(step))) / top


@helper
def make_qx(x: Array, w: Any, n: int, nmax: Any) -> tuple[Any, Any]:
    """x ~ scale * code with codes -nmax .. nmax - 1 (ggml's make_qx_quants, error type 1); n <= 32.

    Tries nineteen inverse scales around -nmax / (value of largest magnitude) and keeps the best least-squares fit.
    Returns (scale, iscale): code i is round(iscale * x[i]); both are 0 in lanes whose values are all (nearly) zero.
    """
    wx = slots(32)
    for i in range(n):
        wx[i] = w[i] * x[i]
    top, size = largest_signed(x, n)
    active = ~(size < TINY)
    iscale = select(active, splat(-nmax) / top, splat(_ZERO))
    # The first fit is a candidate of its own (it is kept even where it explains nothing), then -9 .. 9 without 0.
    sum_lx, sum_l2 = _symmetric_sums(x, w, wx, n, nmax, iscale)
    scale = select(sum_l2 != _ZERO, sum_lx / sum_l2, splat(_ZERO))
    kept = (scale, scale * sum_lx, iscale)
    for step in range(-9, 10):
        if step != 0:
            iscale = _inverse_scale(top, nmax, step)
            sum_lx, sum_l2 = _symmetric_sums(x, w, wx, n, nmax, iscale)
            kept = _take_better(sum_lx, sum_l2, iscale, active, kept)
    return select(active, kept[0], splat(_ZERO)), kept[2]


@helper
def fill_dead_lanes(x: Array, w: Any, n: int, compat: bool) -> None:
    """Weigh by x**2, as without an importance matrix, where the weights of a whole sub-block are zero."""
    if compat:
        return
    highest = w[0]
    for i in range(1, n):
        highest = maximum(w[i], highest)
    dead = highest == _ZERO
    if any_lane(dead):
        for i in range(n):
            w[i] = select(dead, x[i] * x[i], w[i])


@helper
def make_q3(x: Array, n: int, nmax: Any, codes: Any) -> Any:
    """x ~ scale * (code - nmax), errors weighed by x**2 (ggml's make_q3_quants); fills int slots, returns scale.

    Starts from the inverse scale -nmax / (value of largest magnitude), then moves one code at a time while the fit
    improves. Lanes whose values are all (nearly) zero get codes 0 and scale 0.
    """
    top, size = largest_signed(x, n)
    active = ~(size < TINY)
    iscale = select(active, splat(-nmax) / top, splat(_ZERO))
    sum_lx = splat(_ZERO)
    sum_l2 = splat(_ZERO)
    for i in range(n):
        q = signed_code(iscale * x[i], nmax)
        codes[i] = to_int(q)
        w = x[i] * x[i]
        sum_lx = sum_lx + w * x[i] * q
        sum_l2 = sum_l2 + w * q * q
    sum_lx, sum_l2 = _q3_sweeps(x, n, nmax, codes, active, sum_lx, sum_l2)
    offset = select(active, int_splat(np.int32(nmax)), int_splat(0))
    for i in range(n):
        codes[i] = codes[i] + offset
    return select(active & (sum_l2 > _ZERO), sum_lx / sum_l2, splat(_ZERO))


@helper
def _q3_sweeps(x: Array, n: int, nmax: Any, codes: Any, active: Any, sum_lx: Any, sum_l2: Any) -> tuple[Any, Any]:
    lowest, highest = int_splat(np.int32(-nmax)), int_splat(np.int32(nmax) - 1)
    for _ in range(5):
        changed = active & ~active
        for i in range(n):
            w = x[i] * x[i]
            wx = w * x[i]
            old = codes[i]
            q = to_float(old)
            slx = sum_lx - wx * q
            sl2 = sum_l2 - w * q * q
            new = maximum(minimum(nearest_int(x[i] * sl2 / slx), highest), lowest)
            moved = active & (slx > _ZERO) & (new != old)
            q = to_float(new)
            slx = slx + wx * q
            sl2 = sl2 + w * q * q
            moved = moved & (sl2 > _ZERO) & (slx * slx * sum_l2 > sum_lx * sum_lx * sl2)
            codes[i] = select(moved, new, old)
            sum_lx = select(moved, slx, sum_lx)
            sum_l2 = select(moved, sl2, sum_l2)
            changed = changed | moved
        if not any_lane(changed):
            break
    return sum_lx, sum_l2
