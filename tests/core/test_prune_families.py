"""Pruning, family by family: the metadata before and after, what is refused and why, and the pruned model alive.

A pruned toy must give the logits of the whole one whose pruned layers are silent; with a role shifted it does not.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_architectures as toys
from gguf_builder import build_gguf
from toy_architectures import Toy

from surgeon import cli
from surgeon.imatrix.files import load_imatrix
from surgeon.model.model import Model, load_model
from surgeon.plan.plan import Plan
from surgeon.resolve.resolve import Resolution, resolve
from surgeon.write.operation import WriteOptions, write

needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="the extra `engine` is not installed"
)
PROBE = Path(__file__).with_name("engine_probe.py")

Prepare = Callable[..., Resolution]


@pytest.fixture
def pruned(tmp_path: Path) -> Prepare:
    """pruned("plamo3", 16, {keys}, {layers}) -> the resolution of pruning a model of empty layers."""

    def make(architecture: str, layers: int, keys: dict[str, Any], gone: set[int], **more: Any) -> Resolution:
        kv = {"general.architecture": architecture, f"{architecture}.block_count": layers}
        kv |= {key if key.startswith("xielu") else f"{architecture}.{key}": value for key, value in keys.items()}
        kv |= more.get("kv", {})
        tensors = dict(more.get("others", {}))
        tensors |= {f"blk.{layer}.attn_norm.weight": ("F32", (4,)) for layer in range(layers)}
        model = load_model(build_gguf(tmp_path / "toy.gguf", kv, tensors))
        return resolve(model, Plan(pruned=frozenset(gone), know_risks=more.get("know_risks", False)))

    return make


def changes(resolution: Resolution) -> dict[str, Any]:
    """What the output's metadata has other than the input's, under the architecture's name; None: removed."""
    before, after = resolution.model.file.kv, dict(resolution.metadata)
    prefix = resolution.model.architecture + "."
    return {
        key.removeprefix(prefix): after[key].decode() if key in after else None
        for key in sorted(before.keys() | after.keys())
        if key.startswith((prefix, "xielu")) and before.get(key) != after.get(key)
    }


def texts(resolution: Resolution, severity: str) -> list[str]:
    return [problem.text for problem in resolution.problems if problem.severity == severity]


def only(resolution: Resolution, severity: str) -> str:
    (text,) = texts(resolution, severity)
    return text


# ------------------------------------------------------------ keys, before and after

G, L = False, True  # entries of sliding_window_pattern: global, local
WINDOW = {"attention.sliding_window": 64}


@pytest.mark.parametrize(
    ("architecture", "layers", "keys", "gone", "expected"),
    [
        # sliding windows: the array holds the roles the kept layers had
        ("gemma2", 6, {}, {1}, [L, L, G, L, G]),
        ("gemma3", 12, WINDOW, {2}, [L, L, L, L, G, L, L, L, L, L, G]),
        ("gemma3", 12, WINDOW, {5}, [L, L, L, L, L, L, L, L, L, L, G]),
        ("gemma3", 8, WINDOW | {"attention.sliding_window_pattern": 2}, {0}, [G, L, G, L, G, L, G]),
        ("gemma-embedding", 7, {}, {0}, [L, L, L, L, G, L]),
        ("gpt-oss", 4, WINDOW, {0}, [G, L, G]),
        ("cohere2", 8, WINDOW, {0, 1}, [L, G, L, L, L, G]),
        ("cohere2moe", 6, WINDOW, {1}, [G, L, L, G, L]),
        ("laguna", 6, WINDOW, {0}, [L, L, L, G, L]),
        ("olmo2", 5, WINDOW, {3}, [L, L, L, L]),
        ("mellum", 5, WINDOW, {0}, [L, L, G, L]),
        ("exaone4", 8, WINDOW, {0}, [L, L, G, L, L, L, G]),
        ("exaone-moe", 5, WINDOW, {0}, [L, L, G, L]),
        ("muse-glimmer", 5, WINDOW, {0}, [L, L, G, L]),
        ("plamo3", 16, WINDOW, {7}, [L] * 14 + [G]),
        ("modern-bert", 7, WINDOW, {1}, [G, L, G, L, L, G]),
        ("smallthinker", 6, WINDOW, {5}, None),  # the last layer: nothing shifts
        ("gemma3", 12, WINDOW, {11}, None),
        ("gemma3", 12, WINDOW, {3, 4, 5, 6, 7, 8}, None),  # one whole period
        ("gemma3", 12, {}, {2}, None),  # without a window there are no roles
        ("olmo2", 8, {}, {2}, None),
    ],
)
def test_roles_by_sliding_window_are_frozen(
    pruned: Prepare, architecture: str, layers: int, keys: dict[str, Any], gone: set[int], expected: list[bool] | None
) -> None:
    resolution = pruned(architecture, layers, keys, gone)
    wanted: dict[str, Any] = {"block_count": layers - len(gone)}
    if expected is not None:
        wanted["attention.sliding_window_pattern"] = expected
    assert changes(resolution) == wanted
    assert texts(resolution, "error") == []
    assert any("releases of llama.cpp" in text for text in texts(resolution, "note")) == (expected is not None)


R, A = True, False  # entries of recurrent_layers


@pytest.mark.parametrize("architecture", ["qwen3next", "qwen35", "qwen35moe", "qwen4exp"])
def test_roles_by_attention_interval_are_frozen(pruned: Prepare, architecture: str) -> None:
    resolution = pruned(architecture, 8, {"full_attention_interval": 4}, {1})
    assert changes(resolution) == {"block_count": 7, "attention.recurrent_layers": [R, R, A, R, R, R, A]}
    assert texts(resolution, "error") == []


@pytest.mark.parametrize(
    ("architecture", "layers", "keys", "gone", "expected"),
    [
        # per-layer arrays
        ("llama", 4, {"feed_forward_length": [1, 2, 3, 4]}, {1}, {"feed_forward_length": [1, 3, 4]}),
        ("jamba", 4, {"attention.head_count_kv": [0, 8, 0, 8]}, {0}, {"attention.head_count_kv": [8, 0, 8]}),
        (
            "nemotron_h",
            4,
            {"attention.head_count_kv": [0, 8, 0, 0], "feed_forward_length": [0, 0, 9, 9]},
            {2},
            {"attention.head_count_kv": [0, 8, 0], "feed_forward_length": [0, 0, 9]},
        ),
        ("apertus", 3, {"xielu.alpha_p": [0.5, 1.0, 2.0]}, {0}, {"xielu.alpha_p": [1.0, 2.0]}),
        ("step35", 4, {"attention.sliding_window_pattern": [G, L, L, L], "swiglu_clamp_exp": [0.0, 1.0, 2.0, 3.0]}, {1},
         {"attention.sliding_window_pattern": [G, L, L], "swiglu_clamp_exp": [0.0, 2.0, 3.0]}),
        ("granite_swa", 3, {"attention.rope_pattern": [1, 0, 1]}, {0}, {"attention.rope_pattern": [0, 1]}),
        ("mimo2", 3, {"attention.sliding_window_pattern": [1, 0, 1]}, {0},
         {"attention.sliding_window_pattern": [0, 1]}),
        # counts of leading and trailing layers
        ("deepseek2", 8, {"leading_dense_block_count": 3}, {1, 5}, {"leading_dense_block_count": 2}),
        ("ernie4_5-moe", 6, {"leading_dense_block_count": 1, "interleave_moe_layer_step": 1}, {0},
         {"leading_dense_block_count": 0}),
        ("glm4moe", 6, {"nextn_predict_layers": 1}, {5}, {"nextn_predict_layers": 0}),
        ("glm4moe", 6, {"nextn_predict_layers": 1}, {4}, {}),
        ("deepseek4", 5, {"hash_layer_count": 3, "attention.compress_ratios": [1, 2, 3, 4, 5]}, {0},
         {"hash_layer_count": 2, "attention.compress_ratios": [2, 3, 4, 5]}),
        ("modern-bert", 6, {"decision.block_count": 2}, {4}, {"decision.block_count": 1}),
        ("lfm2", 6, {"decision.block_count": 2}, {0}, {}),
        # layer numbers
        ("qwen4exp", 8, {"ple.layers": [6]}, {0, 1, 2, 3}, {"ple.layers": [2]}),
        # defaults that llama.cpp fills in by layer number
        ("glm-dsa", 8, {"context_length": 1 << 20}, {0},
         {"attention.indexer.types": [True, True, False, False, False, True, False]}),
        ("glm-dsa", 8, {"context_length": 1 << 17}, {0}, {}),
    ],
)  # fmt: skip
def test_keys_follow_the_layers(
    pruned: Prepare, architecture: str, layers: int, keys: dict[str, Any], gone: set[int], expected: dict[str, Any]
) -> None:
    resolution = pruned(architecture, layers, keys, gone)
    assert changes(resolution) == {"block_count": layers - len(gone)} | expected
    assert texts(resolution, "error") == []


@pytest.mark.parametrize(
    ("architecture", "layers", "keys", "gone", "expected"),
    [
        # 27 layers: llama.cpp takes a deepseek2 for a lite one, which has no low-rank query, and reads no rank
        ("deepseek2", 27, {}, {3, 4}, {"attention.q_lora_rank": 0}),
        ("deepseek2", 27, {}, {3}, {}),
        ("minicpm", 4, {}, {1}, {"residual_scale": float(np.float32(1.4) / np.float32(2))}),
        ("minicpm", 4, {"residual_scale": 0.5}, {1}, {}),
    ],
)
def test_what_the_number_of_layers_implies_is_stated(
    pruned: Prepare, architecture: str, layers: int, keys: dict[str, Any], gone: set[int], expected: dict[str, Any]
) -> None:
    resolution = pruned(architecture, layers, keys, gone)
    assert changes(resolution) == {"block_count": layers - len(gone)} | expected
    assert texts(resolution, "error") == []


def test_glm_4_7_lite_keeps_its_gating(pruned: Prepare) -> None:
    """47 or 48 layers and its vocabulary: sigmoid unless stated."""
    more = {"kv": {"deepseek2.vocab_size": 154880}}
    assert changes(pruned("deepseek2", 48, {"attention.q_lora_rank": 768}, {9, 10}, **more)) == {
        "block_count": 46,
        "expert_gating_func": 2,
    }


def test_the_attention_scale_of_gemma3_27b_moves_into_its_norms(tmp_path: Path) -> None:
    """62 layers: 5376 columns over 32 heads, 168; any other number: the head's 128."""
    keys = {"embedding_length": 5376, "attention.head_count": 32, "attention.key_length": 128}
    kv = {"general.architecture": "gemma3", "gemma3.block_count": 62}
    kv |= {f"gemma3.{key}": value for key, value in keys.items()}
    tensors = {f"blk.{layer}.attn_q_norm.weight": ("F32", (128,)) for layer in range(62)}
    resolution = resolve(load_model(build_gguf(tmp_path / "toy.gguf", kv, tensors)), Plan(pruned=frozenset({26})))
    assert texts(resolution, "error") == []
    assert {op.scale for op in resolution.kept} == {(128 / 168) ** 0.5}
    assert any("168 with 62, 128 with 61): attn_q_norm makes up" in text for text in texts(resolution, "note"))


def test_without_such_norms_gemma3_27b_is_refused(pruned: Prepare) -> None:
    keys = {"embedding_length": 5376, "attention.head_count": 32, "attention.key_length": 128}
    assert "168 with 62, 128 with 61" in only(pruned("gemma3", 62, keys, {26}), "error")


def test_provenance_is_written(pruned: Prepare) -> None:
    metadata = dict(pruned("llama", 4, {}, {1, 3}).metadata)
    assert metadata["surgeon.pruned_layers"].decode() == [1, 3]
    assert metadata["surgeon.source"].decode() == "toy.gguf"


# ---------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("architecture", "layers", "keys", "gone", "says"),
    [
        ("gemma2", 46, {"embedding_length": 4608, "attention.head_count": 32, "attention.key_length": 128}, {0},
         "attention scale from the number of layers, and no key states it: 144 with 46, 128 with 45"),
        ("exaone4", 64, WINDOW, {0}, "sliding windows and global layers without RoPE with 64, all global with 63"),
        ("baichuan", 40, {}, {0}, "ALiBi with 40, none with 39"),
        ("baichuan", 33, {}, {0}, "none with 33, RoPE with 32"),
        ("minicpm3", 62, {}, {0}, "the scale of each layer's output"),
        ("minimax-01", 16, {"full_attention_interval": 8}, {0}, "the decay of every lightning attention layer"),
        ("gemma3n", 30, WINDOW, {2}, "llama.cpp has the number of those layers built in"),
    ],
)  # fmt: skip
def test_refused_unless_the_user_knows(
    pruned: Prepare, architecture: str, layers: int, keys: dict[str, Any], gone: set[int], says: str
) -> None:
    errors = texts(pruned(architecture, layers, keys, gone), "error")
    assert any(says in text for text in errors)
    assert all(text.endswith("--i-know prunes all the same") for text in errors)
    knowing = pruned(architecture, layers, keys, gone, know_risks=True)
    assert texts(knowing, "error") == []
    assert any(says in text for text in texts(knowing, "warning"))


@pytest.mark.parametrize(
    ("architecture", "layers", "keys", "gone", "says"),
    [
        ("command-r", 64, {}, {0}, "with attn_q_norm and attn_k_norm with 64"),
        ("deepseek2", 28, {"attention.q_lora_rank": 1536}, {0}, "the rank of attn_q_a"),
        ("llama4", 8, {"interleave_moe_layer_step": 2}, {0}, "prune 0-3 and none does; such a layer would not find"),
        ("nomic-bert-moe", 8, {"moe_every_n_layers": 2}, {2}, "prune 2-3 or 1-2 and none does"),
        ("gemma4", 6, {"attention.shared_kv_layers": 2, "attention.sliding_window_pattern": [L, L, L, G, L, G]}, {3},
         "layer 3 holds the keys and values that layers from 4 on reuse"),
        ("qwen4exp", 8, {"ple.layers": [5]}, {5}, "ple.layers names layer 5"),
        ("rwkv7", 4, {}, {0}, "layer 0 of rwkv7 cannot be pruned"),
        ("hrm_text", 4, {}, {0}, "no layer of hrm_text can be pruned"),
        ("eagle3", 2, {}, {0}, "no layer of eagle3 can be pruned"),
    ],
)  # fmt: skip
def test_refused_because_it_would_not_load(
    pruned: Prepare, architecture: str, layers: int, keys: dict[str, Any], gone: set[int], says: str
) -> None:
    for know_risks in (False, True):
        errors = texts(pruned(architecture, layers, keys, gone, know_risks=know_risks), "error")
        assert any(says in text for text in errors), errors


@pytest.mark.parametrize(
    ("architecture", "layers", "keys", "gone", "says"),
    [
        ("smollm3", 12, {}, {4}, "prune 4-7 or 1-4 and none does"),
        ("afmoe", 12, {}, {4}, "ordinary → nope: 8"),
        ("llama4", 8, {"interleave_moe_layer_step": 1}, {4}, "nope → ordinary: 7"),
        ("smallthinker", 9, WINDOW, {1}, "ordinary → nope: 5"),
        ("rwkv6", 12, {"rescale_every_n_layers": 6}, {1}, "halved → ordinary: 5, 11; ordinary → halved: 6"),
        ("kimi-k3", 9, {"attn_res.block_size": 4}, {1}, "banked → ordinary: 4, 8; ordinary → banked: 5"),
        ("qwen3vl", 8, {"n_deepstack_layers": 3}, {1}, "ordinary → vision: 3"),
        ("granite", 4, {"deepstack_mapping": [-1, 0, -1, 1]}, {1}, "layer 1 takes in features of images"),
        ("hy_v4", 6, {"attention.indexer.types": [1, 1, 0, 0, 1, 0]}, {1}, "layers 2-3 reuse the indexer"),
    ],
)
def test_what_cannot_be_frozen_is_told(
    pruned: Prepare, architecture: str, layers: int, keys: dict[str, Any], gone: set[int], says: str
) -> None:
    resolution = pruned(architecture, layers, keys, gone)
    assert says in only(resolution, "warning")
    assert texts(resolution, "error") == []


@pytest.mark.parametrize("prefix", ["enc.blk", "dec.blk", "v.blk", "a.blk", "mm.blk"])
def test_other_blocks_are_left_alone(tmp_path: Path, prefix: str) -> None:
    """12 blocks, so that 10 comes before 2 in the order of names: llama-quantize would give one number twice."""
    kv = {"general.architecture": "llama", "llama.block_count": 4}
    tensors = {f"blk.{layer}.attn_norm.weight": ("F32", (4,)) for layer in range(4)}
    tensors |= {f"{prefix}.{layer}.attn_norm.weight": ("F32", (4,)) for layer in range(12)}
    model = load_model(build_gguf(tmp_path / "toy.gguf", kv, tensors))
    resolution = resolve(model, Plan(pruned=frozenset({1})))
    assert texts(resolution, "error") == []
    names = {op.name for op in resolution.kept}
    assert {name for name in names if name.startswith(prefix)} == {name for name in tensors if name.startswith(prefix)}
    assert sum(name.startswith("blk.") for name in names) == 3


def test_a_model_of_other_blocks_has_no_layer_to_prune(tmp_path: Path) -> None:
    kv = {"general.architecture": "t5", "t5.block_count": 4, "t5.decoder_block_count": 4}
    tensors = {f"{kind}.blk.{layer}.attn_norm.weight": ("F32", (4,)) for kind in ("enc", "dec") for layer in range(4)}
    model = load_model(build_gguf(tmp_path / "toy.gguf", kv, tensors))
    resolution = resolve(model, Plan(pruned=frozenset({1})))
    assert "no layers called blk." in only(resolution, "error")


# ----------------------------------------------------------------------- slices


def side_by_side(layers: int, share: int, type_: str = "F16") -> dict[str, Any]:
    return {
        "per_layer_token_embd.weight": (type_, (share * layers, 8)),
        "per_layer_model_proj.weight": (type_, (32, share * layers)),
    }


@pytest.mark.parametrize("architecture", ["gemma3n", "gemma4"])
def test_tensors_of_all_layers_are_sliced(pruned: Prepare, architecture: str) -> None:
    resolution = pruned(architecture, 24, WINDOW, {21, 23}, others=side_by_side(24, 4))
    slices = {op.name: op.slice for op in resolution.kept if op.slice}
    assert slices["per_layer_token_embd.weight"].keep == ((0, 84), (88, 92))
    assert slices["per_layer_model_proj.weight"].keep == ((0, 84), (88, 92))
    assert {op.name: op.ne for op in resolution.kept if op.slice} == {
        "per_layer_token_embd.weight": (88, 8),
        "per_layer_model_proj.weight": (32, 88),
    }


def test_a_share_that_cuts_blocks_is_refused(pruned: Prepare) -> None:
    resolution = pruned("gemma4", 8, {}, {1}, others=side_by_side(8, 4, "Q8_0"))
    assert "a layer's share does not end on a Q8_0 block boundary" in only(resolution, "error")


# ----------------------------------------------------------------------- alive


def operate(source: Path, target: Path, gone: set[int], *, compat: bool = False) -> Model:
    resolution = resolve(load_model(source), Plan(pruned=frozenset(gone), compat=compat))
    assert texts(resolution, "error") == []
    for _ in write(resolution, None, target, WriteOptions(threads=1), threading.Event()):
        pass
    return load_model(target)


def logits(tmp_path: Path, *models: Path) -> list[np.ndarray]:
    """Those of each model for the same 16 tokens, float32[16, 32]; fails the test if one does not load."""
    out = tmp_path / "logits.npz"
    command = [sys.executable, str(PROBE), str(out), *map(str, models)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        log = [line for line in done.stderr.splitlines() if "rror" in line or "ASSERT" in line]
        pytest.fail(f"{models}: {done.returncode}: {log[-3:]}")
    with np.load(out) as stored:
        return [stored[name] for name in stored.files]


DECI = {"attention__head_count_kv": [2, 1, 2, 1, 2, 1], "feed_forward_length": [64, 128, 64, 64, 128, 64]}

LIVING: list[tuple[str, Callable[[], Toy], set[int]]] = [
    ("plain layers", toys.llama, {0, 3}),
    ("per-layer arrays", lambda: toys.llama("deci", **DECI), {1, 4}),
    ("fused tensors", toys.phi3, {2}),
    ("window, period 2", lambda: toys.gemma("gemma2", 6), {2}),
    ("window, period 6", lambda: toys.gemma("gemma3", 12), {2, 7}),
    ("window, listed, with slices", toys.gemma4, {1}),
    ("shared keys and values", toys.gemma4, {6}),
    ("window decides on RoPE", toys.cohere2, {1}),
    ("window, period 4", toys.olmo2, {0}),
    ("window, experts", toys.gpt_oss, {3}),
    ("experts, arrays", toys.qwen3moe, {1}),
    ("no RoPE, a whole period", lambda: toys.llama("smollm3", 12), {4, 5, 6, 7}),
    ("window and no RoPE, a whole period", toys.smallthinker, {1, 2, 3, 4}),
    ("experts by step, a whole period", toys.llama4, {0, 1, 2, 3}),
    ("leading dense, prediction layer kept", toys.glm4moe, {1, 3}),
    ("leading dense, prediction layer pruned", toys.glm4moe, {0, 5}),
    ("leading dense, latent attention", lambda: toys.deepseek2(5, 2), {0}),
    ("latent attention, lite", lambda: toys.deepseek2(27, 1, lite=True), {3, 9}),
    ("short convolutions", toys.lfm2, {0, 4}),
    ("recurrent", toys.mamba, {2}),
    ("recurrent with attention", toys.jamba, {1, 2}),
    ("delta nets with attention by interval", toys.qwen35, {1}),
    ("scale by the number of layers", lambda: toys.llama("minicpm", 6), {2}),
]


@needs_engine
@pytest.mark.parametrize(("make", "gone"), [row[1:] for row in LIVING], ids=[row[0] for row in LIVING])
def test_a_pruned_model_lives_as_if_the_layers_were_silent(
    tmp_path: Path, make: Callable[[], Toy], gone: set[int]
) -> None:
    toy = make()
    toy.silence(gone)
    whole = toy.write(tmp_path / "whole.gguf")
    model = operate(whole, tmp_path / "pruned.gguf", gone)
    assert model.block_count == toy.layers - len(gone)
    silent, pruned_ = logits(tmp_path, whole, tmp_path / "pruned.gguf")
    assert np.isfinite(silent).all()
    assert np.abs(silent - pruned_).max() < 1e-5


@needs_engine
def test_a_shifted_role_shows(tmp_path: Path) -> None:
    """The same comparison notices what llama-quantize leaves behind: without the array the roles move on."""
    toy = toys.gemma("gemma3", 12)
    toy.silence({2})
    whole = toy.write(tmp_path / "whole.gguf")
    operate(whole, tmp_path / "shifted.gguf", {2}, compat=True)
    operate(whole, tmp_path / "frozen.gguf", {2})
    silent, shifted, frozen = logits(tmp_path, whole, tmp_path / "shifted.gguf", tmp_path / "frozen.gguf")
    assert np.abs(silent - shifted).max() > 0.1
    assert np.abs(silent - frozen).max() < 1e-5


@needs_engine
@pytest.mark.parametrize(("layers", "gone"), [(62, {61}), (63, {62}), (62, {8, 40})])
def test_the_attention_scale_survives(tmp_path: Path, layers: int, gone: set[int]) -> None:
    """62 layers make llama.cpp divide by the root of 64/4 instead of 32. Without the factor the logits are off by 2.

    The queries meet the cache in half precision, so the factor moves them by a rounding.
    """
    toy = toys.gemma("gemma3", layers, **{"attention.head_count": 4})
    toy.silence(gone)
    whole = toy.write(tmp_path / "whole.gguf")
    operate(whole, tmp_path / "pruned.gguf", gone)
    operate(whole, tmp_path / "unscaled.gguf", gone, compat=True)
    silent, pruned_, unscaled = logits(tmp_path, whole, tmp_path / "pruned.gguf", tmp_path / "unscaled.gguf")
    assert np.abs(silent - pruned_).max() < 0.02
    assert np.abs(silent - unscaled).max() > 0.5


@needs_engine
def test_pruned_twice_is_pruned_at_once(tmp_path: Path) -> None:
    """Layers 2 and 7 one after the other: the array is shortened, the numbers told are those of the first file."""
    toy = toys.gemma("gemma3", 12)
    whole = toy.write(tmp_path / "whole.gguf")
    once = operate(whole, tmp_path / "once.gguf", {2, 7})
    operate(whole, tmp_path / "first.gguf", {2})
    twice = operate(tmp_path / "first.gguf", tmp_path / "twice.gguf", {6})
    for key in ("gemma3.attention.sliding_window_pattern", "surgeon.pruned_layers", "surgeon.source"):
        assert twice.file.kv[key] == once.file.kv[key]
    assert [tensor.name for tensor in twice.tensors] == [tensor.name for tensor in once.tensors]
    left, right = logits(tmp_path, tmp_path / "once.gguf", tmp_path / "twice.gguf")
    assert np.array_equal(left, right)


@pytest.mark.parametrize("ending", ["gguf", "dat"])
def test_the_imatrix_follows_the_layers(tmp_path: Path, demo_model: Path, demo_imatrix: Path, ending: str) -> None:
    saved = tmp_path / f"pruned.imatrix.{ending}"
    options = ["--imatrix", str(demo_imatrix), "--prune-layers", "0,4", "--save-imatrix", str(saved)]
    assert cli.run(["quantize", *options, str(demo_model), str(tmp_path / "pruned.gguf"), "COPY", "1"]) == 0
    before, after = load_imatrix(demo_imatrix), load_imatrix(saved)
    model = load_model(tmp_path / "pruned.gguf")
    kept = [1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    sources = {
        tensor.name: tensor.name
        if tensor.layer is None
        else tensor.name.replace(f"blk.{tensor.layer}.", f"blk.{kept[tensor.layer]}.")
        for tensor in model.tensors
    }
    assert set(after.entries) == {name for name, source in sources.items() if source in before.entries}
    assert len(after.entries) == 10 * 7 + 1
    for name, entry in after.entries.items():
        np.testing.assert_allclose(after.weights(name), before.weights(sources[name]), rtol=1e-6)
        assert entry.sums.shape == before.entries[sources[name]].sums.shape


def test_the_plan_says_what_the_input_was_called(tmp_path: Path) -> None:
    source = toys.llama().write(tmp_path / "a model.gguf")
    resolution = resolve(load_model(source), replace(Plan(), pruned=frozenset({1})))
    assert dict(resolution.metadata)["surgeon.source"].decode() == "a model.gguf"


def test_counts_below_zero_neither_loop_nor_raise(pruned: Prepare) -> None:
    others = {"per_layer_model_proj.weight": ("F32", (32, 8))}
    found = pruned("gemma3n", 4, {"nextn_predict_layers": -(2**31)}, {1}, others=others)
    (sliced,) = (op for op in found.kept if op.source == "per_layer_model_proj.weight")
    assert sliced.ne == (32, 6)
