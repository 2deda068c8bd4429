"""Rows and importance matrices that have broken quantizers, drawn by hypothesis."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def _bf16(values: Floats) -> Floats:
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def group_of(kind: str, rng: np.random.Generator, size: int) -> Floats:
    """`size` values of one kind."""
    values = (rng.standard_normal(size) * 10.0 ** rng.integers(-3, 1)).astype(np.float32)
    if kind == "zeros":
        values[:] = 0
    elif kind == "negative zeros":
        values[:] = rng.choice(np.array([0.0, -0.0], np.float32), size)
    elif kind == "denormals":
        values *= np.float32(1e-40)
    elif kind == "tiny":  # around ggml's thresholds, and scales that vanish in float16
        values *= np.float32(10.0 ** rng.integers(-18, -5))
    elif kind == "outlier":
        values[rng.integers(size)] *= np.float32(1e4)
    elif kind == "constant":
        values[:] = values[0]
    elif kind == "positive":
        values = np.abs(values)
    elif kind == "negative":
        values = -np.abs(values)
    elif kind == "far":  # one-signed and narrow: the minimum dominates
        values = (np.float32(rng.choice([-1, 1])) + values * np.float32(0.01)).astype(np.float32)
    elif kind == "bf16":  # equal values and exact ties
        values = _bf16(values)
    elif kind == "few":
        values = rng.choice(values[:3], size)
    elif kind == "integers":
        values = np.round(values * 8).astype(np.float32)
    elif kind == "huge":
        values = (values / np.abs(values).max() * 6e4).astype(np.float32)
    elif kind == "sparse":
        values[rng.random(size) < 0.8] = 0
    return values


KINDS = [
    "normal", "normal", "zeros", "negative zeros", "denormals", "tiny", "outlier", "constant", "positive", "negative",
    "far", "bf16", "few", "integers", "huge", "sparse",
]  # fmt: skip
_WEIGHTS = ["random", "zeros", "dead block", "dead groups", "one alive", "ones", "large", "small", "mixed scales"]


@st.composite
def nasty_rows(draw: st.DrawFn, columns: int, max_rows: int = 18) -> Floats:
    """float32[rows, columns], a kind per group of 8 to 256 values."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = draw(st.integers(1, max_rows))
    step = draw(st.sampled_from([16, 32, 256]))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=6))
    starts = range(0, rows * columns, step)
    flat = np.concatenate([group_of(kinds[rng.integers(len(kinds))], rng, step) for _ in starts])[: rows * columns]
    if draw(st.booleans()):  # a few exact values that hypothesis chooses and shrinks
        chosen = draw(st.lists(st.floats(-65504, 65504, width=32), min_size=1, max_size=32))
        flat[: len(chosen)] = chosen
    return flat.reshape(rows, columns)


@st.composite
def nasty_weights(draw: st.DrawFn, columns: int) -> Floats:
    """float32[columns], not negative."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(_WEIGHTS))
    weights = (rng.random(columns) ** 3 * 4).astype(np.float32)
    if kind == "zeros":
        weights[:] = 0
    elif kind == "dead block":
        size = min(columns, 256)
        start = rng.integers(columns // size) * size
        weights[start : start + size] = 0
    elif kind == "dead groups":
        weights.reshape(-1, 16)[rng.random(columns // 16) < 0.5] = 0
    elif kind == "one alive":
        weights[:] = 0
        weights[rng.integers(columns)] = 1
    elif kind == "ones":
        weights[:] = 1
    elif kind == "large":
        weights *= np.float32(1e8)
    elif kind == "small":
        weights *= np.float32(1e-30)
    elif kind == "mixed scales":
        weights *= (10.0 ** rng.integers(-8, 8, columns)).astype(np.float32)
    return weights
