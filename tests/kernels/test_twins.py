"""The kernels against the element-by-element restatements of twins.py and its kin, on rows at the edges; everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import twins
import twins_iq
import twins_iq1
import twins_iq4
import twins_small
from nasty import KINDS, group_of
from numpy.typing import NDArray

from surgeon_kernels import REQUIRES_IMATRIX, USES_IMATRIX, quantizable, quantize
from surgeon_kernels.formats import FORMATS

Floats = NDArray[np.float32]

TWINS = {**twins.TWINS, **twins_small.TWINS, **twins_iq4.TWINS, **twins_iq.TWINS, **twins_iq1.TWINS}

_CASES = [
    (name, weighted)
    for name in TWINS
    for weighted in (False, True)
    if (name in USES_IMATRIX or not weighted) and (name not in REQUIRES_IMATRIX or weighted)
]

# Without an importance matrix these cast denormals to an integer in ways C leaves undefined: times the inverse of a
# scale, which is infinite, or (MXFP4) as an exponent that is negative.
_CASTS = frozenset("Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_0 TQ1_0 TQ2_0 MXFP4".split())


def _size(name: str) -> int:
    return max(FORMATS[name].block, 32)


def _rows(name: str, weights: Floats | None, rng: np.random.Generator) -> list[tuple[str, Floats]]:
    """Blocks of each kind, more of short ones, and some in which fits fail; superblocks whose groups differ in kind."""
    size = _size(name)
    kinds = list(dict.fromkeys(KINDS))
    if name in _CASTS and weights is None:
        kinds.remove("denormals")
    rows = [(kind, group_of(kind, rng, size)) for kind in kinds for _ in range(max(1, 128 // size))]
    rows.append(("products of three vanish", group_of("normal", rng, size) * np.float32(1e-18)))
    if weights is not None:
        rows.append(
            ("zeros where weights are not", np.where(weights > 0, np.float32(0), group_of("normal", rng, size)))
        )
    if size == 256:
        rows.append(("mixed", np.concatenate([group_of(kind, rng, 32) for kind in kinds[:8]])))
        rows.append(("mixed too", np.concatenate([group_of(kind, rng, 32) for kind in kinds[-8:]])))
        falling = np.repeat(10.0 ** (-1.2 * np.arange(16)), 16).astype(np.float32)
        rows.append(("falling below every threshold", group_of("normal", rng, size) * falling))
    return rows


def _weights(size: int, rng: np.random.Generator) -> Floats:
    """An importance matrix with zeros here and there, and in superblocks a group without any weight."""
    weights = (rng.random(size) ** 3).astype(np.float32)
    weights[:16][rng.random(16) < 0.5] = 0
    weights[64:96] = 0
    return weights


def _assert_same(name: str, rows: list[tuple[str, Floats]], weights: Floats | None = None) -> None:
    ours = quantize(np.stack([row for _, row in rows]), name, weights, compat=True)
    with np.errstate(all="ignore"):
        for (kind, row), block in zip(rows, ours, strict=True):
            theirs = TWINS[name](list(row), None if weights is None else list(weights))
            assert block.tobytes().hex() == theirs.hex(), f"{name} on {kind}"


def test_every_format_has_a_twin() -> None:
    assert set(TWINS) == quantizable


@pytest.mark.parametrize(("name", "weighted"), _CASES)
def test_twin(name: str, weighted: bool) -> None:
    rng = np.random.default_rng(11)
    weights = _weights(_size(name), rng) if weighted else None
    rows = _rows(name, weights, rng)
    _assert_same(name, rows, weights)


@pytest.mark.parametrize(("name", "half_place"), [("F16", 0x1000), ("BF16", 0x8000)])
def test_twin_of_any_float(name: str, half_place: int) -> None:
    """All exponents, and where 16-bit floats round: half way between two of them, float16's denormals included."""
    words = np.random.default_rng(12).integers(0, 2**32, 8192, np.uint32)
    words[::2] = words[::2] & ~np.uint32(2 * half_place - 1) | np.uint32(half_place)
    middles = (np.arange(4096, dtype=np.float32) + np.float32(0.5)) * np.float32(2**-24)
    values = np.concatenate([words.view(np.float32), middles])
    values = values[np.isfinite(values)]
    _assert_same(name, [("any", values)])


@pytest.mark.parametrize("name", ["Q2_0", "TQ1_0", "TQ2_0"])
def test_twin_of_ternary_weights(name: str) -> None:
    """What these formats are for; among five digits of TQ1_0 are all 243 combinations."""
    rows = np.random.default_rng(13).choice(np.float32([-0.5, 0, 0.5]), (50, FORMATS[name].block))
    _assert_same(name, [("ternary", row) for row in rows])


@pytest.mark.parametrize(
    ("name", "table"), [("IQ4_NL", twins_iq4.VALUES), ("MXFP4", twins_small.FP4), ("NVFP4", twins_small.FP4)]
)
def test_twin_of_midpoints(name: str, table: tuple[int, ...]) -> None:
    """Every second weight lies half way between two values in units of the scale, which the others determine."""
    rng, size = np.random.default_rng(14), FORMATS[name].block
    values = np.unique(np.float32(table))
    rows = rng.choice((values[1:] + values[:-1]) / 2, (20, size))
    rows[:, ::2] = rng.choice(values, (20, size // 2))
    rows[:, ::16] = values[0]
    _assert_same(name, [("midpoints", row) for row in rows], np.arange(1, size + 1, dtype=np.float32) % 2)


def test_twin_of_any_scale_of_nvfp4() -> None:
    """Its scales from below the smallest to above the largest; the first half of the rows has exact ones and ties."""
    rng = np.random.default_rng(15)
    exact = rng.integers(16, 32, (100, 4)) / 16 * 2.0 ** rng.integers(-11, 10, (100, 4))
    scales = np.concatenate([exact, 10.0 ** rng.uniform(-4, 4, (100, 4))])
    rows = (rng.uniform(-6, 6, (200, 64)) * np.repeat(scales, 16, axis=1)).astype(np.float32)
    rows[:, ::16] = 6 * scales
    _assert_same("NVFP4", [("any scale", row) for row in rows])
