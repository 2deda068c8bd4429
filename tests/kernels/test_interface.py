"""The public functions: arguments, errors, slabs and threads."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

import surgeon_kernels as kernels
from surgeon_kernels import interface
from surgeon_kernels.formats import FORMATS, REQUIRES_IMATRIX

_NAMES = sorted(kernels.quantizable)


def _rows(count: int = 9, columns: int = 512) -> np.ndarray:
    return (np.random.default_rng(4).standard_normal((count, columns)) * 0.1).astype(np.float32)


def _weights(name: str, columns: int = 512) -> np.ndarray | None:
    if name not in kernels.USES_IMATRIX:
        return None
    weights = np.random.default_rng(5).random(columns).astype(np.float32)
    weights[64:96] = 0
    weights[256:] = 0
    return weights


def test_importing_stays_light() -> None:
    code = (
        "import sys, surgeon_kernels, surgeon_kernels.formats; assert 'Q4_K' in surgeon_kernels.quantizable; "
        "assert not {'numba', 'numpy', 'llvmlite'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_example_of_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    example = readme.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(example, names)
    blocks, restored, error = (names[name] for name in ("blocks", "restored", "error"))
    assert (blocks.dtype, blocks.shape) == (np.uint8, (64, 2304))
    assert (restored.dtype, restored.shape) == (np.float32, (64, 4096))
    assert error.squared == pytest.approx(((names["rows"] - restored).astype(float) ** 2).sum(1))
    assert error.weighted == pytest.approx(0.25 * error.squared)


def test_a_type_by_name_or_enum() -> None:
    rows = _rows()
    assert (kernels.quantize(rows, GGMLQuantizationType.Q4_K) == kernels.quantize(rows, "q4_k")).all()


@pytest.mark.parametrize("name", _NAMES)
def test_any_slab_split_and_thread_count_gives_the_same_bytes(name: str) -> None:
    rows, weights = _rows(), _weights(name)
    whole = kernels.quantize(rows, name, weights)
    for split in ([1, 8], [4, 5], [9], [1] * 9):
        out = np.full_like(whole, 0xA5)
        with ThreadPoolExecutor(len(split)) as pool:
            for end, count in zip(np.cumsum(split), split, strict=True):
                part = slice(end - count, end)
                pool.submit(kernels.quantize_into, rows[part], name, out[part], weights)
        assert (out == whole).all(), split


@pytest.mark.parametrize("name", _NAMES)
def test_many_threads_at_once(name: str) -> None:
    rows, weights = _rows(3), _weights(name)
    expected = kernels.quantize(rows, name, weights)
    restored = kernels.dequantize(expected, name)

    def task(_: int) -> bool:
        return bool(
            (kernels.quantize(rows, name, weights) == expected).all()
            and (kernels.dequantize(expected, name) == restored).all()
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(task, range(24)))


@pytest.mark.parametrize("name", _NAMES)
def test_more_rows_than_a_chunk(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are handed to the kernels in chunks; their seams do not show."""
    block = max(FORMATS[name].block, 32)
    rows = (np.random.default_rng(6).standard_normal((300, block)) * 0.1).astype(np.float32)
    weights = _weights(name, block) if name in REQUIRES_IMATRIX else None
    expected = kernels.quantize(rows, name, weights)
    assert rows.size < interface._CHUNK
    for rows_at_once in (1, 7, 128):
        monkeypatch.setattr(interface, "_CHUNK", rows_at_once * block + 1)
        assert (kernels.quantize(rows, name, weights) == expected).all()


def test_inputs_may_be_read_only_or_strided() -> None:
    rows = _rows()
    expected = kernels.quantize(rows, "Q4_K")
    frozen = rows.copy()
    frozen.flags.writeable = False
    assert (kernels.quantize(frozen, "Q4_K") == expected).all()
    assert (kernels.quantize(np.repeat(rows, 2, axis=0)[::2], "Q4_K") == expected).all()
    raw = np.zeros(rows.nbytes + 1, np.uint8)
    raw[1:] = rows.reshape(-1).view(np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(rows.shape)
    assert (kernels.quantize(unaligned, "Q4_K") == expected).all()


def test_no_rows_at_all() -> None:
    assert kernels.quantize(np.empty((0, 256), np.float32), "Q4_K").shape == (0, 144)
    assert kernels.dequantize(np.empty((0, 144), np.uint8), "Q4_K").shape == (0, 256)
    assert kernels.first_invalid(np.empty((0, 144), np.uint8), "Q4_K") == -1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_K", "Q6_K"])
def test_values_must_be_finite(name: str, value: float) -> None:
    rows = _rows(700)  # beyond the first chunk
    rows[650, 500] = value
    with pytest.raises(ValueError, match=r"row 650, column 500 is -?(nan|inf)"):
        kernels.quantize(rows, name)


@pytest.mark.parametrize("columns", [1, 7, 16, 100, 255, 256, 1000])
@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_validation_finds_the_row(name: str, columns: int) -> None:
    rows = np.random.default_rng(8).standard_normal((11, columns)).astype(np.float32)
    blocks = kernels.quantize(rows, name)
    assert kernels.first_invalid(blocks, name) == -1
    infinity = {"F32": b"\x00\x00\x80\x7f", "F16": b"\x00\x7c", "BF16": b"\x80\xff"}[name]
    for row in (10, 6, 0):
        for column in (columns - 1, 0):
            broken = blocks.copy()
            broken[row, column * len(infinity) : (column + 1) * len(infinity)] = list(infinity)
            assert kernels.first_invalid(broken, name) == row


_GOOD = np.zeros((2, 256), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((_GOOD, "Q4_X"), "unknown tensor type 'Q4_X'; did you mean"),
        ((_GOOD, "Q8_K"), "Q8_K can"),
        ((_GOOD, "I32"), "I32 cannot be quantized; quantizable are"),
        ((_GOOD[:, :100], "Q4_K"), "Q4_K needs rows of a multiple of 256, not 100"),
        ((_GOOD[0], "Q4_K"), r"rows must be float32\[rows, columns\], not float32\[256\]"),
        ((_GOOD.astype(np.float64), "Q4_K"), "rows must be float32"),
        (([[0.0]], "Q4_K"), "rows must be float32.*not list"),
        ((_GOOD, "Q4_K", np.zeros(255, np.float32)), r"weights must be float32\[256\]"),
        ((_GOOD, "Q4_K", np.zeros(256)), r"weights must be float32\[256\], one per column, not float64"),
        ((_GOOD, "Q4_K", np.full(256, np.nan, np.float32)), "weights must be finite"),
        ((_GOOD, "Q4_K", np.full(256, -1, np.float32)), "not negative"),
        ((_GOOD, "IQ2_XXS"), "without an importance matrix|cannot be quantized"),
    ],
)
def test_wrong_arguments(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.quantize(*arguments)  # type: ignore[arg-type]


def test_wrong_outputs() -> None:
    with pytest.raises(ValueError, match=r"out must be uint8\[2, 144\], not uint8\[2, 143\]"):
        kernels.quantize_into(_GOOD, "Q4_K", np.empty((2, 143), np.uint8))
    with pytest.raises(ValueError, match="C-contiguous"):
        kernels.quantize_into(_GOOD, "Q4_K", np.empty((144, 2), np.uint8).T)
    frozen = np.empty((2, 144), np.uint8)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="writable"):
        kernels.quantize_into(_GOOD, "Q4_K", frozen)
    with pytest.raises(ValueError, match="blocks of 144 bytes"):
        kernels.dequantize(np.empty((2, 143), np.uint8), "Q4_K")
    with pytest.raises(ValueError, match=r"out must be float32\[2, 256\]"):
        kernels.dequantize_into(np.zeros((2, 144), np.uint8), "Q4_K", np.empty((2, 256)))


@pytest.mark.parametrize("name", _NAMES)
def test_error_is_that_of_the_restored_rows(name: str) -> None:
    rows, weights = _rows(), _weights(name)
    error = kernels.quantization_error(rows, name, weights)
    restored = kernels.dequantize(kernels.quantize(rows, name, weights), name)
    squares = (rows.astype(np.float64) - restored) ** 2
    heavy = squares if weights is None else squares * weights.astype(np.float64)
    np.testing.assert_allclose(error.squared, squares.sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(error.weighted, heavy.sum(axis=1), rtol=1e-12)


def test_dead_channels_are_counted() -> None:
    weights = np.array([0, 1, 0.5, 0, -0.0], np.float32)
    assert kernels.dead_channels(weights) == 3
