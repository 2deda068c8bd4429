"""Complete toy models of many architectures, small enough to run: random weights, F32, 64 columns, 32 tokens.

A layer whose outputs are zero (`silence`) hands the residual stream through. So a model with silent layers and the same
model with those layers pruned must give the same logits, if and only if every other layer kept its role.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf_builder import build_gguf

from surgeon.gguf.file import Value, ValueType

# A vocabulary that any text of small letters and blanks can be written with.
LETTERS = ("<unk>", "<s>", "</s>", "▁", *"abcdefghijklmnopqrstuvwxyz", ".", ",")
EMBD, HEADS, HEAD, FF, VOCAB, EXPERTS, WINDOW = 64, 2, 32, 64, 32, 4, 4

# What adds to the residual stream.
OUTPUTS = (
    "attn_output.weight attn_output.bias ffn_down.weight ffn_down_exps.weight ffn_down_exps.bias ffn_down_shexp.weight "
    "shortconv.out_proj.weight ssm_out.weight proj.weight"
).split()


@dataclass
class Toy:
    """keys: without the architecture's name; tensors: numpy arrays, shapes reversed against ne."""

    architecture: str
    layers: int
    keys: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        common = {
            "block_count": self.layers,
            "context_length": 256,
            "embedding_length": EMBD,
            "feed_forward_length": FF,
            "attention.head_count": HEADS,
            "attention.head_count_kv": 1,
            "attention.key_length": HEAD,
            "attention.value_length": HEAD,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.layer_norm_epsilon": 1e-5,
            "rope.dimension_count": HEAD,
        }
        self.keys = common | self.keys
        self.mat("token_embd.weight", EMBD, VOCAB)
        self.vec("output_norm.weight", EMBD)

    def mat(self, name: str, *ne: int) -> None:
        """Normal values that keep the scale of what they multiply."""
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        self.tensors[name] = (rng.standard_normal(ne[::-1]) / np.sqrt(ne[0])).astype(np.float32)

    def vec(self, name: str, length: int, around: float = 1.0) -> None:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        self.tensors[name] = (around + 0.2 * rng.standard_normal(length)).astype(np.float32)

    def norms(self, layer: int, names: str, length: int = EMBD) -> None:
        for name in names.split():
            self.vec(f"blk.{layer}.{name}.weight", length)

    def attention(self, layer: int, kv_heads: int = 1, heads: int = HEADS) -> None:
        for name, columns, rows in (
            ("attn_q", EMBD, heads * HEAD),
            ("attn_k", EMBD, kv_heads * HEAD),
            ("attn_v", EMBD, kv_heads * HEAD),
            ("attn_output", heads * HEAD, EMBD),
        ):
            self.mat(f"blk.{layer}.{name}.weight", columns, rows)

    def dense(self, layer: int, ff: int = FF) -> None:
        self.mat(f"blk.{layer}.ffn_gate.weight", EMBD, ff)
        self.mat(f"blk.{layer}.ffn_up.weight", EMBD, ff)
        self.mat(f"blk.{layer}.ffn_down.weight", ff, EMBD)

    def experts(self, layer: int, *, shared: bool = False) -> None:
        self.mat(f"blk.{layer}.ffn_gate_inp.weight", EMBD, EXPERTS)
        self.mat(f"blk.{layer}.ffn_gate_exps.weight", EMBD, FF, EXPERTS)
        self.mat(f"blk.{layer}.ffn_up_exps.weight", EMBD, FF, EXPERTS)
        self.mat(f"blk.{layer}.ffn_down_exps.weight", FF, EMBD, EXPERTS)
        if shared:
            for name in ("gate", "up", "down"):
                self.mat(f"blk.{layer}.ffn_{name}_shexp.weight", EMBD, FF)

    def silence(self, layers: set[int]) -> None:
        for layer in layers:
            for name in OUTPUTS:
                values = self.tensors.get(f"blk.{layer}.{name}")
                if values is not None:
                    values[...] = 0

    def write(self, path: Path) -> Path:
        kv: dict[str, Any] = {"general.architecture": self.architecture, "general.name": "toy"}
        kv |= {key if key.startswith("xielu") else f"{self.architecture}.{key}": v for key, v in self.keys.items()}
        kv |= {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": list(LETTERS),
            "tokenizer.ggml.scores": [-float(i) for i in range(VOCAB)],
            "tokenizer.ggml.token_type": Value.array(ValueType.INT32, [2, 3, 3, *[1] * (VOCAB - 3)]),
        }
        return build_gguf(path, kv, self.tensors)


MOE_KEYS = {"expert_count": EXPERTS, "expert_used_count": 2, "expert_feed_forward_length": FF}


def llama(architecture: str = "llama", layers: int = 6, **keys: Any) -> Toy:
    """Attention and a gated FFN, each after a norm; `head_count_kv` and `feed_forward_length` may be lists."""
    toy = Toy(architecture, layers, {key.replace("__", "."): value for key, value in keys.items()})
    kv_heads, ff = toy.keys["attention.head_count_kv"], toy.keys["feed_forward_length"]
    toy.mat("output.weight", EMBD, VOCAB)
    for layer in range(layers):
        toy.norms(layer, "attn_norm ffn_norm")
        toy.attention(layer, kv_heads[layer] if isinstance(kv_heads, list) else kv_heads)
        toy.dense(layer, ff[layer] if isinstance(ff, list) else ff)
    return toy


def phi3() -> Toy:
    toy = Toy("phi3", 4)
    toy.mat("output.weight", EMBD, VOCAB)
    for layer in range(toy.layers):
        toy.norms(layer, "attn_norm ffn_norm")
        toy.mat(f"blk.{layer}.attn_qkv.weight", EMBD, (HEADS + 2) * HEAD)
        toy.mat(f"blk.{layer}.attn_output.weight", HEADS * HEAD, EMBD)
        toy.mat(f"blk.{layer}.ffn_up.weight", EMBD, 2 * FF)
        toy.mat(f"blk.{layer}.ffn_down.weight", FF, EMBD)
    return toy


def gemma(architecture: str, layers: int, **keys: Any) -> Toy:
    """gemma2 and gemma3: norms before and after, the embedding doubles as output."""
    toy = Toy(architecture, layers, {"attention.sliding_window": WINDOW} | keys)
    for layer in range(layers):
        toy.norms(layer, "attn_norm post_attention_norm ffn_norm post_ffw_norm")
        if architecture == "gemma3":
            toy.norms(layer, "attn_q_norm attn_k_norm", HEAD)
        toy.attention(layer, heads=toy.keys["attention.head_count"])
        toy.dense(layer)
    return toy


def gemma4() -> Toy:
    """Every fourth layer global; the last two reuse the keys and values of layers 4 and 5 below them."""
    layers, share = 8, 32
    keys = {
        "attention.sliding_window": WINDOW,
        "attention.sliding_window_pattern": [True, True, False, True, True, False, True, False],
        "attention.shared_kv_layers": 2,
        "attention.key_length_swa": HEAD,
        "attention.value_length_swa": HEAD,
        "rope.dimension_count_swa": HEAD,
        "embedding_length_per_layer_input": share,
    }
    toy = Toy("gemma4", layers, keys)
    toy.mat("per_layer_token_embd.weight", share * layers, VOCAB)
    toy.mat("per_layer_model_proj.weight", EMBD, share * layers)
    toy.vec("per_layer_proj_norm.weight", share)
    toy.vec("rope_freqs.weight", HEAD // 2)
    for layer in range(layers):
        toy.norms(layer, "attn_norm post_attention_norm ffn_norm post_ffw_norm post_norm")
        toy.norms(layer, "attn_q_norm attn_k_norm", HEAD)
        toy.attention(layer)
        toy.dense(layer)
        toy.mat(f"blk.{layer}.inp_gate.weight", EMBD, share)
        toy.mat(f"blk.{layer}.proj.weight", share, EMBD)
    return toy


def cohere2() -> Toy:
    toy = Toy("cohere2", 8, {"attention.sliding_window": WINDOW, "logit_scale": 0.25})
    for layer in range(toy.layers):
        toy.norms(layer, "attn_norm")
        toy.attention(layer)
        toy.dense(layer)
    return toy


def olmo2() -> Toy:
    toy = Toy("olmo2", 8, {"attention.sliding_window": WINDOW})
    toy.mat("output.weight", EMBD, VOCAB)
    for layer in range(toy.layers):
        toy.norms(layer, "post_attention_norm post_ffw_norm attn_q_norm")
        toy.norms(layer, "attn_k_norm", HEAD)
        toy.attention(layer)
        toy.dense(layer)
    return toy


def gpt_oss() -> Toy:
    toy = Toy("gpt-oss", 6, {"attention.sliding_window": WINDOW} | MOE_KEYS)
    toy.mat("output.weight", EMBD, VOCAB)
    for layer in range(toy.layers):
        toy.norms(layer, "attn_norm post_attention_norm")
        toy.attention(layer)
        toy.experts(layer)
        blk = f"blk.{layer}."
        toy.vec(blk + "attn_sinks.weight", HEADS, 0.0)
        for name, length in (("attn_output", EMBD), ("attn_q", HEADS * HEAD), ("attn_k", HEAD), ("attn_v", HEAD)):
            toy.vec(f"{blk}{name}.bias", length, 0.0)
        toy.vec(blk + "ffn_gate_inp.bias", EXPERTS, 0.0)
        for name, length in (("ffn_gate_exps", FF), ("ffn_up_exps", FF), ("ffn_down_exps", EMBD)):
            toy.mat(f"{blk}{name}.bias", length, EXPERTS)
    return toy


def qwen3moe() -> Toy:
    toy = Toy("qwen3moe", 4, MOE_KEYS | {"expert_used_count": [2] * 4, "expert_feed_forward_length": [FF] * 4})
    toy.mat("output.weight", EMBD, VOCAB)
    for layer in range(toy.layers):
        toy.norms(layer, "attn_norm ffn_norm")
        toy.norms(layer, "attn_q_norm attn_k_norm", HEAD)
        toy.attention(layer)
        toy.experts(layer)
    return toy


def smallthinker() -> Toy:
    toy = Toy("smallthinker", 12, MOE_KEYS | {"attention.sliding_window": WINDOW, "expert_gating_func": 2})
    for layer in range(toy.layers):
        toy.norms(layer, "attn_norm ffn_norm")
        toy.attention(layer)
        toy.experts(layer)
    return toy


def llama4() -> Toy:
    """Every second layer with experts, every fourth without RoPE."""
    toy = Toy("llama4", 8, MOE_KEYS | {"interleave_moe_layer_step": 2})
    for layer in range(toy.layers):
        toy.norms(layer, "attn_norm ffn_norm")
        toy.attention(layer)
        if layer % 2:
            toy.experts(layer, shared=True)
        else:
            toy.dense(layer)
    return toy


def glm4moe() -> Toy:
    """Two dense layers, three with experts, one that predicts a second token."""
    keys = {"leading_dense_block_count": 2, "nextn_predict_layers": 1, "expert_shared_count": 1}
    toy = Toy("glm4moe", 6, MOE_KEYS | keys)
    toy.mat("output.weight", EMBD, VOCAB)
    for layer in range(toy.layers):
        toy.norms(layer, "attn_norm post_attention_norm")
        toy.attention(layer)
        if layer < 2:
            toy.dense(layer)
        else:
            toy.experts(layer, shared=True)
            toy.vec(f"blk.{layer}.exp_probs_b.bias", EXPERTS, 0.0)
    toy.mat("blk.5.nextn.eh_proj.weight", 2 * EMBD, EMBD)
    toy.norms(5, "nextn.enorm nextn.hnorm nextn.shared_head_norm")
    return toy


def deepseek2(layers: int, lead: int, *, lite: bool = False) -> Toy:
    """Multi-head latent attention; lite: without the low-rank query (27 layers in llama.cpp's eyes)."""
    q_rank, kv_rank, rope, value = 32, 64, 16, 32
    keys = MOE_KEYS | {
        "leading_dense_block_count": lead,
        "attention.kv_lora_rank": kv_rank,
        "attention.key_length": kv_rank + rope,
        "attention.value_length": kv_rank,
        "attention.key_length_mla": value + rope,
        "attention.value_length_mla": value,
        "rope.dimension_count": rope,
        "expert_shared_count": 1,
    }
    toy = Toy("deepseek2", layers, keys | ({} if lite else {"attention.q_lora_rank": q_rank}))
    toy.mat("output.weight", EMBD, VOCAB)
    for layer in range(layers):
        blk = f"blk.{layer}."
        toy.norms(layer, "attn_norm ffn_norm")
        toy.norms(layer, "attn_kv_a_norm", kv_rank)
        if lite:
            toy.mat(blk + "attn_q.weight", EMBD, HEADS * (value + rope))
        else:
            toy.norms(layer, "attn_q_a_norm", q_rank)
            toy.mat(blk + "attn_q_a.weight", EMBD, q_rank)
            toy.mat(blk + "attn_q_b.weight", q_rank, HEADS * (value + rope))
        toy.mat(blk + "attn_kv_a_mqa.weight", EMBD, kv_rank + rope)
        toy.mat(blk + "attn_k_b.weight", value, kv_rank, HEADS)
        toy.mat(blk + "attn_v_b.weight", kv_rank, value, HEADS)
        toy.mat(blk + "attn_output.weight", HEADS * value, EMBD)
        if layer < lead:
            toy.dense(layer)
        else:
            toy.experts(layer, shared=True)
    return toy


def lfm2() -> Toy:
    """Short convolutions where there are no KV heads."""
    kv_heads = [0, 1, 0, 0, 1, 0]
    toy = Toy("lfm2", 6, {"attention.head_count_kv": kv_heads, "shortconv.l_cache": 3})
    toy.tensors["token_embd_norm.weight"] = toy.tensors.pop("output_norm.weight")
    for layer, heads in enumerate(kv_heads):
        toy.norms(layer, "attn_norm ffn_norm")
        toy.dense(layer)
        if heads:
            toy.attention(layer, heads)
            toy.norms(layer, "attn_q_norm attn_k_norm", HEAD)
        else:
            toy.mat(f"blk.{layer}.shortconv.conv.weight", 3, EMBD)
            toy.mat(f"blk.{layer}.shortconv.in_proj.weight", EMBD, 3 * EMBD)
            toy.mat(f"blk.{layer}.shortconv.out_proj.weight", EMBD, EMBD)
    return toy


def mamba_layer(toy: Toy, layer: int, *, normed: bool) -> None:
    inner, state, rank, conv, blk = 2 * EMBD, 16, 4, 4, f"blk.{layer}."
    toy.mat(blk + "ssm_in.weight", EMBD, 2 * inner)
    toy.mat(blk + "ssm_conv1d.weight", conv, inner)
    toy.vec(blk + "ssm_conv1d.bias", inner, 0.0)
    toy.mat(blk + "ssm_x.weight", inner, rank + 2 * state)
    toy.mat(blk + "ssm_dt.weight", rank, inner)
    toy.vec(blk + "ssm_dt.bias", inner, 0.0)
    toy.mat(blk + "ssm_a", state, inner)
    toy.tensors[blk + "ssm_a"] = -np.abs(toy.tensors[blk + "ssm_a"])
    toy.vec(blk + "ssm_d", inner)
    toy.mat(blk + "ssm_out.weight", inner, EMBD)
    if normed:
        toy.norms(layer, "ssm_dt_norm", rank)
        toy.norms(layer, "ssm_b_norm ssm_c_norm", state)


MAMBA_KEYS = {"ssm.conv_kernel": 4, "ssm.inner_size": 2 * EMBD, "ssm.state_size": 16, "ssm.time_step_rank": 4}


def mamba() -> Toy:
    toy = Toy("mamba", 4, MAMBA_KEYS | {"attention.head_count": 0, "feed_forward_length": 0})
    for key in ("attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count"):
        del toy.keys[key]
    for layer in range(toy.layers):
        toy.norms(layer, "attn_norm")
        mamba_layer(toy, layer, normed=False)
    return toy


def jamba() -> Toy:
    """Attention in layers 2 and 5, Mamba in the others."""
    kv_heads = [0, 0, 1, 0, 0, 1]
    toy = Toy("jamba", 6, MAMBA_KEYS | {"attention.head_count_kv": kv_heads})
    for layer, heads in enumerate(kv_heads):
        toy.norms(layer, "attn_norm ffn_norm")
        toy.dense(layer)
        if heads:
            toy.attention(layer, heads)
        else:
            mamba_layer(toy, layer, normed=True)
    return toy


def qwen35() -> Toy:
    """Gated delta nets, with full attention in every fourth layer."""
    state, groups, values = 16, 2, 2
    inner = state * values
    keys = {
        "full_attention_interval": 4,
        "rope.dimension_sections": [4, 6, 6, 0],
        "ssm.conv_kernel": 4,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": values,
        "ssm.group_count": groups,
    }
    toy = Toy("qwen35", 8, keys)
    for layer in range(toy.layers):
        blk = f"blk.{layer}."
        toy.norms(layer, "attn_norm post_attention_norm")
        toy.dense(layer)
        if layer % 4 == 3:
            toy.attention(layer)
            toy.mat(blk + "attn_q.weight", EMBD, 2 * HEADS * HEAD)  # with the gate of the output
            toy.norms(layer, "attn_q_norm attn_k_norm", HEAD)
            continue
        channels = 2 * state * groups + inner
        toy.mat(blk + "attn_qkv.weight", EMBD, channels)
        toy.mat(blk + "attn_gate.weight", EMBD, inner)
        toy.mat(blk + "ssm_conv1d.weight", 4, channels)
        toy.vec(blk + "ssm_dt.bias", values, 0.0)
        toy.vec(blk + "ssm_a", values, -1.0)
        toy.mat(blk + "ssm_beta.weight", EMBD, values)
        toy.mat(blk + "ssm_alpha.weight", EMBD, values)
        toy.norms(layer, "ssm_norm", state)
        toy.mat(blk + "ssm_out.weight", inner, EMBD)
    return toy
