"""Every type against ggml's own functions, byte for byte, on data that has broken quantizers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nasty import KINDS, group_of, nasty_rows, nasty_weights
from numpy.typing import NDArray
from oracle import Oracle

from surgeon_kernels import (
    REQUIRES_IMATRIX,
    USES_IMATRIX,
    dequantizable,
    dequantize,
    first_invalid,
    quantizable,
    quantize,
)
from surgeon_kernels.formats import FORMATS, USES_CODEBOOK

_TYPES = sorted(quantizable - {"F32"})
_COMBINATIONS = [
    (name, weighted) for name in _TYPES for weighted in (False, True) if weighted or name not in REQUIRES_IMATRIX
]
_IDS = [f"{name}-{'imatrix' if weighted else 'plain'}" for name, weighted in _COMBINATIONS]


def _columns(name: str, blocks: int) -> int:
    return max(FORMATS[name].block, 32) * blocks


def _assert_same(
    ours: NDArray[np.uint8], theirs: NDArray[np.uint8], name: str, counts: Counter[tuple[str, str]], how: str
) -> None:
    size = FORMATS[name].block_bytes
    differ = np.flatnonzero((ours.reshape(-1, size) != theirs.reshape(-1, size)).any(axis=1))
    assert not differ.size, (
        f"{name}: {differ.size} of {ours.size // size} blocks differ, first is block {differ[0]}: "
        f"{ours.reshape(-1, size)[differ[0]].tobytes().hex()} but ggml "
        f"{theirs.reshape(-1, size)[differ[0]].tobytes().hex()}"
    )
    counts[name, how] += ours.size // size


@pytest.mark.parametrize(("name", "weighted"), _COMBINATIONS, ids=_IDS)
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_nasty_rows(
    ggml: Oracle, identical_blocks: Counter[tuple[str, str]], name: str, weighted: bool, data: st.DataObject
) -> None:
    columns = _columns(name, data.draw(st.sampled_from([1, 2, 3])))
    rows = data.draw(nasty_rows(columns, max_rows=2 if name in USES_CODEBOOK else 18))
    weights = data.draw(nasty_weights(columns)) if weighted else None
    how = "imatrix" if weighted else "plain"
    _assert_same(quantize(rows, name, weights, compat=True), ggml.quantize(rows, name, weights), name,
                 identical_blocks, how)  # fmt: skip


@pytest.mark.parametrize(("name", "weighted"), _COMBINATIONS, ids=_IDS)
def test_ordinary_rows(ggml: Oracle, identical_blocks: Counter[tuple[str, str]], name: str, weighted: bool) -> None:
    """Weights as models have them, at many scales."""
    rng = np.random.default_rng(7)
    count = 6 if name in USES_CODEBOOK else 60
    scales = 10.0 ** rng.uniform(-5, 2, (count, 1))
    rows = (rng.standard_t(4, (count, 1536)) * scales).astype(np.float32)
    weights = (rng.random(1536) ** 4 * 100).astype(np.float32) if weighted else None
    how = "imatrix" if weighted else "plain"
    _assert_same(quantize(rows, name, weights, compat=True), ggml.quantize(rows, name, weights), name,
                 identical_blocks, how)  # fmt: skip


@pytest.mark.parametrize(("name", "weighted"), _COMBINATIONS, ids=_IDS)
def test_vanishing_rows(ggml: Oracle, identical_blocks: Counter[tuple[str, str]], name: str, weighted: bool) -> None:
    """Magnitudes at which squares, products of three or scales underflow, one after the other."""
    rng = np.random.default_rng(11)
    columns = _columns(name, 1)
    exponents = -np.arange(6, 39, 1 if name not in USES_CODEBOOK else 3, dtype=np.float64)[:, None]
    rows = (rng.standard_normal((len(exponents), columns)) * 10.0**exponents).astype(np.float32)
    weights = rng.random(columns).astype(np.float32) if weighted else None
    how = "imatrix" if weighted else "plain"
    _assert_same(quantize(rows, name, weights, compat=True), ggml.quantize(rows, name, weights), name,
                 identical_blocks, how)  # fmt: skip


@pytest.mark.parametrize("name", sorted(USES_IMATRIX & quantizable - USES_CODEBOOK))
def test_hardly_any_weight(ggml: Oracle, identical_blocks: Counter[tuple[str, str]], name: str) -> None:
    """One to three channels that count: fits of one point, negative scales, values too large to round."""
    columns = _columns(name, 1)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        kinds = [KINDS[i] for i in rng.integers(0, len(KINDS), 3)]
        size = int(rng.choice([16, 32]))
        groups = [group_of(kinds[rng.integers(3)], rng, size) for _ in range(20 * columns // size)]
        rows = np.concatenate(groups).reshape(20, columns)
        weights = np.zeros(columns, np.float32)
        alive = int(rng.integers(1, 4))
        weights[rng.integers(0, columns, alive)] = rng.random(alive) if seed % 2 else 1
        _assert_same(quantize(rows, name, weights, compat=True), ggml.quantize(rows, name, weights), name,
                     identical_blocks, "imatrix")  # fmt: skip


@pytest.mark.parametrize("name", sorted(dequantizable - {"F32"}))  # ggml has no function that restores F32
def test_dequantize(ggml: Oracle, name: str) -> None:
    """Any bytes at all restore to ggml's floats, bit for bit (NaN to NaN)."""
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (7, FORMATS[name].row_bytes(1536)), np.uint8)
    ours, theirs = dequantize(blocks, name), ggml.dequantize(blocks, name)
    same = (ours.view(np.uint32) == theirs.view(np.uint32)) | (np.isnan(ours) & np.isnan(theirs))
    assert same.all(), f"{name}: {np.count_nonzero(~same)} of {same.size} values differ"


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"Q8_1", "I8", "I16", "I32", "I64"}))
def test_validation(ggml: Oracle, name: str) -> None:
    """Random bytes, and random bytes with the exponents cleared, are judged as by ggml, row by row."""
    rng = np.random.default_rng(5)
    size = FORMATS[name].block_bytes
    blocks = rng.integers(0, 256, (3000, size), np.uint8)
    verdicts = np.array([first_invalid(row[None], name) < 0 for row in blocks])
    assert (verdicts == [ggml.is_valid(row, name) for row in blocks]).all()
    if name != "NVFP4":
        assert not verdicts.all()
    bad = int(np.argmin(verdicts)) if not verdicts.all() else -1
    assert first_invalid(blocks, name) == bad
    assert first_invalid(np.ascontiguousarray(blocks[verdicts]), name) == -1
