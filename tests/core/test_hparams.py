"""What the mixes read from the metadata: arrays, overrides, and the models filed under 70B."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf_builder import build_gguf

from surgeon.model.model import Model, load_model
from surgeon.plan.plan import KVOverride
from surgeon.resolve.hparams import Hparams, loader_refusal, read_hparams
from surgeon.resolve.layer_numbers import number_layers, number_layers_as_seen


def model(folder: Path, architecture: str = "llama", **keys: Any) -> Model:
    kv = {"general.architecture": architecture}
    kv |= {f"{architecture}.{key.replace('__', '.')}": value for key, value in keys.items()}
    return load_model(build_gguf(folder / "m.gguf", kv, {"token_embd.weight": ("F16", (32, 4))}))


def test_arrays_count_by_their_first_layer(tmp_path: Path) -> None:
    found = read_hparams(model(tmp_path, block_count=3, attention__head_count=8, attention__head_count_kv=[2, 8, 0]))
    assert found == Hparams("llama", 3, 0, 4, False)


def test_key_value_heads_default_to_the_heads(tmp_path: Path) -> None:
    assert read_hparams(model(tmp_path, block_count=1, attention__head_count=8)).n_gqa == 1
    assert read_hparams(model(tmp_path, block_count=1, attention__head_count=8, attention__head_count_kv=0)).n_gqa == 0


def test_overrides_steer_the_mixes(tmp_path: Path) -> None:
    overrides = (KVOverride("llama.block_count", "int", 24), KVOverride("llama.expert_count", "int", 8))
    found = read_hparams(model(tmp_path, block_count=3), overrides)
    assert (found.block_count, found.n_expert) == (24, 8)


def test_what_set_says_steers_the_mixes_as_well(tmp_path: Path) -> None:
    """`--set` has no type of its own: it has the key's, or the one that its text looks like."""
    overrides = (KVOverride("llama.block_count", "auto", "24"), KVOverride("llama.expert_count", "auto", "8"))
    found = read_hparams(model(tmp_path, block_count=3), overrides)
    assert (found.block_count, found.n_expert) == (24, 8)
    unfit = (KVOverride("llama.block_count", "auto", "x"),)
    assert read_hparams(model(tmp_path, block_count=3), unfit).block_count == 3


def test_hunyuan_with_one_expert_is_dense(tmp_path: Path) -> None:
    assert read_hparams(model(tmp_path, "hunyuan-dense", block_count=1, expert_count=1)).n_expert == 0
    assert read_hparams(model(tmp_path, "llama", block_count=1, expert_count=1)).n_expert == 1


@pytest.mark.parametrize(
    ("architecture", "keys", "expected"),
    [
        ("llama", {"block_count": 80, "attention.head_count": 64, "attention.head_count_kv": 8}, True),
        ("llama", {"block_count": 80, "attention.head_count": 64, "attention.head_count_kv": 64}, False),
        (
            "llama",
            {"block_count": 81, "nextn_predict_layers": 1, "attention.head_count": 64, "attention.head_count_kv": 8},
            True,
        ),
        (
            "llama",
            {"block_count": 80, "expert_count": 8, "attention.head_count": 64, "attention.head_count_kv": 8},
            False,
        ),
        ("qwen2", {"block_count": 80}, True),
        ("qwen3", {"block_count": 80}, False),
        ("jais2", {"block_count": 68}, True),
    ],
)
def test_models_filed_under_70b(tmp_path: Path, architecture: str, keys: dict[str, Any], expected: bool) -> None:
    keys = {key.replace(".", "__"): value for key, value in keys.items()}
    assert read_hparams(model(tmp_path, architecture, **keys)).is_70b is expected


def test_what_the_loader_refuses(tmp_path: Path) -> None:
    whole = {"block_count": 2, "context_length": 8, "embedding_length": 32}
    assert loader_refusal(model(tmp_path, **whole)) is None
    assert loader_refusal(model(tmp_path, "clip")) is None
    assert loader_refusal(model(tmp_path, **whole, feed_forward_length=[1, 2])) is None
    assert "has 3 entries for 2 layers" in str(loader_refusal(model(tmp_path, **whole, feed_forward_length=[1, 2, 3])))
    for key in whole:
        rest = {other: value for other, value in whole.items() if other != key}
        assert loader_refusal(model(tmp_path, **rest)) == f"the key llama.{key} is missing"
    override = (KVOverride("llama.context_length", "int", 8),)
    assert loader_refusal(model(tmp_path, block_count=2, embedding_length=32), override) is None


def test_numbers_close_the_gaps() -> None:
    names = [("output.weight", None), *((f"blk.{n}.x", n) for n in range(5)), ("v.blk.3.x", None)]
    found = number_layers(names, frozenset({1, 3}), 5)
    assert found.layers == {0: 0, 1: None, 2: 1, 3: None, 4: 2}
    assert found.names["blk.4.x"] == "blk.2.x"
    assert found.names["v.blk.3.x"] == "v.blk.3.x"
    assert found.names["blk.3.x"] is None
    assert found.count == 3


def test_layers_without_tensors_keep_their_place() -> None:
    found = number_layers([("blk.0.x", 0), ("blk.3.x", 3)], frozenset({0}), 4)
    assert found.names == {"blk.0.x": None, "blk.3.x": "blk.2.x"}
    assert found.count == 3
    assert number_layers([("blk.0.x", 0), ("blk.3.x", 3)], frozenset(), 4).names["blk.3.x"] == "blk.3.x"


def test_numbers_as_llama_quantize_sees_them() -> None:
    names = [f"dec.blk.{n}.x" for n in (0, 1, 10, 11, 2, 3)]
    found = number_layers_as_seen(names, frozenset({1}))
    assert [found.names[name] for name in names] == [
        "dec.blk.0.x", None, "dec.blk.1.x", "dec.blk.2.x", "dec.blk.3.x", "dec.blk.4.x",
    ]  # fmt: skip
    assert found.count == 5
