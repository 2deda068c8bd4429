"""Grouping tensors into layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf_builder import build_gguf, toy_llama

from surgeon.gguf.values import Value, ValueType
from surgeon.model.layer_names import short_name
from surgeon.model.model import load_model

ONE = np.zeros(4, np.float32)


def test_the_bundled_model(demo_model: Path) -> None:
    model = load_model(demo_model)
    assert (model.name, model.architecture, model.block_count) == ("novels-12M", "llama", 12)
    assert (model.n_parameters, model.nbytes) == (11_540_736, 23_094_272)
    assert [layer.index for layer in model.layers] == list(range(12))
    assert {tensor.name for tensor in model.others} == {"token_embd.weight", "output.weight", "output_norm.weight"}
    assert sum(len(layer.tensors) for layer in model.layers) + len(model.others) == len(model.tensors)
    assert model.bpw == pytest.approx(16.0089, abs=1e-4)
    assert model.hparam("attention.head_count_kv") == 2
    assert model.hparam("nothing", "default") == "default"


def test_only_a_leading_blk_is_a_layer(tmp_path: Path) -> None:
    names = ["enc.blk.3.x.weight", "v.blk.0.y.weight", "blk.10.a.weight", "blk.2.b.bias", "blk.x.c.weight", "blk.1"]
    model = load_model(build_gguf(tmp_path / "a.gguf", {}, dict.fromkeys(names, ONE)))
    assert [(layer.index, [t.short for t in layer.tensors]) for layer in model.layers] == [(2, ["b.bias"]), (10, ["a"])]
    assert [tensor.name for tensor in model.others] == [names[0], names[1], names[4], names[5]]
    assert model.block_count == 11
    assert model.architecture == ""


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("blk.0.ffn_down.weight", "ffn_down"),
        ("blk.12.ffn_up.5.weight", "ffn_up.5"),
        ("blk.0.attn_q.bias", "attn_q.bias"),
        ("blk.0.ssm_a", "ssm_a"),
        ("token_embd.weight", "token_embd"),
        ("rope_freqs", "rope_freqs"),
        (".weight", ".weight"),
    ],
)
def test_short_names(name: str, short: str) -> None:
    assert short_name(name) == short


def test_a_per_layer_list_is_a_list(tmp_path: Path) -> None:
    model = load_model(toy_llama(tmp_path / "a.gguf", kv={"llama.feed_forward_length": [512, 256]}))
    assert model.hparam("feed_forward_length") == [512, 256]


def test_names_that_a_terminal_would_obey_are_shown_harmless(tmp_path: Path) -> None:
    kv = {"general.name": "a\x1b[2Jb\n", "general.architecture": "x\x07"}
    model = load_model(build_gguf(tmp_path / "file.gguf", kv, {"t": ONE}))
    assert model.name == "a\\x1b[2Jb\\n"
    assert model.architecture == "x\\x07"
    assert load_model(build_gguf(tmp_path / "file.gguf", {"general.name": "\n"}, {})).name == "file"


def test_an_empty_model_has_no_bits_per_weight(tmp_path: Path) -> None:
    model = load_model(build_gguf(tmp_path / "a.gguf", {}, {}))
    assert (model.n_parameters, model.bpw, model.block_count, model.layers) == (0, 0.0, 0, ())


def test_a_hyperparameter_that_holds_arrays_of_arrays_is_none(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    toy_llama(path)
    model = load_model(path)
    rows = [Value.array(ValueType.UINT32, [1] * 100)] * 100
    model.file.kv["llama.attention.head_count"] = Value.array(ValueType.ARRAY, rows)
    assert model.hparam("attention.head_count", "nothing") == "nothing"
    model.file.kv["llama.attention.head_count"] = rows[0]
    assert model.hparam("attention.head_count") == [1] * 100


def test_a_hyperparameter_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(toy_llama(tmp_path / "m.gguf"))
    model.file.kv["llama.attention.head_count"] = Value.array(ValueType.UINT32, [1, 2])
    seen = []
    decode = Value.decode
    monkeypatch.setattr(Value, "decode", lambda self: seen.append(self) or decode(self))
    model.hparam("attention.head_count").append(3)  # the caller's own list
    assert model.hparam("attention.head_count") == [1, 2]
    assert len(seen) == 1
    model.file.kv["llama.attention.head_count"] = Value.of(ValueType.UINT32, 5)
    assert model.hparam("attention.head_count") == 5
