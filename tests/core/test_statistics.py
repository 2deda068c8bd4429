"""The figures of `llama-imatrix --show-statistics`, against what it printed and against arithmetic by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from surgeon.commands.stats import layer_json, layer_line, tensor_json, tensor_line
from surgeon.imatrix.files import load_imatrix
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.imatrix.statistics import layer_statistics, shared_inputs, split_name, tensor_statistics

STATISTICS = Path(__file__).parent.parent / "golden" / "statistics"
GOLDEN = sorted(path.name.removesuffix(".json") for path in STATISTICS.glob("*.json"))
RECORDED = Path(__file__).parent.parent / "data" / "mixed.show-statistics.txt"


def matrix(**entries: tuple[list[list[float]], list[int]]) -> Imatrix:
    """Keyword `blk_0_w` is the weight `blk.0.w.weight`."""
    return Imatrix(
        Path("x"),
        {
            name.replace("_", ".") + ".weight": ImatrixEntry(np.array(sums, np.float32), np.array(counts, np.int64))
            for name, (sums, counts) in entries.items()
        },
    )


def test_there_are_golden_statistics() -> None:
    assert len(GOLDEN) == 4


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_json(name: str, golden_models: Path) -> None:
    expected = json.loads((STATISTICS / f"{name}.json").read_text(encoding="utf-8"))
    rows = tensor_statistics(load_imatrix(golden_models / name))
    found = [tensor_json(row) for row in rows]
    # Rows of equal name and sum have no order of their own, so they are compared by tensor.
    assert [(row["name"], row["sum"]) for row in found] == [(row["name"], row["sum"]) for row in expected["tensors"]]
    by_name = {row["tensor"]: row for row in found}
    for row in expected["tensors"]:
        ours = by_name[row["tensor"]]
        assert list(ours) == list(row)
        for key, value in row.items():
            # log2 is the platform's and may round a last bit otherwise; everything else is exact.
            close = pytest.approx(value, rel=5e-7) if key.startswith("entropy") else value
            assert ours[key] == close, (row["tensor"], key)
    assert [layer_json(row) for row in layer_statistics(rows)] == expected["layers"]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_text(name: str, golden_models: Path) -> None:
    rows = tensor_statistics(load_imatrix(golden_models / name))
    printed = (STATISTICS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    assert_printed(rows, printed)


def test_the_bundled_matrix_prints_what_llama_imatrix_printed(demo_imatrix: Path) -> None:
    assert_printed(tensor_statistics(load_imatrix(demo_imatrix)), RECORDED.read_text(encoding="utf-8").splitlines())


def assert_printed(rows: list, printed: list[str]) -> None:
    tables = [[]]
    for line in printed:
        if line.startswith("==="):
            tables.append([])
        elif "\t" in line and "CosSim" not in line:
            tables[-1].append(line)
    _, tensors, layers = tables
    assert sorted(map(tensor_line, rows)) == sorted(tensors)
    assert [line.split("\t")[1:3] for line in map(tensor_line, rows)] == [line.split("\t")[1:3] for line in tensors]
    assert [layer_line(row) for row in layer_statistics(rows)] == layers


def test_a_row_by_hand() -> None:
    (row,) = tensor_statistics(matrix(blk_0_w=([[2, 6, 0, 8]], [2])))
    assert (row.layer, row.tensor, row.name, row.n) == (0, "w", "blk.0.w.weight", 4)
    assert (row.sum_bias, row.min, row.max, row.mean) == (8, 0, 4, 2)
    assert row.std == pytest.approx(math.sqrt(26 / 4 - 4))
    assert row.active == 0.75
    assert row.entropy == pytest.approx(
        -(1 / 8 * math.log2(1 / 8) + 3 / 8 * math.log2(3 / 8) + 1 / 2 * math.log2(1 / 2))
    )
    assert row.entropy_norm == pytest.approx(100 * row.entropy / 2)
    assert row.zd == 0.25
    assert row.cossim is None


def test_sums_are_added_in_stored_order_in_float32() -> None:
    values = [1e8] + [1.0] * 1000
    (row,) = tensor_statistics(matrix(w=([values], [1])))
    assert row.sum_bias == 1e8  # each 1.0 is lost; any other order of adding keeps some


def test_layer_0_and_tensors_outside_layers_have_no_cossim() -> None:
    rows = tensor_statistics(
        matrix(blk_0_w=([[1, 2]], [1]), blk_1_w=([[2, 4]], [1]), blk_3_w=([[1, 0]], [1]), output=([[1, 1]], [1]))
    )
    cosines = {row.name: row.cossim for row in rows}
    assert cosines == {
        "blk.0.w.weight": None,
        "blk.1.w.weight": pytest.approx(1),
        "blk.3.w.weight": None,  # layer 2 has no such tensor
        "output.weight": None,
    }
    assert [(row.layer, row.cossim) for row in layer_statistics(rows)] == [(0, None), (1, pytest.approx(1)), (3, None)]


def test_cossim_of_dead_or_unlike_inputs_is_nan() -> None:
    rows = tensor_statistics(matrix(blk_0_w=([[0, 0]], [1]), blk_1_w=([[1, 2]], [1]), blk_2_w=([[1, 2, 3]], [1])))
    cosines = {row.layer: row.cossim for row in rows}
    assert math.isnan(cosines[1])
    assert math.isnan(cosines[2])
    assert cosines[0] is None
    dead = rows[-1]
    assert (dead.layer, dead.sum_bias, dead.entropy, dead.zd, dead.active) == (0, 0, 0, 0, 0)
    assert tensor_json(next(row for row in rows if row.layer == 1))["cossim"] is None


def test_experts_never_chosen_are_left_out() -> None:
    (row,) = tensor_statistics(matrix(blk_0_w=([[2, 4], [0, 0], [9, 9]], [2, 0, 3])))
    assert (row.n, row.sum_bias) == (4, 9)
    assert tensor_statistics(matrix(blk_0_w=([[0, 0]], [0]))) == []


def test_layer_averages_weigh_by_the_number_of_channels() -> None:
    rows = tensor_statistics(matrix(blk_2_a=([[1, 1, 1]], [1]), blk_2_b=([[10]], [1])))
    (layer,) = layer_statistics(rows)
    assert (layer.layer, layer.sum_bias) == (2, (3 * 3 + 1 * 10) / 4)


def test_one_channel_and_huge_sums_are_no_trouble(recwarn: pytest.WarningsRecorder) -> None:
    rows = tensor_statistics(matrix(blk_0_w=([[5]], [1]), blk_0_v=([[3e38, 3e38]], [1]), blk_1_v=([[3e38, 1]], [1])))
    assert {row.name: row.sum_bias for row in rows}["blk.0.v.weight"] == math.inf
    layer_statistics(rows)
    assert [
        json.loads(json.dumps(tensor_json(row)))["sum"] for row in rows if row.tensor == "v" and row.layer == 0
    ] == [None]
    assert not recwarn.list


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blk.3.ffn_gate_exps.weight", (3, "ffn_gate_exps")),
        ("blk.3.ffn_up.5.weight", (3, "5")),
        ("output.weight", (None, "output")),
        ("enc.blk.7.attn_q.weight", (7, "attn_q")),
        ("strange", (None, "strange")),
        ("blk", (None, "blk")),
        ("blk.x.w.weight", (None, "w")),
    ],
)
def test_names_are_split_as_llama_imatrix_does(name: str, expected: tuple[int | None, str]) -> None:
    assert split_name(name) == expected


def test_shared_inputs_are_known_from_the_data(demo_imatrix: Path) -> None:
    shared = shared_inputs(load_imatrix(demo_imatrix))
    assert set(shared["blk.4.attn_q.weight"]) == {"blk.4.attn_k.weight", "blk.4.attn_v.weight"}
    assert shared["blk.4.ffn_up.weight"] == ("blk.4.ffn_gate.weight",)
    assert "blk.4.ffn_down.weight" not in shared
    assert len(shared) == 12 * 5


def test_equal_sums_with_other_counts_are_no_shared_input() -> None:
    assert shared_inputs(matrix(blk_0_a=([[1]], [1]), blk_0_b=([[1]], [2]), blk_1_a=([[1]], [1]))) == {}
