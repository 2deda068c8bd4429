"""Refusals that help: strangers are named, rules that do nothing are told, files others wrote are read."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf_builder import build_gguf, toy_llama

from surgeon.cli import run
from surgeon.errors import SurgeonError
from surgeon.gguf.file import GGUFError, open_gguf
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.llama_quantize.arguments import read_type_file
from surgeon.model.categories import kept_because
from surgeon.model.model import load_model
from surgeon.model.verification import structure_problems
from surgeon.plan.plan import Plan, parse_rule
from surgeon.resolve.resolve import resolve

SAFETENSORS = json.dumps({"a": {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
STRANGERS = {
    "GGJT": b"tjgg" + bytes(60),
    "GGML": b"lmgg" + bytes(60),
    "GGLA.*LoRA": b"algg" + bytes(60),
    "web page": b'\n<!doctype html>\n<html class=""><head>' + bytes(60),
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "zip": b"PK\x03\x04" + bytes(60),
    "safetensors": struct.pack("<Q", len(SAFETENSORS)) + SAFETENSORS + bytes(8),
    "JSON": b'{"error":"Access is restricted"}',
    "zeros": bytes(200),
    "gzip": b"\x1f\x8b" + bytes(60),
    "importance matrix": struct.pack("<ii", 2, 19) + b"blk.0.attn_q.weight" + bytes(40),
}


@pytest.mark.parametrize("word", STRANGERS)
def test_what_is_no_gguf_is_named(tmp_path: Path, word: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(STRANGERS[word])
    with pytest.raises(GGUFError, match=rf"m\.gguf: is .*{word}.*; .+"):
        open_gguf(path)


def test_shards_joined_with_cat_are_recognized(tmp_path: Path) -> None:
    kv = {"general.architecture": "llama", "split.no": 0, "split.count": 2, "split.tensors.count": 2}
    first = build_gguf(tmp_path / "a", kv, {"a.weight": ("F32", (32, 2))})
    second = build_gguf(tmp_path / "b", {**kv, "split.no": 1}, {"b.weight": ("F32", (32, 2))})
    joined = tmp_path / "m-00001-of-00002.gguf"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(GGUFError, match="as cat makes it"):
        open_gguf(joined)


def test_an_imatrix_is_not_operated_on(tmp_path: Path) -> None:
    kv = {"general.type": "imatrix", "imatrix.datasets": ["t"], "imatrix.chunk_count": 1, "imatrix.chunk_size": 512}
    path = build_gguf(tmp_path / "im.gguf", kv, {"a.in_sum2": ("F32", (32, 1)), "a.counts": ("F32", (1, 1))})
    with pytest.raises(SurgeonError, match=r"an importance matrix, not a model; give it with --imatrix"):
        run(["quantize", str(path), str(tmp_path / "o.gguf"), "Q8_0"])


def test_a_lora_is_named_and_not_labelled(tmp_path: Path) -> None:
    kv = {"general.architecture": "llama", "general.type": "adapter", "general.file_type": 1}
    tensors = {f"blk.0.attn_q.weight.lora_{part}": ("F16", (32, 32)) for part in "ab"}
    resolution = resolve(load_model(build_gguf(tmp_path / "l.gguf", kv, tensors)), Plan(file_type="Q8_0"))
    assert dict(resolution.metadata)["general.file_type"].decode() == 1
    texts = [problem.text for problem in resolution.problems]
    assert any("LoRA adapter" in text for text in texts)
    assert any("nothing in this file can be quantized" in text for text in texts)
    (found,) = structure_problems(resolution.model)
    assert (found.severity, found.text[:14]) == ("note", "a LoRA adapter"), "it needs no keys of a model"


@pytest.mark.parametrize(("count", "words"), [(1, "there are tensors of layer 1"), (3, "layer 2 has no tensors")])
def test_a_wrong_number_of_layers_is_said_before_writing(tmp_path: Path, count: int, words: str) -> None:
    kv = {"general.architecture": "llama", "llama.block_count": count}
    tensors = {f"blk.{layer}.attn_q.weight": ("F16", (256, 32)) for layer in range(2)}
    resolution = resolve(load_model(build_gguf(tmp_path / "m.gguf", kv, tensors)), Plan(file_type="Q8_0"))
    warnings = [problem.text for problem in resolution.problems if problem.severity == "warning"]
    assert any(f"block_count is {count}, but {words}" in text for text in warnings)


def test_five_dimensions_and_long_names_are_read_copied_and_told(tmp_path: Path) -> None:
    long = "model.diffusion_model." + "transformer_blocks." * 4 + "weight"
    assert 63 < len(long) < 127
    data = bytes(range(64)) * 32
    tensors = {"patch_embedding.weight": ("F16", (2, 2, 1, 16, 16), data), long: ("F16", (32, 4))}
    path = build_gguf(tmp_path / "wan.gguf", {"general.architecture": "wan"}, tensors)
    out = tmp_path / "o.gguf"
    assert run(["quantize", str(path), str(out), "COPY"]) == 0
    with open_gguf(out) as file:
        found = {info.name: info for info in file.tensors}
        assert found["patch_embedding.weight"].ne == (2, 2, 1, 16, 16)
        assert file.data(found["patch_embedding.weight"]).tobytes() == data
        assert long in found
    texts = [problem.text for problem in structure_problems(load_model(out)) if problem.severity == "error"]
    assert any("5 dimensions" in text for text in texts)
    assert any(f"{len(long)} bytes" in text for text in texts)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_type_files_of_others_are_read(tmp_path: Path, newline: str) -> None:
    path = tmp_path / "recipe.txt"
    lines = ["\ufeff## Model head & embeddings", r"output\.weight=q6_k", "", "  # a remark=q8_0", r"blk\.0\.ffn=q5_k"]
    path.write_bytes(newline.join(lines).encode())
    assert [str(rule) for rule in read_type_file(str(path))] == [r"output\.weight=q6_k", r"blk\.0\.ffn=q5_k"]


def test_rules_that_do_nothing_are_one_line(tmp_path: Path) -> None:
    model = load_model(toy_llama(tmp_path / "m.gguf"))
    rules = [*(f"nosuch{n}=q8_0" for n in range(50)), "attn_norm=q8_0", "ffn=q8_0", "ffn_down=q6_k", "attn_q=q8_0"]
    resolution = resolve(model, Plan(file_type="Q8_0", rules=tuple(map(parse_rule, rules))))
    (text,) = [problem.text for problem in resolution.problems if "rule" in problem.text]
    assert "matches no tensor: rule nosuch0=q8_0, nosuch1=q8_0, nosuch2=q8_0 and 47 more" in text
    assert "hidden by an earlier rule: rule ffn_down=q6_k" in text
    assert "never quantized: rule attn_norm=q8_0" in text
    assert "attn_q" not in text


def test_a_second_text_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(["perplexity", "-m", "m.gguf", "-f", "a.txt", "-f", "b.txt"])
    assert stopped.value.code == 2
    assert "-f is given twice" in capsys.readouterr().err


def test_image_models_keep_what_their_field_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"double_blocks.{n}.img_attn.qkv.weight" for n in range(2)]
    names += ["single_blocks.0.linear1.weight", "img_in.weight", "final_layer.linear.weight", "time_in.in_layer.weight"]
    tensors = dict.fromkeys(names, ("F16", (256, 8)))
    path = build_gguf(tmp_path / "flux.gguf", {"general.architecture": "flux"}, tensors)
    resolution = resolve(load_model(path), Plan(file_type="Q4_K_M"))
    quantized = {op.source for op in resolution.ops if op.action == "convert"}
    assert quantized == {name for name in names if "blocks" in name}
    assert [problem.severity for problem in resolution.problems] == ["note"]
    assert run(["show", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.count("\ndouble_blocks.") == 2
    assert "\n  img_attn.qkv " in out
    other = build_gguf(tmp_path / "new.gguf", {"general.architecture": "brand-new"}, tensors)
    (asked,) = resolve(load_model(other), Plan(file_type="Q4_K_M")).problems
    assert asked.severity == "warning"
    assert "--tensor-type" in asked.text
    ruled = Plan(file_type="Q4_K_M", rules=(parse_rule("blocks=q4_k"),))
    assert {problem.severity for problem in resolve(load_model(other), ruled).problems} == {"note"}


@pytest.mark.parametrize(
    ("architecture", "kept", "quantized"),
    [
        ("sdxl", "add_embedding.linear_1.weight conv_in.weight input_blocks.0.0.weight out.2.weight",
         "input_blocks.4.1.proj_in.weight output_blocks.2.1.transformer_blocks.0.attn1.to_out.2.weight"),
        ("sd3", "proj_out.weight context_embedder.weight x_embedder.proj.weight",
         "joint_blocks.0.x_block.attn.proj.weight joint_blocks.0.x_block.proj_out.weight"),
        ("wan", "head.modulation.weight time_projection.1.weight img_emb.proj.1.weight", "blocks.0.ffn.2.weight"),
        ("cosmos", "p_embedder.weight pos_embedder.weight t_embedder.1.weight", "blocks.0.mlp.layer2.weight"),
        ("lumina2", "context_refiner.0.attention.qkv.weight noise_refiner.0.feed_forward.w1.weight",
         "layers.0.attention.qkv.weight"),
        ("ltxv", "adaln_single.linear.weight proj_out.weight", "transformer_blocks.0.attn1.to_v.weight"),
    ],
)  # fmt: skip
def test_what_the_tools_for_images_keep(architecture: str, kept: str, quantized: str) -> None:
    assert all(kept_because(name, (256, 8), architecture) for name in kept.split())
    assert not any(kept_because(name, (256, 8), architecture) for name in quantized.split())
    for name in quantized.split():  # a convolution
        assert kept_because(name, (3, 3, 256, 8), architecture) == "4-D"


def test_a_vision_tower_does_not_shift_the_texts_mix(tmp_path: Path) -> None:
    kv = {"general.architecture": "llama", "llama.block_count": 8}
    text = {f"blk.{n}.attn_v.weight": ("F16", (256, 64)) for n in range(8)}
    tower = {f"v.blk.{n}.attn_v.weight": ("F16", (256, 64)) for n in range(8)} | {"mm.0.weight": ("F16", (256, 64))}

    def types(tensors: dict[str, object], *, compat: bool = False) -> dict[str, str]:
        model = load_model(build_gguf(tmp_path / "m.gguf", kv, tensors))
        plan = Plan(file_type="Q4_K_M", compat=compat)
        return {op.source: op.to_type for op in resolve(model, plan).ops}

    alone, both = types(text), types(text | tower)
    assert {name: both[name] for name in text} == alone
    assert {both[name] for name in tower} == {"Q4_K"}
    assert types(text | tower, compat=True) != both


def test_missing_entries_of_prediction_layers_say_how_to_go_on(tmp_path: Path) -> None:
    kv = {"general.architecture": "qwen35", "qwen35.block_count": 2, "qwen35.nextn_predict_layers": 1}
    tensors = {f"blk.{n}.ffn_down.weight": ("F16", (256, 64)) for n in range(2)}
    model = load_model(build_gguf(tmp_path / "m.gguf", kv, tensors))
    entry = ImatrixEntry(np.ones((1, 256), np.float32), np.array([5]))
    imatrix = Imatrix(tmp_path / "im", {"blk.0.ffn_down.weight": entry})
    error = resolve(model, Plan(file_type="IQ2_XS"), imatrix).errors[0].text
    assert r"--tensor-type 'blk\.1\.=q4_k'" in error
    ruled = Plan(file_type="IQ2_XS", rules=(parse_rule(r"blk\.1\.=q4_k"),))
    assert not resolve(model, ruled, imatrix).errors
    kv |= {"qwen35.block_count": 2**32 - 1, "qwen35.nextn_predict_layers": 2**32 - 2}  # must not be looped over
    forced = Plan(file_type="IQ2_XS", rules=(parse_rule("ffn_down=iq2_xs"),))
    endless = load_model(build_gguf(tmp_path / "endless.gguf", kv, tensors))
    assert r"--tensor-type 'blk\.1\.=q4_k'" in resolve(endless, forced, imatrix).errors[0].text
