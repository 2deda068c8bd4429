"""Further toys with experts: relatives of those in `toy_experts`, and hybrids of recurrent layers and attention.

Of llama.cpp's architectures with experts these have no toy:

    refact          its graph has no experts, only its loader
    llama-embed     gives embeddings, no logits
    nomic-bert-moe  the same
    dflash          a draft that reads another model's layers; pruning it is refused
    grovemoe        pruning is refused: it changes the weights of the experts that stay
    deepseek4       pruning is refused: a table in the file names experts by number
    dots3note       no shape was found for which llama.cpp's key cache of its two kinds of layers can be set up
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import toy_experts as first
from toy_architectures import EMBD, FF, HEAD, HEADS, VOCAB, WINDOW, Toy, qwen35
from toy_experts import KEYS, SHARED, SIGMOID_KEYS, WIDTH, after_one_dense, mixture, plain

BIAS = "exp_probs_b.bias"
Q_RANK, KV_RANK, ROPE, VALUE = 32, 64, 16, 32  # of the latent attention in `toy_experts.deepseek2`
WINDOWS = {"attention.sliding_window": WINDOW, "attention.sliding_window_pattern": [True, False, True]}
INDEX_HEADS, INDEX = 2, 64
INDEXER_KEYS = {
    "attention.indexer.head_count": INDEX_HEADS,
    "attention.indexer.key_length": INDEX,
    "attention.indexer.top_k": 8,
}


def renamed(make: Callable[[], Toy], architecture: str, **keys: Any) -> Toy:
    """The toy of a relative that has the same tensors; keys: with two underscores for every dot."""
    toy = make()
    toy.architecture = architecture
    toy.keys |= {key.replace("__", "."): value for key, value in keys.items()}
    return toy


def drop(toy: Toy, layer: int, *names: str) -> None:
    for name in names:
        del toy.tensors[f"blk.{layer}.{name}.weight"]


def apart(toy: Toy) -> Toy:
    """With gate and up in tensors of their own everywhere."""
    for layer in range(toy.layers):
        if toy.tensors.pop(f"blk.{layer}.ffn_gate_up_exps.weight", None) is not None:
            mixture(toy, layer, bias=BIAS, shared=True)
    return toy


def sigmoid_moe(architecture: str, *, norms: str = "attn_q_norm attn_k_norm", **keys: Any) -> Toy:
    """One dense layer, two with experts and shared ones, a bias for the selection."""
    keys = SIGMOID_KEYS | SHARED | {key.replace("__", "."): value for key, value in keys.items()}
    return after_one_dense(architecture, keys, norms=norms, bias=BIAS, shared=True)


# --- attention everywhere


def qwen3vlmoe() -> Toy:
    return renamed(first.qwen3moe, "qwen3vlmoe", n_deepstack_layers=0, rope__dimension_sections=[4, 6, 6, 0])


def llada_moe() -> Toy:
    return moe_everywhere("llada-moe", {"attention.head_count_kv": HEADS})


def maple() -> Toy:
    return moe_everywhere("maple", WINDOWS | {"swiglu_clamp_exp": [7.0] * 3})


def moe_everywhere(architecture: str, keys: dict[str, Any]) -> Toy:
    """Experts in all of three layers, normalized queries and keys."""
    toy = plain(architecture, 3, KEYS | keys)
    for layer in range(3):
        toy.norms(layer, "attn_q_norm attn_k_norm", HEAD)
        mixture(toy, layer)
    return toy


def bailingmoe() -> Toy:
    keys = KEYS | SHARED | {"expert_weights_scale": 1.5, "expert_weights_norm": True, "leading_dense_block_count": 0}
    toy = plain("bailingmoe", 3, keys)
    for layer in range(3):
        mixture(toy, layer, shared=True)
    return toy


def granite_swa() -> Toy:
    """Gate and up of the shared expert in one tensor."""
    toy = renamed(first.granitemoe, "granite_swa")
    toy.keys |= WINDOWS
    for layer in range(3):
        toy.vec(f"blk.{layer}.attn_sinks.weight", HEADS, 0.0)
        drop(toy, layer, "ffn_gate_shexp")
        toy.mat(f"blk.{layer}.ffn_up_shexp.weight", EMBD, 2 * WIDTH)
    return toy


def gated(toy: Toy) -> Toy:
    """With a gate for every head."""
    for layer in range(toy.layers):
        toy.mat(f"blk.{layer}.attn_gate.weight", EMBD, HEADS)
    return toy


def step35() -> Toy:
    return gated(sigmoid_moe("step35", **{key.replace(".", "__"): value for key, value in WINDOWS.items()}))


def laguna() -> Toy:
    return gated(sigmoid_moe("laguna", attention__sliding_window=WINDOW))


def k2_horizon() -> Toy:
    """A norm of queries and keys for every head."""
    toy = sigmoid_moe("k2-horizon", norms="")
    for layer in range(3):
        toy.mat(f"blk.{layer}.attn_q_norm.weight", HEAD, HEADS)
        toy.mat(f"blk.{layer}.attn_k_norm.weight", HEAD, 1)
    return toy


def minimax_m3() -> Toy:
    """An indexer of blocks in the layers with experts."""
    toy = sigmoid_moe("minimax-m3")
    toy.keys |= INDEXER_KEYS | {"attention.indexer.head_count": 1, "attention.indexer.key_length": HEAD}
    toy.keys |= {"attention.indexer.block_size": 8, "attention.indexer.local_blocks": 1}
    for layer in (1, 2):
        projected_indexer(toy, layer, 1, HEAD)
    return toy


# --- latent attention


def deepseek2_ocr() -> Toy:
    """Attention as in a llama, for all its name."""
    keys = KEYS | SHARED | {"attention.head_count_kv": HEADS}
    return after_one_dense("deepseek2-ocr", keys, shared=True)


def indexer(toy: Toy, layer: int) -> None:
    """What chooses the tokens that a layer of latent attention attends to."""
    blk = f"blk.{layer}.indexer."
    toy.vec(blk + "k_norm.weight", INDEX)
    toy.vec(blk + "k_norm.bias", INDEX, 0.0)
    toy.mat(blk + "proj.weight", EMBD, INDEX_HEADS)
    toy.mat(blk + "attn_k.weight", EMBD, INDEX)
    toy.mat(blk + "attn_q_b.weight", Q_RANK, INDEX_HEADS * INDEX)


def projected_indexer(toy: Toy, layer: int, heads: int, length: int) -> None:
    """The same over the layer's input."""
    blk = f"blk.{layer}.indexer."
    toy.mat(blk + "q_proj.weight", EMBD, heads * length)
    toy.mat(blk + "k_proj.weight", EMBD, length)
    toy.vec(blk + "q_norm.weight", length)
    toy.vec(blk + "k_norm.weight", length)


def deepseek32(architecture: str = "deepseek32") -> Toy:
    """Latent attention with an indexer."""
    toy = apart(renamed(first.deepseek2, architecture))
    toy.keys |= INDEXER_KEYS
    for layer in range(toy.layers):
        indexer(toy, layer)
    return toy


def hyper_connections(toy: Toy, streams: int, per_stream: int, scales: int) -> None:
    """Several residual streams; per_stream, scales: figures that mix them before and after a branch."""
    toy.keys |= {
        "hyper_connection.count": streams,
        "hyper_connection.epsilon": 1e-6,
        "hyper_connection.magnitude": 1.0,
        "hyper_connection.sinkhorn_iterations": 2,
    }
    for layer in range(toy.layers):
        for part in ("attn", "ffn"):
            blk = f"blk.{layer}.hc_{part}_"
            toy.mat(blk + "fn.weight", streams * EMBD, per_stream)
            toy.vec(blk + "scale.weight", scales)
            toy.vec(blk + "base.weight", per_stream)


def hy_v4() -> Toy:
    """An indexer in every layer, two residual streams, gates and sinks of attention."""
    toy = deepseek32("hy_v4")
    toy.keys |= {"attention.indexer.types": [1] * toy.layers}
    hyper_connections(toy, 2, 4, 2)
    toy.mat("output_hc_fn.weight", 2 * EMBD, 2)
    toy.vec("output_hc_scale.weight", 1)
    toy.vec("output_hc_base.weight", 2)
    for layer in range(toy.layers):
        toy.vec(f"blk.{layer}.attn_sinks.weight", HEADS, 0.0)
        toy.mat(f"blk.{layer}.attn_gate.weight", EMBD, HEADS * VALUE)
    return toy


# --- recurrent layers


def qwen3next() -> Toy:
    """Gated delta nets, with full attention in every fourth layer; beta and alpha in one tensor."""
    toy = renamed(qwen35, "qwen3next")
    toy.keys |= KEYS | {"expert_shared_feed_forward_length": WIDTH}
    for layer in range(toy.layers):
        drop(toy, layer, "ffn_gate", "ffn_up", "ffn_down")
        if layer % 4 != 3:
            drop(toy, layer, "ssm_beta", "ssm_alpha")
            toy.mat(f"blk.{layer}.ssm_ba.weight", EMBD, 4)
        mixture(toy, layer, shared=True)
        toy.vec(f"blk.{layer}.ffn_gate_inp_shexp.weight", EMBD, 0.0)
    return toy


def qwen4exp() -> Toy:
    """Two residual streams, whose norms are the layers'; an indexer where there is full attention."""
    toy, rank, streams = renamed(first.qwen35moe, "qwen4exp"), 4, 2
    toy.keys |= INDEXER_KEYS | {
        "hyper_connection.count": streams,
        "hyper_connection.epsilon": 1e-6,
        "hyper_connection.low_rank": rank,
        "hyper_connection.magnitude": 1.0,
    }
    del toy.tensors["output_norm.weight"]
    places = ["output_hc_", *(f"blk.{n}.hc_{part}_" for n in range(toy.layers) for part in ("attn", "ffn"))]
    for place in places:
        toy.vec(place + "norm.weight", streams * EMBD)
        toy.mat(place + "down.weight", streams * EMBD, rank)
        toy.mat(place + "up.weight", rank, streams * EMBD)
        if place.startswith("blk"):
            toy.mat(place + "inject.weight", streams * EMBD, streams)
    for layer in range(toy.layers):
        drop(toy, layer, "attn_norm", "post_attention_norm")
        if layer % 4 == 3:
            projected_indexer(toy, layer, INDEX_HEADS, INDEX)
    return toy


INNER, STATE, SSM_HEADS = 2 * EMBD, 16, 4
MAMBA2_KEYS = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": INNER,
    "ssm.state_size": STATE,
    "ssm.time_step_rank": SSM_HEADS,
    "ssm.group_count": 1,
}


def mamba2_layer(toy: Toy, layer: int) -> None:
    blk, channels = f"blk.{layer}.", INNER + 2 * STATE
    toy.mat(blk + "ssm_in.weight", EMBD, INNER + channels + SSM_HEADS)
    toy.mat(blk + "ssm_conv1d.weight", 4, channels)
    toy.vec(blk + "ssm_conv1d.bias", channels, 0.0)
    toy.vec(blk + "ssm_dt.bias", SSM_HEADS, 0.0)
    toy.vec(blk + "ssm_norm.weight", INNER)
    for name, around in (("ssm_a", -1.0), ("ssm_d", 1.0)):
        toy.vec(blk + name, SSM_HEADS, around)
        toy.tensors[blk + name] = toy.tensors[blk + name].reshape(SSM_HEADS, 1)
    toy.tensors[blk + "ssm_norm.weight"] = toy.tensors[blk + "ssm_norm.weight"].reshape(1, INNER)
    toy.mat(blk + "ssm_out.weight", INNER, EMBD)


def granitehybrid() -> Toy:
    """Mamba-2 layers and one of attention, experts in all."""
    kv_heads = [0, 1, 0]
    keys = KEYS | MAMBA2_KEYS | {"attention.head_count_kv": kv_heads, "feed_forward_length": WIDTH}
    toy = Toy("granitehybrid", 3, keys | {"expert_shared_feed_forward_length": WIDTH, "logit_scale": 2.0})
    toy.mat("output.weight", EMBD, VOCAB)
    for layer, heads in enumerate(kv_heads):
        toy.norms(layer, "attn_norm ffn_norm")
        if heads:
            toy.attention(layer, heads)
        else:
            mamba2_layer(toy, layer)
        mixture(toy, layer, shared=True)
    return toy


def nemotron_h(architecture: str) -> Toy:
    """A layer is Mamba-2, attention, or experts without a gate."""
    kv_heads, widths = [0, 0, 1, 0], [0, WIDTH, 0, WIDTH]
    keys = SIGMOID_KEYS | SHARED | MAMBA2_KEYS | {"attention.head_count_kv": kv_heads, "feed_forward_length": widths}
    toy = Toy(architecture, 4, keys)
    toy.mat("output.weight", EMBD, VOCAB)
    for layer, (heads, width) in enumerate(zip(kv_heads, widths, strict=True)):
        toy.norms(layer, "attn_norm")
        if heads:
            toy.attention(layer, heads)
        elif width:
            mixture(toy, layer, bias=BIAS, shared=True)
            drop(toy, layer, "ffn_gate_exps", "ffn_gate_shexp")
        else:
            mamba2_layer(toy, layer)
    return toy


def minimax_01() -> Toy:
    """Lightning attention, full attention in every eighth layer."""
    toy = plain("minimax-01", 8, KEYS | {"residual_scale": 0.5})
    for layer in range(8):
        if layer % 8 != 7:
            drop(toy, layer, "attn_q", "attn_k", "attn_v")
            toy.norms(layer, "attn_norm_2", HEADS * HEAD)
            toy.mat(f"blk.{layer}.attn_qkv.weight", EMBD, 3 * HEADS * HEAD)
            toy.mat(f"blk.{layer}.attn_gate.weight", EMBD, HEADS * HEAD)
        mixture(toy, layer, width=FF)
    return toy


KDA_LAYERS = (0, 2, 3)  # layer 1 attends


def kimi_linear(*, low_rank: bool = False) -> Toy:
    """Kimi's delta attention, and one layer of latent attention. low_rank: its queries are made in two steps."""
    toy = apart(renamed(first.deepseek2, "kimi-linear", ssm__conv_kernel=4, kda__head_dim=HEAD))
    toy.keys["attention.head_count_kv"] = [0, 1, 0, 0]
    for layer in KDA_LAYERS:
        drop(
            toy,
            layer,
            "attn_q_a",
            "attn_q_b",
            "attn_q_a_norm",
            "attn_kv_a_mqa",
            "attn_kv_a_norm",
            "attn_k_b",
            "attn_v_b",
        )
        _delta_attention(toy, layer)
    if not low_rank:
        del toy.keys["attention.q_lora_rank"]
        drop(toy, 1, "attn_q_a", "attn_q_b", "attn_q_a_norm")
        toy.mat("blk.1.attn_q.weight", EMBD, HEADS * (VALUE + ROPE))
    return toy


def _delta_attention(toy: Toy, layer: int) -> None:
    blk, inner = f"blk.{layer}.", HEADS * HEAD
    for name in "qkv":
        toy.mat(f"{blk}attn_{name}.weight", EMBD, inner)
        toy.mat(f"{blk}ssm_conv1d_{name}.weight", 4, 1, inner, 1)
    for name in "fg":
        toy.mat(f"{blk}ssm_{name}_a.weight", EMBD, HEAD)
        toy.mat(f"{blk}ssm_{name}_b.weight", HEAD, inner)
    toy.mat(blk + "ssm_beta.weight", EMBD, HEADS)
    toy.vec(blk + "ssm_a", HEADS, -1.0)
    toy.tensors[blk + "ssm_a"] = toy.tensors[blk + "ssm_a"].reshape(HEADS, 1)
    toy.vec(blk + "ssm_dt.bias", inner, 0.0)
    toy.norms(layer, "ssm_norm", HEAD)
    toy.mat(blk + "attn_output.weight", inner, EMBD)


def bailingmoe3() -> Toy:
    """The gates of the delta attention in one step; a gate for every head of the other."""
    toy = renamed(kimi_linear, "bailingmoe3", kda__gate_lower_bound=-5.0)
    for layer in KDA_LAYERS:
        for name in ("ssm_f", "ssm_g"):
            drop(toy, layer, f"{name}_b")
            toy.mat(f"blk.{layer}.{name}_a.weight", EMBD, HEADS * HEAD)
    toy.mat("blk.1.attn_gate.weight", EMBD, HEADS)
    return toy


def kimi_k3() -> Toy:
    """Residuals kept in banks, each scored before it is added."""
    toy = renamed(kimi_linear, "kimi-k3", attn_res__block_size=2)
    toy.keys |= {"activation.situ_beta": 1.0, "activation.situ_linear_beta": 1.0}
    for layer in KDA_LAYERS:
        _flat_decay(toy, layer)
        drop(toy, layer, "ssm_g_a", "ssm_g_b")
        toy.mat(f"blk.{layer}.ssm_g.weight", EMBD, HEADS * HEAD)
    for place in ("output", *(f"blk.{layer}.{part}" for layer in range(4) for part in ("attn", "ffn"))):
        toy.vec(f"{place}_res_score.weight", EMBD)
    return toy


def _flat_decay(toy: Toy, layer: int) -> None:
    toy.tensors[f"blk.{layer}.ssm_a"] = toy.tensors[f"blk.{layer}.ssm_a"].reshape(HEADS)


def glm5_next() -> Toy:
    """Four residual streams; latent attention without positions, its indexer over pools of tokens."""
    toy = renamed(partial(kimi_linear, low_rank=True), "glm5-next")
    toy.keys |= INDEXER_KEYS | {"attention.indexer.kpool": 4, "attention.indexer.kpool_select_tail": True}
    toy.keys |= {"rope.dimension_count": 0, "attention.key_length": KV_RANK, "attention.key_length_mla": VALUE}
    hyper_connections(toy, 4, 24, 3)
    for layer in KDA_LAYERS:
        _flat_decay(toy, layer)
    indexer(toy, 1)
    toy.mat("blk.1.indexer_compressor_gate.weight", EMBD, INDEX)
    toy.mat("blk.1.indexer_compressor_ape.weight", INDEX, 4)
    toy.mat("blk.1.attn_kv_a_mqa.weight", EMBD, KV_RANK)
    toy.mat("blk.1.attn_q_b.weight", Q_RANK, HEADS * VALUE)
    return toy


FURTHER: dict[str, Callable[[], Toy]] = {
    "minicpm": partial(renamed, first.mixtral, "minicpm"),
    "mistral3": partial(renamed, first.mixtral, "mistral3"),
    "granite": partial(renamed, first.granitemoe, "granite"),
    "granite_swa": granite_swa,
    "qwen3vlmoe": qwen3vlmoe,
    "rnd1": partial(renamed, first.qwen3moe, "rnd1"),
    "mellum": partial(renamed, first.qwen3moe, "mellum", attention__sliding_window=WINDOW),
    "llada-moe": llada_moe,
    "maple": maple,
    "bailingmoe": bailingmoe,
    "step35": step35,
    "laguna": laguna,
    "k2-horizon": k2_horizon,
    "minimax-m3": minimax_m3,
    "mistral4": partial(renamed, first.deepseek2, "mistral4"),
    "deepseek2-ocr": deepseek2_ocr,
    "deepseek32": deepseek32,
    "glm-dsa": partial(deepseek32, "glm-dsa"),
    "hy_v4": hy_v4,
    "qwen3next": qwen3next,
    "qwen4exp": qwen4exp,
    "granitehybrid": granitehybrid,
    "nemotron_h": partial(nemotron_h, "nemotron_h"),
    "nemotron_h_moe": partial(nemotron_h, "nemotron_h_moe"),
    "minimax-01": minimax_01,
    "kimi-linear": kimi_linear,
    "bailingmoe3": bailingmoe3,
    "kimi-k3": kimi_k3,
    "glm5-next": glm5_next,
}
ALL = first.ALL | FURTHER
