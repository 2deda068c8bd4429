"""What llama-quantize does differently for some architectures, all of it in one row each.

What pruning asks of an architecture is another subject: `anatomy.table`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quirks:
    """falcon_mix: the rules of the mixes for falcon; single_expert_is_dense: `expert_count` 1 means no experts;
    layers_of_70b: the depth at which llama.cpp files the model under 70B, whose few attn_v many heads share (0: none),
    grouped_70b: only with grouped KV heads and without 8 experts; kept: fragments of names never quantized; q8_0:
    fragments of names that are Q8_0 in every mix, and why.
    """

    falcon_mix: bool = False
    single_expert_is_dense: bool = False
    layers_of_70b: int = 0
    grouped_70b: bool = False
    kept: tuple[str, ...] = ()
    q8_0: tuple[str, ...] = ()
    q8_0_why: str = ""


_NONE = Quirks()
_LLAMA = Quirks(layers_of_70b=80, grouped_70b=True)
_HUNYUAN = Quirks(single_expert_is_dense=True)
_80_LAYERS = Quirks(layers_of_70b=80)
_QUIRKS: dict[str, Quirks] = {
    "falcon": Quirks(falcon_mix=True),
    "glm5-next": Quirks(
        kept=tuple(
            """
            hc_ indexer.attn_q_b indexer.attn_k indexer.proj indexer_compressor_gate indexer_compressor_ape
            ssm_f_a.weight ssm_f_b.weight ssm_g_a.weight ssm_g_b.weight ssm_beta.weight attn_kv_a_mqa.weight
            attn_k_b.weight attn_v_b.weight
            """.split()
        ),
        q8_0=("attn_q_a", "attn_q_b", "nextn.eh_proj"),
        q8_0_why="glm5-next keeps its low-rank queries",
    ),
    "hunyuan-dense": _HUNYUAN,
    "hunyuan_vl": _HUNYUAN,
    "llama": _LLAMA,
    "llama-embed": _LLAMA,
    "qwen2": _80_LAYERS,
    "deci": _80_LAYERS,
    "olmo": _80_LAYERS,
    "jais2": Quirks(layers_of_70b=68),
}


def quirks_of(architecture: str) -> Quirks:
    """What llama-quantize does differently for it; no quirks for one that is not in the table."""
    return _QUIRKS.get(architecture, _NONE)
