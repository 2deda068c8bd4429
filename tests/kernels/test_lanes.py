"""The lane types: one IEEE operation per lane, the same on every processor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from surgeon_kernels.lanes import arithmetic as ln

_F = np.float32


@njit(error_model="numpy")
def _floats(a: Any, b: Any, out: Any) -> None:
    x, y = ln.load_f32(a, 0), ln.load_f32(b, 0)
    results = (
        x + y, x - y, x * y, x / y, -x, ln.absolute(x), ln.minimum(x, y), ln.maximum(x, y), ln.nearest(x),
        ln.select(x < y, x, y), ln.floor(x), ln.square_root(ln.absolute(y)), x * _F(3), _F(1) / x,
    )  # fmt: skip
    for i, result in enumerate(results):
        ln.store_f32(out, 16 * i, result)


def test_float_operations() -> None:
    rng = np.random.default_rng(0)
    for scale in (1.0, 1e-30, 1e30):
        a = (rng.standard_normal(16) * scale).astype(_F)
        b = (rng.standard_normal(16) * 2).astype(_F)
        a[3], b[4], a[5], b[5] = -0.0, 0.0, 2.5, 2.5
        out = np.empty((14, 16), _F)
        with np.errstate(all="ignore"):
            _floats(a, b, out.reshape(-1))
            nearest = a + _F(12582912) - _F(12582912)
            expected = [a + b, a - b, a * b, a / b, -a, abs(a), np.where(a < b, a, b), np.where(a > b, a, b), nearest,
                        np.where(a < b, a, b), np.floor(a), np.sqrt(abs(b)), a * _F(3), _F(1) / a]  # fmt: skip
        for i, row in enumerate(expected):
            assert out[i].tobytes() == row.tobytes(), i


@njit(error_model="numpy")
def _integers(a: Any, out: Any) -> None:
    x = ln.load_f32(a, 0)
    n = ln.to_int(x)
    results = (
        n, n + 3, n - 3, n * 5, n & 15, n | 16, n ^ 255, n << 2, n >> 2, ~n, -n, ln.nearest_int(x), ln.bits(x),
        ln.minimum(n, ln.int_splat(7)), ln.select(n > 0, n, ln.int_splat(-1)), ln.lane_numbers(),
        ln.look_up(ln.lane_numbers() * 3, n & 15), ln.with_lane(n, 5, 99),
    )  # fmt: skip
    for i, result in enumerate(results):
        ln.store_i32(out, 16 * i, result)
    out[len(results) * 16] = ln.largest(n)
    out[len(results) * 16 + 1] = ln.smallest(n)
    out[len(results) * 16 + 2] = ln.total(n)
    out[len(results) * 16 + 3] = ln.first_lane(n == 12)
    out[len(results) * 16 + 4] = ln.first_lane(n == 999)
    out[len(results) * 16 + 5] = ln.lane_bits(n < 0)
    out[len(results) * 16 + 6] = ln.any_lane(n == 12) + 2 * ln.all_lanes(n == 12)


def test_integer_operations() -> None:
    a = np.array([-3.7, 2.5, 3.5, 12.2, 0.0, -0.5, 1e6, -1e6, 4.0e6, 7, 12.9, 1, 2, 3, -8, 100], _F)
    out = np.zeros(18 * 16 + 7, np.int32)
    _integers(a, out)
    n = a.astype(np.int32)
    lanes = np.arange(16)
    swapped = n.copy()
    swapped[5] = 99
    expected = [n, n + 3, n - 3, n * 5, n & 15, n | 16, n ^ 255, n << 2, n >> 2, ~n, -n, np.rint(a).astype(np.int32),
                a.view(np.int32), np.minimum(n, 7), np.where(n > 0, n, -1), lanes, (n & 15) * 3, swapped]  # fmt: skip
    for i, row in enumerate(expected):
        assert (out[16 * i : 16 * i + 16] == row).all(), i
    negative = int(sum(1 << int(i) for i in np.flatnonzero(n < 0)))
    assert out[18 * 16 :].tolist() == [n.max(), n.min(), n.sum(), 3, 16, negative, 1]


@njit(error_model="numpy")
def _wild(a: Any, out: Any) -> None:
    ln.store_i32(out, 0, ln.nearest_int(ln.load_f32(a, 0)))
    ln.store_i32(out, 16, ln.to_int(ln.load_f32(a, 0)))


def test_what_does_not_fit_wraps_as_on_x86() -> None:
    a = np.resize(np.array([np.inf, -np.inf, np.nan, 1e10, -1e10, 5e6, -5e6, 2.0**31], _F), 16)
    out = np.empty(32, np.int32)
    _wild(a, out)
    with np.errstate(all="ignore"):
        raised = (a + _F(12582912)).view(np.int32)
    assert (out[:16] == (raised & 0x7FFFFF) - 0x400000).all()
    assert out[16:24].tolist() == [-(2**31)] * 3 + [-(2**31)] * 2 + [5000000, -5000000, -(2**31)]


@njit(error_model="numpy")
def _choices(a: Any, b: Any, out: Any) -> None:
    x, y = ln.load_f32(a, 0), ln.load_f32(b, 0)
    for i, chosen in enumerate((x < y, x <= y, x > y, x >= y, x == y, x != y)):
        out[i] = ln.lane_bits(chosen)
    out[6] = ln.lane_bits(ln.select(x < y, x == x, y > _F(0)) ^ ~(x > y))


def test_comparisons_choices_and_a_nan() -> None:
    a = np.resize(np.array([1, 2, 3, np.nan, -0.0, 5, np.inf], _F), 16)
    b = np.resize(np.array([1, 3, 2, 1, 0.0, np.nan, np.inf, -np.inf, -1], _F), 16)
    out = np.zeros(7, np.int64)
    _choices(a, b, out)
    chosen = np.where(a < b, a == a, b > 0) ^ ~(a > b)
    for found, lanes in zip(out, (a < b, a <= b, a > b, a >= b, a == b, a != b, chosen), strict=True):
        assert found == int(sum(1 << int(i) for i in np.flatnonzero(lanes)))


@njit(error_model="numpy")
def _rounded(a: Any, out: Any) -> None:
    ln.store_f32(out, 0, ln.nearest_within(ln.load_f32(a, 0), _F(-4), _F(3)))


def test_nearest_within_rounds_ties_to_even_and_cuts() -> None:
    a = np.array([-9, -4.5, -4, -3.5, -2.5, -0.5, 0, 0.4, 0.5, 1.5, 2.5, 2.6, 3.4, 3.5, 1e6, -4e6], _F)
    out = np.zeros(16, _F)
    _rounded(a, out)
    assert out.tolist() == np.clip(np.rint(a), -4, 3).tolist()


@njit(error_model="numpy")
def _two_smallest_of(a: Any, b: Any, out: Any) -> None:
    out[0], out[1] = ln.two_smallest(ln.load_f32(a, 0), ln.load_f32(b, 0))


def test_two_smallest() -> None:
    rng = np.random.default_rng(5)
    for ties in (False, True):
        for _ in range(50):
            pairs = rng.random((16, 2)).astype(_F)
            if ties:
                pairs = np.round(pairs * 8).astype(_F)
            pairs.sort(axis=1)
            out = np.zeros(2, _F)
            _two_smallest_of(pairs[:, 0].copy(), pairs[:, 1].copy(), out)
            assert out.tolist() == sorted(pairs.ravel().tolist())[:2]


@njit(error_model="numpy")
def _eight(table: Any, index: Any, out: Any) -> None:
    ln.store_f32(out, 0, ln.look_up_eight(ln.load_f32(table, 0), ln.load_i32(index, 0)))


def test_look_up_eight_sees_three_bits() -> None:
    table = np.tile(np.arange(8, dtype=_F) / 3, 2)
    index = np.array([0, 7, 8, 9, -1, -8, 16, 31, 5, 4, 3, 2, 1, 2**30 + 6, 100, 255], np.int32)
    out = np.zeros(16, _F)
    _eight(table, index, out)
    assert out.tolist() == table[index & 7].tolist()


@njit
def _transposed(a: Any, out: Any) -> None:
    x = ln.slots(16)
    ln.load_transposed(x, 0, a, 3, 20)
    for i in range(16):
        ln.store_f32(out, 16 * i, x[i])


def test_transposed_load() -> None:
    a = np.arange(400, dtype=_F)
    out = np.empty((16, 16), _F)
    _transposed(a, out.reshape(-1))
    assert (out == a[3 + 20 * np.arange(16)[None, :] + np.arange(16)[:, None]]).all()


def test_a_float64_is_refused() -> None:
    @njit
    def doubled(a: Any, out: Any) -> None:
        ln.store_f32(out, 0, ln.load_f32(a, 0) * 2.0)

    with pytest.raises(TypingError):
        doubled(np.zeros(16, _F), np.zeros(16, _F))


_HALVES = """
import numpy as np
from numba import njit
from surgeon_kernels.lanes import arithmetic as ln

@njit
def up(a, out):
    for i in range(0, len(a), 16):
        ln.store_f32(out, i, ln.from_half_bits(ln.load_u16(a, i)))

@njit
def down(a, out, raw):
    for i in range(0, len(a), 16):
        ln.store_u16(out, i, ln.half_bits(ln.load_f32(a, i)))
    for i in range(len(a)):
        ln.put_half(raw, 2 * i, a[i])

every = np.arange(65536, dtype=np.uint16)
wide = np.empty(65536, np.float32)
up(every, wide)
expected = every.view(np.float16).astype(np.float32)
same = (wide.view("u4") == expected.view("u4")) | (np.isnan(wide) & np.isnan(expected))
assert same.all(), every[~same][:5]
rng = np.random.default_rng(0)
floats = rng.integers(0, 2**32, 1 << 18, dtype=np.uint32).view(np.float32)
finite = expected[np.isfinite(expected)]
between = ((finite[:-1].astype("f8") + finite[1:]) / 2).astype(np.float32)  # ties
floats = np.concatenate([floats, between, np.nextafter(between, np.float32(0)), [65519.996, 65520, 1e-8, -0.0]])
floats = np.resize(floats[~np.isnan(floats)], len(floats) // 16 * 16).astype(np.float32)
out, raw = np.empty(len(floats), np.uint16), np.empty(2 * len(floats), np.uint8)
down(floats, out, raw)
with np.errstate(over="ignore"):
    theirs = floats.astype(np.float16).view(np.uint16)
assert (out == theirs).all() and (raw.view(np.uint16) == theirs).all()
"""


@pytest.mark.parametrize("generic", [False, True])
def test_half_precision(generic: bool) -> None:
    """All float16 values, and floats around their midpoints, with and without the processor's instruction."""
    environment = {**os.environ, "PYTHONPATH": str(Path(ln.__file__).parents[1])}
    if generic:
        environment |= {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    subprocess.run([sys.executable, "-c", _HALVES], env=environment, check=True)
