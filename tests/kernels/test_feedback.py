"""The feedback encoder: its loss is exact, its bytes are what it believes, and no row gets worse than the stock one."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import surgeon_kernels as kernels
from surgeon_kernels.feedback import CODE_TYPES, POINT_TYPES
from surgeon_kernels.feedback.encodings import encode_tile
from surgeon_kernels.feedback.layouts import LAYOUTS
from surgeon_kernels.feedback.point_layouts import POINT_LAYOUTS
from surgeon_kernels.formats import FORMATS

Floats = NDArray[np.float32]
TYPES = sorted(kernels.feedback_types)
ROWS = 21  # more than one vector of sixteen, the second not full
CLOSE = 1e-4  # of a loss: sums of float32 against float64


def moments(columns: int, seed: int = 1, dead: int = 0) -> NDArray[np.float64]:
    """H of inputs that are correlated and of very different size; the last `dead` channels never fire."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((2 * columns, columns)) @ rng.standard_normal((columns, columns))
    inputs *= 1 / np.sqrt(1 + rng.permutation(columns))
    inputs[:, columns - dead :] = 0
    found: NDArray[np.float64] = inputs.T @ inputs / len(inputs)
    return found


def weights_of(rows: int, columns: int, seed: int = 2) -> Floats:
    return (np.random.default_rng(seed).standard_t(5, (rows, columns)) * 0.02).astype(np.float32)


def columns_for(name: str) -> int:
    return max(256, FORMATS[name].block)


@cache
def factored(columns: int) -> kernels.FeedbackFactor:
    return kernels.factor(moments(columns), shrink=0.25)


def stock_blocks(rows: Floats, name: str, factor: kernels.FeedbackFactor) -> NDArray[np.uint8]:
    return kernels.quantize(rows, name, factor.diagonal)


def losses(rows: Floats, blocks: NDArray[np.uint8], name: str, h: NDArray[np.float32]) -> NDArray[np.float64]:
    """e H e' by brute force."""
    errors = (rows - kernels.dequantize(blocks, name)).astype(np.float64)
    found: NDArray[np.float64] = np.einsum("ri,ij,rj->r", errors, h.astype(np.float64), errors, optimize=True)
    return found


@pytest.mark.parametrize("name", TYPES)
def test_no_row_is_worse_than_the_stock_one_and_no_round_makes_it_worse(name: str) -> None:
    columns = columns_for(name)
    rows, factor = weights_of(ROWS, columns), factored(columns)
    h = factor.matrix()
    stock = losses(rows, stock_blocks(rows, name, factor), name, h)
    last = stock
    for rounds in range(3):
        found = losses(rows, kernels.quantize_with_feedback(rows, name, factor, rounds=rounds), name, h)
        assert (found <= last * (1 + CLOSE)).all()
        last = found
    assert last.sum() < 0.85 * stock.sum()


@pytest.mark.parametrize("name", TYPES)
def test_the_blocks_lose_what_the_encoder_carried(name: str) -> None:
    columns = columns_for(name)
    rows, factor = weights_of(ROWS, columns), factored(columns)
    stock = stock_blocks(rows, name, factor)
    for rounds in (0, 2):
        blocks, carried = encode_tile(rows, stock, name, factor.parts[0], rounds)
        np.testing.assert_allclose(carried, losses(rows, blocks, name, factor.matrix()), rtol=CLOSE)


def plain_sweep(rows: Floats, stock: NDArray[np.uint8], name: str, factor: kernels.FeedbackFactor) -> Floats:
    """The twin: what a sweep restores, column by column in float64, by a factor of its own."""
    layout, part = LAYOUTS[name], factor.parts[0]
    scales = layout.read(stock.reshape(len(rows), -1, layout.block_bytes))
    steps = np.repeat(scales.d, scales.scales.shape[1] // scales.d.shape[1], 1) * scales.scales
    offsets = np.repeat(scales.dmin, scales.scales.shape[1] // scales.dmin.shape[1], 1) * scales.minima
    rules = layout.rules()
    levels = np.arange(rules.top + 1) - rules.zero if rules.uniform else rules.levels[: rules.known]
    h = part.rows(np.arange(part.columns)).astype(np.float64)
    order = np.argsort(-np.diag(h), kind="stable")
    upper = np.linalg.cholesky(h[np.ix_(order, order)][::-1, ::-1])[::-1, ::-1]
    feed = upper / np.diag(upper)
    errors = np.zeros(rows.shape)
    found = np.zeros(rows.shape, np.float32)
    for k, column in enumerate(order):
        target = rows[:, column] + errors[:, order[:k]] @ feed[:k, k]
        group = column // layout.group
        grid = steps[:, group, None] * levels.astype(np.float32) - offsets[:, group, None]
        nearest = np.abs(target[:, None] - grid).argmin(1)
        found[:, column] = grid[np.arange(len(rows)), nearest]
        errors[:, column] = rows[:, column] - found[:, column]
    return found


@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q2_K", "Q6_K", "IQ4_XS", "NVFP4"])
def test_a_sweep_is_that_of_the_plain_twin(name: str) -> None:
    rows, factor = weights_of(ROWS, 256), factored(256)
    stock = stock_blocks(rows, name, factor)
    blocks, _ = encode_tile(rows, stock, name, factor.parts[0], 0)
    expected = plain_sweep(rows, stock, name, factor)
    same = (kernels.dequantize(blocks, name) == expected).all(1)
    assert same.sum() >= ROWS - 2  # a target may lie within float32's error of a midpoint, and what follows differs


def test_the_loss_is_the_sum_over_the_targets() -> None:
    """e H e' = sum of D (t - q)**2, for any errors, in the order of the sweep."""
    factor = factored(256)
    h = factor.matrix().astype(np.float64)
    form = factor.parts[0].form()
    upper = np.linalg.cholesky(h[np.ix_(form.order, form.order)][::-1, ::-1])[::-1, ::-1]
    np.testing.assert_allclose(form.d, np.diag(upper) ** 2, rtol=1e-6)
    errors = np.random.default_rng(3).standard_normal(256)
    targets = errors[form.order] @ (upper / np.diag(upper))
    assert np.isclose((form.d * targets**2).sum(), errors @ h @ errors, rtol=1e-6)


@pytest.mark.parametrize("name", ["Q4_K", "Q4_1", "IQ4_XS", "Q2_0"])
def test_bytes_do_not_depend_on_cuts_or_threads(name: str) -> None:
    columns = 512
    rows, factor = weights_of(300, columns), factored(columns)
    whole = kernels.quantize_with_feedback(rows, name, factor)
    for size in (1, 7, 16, 129):
        cuts = [rows[start : start + size] for start in range(0, len(rows), size)]
        if size == 1:
            cuts = cuts[:20]
        with ThreadPoolExecutor(4) as pool:
            pieces = list(pool.map(lambda cut: kernels.quantize_with_feedback(cut, name, factor), cuts))
        np.testing.assert_array_equal(np.concatenate(pieces), whole[: sum(map(len, cuts))])


PROGRAM = """
import hashlib, sys
import numpy as np
import surgeon_kernels as kernels
factor = kernels.factor(np.load(sys.argv[1]), shrink=0.25)
blocks = kernels.quantize_with_feedback(np.load(sys.argv[2]), "Q4_0", factor)
print(hashlib.sha256(factor.parts[0].form().a.tobytes() + blocks.tobytes()).hexdigest())
"""


def test_bytes_do_not_depend_on_the_threads_of_blas(tmp_path: Path) -> None:
    paths = [tmp_path / "h.npy", tmp_path / "rows.npy"]
    np.save(paths[0], moments(320))
    np.save(paths[1], weights_of(40, 320))
    digests = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM, *map(str, paths)],
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for threads in ("1", "4")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("name", TYPES)
def test_dead_channels_and_odd_rows(name: str) -> None:
    """Channels that never fired, rows of zeros, of one sign, of one value, with a tail, tiny and large ones."""
    columns = columns_for(name)
    factor = kernels.factor(moments(columns, dead=columns // 4), shrink=0.25)
    rows = weights_of(10, columns)
    rows[0] = 0
    rows[1] = np.abs(rows[1]) + np.float32(0.01)
    rows[2] = -np.abs(rows[2])
    rows[3] = np.float32(0.5)
    rows[4, 1:] = 0
    rows[5, columns // 2 :] = 0
    rows[6] *= np.float32(1e-7)
    rows[7] *= np.float32(1e-30)
    rows[8] *= np.float32(1e5)
    stock = stock_blocks(rows, name, factor)
    blocks = kernels.quantize_with_feedback(rows, name, factor, rounds=2)
    assert kernels.first_invalid(blocks, name) == kernels.first_invalid(stock, name) == -1
    h = factor.matrix()
    assert (losses(rows, blocks, name, h) <= losses(rows, stock, name, h) * (1 + CLOSE)).all()


def test_steps_near_the_largest_float16_stay_finite() -> None:
    factor = factored(256)
    rows = weights_of(32, 256)
    for name, largest in (("Q4_0", 8 * 62000.0), ("Q4_1", 62000.0), ("IQ4_NL", 127 * 62000.0), ("Q8_0", 127 * 65000.0)):
        scaled = rows * (largest / np.abs(rows).max(1, keepdims=True)).astype(np.float32)
        stock = stock_blocks(scaled, name, factor)
        valid = [kernels.first_invalid(stock[row : row + 1], name) < 0 for row in range(len(rows))]
        assert sum(valid) > 8, name  # the stock search itself may choose a step that is too large
        blocks = kernels.quantize_with_feedback(scaled, name, factor, rounds=3)
        assert kernels.first_invalid(blocks[valid], name) == -1, name


def test_rows_beyond_float16_stay_the_stock_ones() -> None:
    rows, factor = weights_of(2, 256), factored(256)
    rows[1, 3] = 1e9
    blocks = kernels.quantize_with_feedback(rows, "Q8_0", factor)
    np.testing.assert_array_equal(blocks[1], stock_blocks(rows, "Q8_0", factor)[1])


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "IQ4_NL", "MXFP4"])
@pytest.mark.parametrize("columns", [32, 64, 96, 352])
def test_widths_that_fill_no_panel(name: str, columns: int) -> None:
    factor = kernels.factor(moments(columns), shrink=0.1)
    rows = weights_of(5, columns)
    blocks, carried = encode_tile(rows, stock_blocks(rows, name, factor), name, factor.parts[0], 1)
    np.testing.assert_allclose(carried, losses(rows, blocks, name, factor.matrix()), rtol=CLOSE)


def test_a_matrix_of_diagonal_blocks_is_encoded_block_by_block() -> None:
    blocks = [moments(256, seed=4), moments(512, seed=5)]
    rows = weights_of(ROWS, 768)
    whole = kernels.quantize_with_feedback(rows, "Q4_K", kernels.factor(blocks, shrink=0.5))
    parts = [
        kernels.quantize_with_feedback(
            np.ascontiguousarray(rows[:, columns]), "Q4_K", kernels.factor(block, shrink=0.5)
        )
        for columns, block in zip((slice(0, 256), slice(256, 768)), blocks, strict=True)
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts, 1))
    expected = sum(
        kernels.feedback_error(np.ascontiguousarray(rows[:, columns]), part, "Q4_K", block)
        for columns, part, block in zip((slice(0, 256), slice(256, 768)), parts, blocks, strict=True)
    )
    np.testing.assert_allclose(kernels.feedback_error(rows, whole, "Q4_K", blocks), expected, rtol=1e-6)


def test_the_factor_shrinks_and_damps() -> None:
    h = moments(288)
    factor = kernels.factor(h, shrink=0.25, damping=0.02)
    expected = 0.75 * h + 0.25 * np.diag(np.diag(h)) + 0.02 * np.diag(h).mean() * np.eye(288)
    np.testing.assert_allclose(factor.matrix(), expected, rtol=1e-6)
    np.testing.assert_allclose(factor.diagonal, np.diag(h), rtol=1e-6)
    assert factor.damping == 0.02


def test_moments_that_are_not_positive_are_damped_more() -> None:
    h = moments(64)
    h[0, 1] = h[1, 0] = 3 * np.sqrt(h[0, 0] * h[1, 1])
    assert kernels.factor(h, shrink=0.0).damping > 0.01
    assert kernels.factor(h, shrink=0.0, damping=0.0).damping > 0
    assert kernels.factor(np.zeros((32, 32)), shrink=0.0).matrix()[5, 5] == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_loss_of_blocks_is_that_of_brute_force(dtype: type) -> None:
    h = moments(64).astype(dtype)
    rows = weights_of(9, 64)
    blocks = kernels.quantize(rows, "Q4_0")
    found = kernels.feedback_error(rows, blocks, "Q4_0", h)
    np.testing.assert_allclose(found, losses(rows, blocks, "Q4_0", h.astype(np.float32)), rtol=1e-5)


def test_shrinkage_is_that_which_loses_least_on_the_other_half() -> None:
    rows, first, second = weights_of(16, 64), moments(64, seed=6), moments(64, seed=7)

    def loss(shrink: float, other: NDArray[np.float64]) -> float:
        blocks = kernels.quantize_with_feedback(rows, "Q4_0", kernels.factor(first, shrink=shrink))
        return float(kernels.feedback_error(rows, blocks, "Q4_0", other).sum())

    for other in (first, second):
        found = kernels.choose_shrink(rows, "Q4_0", first, other)
        assert loss(found, other) == min(loss(shrink, other) for shrink in (0.1, 0.25, 0.5, 0.75))
    assert kernels.choose_shrink(rows, "Q4_0", first, first) < kernels.choose_shrink(rows, "Q4_0", first, second)


def test_what_cannot_be_encoded_is_refused() -> None:
    rows, factor = weights_of(2, 64), kernels.factor(moments(64))
    bad = rows.copy()
    bad[1, 5] = np.nan
    with pytest.raises(ValueError, match="row 1, column 5 is nan"):
        kernels.quantize_with_feedback(bad, "Q4_0", factor)
    with pytest.raises(ValueError, match="F16 has no feedback encoder"):
        kernels.quantize_with_feedback(rows, "F16", factor)
    with pytest.raises(ValueError, match="of 64 columns, the rows have 32"):
        kernels.quantize_with_feedback(np.ascontiguousarray(rows[:, :32]), "Q4_0", factor)
    with pytest.raises(ValueError, match="blocks of 128 columns do not fit Q4_K"):
        kernels.quantize_with_feedback(weights_of(2, 256), "Q4_K", kernels.factor([moments(128)] * 2))
    with pytest.raises(ValueError, match="rounds must not be negative"):
        kernels.quantize_with_feedback(rows, "Q4_0", factor, rounds=-1)
    with pytest.raises(ValueError, match="do not match"):
        kernels.feedback_error(rows, kernels.quantize(rows, "Q4_0"), "Q4_0", moments(32))
    for broken, message in (
        (np.zeros((32, 64)), "float\\[columns, columns\\]"),
        (np.zeros((40, 40)), "multiples of 32"),
        (np.full((32, 32), np.inf), "finite"),
        (-np.eye(32), "not negative"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.factor(broken)
    with pytest.raises(ValueError, match="from 0 to 1"):
        kernels.factor(moments(32), shrink=1.5)


@pytest.mark.parametrize("answer", [0, 2, 5])
def test_encoding_can_be_stopped(answer: int) -> None:
    """At the first question, and within a round; where it never is, the bytes are the same."""
    rows, factor = weights_of(ROWS, 2048), kernels.factor(np.eye(2048) + 0.1)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > answer

    if answer < 5:
        with pytest.raises(kernels.FeedbackStopped):
            kernels.quantize_with_feedback(rows, "Q4_0", factor, stop=stop)
        assert asked == answer + 1
    else:
        blocks = kernels.quantize_with_feedback(rows, "Q4_0", factor, rounds=1, stop=stop)
        assert 2 < asked <= answer
        np.testing.assert_array_equal(blocks, kernels.quantize_with_feedback(rows, "Q4_0", factor))


def test_warming_makes_the_encoder_ready() -> None:
    names = [step.name for step in kernels.warm(["Q4_0", "Q8_0"], sources=["F16"], feedback=True)]
    assert names.count("codes") == 1
    assert {"Q4_0", "Q8_0", "F16"} <= set(names)


def test_every_type_has_a_layout() -> None:
    assert (set(LAYOUTS), set(POINT_LAYOUTS)) == (CODE_TYPES, POINT_TYPES)
    for name, layout in (*LAYOUTS.items(), *POINT_LAYOUTS.items()):
        assert (layout.block, layout.block_bytes) == (FORMATS[name].block, FORMATS[name].block_bytes)
