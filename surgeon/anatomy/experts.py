"""Every architecture of llama.cpp with experts: how its router chooses them, and where their number shows.

The names, defaults and shapes are those of llama.cpp's loaders and graphs (read at build 11549, October 2026). In all
one number, `expert_count`, holds for every layer; the experts of a layer lie side by side in one dimension of its
tensors (EXPERT_DIMENSION); shared experts have tensors of their own (`_shexp`) that pruning does not touch.
`expert_group_count`, where it is above 1, parts the experts of any architecture into groups of neighbours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

# What `expert_gating_func` numbers: how router logits become weights.
SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN, SQRT_SOFTPLUS = 1, 2, 3, 4

# Name after `blk.N.` -> the dimension of ne in which its experts lie (0 is along the row).
EXPERT_DIMENSION = {
    "ffn_gate_inp.weight": 1,
    "ffn_gate_inp.bias": 0,
    "exp_probs_b.bias": 0,
    "exp_probs_b": 0,  # hy_v3 has no ending
    "exp_probs_b_vl.bias": 0,
    **{
        f"ffn_{part}_exps.{ending}": dimension
        for part in ("gate", "up", "down", "gate_up")
        for ending, dimension in (("weight", 2), ("bias", 1), ("scale", 0), ("input_scale", 0))
    },
}
# One matrix for every `experts_per_group` neighbours.
CHUNK_DIMENSION = {f"ffn_{part}_chexps.weight": 2 for part in ("gate", "up", "down")}
MOST_EXPERTS = 1 << 16  # a damaged file may claim four billion; llama.cpp itself takes 1024
ROUTER, HASH_TABLE = "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight"
# They look like tensors of experts and hold none: one norm for all of them; values of attention, counted apart.
NOT_OF_EXPERTS = frozenset(["ffn_norm_exps.weight", "attn_v_exps.weight"])
LOOKS_LIKE_EXPERTS = re.compile(r"_exps\b|_chexps\b|exp_probs|tid2eid|^ffn_(?:gate|up|down)\.[0-9]+\.")
ONE_TENSOR_EACH = re.compile(r"^ffn_(?:gate|up|down)\.[0-9]+\.weight$")

Layers = Literal["all", "after leading", "by step", "where a router is"]


@dataclass(frozen=True, slots=True)
class Experts:
    """names: the architectures it holds for.

    gating: how router logits become weights where no `expert_gating_func` says so, 0 where it must;
    reads_gating: the loader reads that key at all;
    bias: whether `exp_probs_b` is added to the probabilities that select (not to those that weigh);
    layers: which layers have experts: all, those after `leading_dense_block_count`, every so many (with or without
    leading dense ones), or just those with a router in the file;
    form: gate and up as tensors of their own, as one tensor where the file has it so, or no gate at all;
    width_by_used: without `expert_feed_forward_length` the experts are `feed_forward_length / expert_used_count` wide;
    pinned: (a count, what llama.cpp takes from it beyond the tensors' shapes): it can be neither left nor reached;
    chunked: further experts, one for every `experts_per_group` neighbours;
    refusal: why pruning needs --i-know; impossible: why no expert can be pruned.
    """

    names: str
    gating: int = SOFTMAX
    reads_gating: bool = False
    bias: bool = False
    layers: Layers = "all"
    form: Literal["apart", "fused", "no gate"] = "apart"
    width_by_used: bool = False
    pinned: tuple[int, str] | None = None
    chunked: bool = False
    refusal: str = ""
    impossible: str = ""


MAVERICK = (128, "whether queries and keys are normalized: not with 128 experts, always with any other number")
CHUNKS = (
    "llama.cpp weighs the experts shared by neighbours with the router's probability at the neighbourhood's number, so "
    "pruning changes the weights of those that stay"
)
DRAFT = "it is a draft of another model, with experts of its own that no text of its own can judge"

EXPERTS: tuple[Experts, ...] = (
    # Softmax over all experts; a bias changes the selection only where it says so.
    Experts("llama llama-embed mistral3 minicpm refact granite granitemoe grok dbrx arctic phimoe hunyuan-moe olmoe"),
    Experts("minimax-01 maple"),
    Experts("granite_swa", form="fused"),
    Experts("qwen2moe qwen3moe qwen3vlmoe rnd1 llada-moe mellum", width_by_used=True),
    Experts("qwen3next qwen35moe qwen4exp", form="fused", width_by_used=True),
    Experts("jamba granitehybrid", layers="where a router is"),
    Experts("gemma4", layers="where a router is", form="fused"),
    Experts("bailingmoe deepseek", layers="after leading"),
    Experts("ernie4_5-moe", bias=True, layers="by step"),
    Experts("nomic-bert-moe", layers="by step", form="no gate"),
    Experts("grovemoe", width_by_used=True, chunked=True, refusal=CHUNKS),
    # As `expert_gating_func` says.
    Experts("deepseek2 mistral4 deepseek2-ocr", SOFTMAX, True, True, "after leading", "fused"),
    Experts("cohere2moe", SIGMOID, True, False, "after leading", "fused"),
    Experts("afmoe laguna glm-dsa glm5-next k2-horizon", SIGMOID, True, True, "after leading"),
    Experts("glm4moe", SIGMOID, True, True, "after leading", width_by_used=True),
    Experts("hy_v3", SIGMOID, True, True, "where a router is", "fused", width_by_used=True),
    Experts("step35", SIGMOID, True, True, "where a router is"),
    Experts("bailingmoe2 bailingmoe3 deepseek32 dots1 dots3note exaone-moe hy_v4", 0, True, True, "after leading"),
    Experts("kimi-linear kimi-k3 lfm2moe minimax-m3", 0, True, True, "after leading"),
    Experts("minimax-m2", 0, True, True),
    Experts("smallthinker", 0, True),
    Experts("deepseek4", 0, True, True),
    # Sigmoid always; softmax over the chosen alone.
    Experts("mimo2", SIGMOID, False, True, "where a router is"),
    Experts("nemotron_h nemotron_h_moe", SIGMOID, False, True, "where a router is", "no gate", width_by_used=True),
    Experts("llama4", SIGMOID, layers="by step", pinned=MAVERICK),
    Experts("gpt-oss", SOFTMAX_OF_CHOSEN),
    Experts("dflash", SQRT_SOFTPLUS, True, True, impossible=DRAFT),
)

_BY_NAME = {name: experts for experts in EXPERTS for name in experts.names.split()}


def experts_of(architecture: str) -> Experts | None:
    """What is known of the experts of an architecture; None: nothing."""
    return _BY_NAME.get(architecture)
