"""Factors made by an array module: numpy stands in for a GPU's here, torch on the processor where it is installed."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

import surgeon_kernels as kernels
from surgeon.write import array_module
from surgeon.write.array_module import ArrayModule, Matrix


def with_numpy() -> ArrayModule:
    def cholesky(matrix: Matrix) -> Matrix | None:
        try:
            return np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            return None

    return ArrayModule("numpy", lambda matrix: matrix.copy(), cholesky, lambda part: part)


def modules() -> list[ArrayModule]:
    return [with_numpy(), *([array_module.with_torch("cpu")] if importlib.util.find_spec("torch") else [])]


@pytest.mark.parametrize("columns", [32, 192, 480])
@pytest.mark.parametrize("qtype", ["Q4_K", "Q4_0", "IQ3_S"])
def test_blocks_are_nearly_those_of_the_processor(columns: int, qtype: str) -> None:
    columns = -(-columns // kernels.formats.FORMATS[qtype].block) * kernels.formats.FORMATS[qtype].block
    rng = np.random.default_rng(columns)
    x = rng.standard_normal((3 * columns, columns)) @ rng.standard_normal((columns, columns))
    h = (x.T @ x / len(x)).astype(np.float32)
    rows = rng.standard_normal((48, columns)).astype(np.float32)
    own = kernels.quantize_with_feedback(rows, qtype, kernels.factor(h))
    loss = kernels.feedback_error(rows, own, qtype, h).sum()
    for module in modules():
        factor = kernels.factor(h, elsewhere=module.elsewhere)
        blocks = kernels.quantize_with_feedback(rows, qtype, factor)
        assert kernels.feedback_error(rows, blocks, qtype, h).sum() == pytest.approx(loss, rel=0.02), module.name
        assert (blocks != own).mean() < 0.05, "only weights between two codes"


def test_what_is_not_positive_is_damped_as_on_the_processor() -> None:
    h = np.ones((64, 64), np.float32)
    h[:32, 32:] = h[32:, :32] = 1.5  # one eigenvalue is below zero
    own = kernels.factor(h, shrink=0.0)
    for module in modules():
        assert kernels.factor(h, shrink=0.0, elsewhere=module.elsewhere).damping == own.damping


def test_without_a_device_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_module, "_DEVICE_FILES", ("/dev/no such device",))
    array_module.found.cache_clear()
    assert array_module.found() is None
    array_module.found.cache_clear()
