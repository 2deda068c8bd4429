"""What a plan does to a model: reasons, the pre-flight list, and each place where llama-quantize is wrong."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_builder import build_gguf, llama_kv, llama_tensors, toy_llama

from surgeon import cli
from surgeon.errors import SurgeonError
from surgeon.gguf.layout import header
from surgeon.gguf.values import Value, ValueType
from surgeon.imatrix.files import load_imatrix
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.llama_quantize.options import parse_job
from surgeon.model.model import Model, load_model
from surgeon.plan.plan import KVOverride, Plan, TypeRule
from surgeon.resolve.resolve import Resolution, TensorOp, resolve

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))["cases"]


def op(resolution: Resolution, source: str) -> TensorOp:
    return next(one for one in resolution.ops if one.source == source)


def types(resolution: Resolution, pattern: str) -> dict[int, str]:
    """Layer of the input -> type, for the tensors whose name matches."""
    return {one.tensor.layer or 0: one.to_type for one in resolution.kept if re.search(pattern, one.source)}


def errors(resolution: Resolution) -> str:
    return "\n".join(problem.text for problem in resolution.errors)


def told(resolution: Resolution) -> str:
    return "\n".join(f"{problem.severity}: {problem.text}" for problem in resolution.problems)


def weights_for(model: Model, *leave_out: str) -> Imatrix:
    entries = {
        tensor.name: ImatrixEntry(np.ones((1, tensor.ne[0]), np.float32), np.array([10]))
        for tensor in model.tensors
        if len(tensor.ne) > 1 and tensor.layer is not None and tensor.name not in leave_out
    }
    return Imatrix(Path("im.gguf"), entries, ("calibration.txt",), 7)


@pytest.fixture
def dense(golden_models: Path) -> Model:
    return load_model(golden_models / "dense.gguf")


# Reasons.


def test_reasons_in_the_users_words(dense: Model) -> None:
    plan = Plan("Q4_K_M", rules=(TypeRule("attn_k", "Q8_0"),), types=(("blk.2.ffn_up.weight", "Q5_0"),))
    resolution = resolve(dense, plan, weights_for(dense, "blk.1.attn_q.weight"))
    expected = {
        "output.weight": "mix rule: output",
        "output_norm.weight": "not quantized: norm",
        "token_embd.weight": "base type of Q4_K_M",
        "blk.0.ffn_down.weight": "mix rule: use_more_bits, layer 0 of 12",
        "blk.0.attn_k.weight": "rule attn_k=q8_0",
        "blk.2.ffn_up.weight": "set by hand",
        "blk.1.attn_q.weight": "base type of Q4_K_M; no imatrix entry",
    }
    assert {name: op(resolution, name).reason for name in expected} == expected


def test_fallback_says_what_does_not_fit(golden_models: Path) -> None:
    resolution = resolve(load_model(golden_models / "odd288.gguf"), Plan("Q4_K_M"))
    found = op(resolution, "blk.0.attn_q.weight")
    assert (found.to_type, found.reason) == ("Q5_0", "row length 288 is not a multiple of 256: Q4_K falls back to Q5_0")
    assert resolution.fallbacks == 15


def test_copies_say_why(golden_models: Path) -> None:
    source = load_model(golden_models / "q8src.gguf")
    resolution = resolve(source, Plan("Q8_0"))
    assert op(resolution, "blk.0.attn_q.weight").reason == "copied: same type (base type of Q8_0)"
    assert op(resolve(source, Plan("COPY")), "blk.0.attn_q.weight").reason == "copied: COPY"
    leave = resolve(source, Plan("Q8_0", leave_output_tensor=True))
    assert op(leave, "output.weight").reason == "copied: --leave-output-tensor"
    assert op(resolve(source, Plan("COPY", pruned=frozenset({1}))), "blk.1.attn_q.weight").reason == "pruned: layer 1"


# Precedence.


def test_the_first_matching_rule_wins_and_by_hand_before_all(dense: Model) -> None:
    rules = (TypeRule(r"blk\.3\.", "Q8_0"), TypeRule("ffn_up", "Q5_K"), TypeRule("ffn_up", "Q6_K"))
    plan = Plan("Q4_K_S", rules=rules, types=(("blk.3.ffn_up.weight", "Q3_K"),))
    found = types(resolve(dense, plan), r"ffn_up")
    assert found == {layer: "Q3_K" if layer == 3 else "Q5_K" for layer in range(12)}


def test_dedicated_options_come_before_rules(dense: Model) -> None:
    rules = (TypeRule("output|token_embd", "Q3_K"),)
    plan = Plan("Q4_K_M", rules=rules, output_tensor_type="Q8_0", token_embedding_type="Q5_K")
    resolution = resolve(dense, plan)
    assert op(resolution, "output.weight").to_type == "Q8_0"
    assert op(resolution, "token_embd.weight").to_type == "Q5_K"


def test_types_set_by_hand_work_on_a_copy(dense: Model) -> None:
    resolution = resolve(dense, Plan("COPY", types=(("blk.0.ffn_up.weight", "Q8_0"),)))
    converted = [one.source for one in resolution.ops if one.action == "convert"]
    assert converted == ["blk.0.ffn_up.weight"]
    assert not resolution.errors


def test_rules_without_a_quantized_base_are_told_to_be_idle(dense: Model) -> None:
    resolution = resolve(dense, Plan("F16", rules=(TypeRule("attn_v", "Q8_0"),)))
    assert op(resolution, "blk.0.attn_v.weight").to_type == "F16"
    assert "warning: --tensor-type has no effect with TYPE F16" in told(resolution)


# Where llama-quantize is wrong.


def test_an_override_does_not_shift_the_others(dense: Model) -> None:
    plan = Plan("Q4_K_M", rules=(TypeRule(r"blk\.0\.ffn_down", "Q4_K"),))
    raised = {layer for layer, kind in types(resolve(dense, plan), "ffn_down").items() if kind == "Q6_K"}
    assert raised == {3, 6, 9, 10, 11}
    plan = Plan("Q4_K_M", rules=plan.rules, compat=True)
    raised = {layer for layer, kind in types(resolve(dense, plan), "ffn_down").items() if kind == "Q6_K"}
    assert raised == {1, 4, 7, 10, 11}


def test_rules_see_the_numbers_the_user_sees(dense: Model) -> None:
    plan = {"pruned": frozenset({2, 5}), "rules": (TypeRule(r"blk\.3\.", "Q8_0"),)}
    assert types(resolve(dense, Plan("Q4_K_S", **plan)), "attn_q")[3] == "Q8_0"
    compat = types(resolve(dense, Plan("Q4_K_S", compat=True, **plan)), "attn_q")
    assert [layer for layer, kind in compat.items() if kind == "Q8_0"] == [4]


def test_after_pruning_the_mix_counts_the_layers_that_are_there(dense: Model) -> None:
    pruned = frozenset({1, 2, 4, 5})
    left = [layer for layer in range(12) if layer not in pruned]
    found = types(resolve(dense, Plan("Q4_K_M", pruned=pruned)), "ffn_down")
    # of 8 layers: the first, the last, and every third between
    assert [left.index(layer) for layer, kind in found.items() if kind == "Q6_K"] == [0, 3, 6, 7]
    compat = types(resolve(dense, Plan("Q4_K_M", pruned=pruned, compat=True)), "ffn_down")
    assert [left.index(layer) for layer, kind in compat.items() if kind == "Q6_K"] == [0, 3, 6]


def test_layers_that_do_not_exist(dense: Model) -> None:
    assert "cannot prune layer 40: the model has layers 0 to 11" in errors(
        resolve(dense, Plan("Q4_0", pruned=frozenset({3, 40})))
    )
    assert not resolve(dense, Plan("Q4_0", pruned=frozenset({3, 40}), compat=True)).errors


def test_pruning_every_layer(dense: Model) -> None:
    every = frozenset(range(12))
    assert "cannot prune every layer" in errors(resolve(dense, Plan("COPY", pruned=every)))
    assert not resolve(dense, Plan("COPY", pruned=every, compat=True)).errors


def test_dedicated_options_fall_back_too(golden_models: Path) -> None:
    model = load_model(golden_models / "odd288.gguf")
    plan = {"token_embedding_type": "Q4_K", "output_tensor_type": "Q6_K"}
    resolution = resolve(model, Plan("Q8_0", **plan))
    assert op(resolution, "token_embd.weight").to_type == "Q5_0"
    assert op(resolution, "output.weight").to_type == "Q8_0"
    assert "no fallback for this option" in errors(resolve(model, Plan("Q8_0", compat=True, **plan)))


def test_alignment_is_that_of_the_model(golden_models: Path) -> None:
    model = load_model(golden_models / "align64.gguf")
    assert resolve(model, Plan("Q8_0")).alignment == 64
    assert resolve(model, Plan("Q8_0", compat=True)).alignment == 32
    odd = Plan("COPY", override_kv=(KVOverride("general.alignment", "int", 48),))
    assert "general.alignment would be 48" in errors(resolve(model, odd))
    assert resolve(model, Plan("COPY", override_kv=(KVOverride("general.alignment", "int", 128),))).alignment == 128


@pytest.mark.parametrize(
    ("stored", "override", "expected"),
    [
        (Value.of(ValueType.INT32, 5), KVOverride("k", "int", -99), Value.of(ValueType.INT32, -99)),
        (Value.of(ValueType.UINT64, 5), KVOverride("k", "int", 2**40), Value.of(ValueType.UINT64, 2**40)),
        (Value.of(ValueType.UINT16, 5), KVOverride("k", "int", 7), Value.of(ValueType.UINT16, 7)),
        (Value.of(ValueType.FLOAT32, 5.0), KVOverride("k", "int", 7), Value.of(ValueType.FLOAT32, 7.0)),
        (Value.of(ValueType.FLOAT64, 5.0), KVOverride("k", "float", 0.1), Value.of(ValueType.FLOAT64, 0.1)),
        (None, KVOverride("k", "int", -99), Value.of(ValueType.INT32, -99)),
        (None, KVOverride("k", "int", 99), Value.of(ValueType.UINT32, 99)),
        (None, KVOverride("k", "int", 2**40), Value.of(ValueType.UINT64, 2**40)),
        (None, KVOverride("k", "int", -(2**40)), Value.of(ValueType.INT64, -(2**40))),
        (None, KVOverride("k", "float", 0.1), Value.of(ValueType.FLOAT32, 0.1)),
        (None, KVOverride("k", "str", "ü" * 100), Value.of(ValueType.STRING, "ü" * 100)),
        (Value.of(ValueType.STRING, "x"), KVOverride("k", "bool", True), Value.of(ValueType.BOOL, True)),
    ],
)
def test_overrides_keep_sign_type_and_length(
    tmp_path: Path, stored: Value | None, override: KVOverride, expected: Value
) -> None:
    extra = {"k": stored} if stored else {}
    model = load_model(toy_llama(tmp_path / "m.gguf", layers=1, kv=extra))
    resolution = resolve(model, Plan("COPY", override_kv=(override,)))
    assert dict(resolution.metadata)["k"] == expected
    assert resolution.metadata[-1][0] == "k"
    compat = resolve(model, Plan("COPY", override_kv=(override,), compat=True))
    if override.kind == "int":
        assert dict(compat.metadata)["k"] == Value.of(ValueType.UINT32, abs(override.value) & 0xFFFFFFFF)  # type: ignore[arg-type]


def test_an_override_that_does_not_fit_its_key(tmp_path: Path) -> None:
    model = load_model(toy_llama(tmp_path / "m.gguf", layers=1, kv={"k": Value.of(ValueType.UINT8, 1)}))
    resolution = resolve(model, Plan("COPY", override_kv=(KVOverride("k", "int", 300),)))
    assert "--override-kv k=int:300: the key is uint8, 300 does not fit" in errors(resolution)


@pytest.mark.parametrize("compat", [False, True])
def test_an_override_of_how_the_output_is_split_is_told(dense: Model, compat: bool) -> None:
    overrides = (KVOverride("split.count", "int", 3), KVOverride("general.name", "str", "x"))
    resolution = resolve(dense, Plan("COPY", override_kv=overrides, compat=compat))
    said = [problem.text for problem in resolution.problems if "split.count" in problem.text]
    assert said == ["--override-kv split.count: left out; these keys say how the output is split"]
    (part,) = resolution.parts(Path("out.gguf"))
    assert "split.count" not in dict(part.kv)


def test_strings_keep_what_follows_a_nul(tmp_path: Path) -> None:
    kv = {"a": "one\0two", "b": ["x\0y", "z"], "c": ["plain"]}
    model = load_model(toy_llama(tmp_path / "m.gguf", layers=1, kv=kv))
    ours, theirs = (dict(resolve(model, Plan("COPY", compat=compat)).metadata) for compat in (False, True))
    assert [ours[key].decode() for key in "abc"] == ["one\0two", ["x\0y", "z"], ["plain"]]
    assert [theirs[key].decode() for key in "abc"] == ["one", ["x", "z"], ["plain"]]


def test_the_imatrix_path_is_not_cut(dense: Model) -> None:
    path = "/a" * 100
    for compat, length in ((False, 200), (True, 127)):
        metadata = dict(resolve(dense, Plan("Q8_0", imatrix_file=path, compat=compat), weights_for(dense)).metadata)
        assert metadata["quantize.imatrix.file"].decode() == path[:length]


def test_bpw_counts_the_parameters_that_are_there(dense: Model) -> None:
    plan = {"pruned": frozenset(range(6))}
    resolution = resolve(dense, Plan("F16", **plan))
    assert resolution.bpw == pytest.approx(16, abs=0.1)
    assert resolve(dense, Plan("F16", compat=True, **plan)).bpw < 9


def test_blocks_of_other_kinds_are_not_layers(tmp_path: Path) -> None:
    tensors = llama_tensors(3) | {"v.blk.1.ffn_up.weight": np.ones((4, 32), np.float32)}
    model = load_model(build_gguf(tmp_path / "m.gguf", llama_kv(3), tensors))
    kept = {one.name for one in resolve(model, Plan("COPY", pruned=frozenset({1}))).kept}
    assert "v.blk.1.ffn_up.weight" in kept
    compat = {one.name for one in resolve(model, Plan("COPY", pruned=frozenset({1}), compat=True)).kept}
    assert not any(name.startswith("v.blk") for name in compat)


def test_per_layer_arrays_follow_the_pruning(golden_models: Path) -> None:
    model = load_model(golden_models / "arrays.gguf")
    ours = dict(resolve(model, Plan("COPY", pruned=frozenset({1}))).metadata)
    theirs = dict(resolve(model, Plan("COPY", pruned=frozenset({1}), compat=True)).metadata)
    assert ours["llama.feed_forward_length"].decode() == [256, 256, 256]
    assert ours["llama.block_count"].decode() == 3
    assert len(theirs["llama.feed_forward_length"].decode()) == 4


# Every golden case once more, without --compat: the default may differ only where llama-quantize is wrong.

DIFFERENT = {
    "175-align64-q8_0": "layout",  # the model's alignment is honoured
    "176-align64-copy": "layout",
    "177-align64-f16": "layout",
    "194-dense-q4_k_m-tt-counter": "types",  # an override does not shift the others
    "212-dense-q4_k_m-prune": "kv",  # pruning is recorded, and the metadata follows it
    "213-dense-q4_k_m-im-prune-ends": "types",  # the mix counts the layers that are there
    "214-dense-iq3_xxs-im-prune-many": "kv",
    "215-dense-q5_k_m-prune-twice": "types",
    "216-dense-q2_k-im-prune-tt": "types",  # rules see the layer numbers of the input
    "217-dense-q4_0-prune-absent": "error",  # there is no layer 40
    "218-dense-copy-prune": "kv",
    "219-dense-f32-prune-last": "kv",
    "220-gemma3-q4_k_m-im-prune": "kv",
    "221-arrays-q8_0-prune": "kv",
    "222-arrays-copy-prune": "kv",
    "223-qwen3moe-q4_k_m-im-prune": "types",
    "224-deepseek2-q4_k_m-prune": "types",
    "225-q8src-copy-prune": "kv",
    "226-dense-copy-prune-all": "error",  # nothing would be left
    "247-q8src-copy-kv3": "kv",  # an integer keeps its sign
    "248-dense-q4_k_m-kv-layers": "error",  # llama.cpp would not load a model of 24 layers with tensors of fewer
    "249-dense-q4_k_m-im-kv-prune": "error",
}


def differs(case: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the default changes against the recorded output: "types", "names", "kv", "layout" or an error."""
    monkeypatch.chdir(folder)
    job = parse_job(case["args"])
    imatrix = load_imatrix(job.imatrix) if job.imatrix else None
    resolution = resolve(load_model(job.input), job.plan, imatrix)
    if resolution.errors:
        return "error"
    recorded = case["outputs"][0]
    if [(one.name, one.to_type) for one in resolution.kept] != [(t[0], t[1]) for t in recorded["tensors"]]:
        return "types"
    data = header(resolution.metadata, (), 32).data
    end = 24 + sum(12 + len(key.encode()) + len(value.raw) for key, value in resolution.metadata)
    if hashlib.sha256(data[24:end]).hexdigest() != recorded["kv_sha256"]:
        return "kv"
    return "" if (resolution.alignment, resolution.total_bytes) == (32, recorded["bytes"]) else "layout"


def test_the_default_differs_only_where_llama_quantize_is_wrong(
    golden_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for case in CASES:
        if case["exit"] == 0 and len(case["outputs"]) == 1 and "--keep-split" not in case["args"]:
            change = differs(case, golden_models, monkeypatch)
            if change:
                found[case["id"]] = change
    assert found == DIFFERENT


# The pre-flight list.


def test_a_missing_imatrix_names_the_tensors(dense: Model) -> None:
    resolution = resolve(dense, Plan("IQ2_XXS"))
    assert "cannot be made without an imatrix, and there is none: blk.0.attn_k.weight" in errors(resolution)
    assert len(resolution.needs_imatrix) == 71
    partial = resolve(dense, Plan("IQ2_S"), weights_for(dense, "blk.7.ffn_gate.weight"))
    assert partial.needs_imatrix == ("blk.7.ffn_gate.weight",)
    assert "1 tensor cannot be made without an imatrix, and the imatrix has no entry for it" in errors(partial)


def test_entries_that_are_missing_are_told(dense: Model) -> None:
    resolution = resolve(dense, Plan("Q4_K_M"), weights_for(dense, "blk.7.ffn_gate.weight"))
    assert "warning: no imatrix entry for 1 tensor, quantized without: blk.7.ffn_gate.weight" in told(resolution)
    assert not resolution.errors
    assert op(resolution, "blk.7.ffn_gate.weight").imatrix_name is None
    assert op(resolution, "blk.7.ffn_up.weight").imatrix_name == "blk.7.ffn_up.weight"


def test_an_imatrix_of_another_model(dense: Model) -> None:
    entry = ImatrixEntry(np.ones((1, 128), np.float32), np.array([1]))
    imatrix = Imatrix(Path("im"), {"blk.1.attn_q.weight": entry})
    sentence = "the imatrix has 128 values for blk.1.attn_q.weight, which needs 256"
    assert sentence in errors(resolve(dense, Plan("Q4_K_M"), imatrix))


def test_embeddings_need_no_imatrix_but_for_three_types(dense: Model) -> None:
    imatrix = weights_for(dense)
    for kind, refused in (("IQ2_XS", True), ("IQ3_XXS", False), ("IQ2_S", False)):
        resolution = resolve(dense, Plan("Q4_K_M", token_embedding_type=kind), imatrix)
        assert bool(resolution.needs_imatrix) is refused


def test_requantizing_wants_consent(golden_models: Path) -> None:
    model = load_model(golden_models / "q8src.gguf")
    assert "already quantized would lose quality again" in errors(resolve(model, Plan("Q4_0")))
    assert not resolve(model, Plan("Q4_0", allow_requantize=True)).errors
    assert not resolve(model, Plan("COPY", pruned=frozenset({0}))).errors


def test_types_that_cannot_be_converted(golden_models: Path) -> None:
    resolution = resolve(load_model(golden_models / "bad-int32.gguf"), Plan("Q8_0"))
    assert "cannot convert I32 to Q8_0: blk.0.ffn_up.weight" in errors(resolution)


def test_a_row_nothing_fits(golden_models: Path) -> None:
    resolution = resolve(load_model(golden_models / "small.gguf"), Plan("Q1_0", pure=True))
    assert "row length 32 is not a multiple of 128, and Q1_0 has none to fall back to" in errors(resolution)


def test_rules_that_match_nothing_and_invalid_ones(dense: Model) -> None:
    resolution = resolve(dense, Plan("Q4_0", rules=(TypeRule("attn_x", "Q8_0"), TypeRule("(up", "Q8_0"))))
    assert "warning: matches no tensor: rule attn_x=q8_0" in told(resolution)
    assert "'(up' is not a regular expression" in errors(resolution)


def test_types_by_hand_for_tensors_of_another_model_and_for_norms(dense: Model) -> None:
    names = (("blk.0.attn_norm.weight", "Q8_0"), ("blk.99.attn_q.weight", "Q8_0"))
    resolution = resolve(dense, Plan("Q4_0", types=names))
    assert "set by hand, but not in this model: blk.99.attn_q.weight" in errors(resolution)
    assert "of a kind that is never quantized: blk.0.attn_norm.weight" in told(resolution)
    assert op(resolution, "blk.0.attn_norm.weight").action == "copy"


def test_unknown_architectures_are_quantized_but_not_with_compat(golden_models: Path) -> None:
    model = load_model(golden_models / "bad-arch.gguf")
    resolution = resolve(model, Plan("Q8_0"))
    assert not resolution.errors
    assert "'nosucharch' is unknown" in told(resolution)
    assert "llama.cpp knows no architecture" in errors(resolve(model, Plan("Q8_0", compat=True)))


def test_metadata_llama_cpp_would_not_load(golden_models: Path) -> None:
    model = load_model(golden_models / "bad-arraylen.gguf")
    assert "head_count_kv has 3 entries for 1 layers" in told(resolve(model, Plan("Q8_0")))
    assert not resolve(model, Plan("Q8_0")).errors
    assert "head_count_kv has 3 entries" in errors(resolve(model, Plan("Q8_0", compat=True)))
    model = load_model(golden_models / "bad-nokey.gguf")
    assert "llama.context_length is missing" in errors(resolve(model, Plan("Q8_0", compat=True)))


@pytest.mark.parametrize("count", [2**32 - 1, float("inf")])
def test_a_damaged_block_count_costs_no_memory(tmp_path: Path, count: float) -> None:
    kv = {"llama.block_count": Value.of(ValueType.UINT32 if isinstance(count, int) else ValueType.FLOAT32, count)}
    model = load_model(toy_llama(tmp_path / "m.gguf", layers=3, kv=kv))
    resolution = resolve(model, Plan("Q4_K_M", pruned=frozenset({1})))
    if isinstance(count, int):
        assert f"block_count is {count}: the file is damaged" in errors(resolution)
    assert [one.name for one in resolution.kept if "attn_q" in one.name] == [f"blk.{n}.attn_q.weight" for n in range(2)]


def test_in_llama_quantize_blocks_of_all_kinds_share_numbers(tmp_path: Path) -> None:
    tensors = {f"dec.blk.{layer}.attn_q.weight": np.ones((4, 32), np.float32) for layer in range(12)}
    kv = llama_kv(12) | {
        "general.architecture": "t5",
        "t5.block_count": 12,
        "t5.context_length": 8,
        "t5.embedding_length": 8,
    }
    model = load_model(build_gguf(tmp_path / "m.gguf", kv, tensors))
    assert "two tensors would be called dec.blk.2.attn_q.weight" in errors(
        resolve(model, Plan("COPY", pruned=frozenset({5}), compat=True))
    )


# Metadata.


def test_provenance_is_that_of_the_first_file(tmp_path: Path) -> None:
    first = toy_llama(tmp_path / "first.gguf", layers=6)
    second = tmp_path / "second.gguf"
    assert cli.run(["quantize", "--prune-layers", "1,3", str(first), str(second), "COPY"]) == 0
    metadata = dict(resolve(load_model(second), Plan("COPY", pruned=frozenset({1}))).metadata)
    assert metadata["surgeon.pruned_layers"].decode() == [1, 2, 3]
    assert metadata["surgeon.source"].decode() == "first.gguf"
    assert metadata["llama.block_count"].decode() == 3


def test_nothing_is_added_when_nothing_is_pruned(dense: Model) -> None:
    resolution = resolve(dense, Plan("Q4_K_M"))
    assert not any(key.startswith("surgeon.") for key, _ in resolution.metadata)


def test_hidden_imatrix(dense: Model) -> None:
    keys = [key for key, _ in resolve(dense, Plan("Q8_0", hide_imatrix=True), weights_for(dense)).metadata]
    assert "quantize.imatrix.file" not in keys
    assert "quantize.imatrix.dataset" not in keys
    assert "quantize.imatrix.entries_count" in keys


@pytest.mark.parametrize(
    ("kinds", "number"),
    [
        ({"F16": 2, "F32": 2}, 1 | 1024),
        ({"F32": 2, "F16": 2}, 0 | 1024),
        ({"Q4_K": 2, "F32": 1}, 15 | 1024),
        ({"I32": 2, "F16": 1}, 0 | 1024),
    ],
)
def test_a_copy_without_file_type_gets_a_guess(tmp_path: Path, kinds: dict[str, int], number: int) -> None:
    tensors = {
        f"{place}{number}": (kind, (256, 1)) for place, kind in enumerate(kinds) for number in range(kinds[kind])
    }
    model = load_model(build_gguf(tmp_path / "m.gguf", {"general.architecture": "llama"}, tensors))
    assert dict(resolve(model, Plan("COPY")).metadata)["general.file_type"].decode() == number


@pytest.mark.parametrize(
    "words",
    [
        "gemma3.gguf Q4_K_M",
        "align64.gguf Q8_0",
        "--prune-layers 1 arrays.gguf COPY",
        "--keep-split shard-00001-of-00003.gguf Q8_0",
        "--keep-split --prune-layers 1 shard-00001-of-00003.gguf COPY",
    ],
)
def test_the_size_told_is_the_size_written(
    golden_models: Path, tmp_path: Path, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(golden_models / word) if word.endswith(".gguf") else word for word in shlex.split(words)]
    arguments.insert(-1, str(tmp_path / "out.gguf"))
    assert cli.run(["quantize", "--json", "--dry-run", *arguments]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert not list(tmp_path.iterdir())
    assert cli.run(["quantize", "--json", *arguments]) == 0
    written = json.loads(capsys.readouterr().out)
    assert planned["total_bytes"] == written["total_bytes"]
    assert written["total_bytes"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert planned["tensors"] == written["tensors"]
    assert struct.unpack("<4s", (tmp_path / Path(written["outputs"][0]).name).read_bytes()[:4]) == (b"GGUF",)


# The command.


def test_an_existing_output_is_kept_without_consent(golden_models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    precious = shutil.copyfile(golden_models / "small.gguf", out).read_bytes()
    arguments = [str(golden_models / "small.gguf"), str(out), "Q8_0"]
    with pytest.raises(SurgeonError, match=r"out\.gguf"):
        cli.run(["quantize", *arguments])
    assert out.read_bytes() == precious
    assert cli.run(["quantize", "--overwrite", *arguments]) == 0
    assert load_model(out).tensors


def test_a_dry_run_warns_of_a_missing_imatrix_and_fails_for_the_rest(
    golden_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["quantize", "--dry-run", str(golden_models / "dense.gguf"), "IQ2_XXS"]) == 0
    assert "will require an imatrix" in capsys.readouterr().out
    assert cli.run(["quantize", "--dry-run", str(golden_models / "q8src.gguf"), "Q4_0"]) == 1


def test_the_imatrix_can_be_saved_with_the_new_numbers(golden_models: Path, tmp_path: Path) -> None:
    saved = tmp_path / "renumbered.gguf"
    words = [
        "--imatrix",
        str(golden_models / "dense.imatrix.gguf"),
        "--prune-layers",
        "2,5",
        "--save-imatrix",
        str(saved),
    ]
    arguments = [*words, str(golden_models / "dense.gguf"), str(tmp_path / "out.gguf"), "COPY"]
    assert cli.run(["quantize", *arguments]) == 0
    before, after = load_imatrix(golden_models / "dense.imatrix.gguf"), load_imatrix(saved)
    assert len(after.entries) == len(before.entries) * 10 // 12
    np.testing.assert_array_equal(after.weights("blk.9.ffn_up.weight"), before.weights("blk.11.ffn_up.weight"))
    again = ["--overwrite", *words[:-1], str(saved)]
    with pytest.raises(SurgeonError, match="exists"):
        cli.run(["quantize", *words, str(golden_models / "dense.gguf"), str(tmp_path / "out2.gguf"), "COPY"])
    assert cli.run(["quantize", *again, str(golden_models / "dense.gguf"), str(tmp_path / "out.gguf"), "COPY"]) == 0


def test_resolving_touches_no_numbers(golden_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run opens 700 tensors at once because neither numpy nor numba is imported for it."""
    import subprocess
    import sys

    code = (
        "import sys; from surgeon import cli; assert cli.run(['quantize', '--dry-run', sys.argv[1], 'Q4_K_M']) == 0; "
        "assert not {'numba', 'numpy', 'textual'} & set(sys.modules), sorted(sys.modules)"
    )
    path = str(golden_models / "dense.gguf")
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
