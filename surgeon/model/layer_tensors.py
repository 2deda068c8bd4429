"""What tensors llama.cpp's loaders ask for in every layer, for the architectures that are met most.

Names, shapes (ne, row length first) and which of them may be missing are those of the loaders. An architecture without
a row in FAMILIES is checked by its keys alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from surgeon.model.model import Layer

Shapes = dict[str, tuple[int, ...]]
Integer = Callable[[str], int]  # of `<architecture>.<key>`; 0 where it is missing


@dataclass(frozen=True, slots=True)
class Experts:
    """of_ffn: an expert is as wide as feed_forward_length, not expert_feed_forward_length (or that over the number
    used); leading: the first layers are dense; shared: with a shared expert, `gated` by a router of its own; biases: of
    the router and of every expert; selection: a bias for the choice may be there; fused: gate and up may be one tensor.
    """

    of_ffn: bool = False
    leading: bool = False
    shared: bool = False
    gated: bool = False
    biases: bool = False
    selection: bool = False
    fused: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """Short names of a layer's tensors. vectors: norms {embedding} that every layer has; heads: norms {head size};
    biases: of attn_q, attn_k and attn_v, needed; fused: one attn_qkv, and gate and up in one ffn_up; optional: may be
    there; epsilon: the key of the norms; sinks: attn_sinks and the bias of attn_output; latent: multi-head latent
    attention; experts: in models that have some (expert_count), which `always` must.
    """

    vectors: tuple[str, ...] = ("attn_norm", "ffn_norm")
    heads: tuple[str, ...] = ()
    biases: bool = False
    fused: bool = False
    optional: frozenset[str] = frozenset()
    epsilon: str = "attention.layer_norm_rms_epsilon"
    sinks: bool = False
    latent: bool = False
    experts: Experts | None = None
    always: bool = False


BIASES = frozenset(f"{name}.bias" for name in "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down".split())
_GEMMA_NORMS = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
_QK_NORMS = ("attn_q_norm", "attn_k_norm")
FAMILIES: dict[str, Family] = {
    "llama": Family(optional=BIASES, experts=Experts(of_ffn=True)),
    "qwen2": Family(biases=True),
    "qwen3": Family(heads=_QK_NORMS),
    "gemma": Family(),
    "gemma2": Family(_GEMMA_NORMS),
    "gemma3": Family(_GEMMA_NORMS, heads=_QK_NORMS),
    "phi3": Family(fused=True, optional=frozenset({"attn_qkv.bias"})),
    "qwen2moe": Family(optional=BIASES, experts=Experts(shared=True, gated=True), always=True),
    "qwen3moe": Family(heads=_QK_NORMS, optional=BIASES, experts=Experts(), always=True),
    "gpt-oss": Family(
        ("attn_norm", "post_attention_norm"), optional=BIASES, sinks=True, experts=Experts(biases=True), always=True
    ),
    "deepseek2": Family(
        latent=True, experts=Experts(leading=True, shared=True, selection=True, fused=True), always=True
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Expected:
    """Short name -> ne of what a layer must have; other: what it may have."""

    needed: Shapes = field(default_factory=dict)
    other: frozenset[str] = frozenset()


def expected(family: Family, layer: Layer, integer: Integer) -> Expected | None:
    """What `layer` must hold; None where keys are missing that the shapes follow from, or layers of another kind."""
    embedding, heads = integer("embedding_length"), integer("attention.head_count")
    count = integer("expert_count")
    if not embedding or not heads or (count and family.experts is None) or (family.always and not count):
        return None
    if integer("nextn_predict_layers"):  # their layers hold more
        return None
    there = {tensor.short for tensor in layer.tensors}
    attention = (
        _latent(embedding, heads, integer) if family.latent else _attention(family, embedding, heads, integer, there)
    )
    experts = family.experts if count and not _is_dense(family, layer, integer) else None
    feed_forward = _mixture(experts, embedding, integer, there) if experts else _dense(family, embedding, integer)
    if attention is None or feed_forward is None:
        return None
    norms: Shapes = dict.fromkeys(family.vectors, (embedding,))
    other = family.optional | ({"exp_probs_b.bias"} if experts is not None and experts.selection else set())
    return Expected(norms | attention | feed_forward, other)


def _is_dense(family: Family, layer: Layer, integer: Integer) -> bool:
    leading = family.experts is not None and family.experts.leading
    return leading and layer.index < integer("leading_dense_block_count")


def _attention(family: Family, embedding: int, heads: int, integer: Integer, there: set[str]) -> Shapes:
    kv_heads = integer("attention.head_count_kv") or heads
    key = integer("attention.key_length") or embedding // heads
    value = integer("attention.value_length") or embedding // heads
    needed: Shapes = dict.fromkeys(family.heads, (key,))
    qkv = {"attn_q": heads * key, "attn_k": kv_heads * key, "attn_v": kv_heads * value}
    if family.fused or "attn_qkv" in there:
        needed["attn_qkv"] = (embedding, sum(qkv.values()))
    else:
        needed |= {name: (embedding, rows) for name, rows in qkv.items()}
        needed |= {f"{name}.bias": (rows,) for name, rows in qkv.items()} if family.biases else {}
    if family.sinks:
        needed |= {"attn_sinks": (heads,), "attn_output.bias": (embedding,)}
    return needed | {"attn_output": (heads * value, embedding)}


def _latent(embedding: int, heads: int, integer: Integer) -> Shapes | None:
    """Multi-head latent attention; with key_length_mla the up-projection is in two tensors."""
    kv_rank, q_rank, rope = (
        integer(key) for key in ("attention.kv_lora_rank", "attention.q_lora_rank", "rope.dimension_count")
    )
    absorbed = bool(integer("attention.key_length_mla") and integer("attention.value_length_mla"))
    key = integer("attention.key_length_mla" if absorbed else "attention.key_length")
    value = integer("attention.value_length_mla" if absorbed else "attention.value_length")
    if not kv_rank or not rope or not key or not value:
        return None
    needed: Shapes = {"attn_kv_a_norm": (kv_rank,), "attn_kv_a_mqa": (embedding, kv_rank + rope)}
    if q_rank:
        needed |= {"attn_q_a_norm": (q_rank,), "attn_q_a": (embedding, q_rank), "attn_q_b": (q_rank, heads * key)}
    else:
        needed["attn_q"] = (embedding, heads * key)
    if absorbed:
        needed |= {"attn_k_b": (key - rope, kv_rank, heads), "attn_v_b": (kv_rank, value, heads)}
    else:
        needed["attn_kv_b"] = (kv_rank, heads * (key - rope + value))
    return needed | {"attn_output": (heads * value, embedding)}


def _dense(family: Family, embedding: int, integer: Integer) -> Shapes | None:
    ffn = integer("feed_forward_length")
    if not ffn:
        return None
    up = (
        {"ffn_up": (embedding, 2 * ffn)} if family.fused else {"ffn_gate": (embedding, ffn), "ffn_up": (embedding, ffn)}
    )
    return {"ffn_down": (ffn, embedding), **up}


def _mixture(experts: Experts, embedding: int, integer: Integer, there: set[str]) -> Shapes | None:
    count, used, ffn = (integer(key) for key in ("expert_count", "expert_used_count", "feed_forward_length"))
    width = ffn if experts.of_ffn else integer("expert_feed_forward_length") or ffn // max(used, 1)
    if not width:
        return None
    needed: Shapes = {"ffn_gate_inp": (embedding, count), "ffn_down_exps": (width, embedding, count)}
    if experts.fused and "ffn_gate_up_exps" in there:
        needed["ffn_gate_up_exps"] = (embedding, 2 * width, count)
    else:
        needed |= dict.fromkeys(("ffn_gate_exps", "ffn_up_exps"), (embedding, width, count))
    if experts.biases:
        needed |= {"ffn_gate_inp.bias": (count,), "ffn_down_exps.bias": (embedding, count)}
        needed |= dict.fromkeys(("ffn_gate_exps.bias", "ffn_up_exps.bias"), (width, count))
    if experts.gated:
        needed["ffn_gate_inp_shexp"] = (embedding,)
        wide = integer("expert_shared_feed_forward_length") or ffn
    else:
        wide = width * integer("expert_shared_count")
    if experts.shared and wide:
        needed |= {"ffn_down_shexp": (wide, embedding)}
        needed |= dict.fromkeys(("ffn_gate_shexp", "ffn_up_shexp"), (embedding, wide))
    return needed
