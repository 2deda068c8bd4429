"""Histogram, outliers and the largest rows and columns of weights that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf_builder import build_gguf, llama_kv

from surgeon.cli import run
from surgeon.commands.printing.weights_text import weights_text
from surgeon.errors import SurgeonError
from surgeon.measure.weight_figures import WeightFigures, weight_figures
from surgeon.model.model import load_model

NAME = "blk.0.ffn_down.weight"


def _measured(path: Path, values: np.ndarray, most: int = 1 << 24) -> WeightFigures:
    build_gguf(path, llama_kv(layers=1), {NAME: values})
    model = load_model(path)
    return weight_figures(model, next(tensor for tensor in model.tensors if tensor.name == NAME), most)


def _planted() -> np.ndarray:
    """100 rows of 64 weights of 1 and -1 in turn, two outliers."""
    values = np.tile(np.array([1, -1], np.float32), (100, 32))
    values[7, 3], values[40, 5] = -16, 12
    return values


def test_known_weights(tmp_path: Path) -> None:
    values = _planted()
    found = _measured(tmp_path / "m.gguf", values)
    assert (found.sampled, found.total) == (6400, 6400)
    assert (found.lowest, found.highest) == (-16, 12)
    assert found.mean == pytest.approx(values.mean(dtype=np.float64))
    assert found.deviation == pytest.approx(values.std(dtype=np.float64))
    assert found.outliers == 2
    assert sum(found.counts) == 6400
    assert (found.counts[0], found.counts[-1], max(found.counts)) == (1, 1, 3200)
    assert found.rows[:2] == ((7, 16.0), (40, 12.0))
    assert found.columns[:2] == ((3, 16.0), (5, 12.0))


def test_more_than_the_limit_is_sampled_by_whole_rows(tmp_path: Path) -> None:
    values = np.tile(np.arange(100, dtype=np.float32)[:, None], (1, 64))
    found = _measured(tmp_path / "m.gguf", values, most=12 * 64)
    assert (found.sampled, found.total) == (12 * 64, 6400)
    assert found.rows == ((99, 99.0), (90, 90.0), (81, 81.0))
    lines = weights_text(found)
    assert lines[0] == f"{NAME}  F32, 768 of 6,400 weights"
    assert lines[-1] == "measured in whole rows, evenly spread over the tensor"


def test_equal_weights_have_no_outliers(tmp_path: Path) -> None:
    for value in (0, 0.1):
        found = _measured(tmp_path / "m.gguf", np.full((4, 64), value, np.float32))
        assert found.deviation == pytest.approx(0)
        assert (found.outliers, sum(found.counts)) == (0, 256)
    assert all(len(line) <= 72 for line in weights_text(found))


def test_outliers_of_a_norm_lie_far_from_its_mean(tmp_path: Path) -> None:
    found = _measured(tmp_path / "m.gguf", _planted() / 100 + 1)
    assert found.outliers == 2
    assert "outliers, over 6 std from the mean: 2 (0.031% of them)" in weights_text(found)


def test_what_is_not_finite_is_named(tmp_path: Path) -> None:
    values = _planted()
    values[0, 0] = np.nan
    with pytest.raises(SurgeonError, match="not finite"):
        _measured(tmp_path / "m.gguf", values)


def test_the_command_draws_single_weights_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_gguf(tmp_path / "m.gguf", llama_kv(layers=1), {NAME: _planted()})
    assert run(["show", str(tmp_path / "m.gguf"), "--tensor", NAME]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "outliers, over 6 std from the mean: 2 (0.031% of them)" in lines
    bars = lines[-3]
    assert (bars[0], bars[-1], len(bars)) == ("▃", "▃", 40)
    with pytest.raises(SurgeonError, match=f"did you mean {NAME}"):
        run(["show", str(tmp_path / "m.gguf"), "--tensor", "blk.0.ffn_dow.weight"])
