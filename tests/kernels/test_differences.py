"""Where the default differs from ggml: each test shows the error that compat=True keeps and the default removes."""

from __future__ import annotations

import numpy as np
import pytest

from surgeon_kernels import (
    USES_IMATRIX,
    dequantize,
    first_invalid,
    quantizable,
    quantization_error,
    quantize,
)
from surgeon_kernels.formats import FORMATS

# Types that lose a block to an importance matrix that is zero over what one of their searches sees.
_SEEN = {"Q4_0": 32, "Q5_0": 32, "Q2_K": 256, "Q3_K": 16, "Q4_K": 256, "Q5_K": 256, "Q6_K": 16}


def _rows(seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((5, 1024)) * 0.02).astype(np.float32)


def _slice_error(rows: np.ndarray, name: str, weights: np.ndarray, dead: slice, compat: bool) -> float:
    restored = dequantize(quantize(rows, name, weights, compat=compat), name)
    return float(np.sqrt(np.mean((restored - rows)[:, dead] ** 2, dtype=np.float64)))


@pytest.mark.parametrize("name", sorted(_SEEN))
def test_dead_channels_keep_their_weights(name: str) -> None:
    rows, size = _rows(), _SEEN[name]
    weights = np.random.default_rng(1).random(1024).astype(np.float32) + np.float32(0.1)
    dead = slice(256, 256 + size)
    weights[dead] = 0
    rms = float(np.sqrt(np.mean(rows[:, dead] ** 2, dtype=np.float64)))
    plain = _slice_error(rows, name, np.zeros(1024, np.float32), dead, compat=False)
    assert _slice_error(rows, name, weights, dead, compat=True) > 0.9 * rms  # erased
    repaired = _slice_error(rows, name, weights, dead, compat=False)
    assert repaired < 0.5 * rms
    assert repaired < 1.5 * plain


@pytest.mark.parametrize("name", sorted(set(_SEEN) & quantizable))
def test_a_matrix_of_zeros_is_no_matrix(name: str) -> None:
    rows, zeros = _rows(), np.zeros(1024, np.float32)
    assert (quantize(rows, name, zeros) == quantize(rows, name)).all()


@pytest.mark.parametrize("name", sorted(USES_IMATRIX & quantizable))
def test_nothing_else_differs(name: str) -> None:
    rows = _rows()
    weights = np.random.default_rng(2).random(1024).astype(np.float32) + np.float32(0.01)
    assert (quantize(rows, name, weights) == quantize(rows, name, weights, compat=True)).all()


@pytest.mark.parametrize("name", ["Q4_1", "Q5_1"])
def test_minimum_stays_finite(name: str) -> None:
    """The weighted fit of values near float16's limit puts the minimum beyond it; the fallback does not."""
    rng = np.random.default_rng(3)
    rows = np.where(rng.random((400, 32)) < 0.5, -1, 1) * rng.uniform(4.5e4, 6.4e4, (400, 32))
    rows = rows.astype(np.float32)
    weights = (rng.random(32) ** 4).astype(np.float32)
    overflowing = quantize(rows, name, weights, compat=True)
    assert first_invalid(overflowing, name) >= 0
    repaired = quantize(rows, name, weights)
    assert first_invalid(repaired, name) == -1
    valid = [first_invalid(row[None], name) < 0 for row in overflowing]
    assert (repaired[valid] == overflowing[valid]).all()
    assert quantization_error(rows, name, weights).squared.max() < 32 * 4000.0**2


def test_dead_blocks_of_legacy_types_follow_their_block() -> None:
    """Only the dead block changes: its neighbours keep the bytes they have with the matrix."""
    rows = _rows()
    weights = np.ones(1024, np.float32)
    weights[64:96] = 0
    size = FORMATS["Q4_0"].block_bytes
    default = quantize(rows, "Q4_0", weights).reshape(5, -1, size)
    compat = quantize(rows, "Q4_0", weights, compat=True).reshape(5, -1, size)
    assert {int(block) for block in np.flatnonzero((default != compat).any(axis=(0, 2)))} == {2}
    assert (default[:, 2] == quantize(rows, "Q4_0").reshape(5, -1, size)[:, 2]).all()
