"""verify's promise: what llama.cpp refuses is named, and llama.cpp itself is asked whether that is so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_experts as toys
from gguf_builder import build_gguf

from surgeon.cli import run
from surgeon.gguf.file import Value, ValueType
from surgeon.model.model import load_model
from surgeon.model.verification import structure_problems
from surgeon.plan.plan import KVOverride, Plan
from surgeon.resolve.resolve import resolve

E, FF, HEADS, KV_HEADS, VOCABULARY = 64, 128, 4, 2, 300
KV, Tensors = dict[str, Any], dict[str, Any]


def toy() -> tuple[KV, Tensors]:
    """A llama of two layers that llama.cpp loads."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"▁{chr(97 + n % 26)}{n}" for n in range(VOCABULARY - len(tokens))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (VOCABULARY - 259)
    kv: KV = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.context_length": 128,
        "llama.embedding_length": E,
        "llama.feed_forward_length": FF,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": Value.array(ValueType.FLOAT32, [-float(n) for n in range(VOCABULARY)]),
        "tokenizer.ggml.token_type": Value.array(ValueType.INT32, kinds),
    }
    rng = np.random.default_rng(1)
    shapes = {"token_embd.weight": (E, VOCABULARY), "output_norm.weight": (E,)}
    rows = {"attn_q": E, "attn_k": E // 2, "attn_v": E // 2, "attn_output": E, "ffn_gate": FF, "ffn_up": FF}
    for layer in range(2):
        shapes |= {f"blk.{layer}.{name}.weight": (E, n) for name, n in rows.items()}
        shapes |= {f"blk.{layer}.ffn_down.weight": (FF, E)}
        shapes |= {f"blk.{layer}.{name}.weight": (E,) for name in ("attn_norm", "ffn_norm")}
    return kv, {name: rng.standard_normal(ne[::-1]).astype(np.float32) for name, ne in shapes.items()}


def without(name: str) -> Callable[[KV, Tensors], object]:
    return lambda kv, tensors: (kv.pop(name, None), tensors.pop(name, None))


def with_key(key: str, value: Any) -> Callable[[KV, Tensors], object]:
    return lambda kv, _: kv.update({key: value})


def with_tensor(name: str, *shape: int) -> Callable[[KV, Tensors], object]:
    return lambda _, tensors: tensors.update({name: np.ones(shape, np.float32)})


# what is done to the file -> what verify says
REFUSED: dict[str, tuple[Callable[[KV, Tensors], object], str]] = {
    "no output_norm": (without("output_norm.weight"), "tensor output_norm.weight is missing"),
    "no attn_k": (without("blk.1.attn_k.weight"), "tensor blk.1.attn_k.weight is missing"),
    "a tensor too many": (with_tensor("rope_freqs.weight2", 32), "rope_freqs.weight2 is not known in llama"),
    "a shape": (with_tensor("blk.1.attn_k.weight", E, E), "blk.1.attn_k.weight is 64 × 64; llama.cpp expects 64 × 32"),
    "vocabulary": (with_tensor("token_embd.weight", VOCABULARY + 2, E), "has 302 rows for a vocabulary of 300"),
    "no heads": (without("llama.attention.head_count"), "the key llama.attention.head_count is missing"),
    "no context": (without("llama.context_length"), "the key llama.context_length is missing"),
    "no epsilon": (without("llama.attention.layer_norm_rms_epsilon"), "layer_norm_rms_epsilon is missing"),
    "short scores": (
        with_key("tokenizer.ggml.scores", Value.array(ValueType.FLOAT32, [0.0] * 50)),
        "tokenizer.ggml.scores has 50 entries for 300 tokens",
    ),
    "mistyped": (with_key("llama.context_length", 128.0), "llama.context_length is float32; llama.cpp reads it as"),
    "layers": (with_key("llama.block_count", 3), "block_count is 3, but layer 2 has no tensors"),
}


def built(tmp_path: Path, change: Callable[[KV, Tensors], object] | None = None) -> Path:
    kv, tensors = toy()
    if change is not None:
        change(kv, tensors)
    return build_gguf(tmp_path / "m.gguf", kv, tensors)


def errors(path: Path) -> list[str]:
    return [problem.text for problem in structure_problems(load_model(path)) if problem.severity == "error"]


@pytest.mark.parametrize("name", REFUSED)
def test_verify_names_what_llama_cpp_refuses(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, expected = REFUSED[name]
    path = built(tmp_path, change)
    assert any(expected in text for text in errors(path)), errors(path)
    if name != "short scores":  # that one it reads past the end of the list
        assert run(["verify", "--load", str(path)]) == 1
        assert "llama.cpp cannot load this model: " in capsys.readouterr().out


def test_what_llama_cpp_loads_is_not_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = built(tmp_path, with_tensor("output.weight", VOCABULARY, E))
    assert errors(path) == []
    assert run(["verify", "--load", str(path)]) == 0
    assert capsys.readouterr().out.endswith("ok\n")


MIXTURES = ("llama", "qwen2moe", "qwen3moe", "gpt-oss", "deepseek2")


@pytest.mark.parametrize("architecture", MIXTURES)
def test_experts_are_checked_as_llama_cpp_does(
    tmp_path: Path, demo_model: Path, architecture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = toys.ALL[architecture]()
    last = whole.layers - 1
    router, down = f"blk.{last}.ffn_gate_inp.weight", f"blk.{last}.ffn_down_exps.weight"
    extra = f"blk.{last}.ffn_sideways.weight"
    narrow = whole.tensors[down][:, :-1]
    changes = {
        "": {},
        f"{router} is missing": {router: None},
        f"{down} is ": {down: narrow},
        f"{extra} is not known in {architecture}": {extra: np.ones((32, 32), np.float32)},
    }
    for said, change in changes.items():
        toy = toys.ALL[architecture]()
        toy.tensors = {name: array for name, array in (toy.tensors | change).items() if array is not None}
        path = toys.write_reading(toy, tmp_path / "m.gguf", demo_model)
        assert [text for text in errors(path) if said in text] if said else errors(path) == [], said
        assert run(["verify", "--load", str(path)]) == bool(said)
        assert ("llama.cpp cannot load this model" in capsys.readouterr().out) == bool(said)


@pytest.mark.parametrize("type_id", [4, 31, 38, 99])
def test_removed_and_unknown_types_are_refused(tmp_path: Path, type_id: int) -> None:
    path = built(tmp_path)
    with load_model(path).file as file:
        info = file.tensors[0]
    name = info.name.encode()
    data = bytearray(path.read_bytes())
    place = data.index(name) + len(name) + 4 + 8 * len(info.ne)
    data[place : place + 4] = type_id.to_bytes(4, "little")
    path.write_bytes(data)
    word = "no longer has it" if type_id < 39 else "does not know it"
    assert any("unknown type" in text and word in text for text in errors(path))


def test_a_tensor_of_zeros_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = built(tmp_path, lambda _, tensors: tensors.update({"blk.1.ffn_up.weight": np.zeros((FF, E), np.float32)}))
    assert run(["verify", str(path)]) == 0
    out = capsys.readouterr().out
    assert "warning: blk.1.ffn_up.weight holds nothing but zeros" in out
    assert out.count("nothing but zeros") == 1


@pytest.mark.parametrize(
    ("key", "kind", "value"),
    [
        ("llama.context_length", "float", 8192.0),
        ("llama.block_count", "int", 7),
        ("general.architecture", "str", "qwen2"),
        ("tokenizer.ggml.tokens", "str", "a"),
        ("llama.attention.head_count", "str", "4"),
    ],
)
def test_an_override_that_makes_a_model_unloadable_is_refused(tmp_path: Path, key: str, kind: str, value: Any) -> None:
    model = load_model(built(tmp_path))
    plan = Plan(file_type="Q8_0", override_kv=(KVOverride(key, kind, value),))
    assert "--i-know allows it" in resolve(model, plan).errors[0].text
    known = Plan(file_type="Q8_0", override_kv=plan.override_kv, know_risks=True)
    assert not resolve(model, known).errors
    harmless = Plan(file_type="Q8_0", override_kv=(KVOverride("general.name", "str", "x"),))
    assert not resolve(model, harmless).problems
