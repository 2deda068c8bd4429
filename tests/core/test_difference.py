"""What two models differ in: `surgeon diff`, and what it is made of."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

import surgeon_kernels
from surgeon.cli import run
from surgeon.measure.difference import difference, errors, shown, type_counts
from surgeon.model.model import load_model
from surgeon.plan.plan import Plan, parse_rule
from surgeon.resolve.resolve import resolve
from surgeon.write.operation import WriteOptions, write

PLAN = Plan("Q8_0", rules=(parse_rule("ffn_down=q4_0"),), pruned=frozenset({11}))


@pytest.fixture(scope="module")
def other(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model in Q8_0, ffn_down in Q4_0, without its last layer."""
    out = tmp_path_factory.mktemp("difference") / "other.gguf"
    resolution = resolve(load_model(demo_model), PLAN, None)
    list(write(resolution, None, out, WriteOptions(), threading.Event()))
    return out


def test_tensors_are_paired_by_name(demo_model: Path, other: Path) -> None:
    found = difference(load_model(demo_model), load_model(other))
    pairs = {pair.name: pair for pair in found.tensors}
    assert len(pairs) == 111
    assert sum(pair.second is None for pair in found.tensors) == 9, "the layer that is gone"
    assert found.kinds.keys() >= {"ffn_down", "attn_q", "token_embd"}
    assert "output_norm" not in found.kinds
    assert type_counts([pair.second for pair in found.kinds["ffn_down"]]) == "11 Q4_0"
    keys = {key.name: (key.first, key.second) for key in found.metadata}
    assert keys["llama.block_count"] == ("12", "11")
    assert "general.architecture" not in keys


def test_the_error_is_that_of_the_types(demo_model: Path, other: Path) -> None:
    ours = load_model(demo_model)
    found = {pair.name: error for pair, error in errors(difference(ours, load_model(other)))}
    assert found["blk.3.attn_norm.weight"] == 0
    tensor = next(tensor for tensor in ours.tensors if tensor.name == "blk.3.ffn_down.weight")
    rows = np.empty(tensor.nbytes // 2, np.float16)
    ours.file.read_into(tensor.info, 0, rows.view(np.uint8))
    rows = rows.astype(np.float32).reshape(-1, tensor.ne[0])
    restored = surgeon_kernels.dequantize(surgeon_kernels.quantize(rows, "Q4_0"), "Q4_0")
    assert found[tensor.name] == pytest.approx(np.linalg.norm(rows - restored) / np.linalg.norm(rows), rel=1e-5)
    assert found["blk.3.attn_q.weight"] < found[tensor.name]


def test_a_model_does_not_differ_from_itself(demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["diff", str(demo_model), str(demo_model)]) == 0
    said = capsys.readouterr().out
    assert "the same types, shapes and names" in said
    assert "metadata: the same" in said


def test_the_table_and_the_object(demo_model: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["diff", str(demo_model), str(other)]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line.split() for line in lines if line.startswith("ffn_down"))
    assert row[1:5] == ["12", "F16", "11", "Q4_0"]
    assert float(row[5]) > 0.05
    assert run(["diff", str(demo_model), str(other), "--json", "--no-errors"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["b"]["layers"] == 11
    gone = [tensor["name"] for tensor in found["tensors"] if tensor["b"] is None]
    assert gone == sorted(gone, key=gone.index)
    assert all(name.startswith("blk.11.") for name in gone)
    assert all(tensor["error"] is None for tensor in found["tensors"])


def test_long_values_are_told_by_their_length(demo_model: Path) -> None:
    kv = load_model(demo_model).file.kv
    assert shown(kv["tokenizer.ggml.tokens"]) == "4096 × string"
    assert shown(kv["general.architecture"]) == "llama"
    assert shown(None) is None
