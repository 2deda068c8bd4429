"""An importance matrix is judged entry by entry, and experts that calibration never called are counted."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_builder import build_gguf

from surgeon.cli import run
from surgeon.imatrix.coverage import experts_with_data
from surgeon.imatrix.files import load_imatrix
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry, ImatrixError
from surgeon.model.model import load_model
from surgeon.plan.plan import Plan
from surgeon.resolve.resolve import resolve
from surgeon_kernels import quantize

EXPERTS, SEEN = 4, [50, 0, 3, 0]
UP = "blk.0.ffn_up_exps.weight"
VALUES = np.random.default_rng(3).standard_normal((EXPERTS, 8, 256)).astype(np.float32)


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    kv = {"general.architecture": "llama", "llama.block_count": 1, "llama.expert_count": EXPERTS}
    kv |= {"llama.context_length": 64, "llama.embedding_length": 256}
    query = VALUES[0].copy()
    return build_gguf(tmp_path / "moe.gguf", kv, {UP: VALUES, "blk.0.attn_q.weight": query})


def sums(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).random(shape, np.float32) + np.float32(0.1)


def gguf_imatrix(path: Path, *, bad: float | None = None, prefix: str = "") -> Path:
    experts = sums(1, EXPERTS, 256) * np.array(SEEN, np.float32)[:, None]
    query = sums(2, 1, 256)
    if bad is not None:
        query[0, 7] = bad
    one = np.ones((1, 1), np.float32)
    counts = np.array(SEEN, np.float32)[:, None]
    tensors = {
        f"{prefix}{UP}.in_sum2": experts,
        f"{prefix}{UP}.counts": counts,
        f"{prefix}blk.0.attn_q.weight.in_sum2": query,
        f"{prefix}blk.0.attn_q.weight.counts": one,
    }
    kv = {"general.type": "imatrix", "imatrix.datasets": ["text"], "imatrix.chunk_count": 1, "imatrix.chunk_size": 512}
    return build_gguf(path, kv, tensors)


def dat_imatrix(path: Path, *, bad: float | None = None) -> Path:
    experts = sums(1, EXPERTS, 256) * (np.array(SEEN, np.float32)[:, None] > 0)
    query = sums(2, 256)
    if bad is not None:
        query[7] = bad
    out = struct.pack("<i", 2)
    for name, values in ((UP, experts.ravel()), ("blk.0.attn_q.weight", query)):
        out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 100, values.size) + values.tobytes()
    path.write_bytes(out)
    return path


@pytest.mark.parametrize("make", [gguf_imatrix, dat_imatrix])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_one_bad_entry_spoils_itself_alone(
    tmp_path: Path, model_path: Path, capsys: pytest.CaptureFixture[str], make: Any, bad: float
) -> None:
    path = make(tmp_path / "bad.imatrix", bad=bad)
    with pytest.raises(ImatrixError, match=r"blk\.0\.attn_q\.weight has the value"):
        load_imatrix(path)
    imatrix = load_imatrix(path, judged=True)
    assert list(imatrix.entries) == [UP]
    assert list(imatrix.bad) == ["blk.0.attn_q.weight"]
    model = load_model(model_path)
    refused = resolve(model, Plan(file_type="Q4_K_M"), imatrix)
    assert "--exclude-weights blk.0.attn_q.weight" in refused.errors[0].text
    assert str(path) in refused.errors[0].text
    assert not resolve(model, Plan(file_type="Q4_K_M", exclude_weights=("attn_q",)), imatrix).errors
    assert run(["stats", str(path)]) == 0
    shown = capsys.readouterr()
    assert "blk.0.attn_q.weight has the value" in shown.err
    assert "ffn_up_exps" in shown.out
    assert run(["verify", str(path)]) == 1
    assert "error: bad.imatrix: blk.0.attn_q.weight has the value" in capsys.readouterr().out


@pytest.mark.parametrize("make", [gguf_imatrix, dat_imatrix])
def test_experts_without_data_are_counted_everywhere(
    tmp_path: Path, model_path: Path, capsys: pytest.CaptureFixture[str], make: Any
) -> None:
    path = make(tmp_path / "im.dat" if make is dat_imatrix else tmp_path / "im.gguf")
    model, imatrix = load_model(model_path), load_imatrix(path)
    assert experts_with_data(imatrix, model) == {UP: (2, EXPERTS)}
    low = resolve(model, Plan(file_type="IQ2_XS"), imatrix)
    assert any(p.severity == "warning" and f"{UP} (2 of 4)" in p.text for p in low.problems)
    resolution = resolve(model, Plan(file_type="Q4_K_M"), imatrix)
    assert resolution.unseen_experts == 2
    assert any(p.severity == "note" and f"{UP} (2 of 4)" in p.text for p in resolution.problems)
    assert next(op for op in resolution.ops if op.source == UP).reason.endswith("2 of 4 experts have data")
    assert run(["verify", "--imatrix", str(path), str(model_path)]) == 1, "the toy lacks tensors"
    assert f"{UP} (2 of 4 have data)" in capsys.readouterr().out
    assert run(["show", "--imatrix", str(path), str(model_path)]) == 0
    assert "2 of 4 experts have data" in capsys.readouterr().out
    assert run(["stats", str(path)]) == 0
    if make is gguf_imatrix:  # the old format does not say how many experts there are
        assert f"{UP}: 2 of 4 experts have data" in capsys.readouterr().out
        assert run(["stats", "--json", str(path)]) == 0
        assert json.loads(capsys.readouterr().out)["experts"] == {UP: {"with_data": 2, "experts": 4}}


def test_a_dense_tensor_without_data_is_no_expert(model_path: Path) -> None:
    entry = ImatrixEntry(np.zeros((1, 256), np.float32), np.zeros(1, np.int64))
    imatrix = Imatrix(Path("zero.dat"), {"blk.0.attn_q.weight": entry}, ("t",), 1, 512)
    resolution = resolve(load_model(model_path), Plan(file_type="Q4_K_M"), imatrix)
    texts = [problem.text for problem in resolution.problems]
    assert any("the imatrix entries of 1 tensor hold no data (count 0): blk.0.attn_q.weight" in text for text in texts)
    assert resolution.unseen_experts == 0
    assert not any("experts" in text for text in texts)


@pytest.mark.parametrize("compat", [False, True])
def test_experts_without_data_are_quantized_as_without_an_imatrix(
    tmp_path: Path, model_path: Path, capsys: pytest.CaptureFixture[str], compat: bool
) -> None:
    """In compat as llama-quantize does it, every value with the same weight."""
    path, out = gguf_imatrix(tmp_path / "im.gguf"), tmp_path / "out.gguf"
    options = ["--pure", "--exclude-weights", "attn_q", *(["--compat"] if compat else [])]
    kept = ["--tensor-type", "attn_q=f32"]
    assert run(["quantize", *options, *kept, "--imatrix", str(path), str(model_path), str(out), "Q4_0", "1"]) == 0
    assert "WARNING: 2 expert(s) had no data in the imatrix" in capsys.readouterr().out
    weights = load_imatrix(path).weights(UP).reshape(EXPERTS, 256)
    model = load_model(out)
    info = next(one for one in model.file.tensors if one.name == UP)
    blocks = model.file.data(info).reshape(EXPERTS, -1)
    for expert in range(EXPERTS):
        importance = weights[expert] if SEEN[expert] or compat else None
        expected = quantize(VALUES[expert], "Q4_0", importance, compat=compat)
        assert np.array_equal(blocks[expert], expected.ravel()), expert


def test_an_imatrix_of_another_model_is_refused_and_not_claimed(tmp_path: Path, model_path: Path) -> None:
    model, imatrix = load_model(model_path), load_imatrix(gguf_imatrix(tmp_path / "im.gguf", prefix="model."))
    resolution = resolve(model, Plan(file_type="Q4_K_M"), imatrix)
    assert "made for another model" in resolution.errors[0].text
    assert not resolve(model, Plan(file_type="Q4_K_M", compat=True), imatrix).errors[1:]
