"""Complete toys of architectures with experts: sixteen in every layer that has some, 32 wide, two or three used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gguf_builder import build_gguf
from toy_architectures import EMBD, FF, HEAD, HEADS, MAMBA_KEYS, VOCAB, WINDOW, Toy, mamba_layer, qwen35

from surgeon.model.model import load_model

COUNT, USED, WIDTH = 16, 3, 32
KEYS = {"expert_count": COUNT, "expert_used_count": USED, "expert_feed_forward_length": WIDTH}
SIGMOID_KEYS = KEYS | {"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 1.5}
SHARED = {"expert_shared_count": 1, "expert_shared_feed_forward_length": WIDTH}


def mixture(
    toy: Toy, layer: int, *, width: int = WIDTH, fused: bool = False, bias: str = "", shared: bool = False
) -> None:
    """Router and experts of a layer; bias: the name of what is added for the selection, if anything is."""
    blk = f"blk.{layer}."
    toy.mat(blk + "ffn_gate_inp.weight", EMBD, COUNT)
    if fused:
        toy.mat(blk + "ffn_gate_up_exps.weight", EMBD, 2 * width, COUNT)
    else:
        toy.mat(blk + "ffn_gate_exps.weight", EMBD, width, COUNT)
        toy.mat(blk + "ffn_up_exps.weight", EMBD, width, COUNT)
    toy.mat(blk + "ffn_down_exps.weight", width, EMBD, COUNT)
    if bias:
        toy.vec(blk + bias, COUNT, 0.0)
    if shared:
        for name, columns, rows in (("gate", EMBD, WIDTH), ("up", EMBD, WIDTH), ("down", WIDTH, EMBD)):
            toy.mat(f"{blk}ffn_{name}_shexp.weight", columns, rows)


def plain(architecture: str, layers: int, keys: dict[str, Any], norms: str = "attn_norm ffn_norm") -> Toy:
    """Embedding, output, and per layer attention and norms; experts are for the caller to add."""
    toy = Toy(architecture, layers, keys)
    toy.mat("output.weight", EMBD, VOCAB)
    for layer in range(layers):
        toy.norms(layer, norms)
        toy.attention(layer, toy.keys["attention.head_count_kv"])
    return toy


def mixtral() -> Toy:
    toy = plain("llama", 3, {"expert_count": COUNT, "expert_used_count": 2})
    for layer in range(3):
        mixture(toy, layer, width=FF)
    return toy


def granitemoe() -> Toy:
    keys = {"expert_count": COUNT, "expert_used_count": USED, "logit_scale": 2.0}
    toy = plain("granitemoe", 3, keys | {"expert_shared_feed_forward_length": WIDTH})
    for layer in range(3):
        mixture(toy, layer, width=FF, shared=True)
    return toy


def olmoe() -> Toy:
    keys = {"expert_count": COUNT, "expert_used_count": USED, "attention.head_count_kv": HEADS}
    toy = plain("olmoe", 3, keys, "attn_norm ffn_norm attn_q_norm attn_k_norm")
    for layer in range(3):
        mixture(toy, layer, width=FF)
    return toy


def arctic() -> Toy:
    toy = plain("arctic", 3, KEYS | {"feed_forward_length": WIDTH}, "attn_norm ffn_norm ffn_norm_exps")
    for layer in range(3):
        toy.dense(layer, EMBD)
        mixture(toy, layer)
    return toy


def qwen2moe() -> Toy:
    """Without the width of an expert, which llama.cpp then works out from the number used: 96 / 3."""
    keys = {"expert_count": COUNT, "expert_used_count": USED, "feed_forward_length": USED * WIDTH}
    toy = plain("qwen2moe", 3, keys | {"expert_shared_feed_forward_length": WIDTH})
    for layer in range(3):
        mixture(toy, layer, shared=True)
        toy.vec(f"blk.{layer}.ffn_gate_inp_shexp.weight", EMBD, 0.0)
    return toy


def qwen3moe() -> Toy:
    toy = plain("qwen3moe", 4, KEYS | {"expert_used_count": [3, 2, 3, 2]})
    for layer in range(4):
        toy.norms(layer, "attn_q_norm attn_k_norm", HEAD)
        mixture(toy, layer)
    return toy


def phimoe() -> Toy:
    toy = plain("phimoe", 3, {"expert_count": COUNT, "expert_used_count": 2})
    toy.vec("output_norm.bias", EMBD, 0.0)
    toy.vec("output.bias", VOCAB, 0.0)
    for layer in range(3):
        for name in ("attn_norm", "attn_output", "ffn_norm"):
            toy.vec(f"blk.{layer}.{name}.bias", EMBD, 0.0)
        mixture(toy, layer, width=FF)
    return toy


def dbrx() -> Toy:
    keys = {"expert_count": COUNT, "expert_used_count": USED, "attention.clamp_kqv": 8.0}
    toy = Toy("dbrx", 3, keys)
    toy.mat("output.weight", EMBD, VOCAB)
    for layer in range(3):
        toy.norms(layer, "attn_norm attn_output_norm")
        toy.mat(f"blk.{layer}.attn_qkv.weight", EMBD, EMBD + 2 * HEAD)
        toy.mat(f"blk.{layer}.attn_output.weight", EMBD, EMBD)
        mixture(toy, layer, width=FF)
    return toy


def grok() -> Toy:
    toy = plain("grok", 3, KEYS, "attn_norm attn_output_norm ffn_norm layer_output_norm")
    for layer in range(3):
        mixture(toy, layer)
    return toy


def hunyuan_moe() -> Toy:
    toy = plain("hunyuan-moe", 3, KEYS | {"feed_forward_length": WIDTH} | SHARED)
    for layer in range(3):
        toy.norms(layer, "attn_q_norm attn_k_norm", HEAD)
        mixture(toy, layer, shared=True)
    return toy


def minimax_m2() -> Toy:
    toy = plain("minimax-m2", 3, SIGMOID_KEYS | {"feed_forward_length": WIDTH})
    for layer in range(3):
        toy.norms(layer, "attn_q_norm", HEADS * HEAD)
        toy.norms(layer, "attn_k_norm", HEAD)
        mixture(toy, layer, bias="exp_probs_b.bias")
    return toy


def after_one_dense(architecture: str, keys: dict[str, Any], *, norms: str = "", **kind: Any) -> Toy:
    """One dense layer and two with experts; norms: of queries and keys."""
    toy = plain(architecture, 3, {"leading_dense_block_count": 1} | keys)
    for layer in range(3):
        if norms:
            toy.norms(layer, norms, HEAD)
        if layer < 1:
            toy.dense(layer)
        else:
            mixture(toy, layer, **kind)
    return toy


def deepseek() -> Toy:
    keys = KEYS | SHARED | {"expert_weights_scale": 1.0}
    return after_one_dense("deepseek", keys, shared=True)


def dots1() -> Toy:
    keys = SIGMOID_KEYS | SHARED | {"attention.head_count_kv": HEADS}
    return after_one_dense("dots1", keys, norms="attn_q_norm attn_k_norm", bias="exp_probs_b.bias", shared=True)


def exaone_moe() -> Toy:
    keys = SIGMOID_KEYS | SHARED | {"attention.sliding_window": WINDOW}
    return after_one_dense("exaone-moe", keys, norms="attn_q_norm attn_k_norm", bias="exp_probs_b.bias", shared=True)


def hy_v3() -> Toy:
    """Gate and up in one tensor; the bias has no ending."""
    keys = SIGMOID_KEYS | SHARED
    return after_one_dense("hy_v3", keys, norms="attn_q_norm attn_k_norm", fused=True, bias="exp_probs_b", shared=True)


def cohere2moe() -> Toy:
    keys = SIGMOID_KEYS | SHARED | {"attention.sliding_window": WINDOW, "logit_scale": 0.5}
    toy = after_one_dense("cohere2moe", keys, fused=True, shared=True)
    for layer in range(3):  # one norm for attention and experts
        del toy.tensors[f"blk.{layer}.ffn_norm.weight"]
    return toy


def afmoe() -> Toy:
    keys = SIGMOID_KEYS | SHARED | {"attention.sliding_window": WINDOW}
    toy = after_one_dense("afmoe", keys, norms="attn_q_norm attn_k_norm", bias="exp_probs_b.bias", shared=True)
    for layer in range(3):
        toy.norms(layer, "post_attention_norm post_ffw_norm")
        toy.mat(f"blk.{layer}.attn_gate.weight", EMBD, HEADS * HEAD)
    return toy


def mimo2() -> Toy:
    pattern = {"attention.sliding_window": WINDOW, "attention.sliding_window_pattern": [True, False, True]}
    return after_one_dense("mimo2", KEYS | pattern, bias="exp_probs_b.bias")


def ernie() -> Toy:
    keys = KEYS | SHARED | {"interleave_moe_layer_step": 1}
    return after_one_dense("ernie4_5-moe", keys, bias="exp_probs_b.bias", shared=True)


def bailingmoe2(groups: int = 4, used: int = 2) -> Toy:
    """Four groups of four, two of them used."""
    keys = SIGMOID_KEYS | SHARED | {"leading_dense_block_count": 1}
    keys |= {"expert_group_count": groups, "expert_group_used_count": used}
    toy = Toy("bailingmoe2", 3, keys)
    toy.mat("output.weight", EMBD, VOCAB)
    for layer in range(3):
        toy.norms(layer, "attn_norm ffn_norm")
        toy.norms(layer, "attn_q_norm attn_k_norm", HEAD)
        toy.mat(f"blk.{layer}.attn_qkv.weight", EMBD, EMBD + 2 * HEAD)
        toy.mat(f"blk.{layer}.attn_output.weight", EMBD, EMBD)
        if layer < 1:
            toy.dense(layer)
        else:
            mixture(toy, layer, bias="exp_probs_b.bias", shared=True)
    return toy


def glm4moe() -> Toy:
    """One dense layer, two with experts, one that predicts a second token."""
    keys = SIGMOID_KEYS | {"leading_dense_block_count": 1, "nextn_predict_layers": 1, "expert_shared_count": 1}
    toy = plain("glm4moe", 4, keys, "attn_norm post_attention_norm")
    for layer in range(4):
        if layer < 1:
            toy.dense(layer)
        else:
            mixture(toy, layer, bias="exp_probs_b.bias", shared=True)
    toy.mat("blk.3.nextn.eh_proj.weight", 2 * EMBD, EMBD)
    toy.norms(3, "nextn.enorm nextn.hnorm nextn.shared_head_norm")
    return toy


def llama4() -> Toy:
    """Every second layer with experts; the weights multiply the input."""
    toy = plain("llama4", 4, KEYS | {"interleave_moe_layer_step": 2, "expert_used_count": 1})
    for layer in range(4):
        if layer % 2:
            mixture(toy, layer, shared=True)
        else:
            toy.dense(layer)
    return toy


def gpt_oss() -> Toy:
    """Biases of the router and of every expert; softmax over the chosen alone."""
    toy = plain("gpt-oss", 3, KEYS | {"attention.sliding_window": WINDOW}, "attn_norm post_attention_norm")
    for layer in range(3):
        blk = f"blk.{layer}."
        mixture(toy, layer, bias="ffn_gate_inp.bias")
        toy.vec(blk + "attn_sinks.weight", HEADS, 0.0)
        for name, length in (("attn_output", EMBD), ("attn_q", HEADS * HEAD), ("attn_k", HEAD), ("attn_v", HEAD)):
            toy.vec(f"{blk}{name}.bias", length, 0.0)
        for name, length in (("ffn_gate_exps", WIDTH), ("ffn_up_exps", WIDTH), ("ffn_down_exps", EMBD)):
            toy.mat(f"{blk}{name}.bias", length, COUNT)
    return toy


def smallthinker() -> Toy:
    """The router reads the layer's input."""
    toy = plain("smallthinker", 4, KEYS | {"attention.sliding_window": WINDOW, "expert_gating_func": 2})
    for layer in range(4):
        mixture(toy, layer)
    return toy


def jamba() -> Toy:
    """Experts where there is a router; attention in layer 1, Mamba in the others."""
    kv_heads = [0, 1, 0, 0]
    keys = MAMBA_KEYS | {"attention.head_count_kv": kv_heads, "expert_count": COUNT, "expert_used_count": 2}
    toy = Toy("jamba", 4, keys)
    for layer, heads in enumerate(kv_heads):
        toy.norms(layer, "attn_norm ffn_norm")
        if heads:
            toy.attention(layer, heads)
        else:
            mamba_layer(toy, layer, normed=True)
        if layer % 2:
            mixture(toy, layer, width=FF)
        else:
            toy.dense(layer)
    return toy


def gemma4() -> Toy:
    """Gate and up in one tensor, a scale of every expert, a scale of the router that has nothing to do with experts."""
    keys = KEYS | {
        "attention.sliding_window": WINDOW,
        "attention.sliding_window_pattern": [True, False, True],
        "attention.key_length_swa": HEAD,
        "attention.value_length_swa": HEAD,
        "rope.dimension_count_swa": HEAD,
        "embedding_length_per_layer_input": 0,
    }
    toy = plain("gemma4", 3, keys, "attn_norm post_attention_norm ffn_norm post_ffw_norm")
    toy.vec("rope_freqs.weight", HEAD // 2)
    for layer in range(3):
        toy.norms(layer, "attn_q_norm attn_k_norm", HEAD)
        toy.dense(layer)
        if layer:
            toy.norms(layer, "pre_ffw_norm_2 post_ffw_norm_1 post_ffw_norm_2")
            mixture(toy, layer, fused=True)
            toy.vec(f"blk.{layer}.ffn_gate_inp.scale", EMBD)
            toy.vec(f"blk.{layer}.ffn_down_exps.scale", COUNT)
    return toy


def lfm2moe() -> Toy:
    kv_heads = [0, 1, 0]
    keys = SIGMOID_KEYS | {"attention.head_count_kv": kv_heads, "shortconv.l_cache": 3, "leading_dense_block_count": 1}
    toy = Toy("lfm2moe", 3, keys)
    toy.tensors["token_embd_norm.weight"] = toy.tensors.pop("output_norm.weight")
    for layer, heads in enumerate(kv_heads):
        toy.norms(layer, "attn_norm ffn_norm")
        if heads:
            toy.attention(layer, heads)
            toy.norms(layer, "attn_q_norm attn_k_norm", HEAD)
        else:
            toy.mat(f"blk.{layer}.shortconv.conv.weight", 3, EMBD)
            toy.mat(f"blk.{layer}.shortconv.in_proj.weight", EMBD, 3 * EMBD)
            toy.mat(f"blk.{layer}.shortconv.out_proj.weight", EMBD, EMBD)
        if layer < 1:
            toy.dense(layer)
        else:
            mixture(toy, layer, bias="exp_probs_b.bias")
    return toy


def qwen35moe() -> Toy:
    """Gated delta nets with experts in every layer."""
    toy = qwen35()
    toy.architecture = "qwen35moe"
    toy.keys |= KEYS | {"expert_shared_feed_forward_length": WIDTH}
    for layer in range(toy.layers):
        for name in ("gate", "up", "down"):
            del toy.tensors[f"blk.{layer}.ffn_{name}.weight"]
        mixture(toy, layer, fused=layer % 2 == 0, shared=True)
        toy.vec(f"blk.{layer}.ffn_gate_inp_shexp.weight", EMBD, 0.0)
    return toy


def deepseek2(groups: int = 2, used: int = 1) -> Toy:
    """Multi-head latent attention, shared experts, and two groups of eight of which one is used."""
    q_rank, kv_rank, rope, value = 32, 64, 16, 32
    keys = SIGMOID_KEYS | {
        "leading_dense_block_count": 1,
        "expert_group_count": groups,
        "expert_group_used_count": used,
        "attention.kv_lora_rank": kv_rank,
        "attention.q_lora_rank": q_rank,
        "attention.key_length": kv_rank + rope,
        "attention.value_length": kv_rank,
        "attention.key_length_mla": value + rope,
        "attention.value_length_mla": value,
        "rope.dimension_count": rope,
        "expert_shared_count": 1,
    }
    toy = Toy("deepseek2", 4, keys)
    toy.mat("output.weight", EMBD, VOCAB)
    for layer in range(4):
        blk = f"blk.{layer}."
        toy.norms(layer, "attn_norm ffn_norm")
        toy.norms(layer, "attn_kv_a_norm", kv_rank)
        toy.norms(layer, "attn_q_a_norm", q_rank)
        toy.mat(blk + "attn_q_a.weight", EMBD, q_rank)
        toy.mat(blk + "attn_q_b.weight", q_rank, HEADS * (value + rope))
        toy.mat(blk + "attn_kv_a_mqa.weight", EMBD, kv_rank + rope)
        toy.mat(blk + "attn_k_b.weight", value, kv_rank, HEADS)
        toy.mat(blk + "attn_v_b.weight", kv_rank, value, HEADS)
        toy.mat(blk + "attn_output.weight", HEADS * value, EMBD)
        if layer < 1:
            toy.dense(layer)
        else:
            mixture(toy, layer, bias="exp_probs_b.bias", shared=True, fused=layer == 3)
    return toy


def write_reading(toy: Toy, path: Path, other: Path, *, tied: bool = False) -> Path:
    """The toy with the vocabulary of another model, so that it can read text; tied: its head are the embeddings."""
    model = load_model(other)
    words = {key: value for key, value in model.file.kv.items() if key.startswith("tokenizer.")}
    size = words["tokenizer.ggml.tokens"].count
    for name in ("token_embd.weight",) if tied else ("token_embd.weight", "output.weight"):
        toy.mat(name, EMBD, size)
    kv = {"general.architecture": toy.architecture, **{f"{toy.architecture}.{k}": v for k, v in toy.keys.items()}}
    return build_gguf(path, kv | words, toy.tensors)


ALL: dict[str, Callable[[], Toy]] = {
    "llama": mixtral,
    "granitemoe": granitemoe,
    "olmoe": olmoe,
    "arctic": arctic,
    "qwen2moe": qwen2moe,
    "qwen3moe": qwen3moe,
    "phimoe": phimoe,
    "dbrx": dbrx,
    "grok": grok,
    "hunyuan-moe": hunyuan_moe,
    "minimax-m2": minimax_m2,
    "deepseek": deepseek,
    "dots1": dots1,
    "exaone-moe": exaone_moe,
    "hy_v3": hy_v3,
    "cohere2moe": cohere2moe,
    "afmoe": afmoe,
    "mimo2": mimo2,
    "ernie4_5-moe": ernie,
    "bailingmoe2": bailingmoe2,
    "glm4moe": glm4moe,
    "llama4": llama4,
    "gpt-oss": gpt_oss,
    "smallthinker": smallthinker,
    "jamba": jamba,
    "gemma4": gemma4,
    "lfm2moe": lfm2moe,
    "qwen35moe": qwen35moe,
    "deepseek2": deepseek2,
}
