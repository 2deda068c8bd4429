"""The IQ formats and 4-bit floats where it is delicate: zero groups, sparse importances, powers of two, midpoints."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import Oracle

from surgeon_kernels import REQUIRES_IMATRIX, dequantize, quantize
from surgeon_kernels.formats import FORMATS

IQ_TYPES = [name for name in FORMATS if name.startswith("IQ")]
# Weights one search sees: where all their importances are zero, ggml finds no scale.
GROUPS = {"IQ1_M": 16, "IQ2_XS": 16, "IQ2_S": 16, "IQ3_XXS": 32, "IQ4_NL": 32, "IQ4_XS": 32}


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


def test_iq3_s_superblock_with_a_zero_group() -> None:
    """ggml shifts the points of all groups after one of zeros; the default does not, and equals it elsewhere."""
    rows = (np.random.default_rng(0).standard_normal((4, 512)) * 0.02).astype(np.float32)
    rows[:, :32] = 0
    blocks, compat = quantize(rows, "IQ3_S"), quantize(rows, "IQ3_S", compat=True)
    error, compat_error = dequantize(blocks, "IQ3_S") - rows, dequantize(compat, "IQ3_S") - rows
    assert _rms(error[:, 32:256]) < 0.005
    assert _rms(compat_error[:, 32:256]) > 0.02
    assert (blocks[:, 110:] == compat[:, 110:]).all()


@pytest.mark.parametrize("name", GROUPS)
def test_dead_group_in_a_live_block(name: str) -> None:
    rng = np.random.default_rng(1)
    rows = (rng.standard_normal((6, 512)) * 0.02).astype(np.float32)
    weights = rng.random(512).astype(np.float32) + np.float32(0.1)
    dead = slice(256 + GROUPS[name], 256 + 2 * GROUPS[name])
    weights[dead] = 0
    compat = dequantize(quantize(rows, name, weights, compat=True), name)
    repaired = dequantize(quantize(rows, name, weights), name)
    assert _rms((repaired - rows)[:, dead]) < 0.75 * _rms((compat - rows)[:, dead])
    assert _rms((repaired - rows)[:, dead]) < 1.6 * _rms((repaired - rows)[:, :256])  # x * x favours large weights


@pytest.mark.parametrize("name", IQ_TYPES)
def test_sparse_importances(ggml: Oracle, name: str) -> None:
    """A few live channels, some of them without any weight: fits that fail, scales of zero, weights left at chance."""
    rng = np.random.default_rng(3)
    for trial in range(12):
        rows = (rng.standard_normal((4, 512)) * np.exp(rng.normal(0, 2, (4, 1)))).astype(np.float32)
        rows[rng.random((4, 512)) < rng.random()] = 0
        weights = np.zeros(512, np.float32)
        weights[rng.integers(0, 512, trial % 5 + 1)] = rng.random(trial % 5 + 1)
        if trial % 3 == 0:
            rows[:, weights > 0] = 0
        assert (quantize(rows, name, weights, compat=True) == ggml.quantize(rows, name, weights)).all()


@pytest.mark.parametrize("name", IQ_TYPES)
def test_rows_do_not_touch_each_other(name: str) -> None:
    """Sixteen groups share a tile across rows: a row alone gives the bytes it gives among others."""
    rng = np.random.default_rng(4)
    rows = rng.standard_t(3, (7, 768)).astype(np.float32)
    weights = rng.random(768).astype(np.float32) if name in REQUIRES_IMATRIX else None
    together = quantize(rows, name, weights)
    for i in range(len(rows)):
        assert (quantize(rows[i : i + 1], name, weights) == together[i]).all()


def test_mxfp4_scale_next_to_powers_of_two() -> None:
    """The exponent is that of a correctly rounded float32 log2, which just below a power of two may be the power."""
    exponents = np.arange(-125, 128)
    sizes = [(np.float32(2.0**k).view(np.uint32) - below).view(np.float32) for k in exponents for below in range(100)]
    rows = np.zeros((len(sizes), 32), np.float32)
    rows[:, 5] = sizes
    expected = np.floor(np.log2(rows[:, 5].astype(np.float64)).astype(np.float32)) - 2 + 127
    assert (quantize(rows, "MXFP4")[:, 0] == expected.astype(np.int64) & 255).all()


@pytest.mark.parametrize("name", ["IQ4_NL", "MXFP4", "NVFP4"])
def test_values_on_and_next_to_midpoints(ggml: Oracle, name: str) -> None:
    """Weights that lie on midpoints of the table for a scale of a power of two, and one float beside them."""
    rng = np.random.default_rng(5)
    table = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
    if name != "IQ4_NL":
        table = np.array([-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12], np.float32)
    middles = (table[1:] + table[:-1]) / 2
    rows = rng.choice(middles, (40, 256)).astype(np.float32)
    rows[:, ::16] = table[0]
    rows[10:20] = np.nextafter(rows[10:20], np.float32(np.inf))
    rows[20:30] = np.nextafter(rows[20:30], np.float32(-np.inf))
    assert (quantize(rows, name, compat=True) == ggml.quantize(rows, name)).all()
