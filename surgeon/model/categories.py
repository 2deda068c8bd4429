"""Which tensors may be quantized at all, and what kind of tensor a name stands for.

The tests are llama-quantize's, on names alone (and the number of dimensions), so the outcome does not depend on a plan.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum

from surgeon.model.architectures import quirks_of
from surgeon.model.image_models import image_tensor_kept


class Category(StrEnum):
    """What the mixes distinguish, by the word used in reasons."""

    # As equal words do, and without a call of Enum's for each of thousands of look-ups.
    __hash__ = str.__hash__

    OUTPUT = "output"
    TOKEN_EMBD = "token_embd"
    ATTENTION_QKV = "attn_qkv"
    ATTENTION_KV_B = "attn_kv_b"
    ATTENTION_V = "attn_v"
    ATTENTION_K = "attn_k"
    ATTENTION_Q = "attn_q"
    ATTENTION_OUTPUT = "attn_output"
    FFN_UP = "ffn_up"
    FFN_GATE = "ffn_gate"
    FFN_DOWN = "ffn_down"
    OTHER = "other"


TOKEN_EMBEDDINGS = frozenset({"token_embd.weight", "per_layer_token_embd.weight"})
OUTPUT = "output.weight"

# Tensors that the calibration graph reads by row or not at all: an imatrix is never required for them.
IMATRIX_EXEMPT = TOKEN_EMBEDDINGS | {OUTPUT}

ATTENTION_V_LIKE = frozenset({Category.ATTENTION_V, Category.ATTENTION_QKV, Category.ATTENTION_KV_B})

_FRAGMENTS = (
    ("attn_qkv.weight", Category.ATTENTION_QKV),
    ("attn_kv_b.weight", Category.ATTENTION_KV_B),
    ("attn_v.weight", Category.ATTENTION_V),
    ("attn_k.weight", Category.ATTENTION_K),
    ("attn_q.weight", Category.ATTENTION_Q),
    ("attn_output.weight", Category.ATTENTION_OUTPUT),
    ("ffn_up", Category.FFN_UP),
    ("ffn_gate", Category.FFN_GATE),
    ("ffn_down", Category.FFN_DOWN),
)

# Small or delicate tensors that stay as they are: fragment of the name -> what it is.
_KEPT = {
    "ffn_gate_inp.weight": "router",
    "ffn_gate_tid2eid.weight": "expert table",
    "altup": "altup",
    "laurel": "laurel",
    "per_layer_model_proj": "per_layer_model_proj",
    "ssm_conv1d": "ssm_conv1d",
    "shortconv.conv.weight": "short convolution",
    "indexer.k_proj.weight": "indexer",
    "indexer.q_proj.weight": "indexer",
    **{
        f"time_mix_{part}.weight": f"time_mix_{part}"
        for part in "first w0 w1 w2 v0 v1 v2 a0 a1 a2 g1 g2 decay_w1 decay_w2 lerp_fused".split()
    },
    "attn_rel_b.weight": "relative position bias",
    ".position_embd": "position embedding",
    "sam.pos_embd": "position embedding",
    "sam.neck.": "vision neck",
    "sam.net_": "vision net",
    ".rel_pos": "relative position",
    ".patch_embd": "patch embedding",
    ".patch_merger": "patch merger",
    "a.rvq.codebook": "codebook",
    "mm.a.code_embd": "code embedding",
}
_KEPT_WHOLE = {"position_embd.weight": "position embedding", "token_types.weight": "token types"}
_ANY_KEPT = re.compile("|".join(map(re.escape, _KEPT)))


def category(name: str) -> Category:
    """Category of the tensor called `name`; the first fragment that occurs decides."""
    if name == OUTPUT:
        return Category.OUTPUT
    if name in TOKEN_EMBEDDINGS:
        return Category.TOKEN_EMBD
    for fragment, found in _FRAGMENTS:
        if fragment in name:
            return found
    return Category.OTHER


def dimensions(ne: Sequence[int]) -> int:
    """Number of dimensions without trailing ones, at least 1: (4096, 1) is a vector."""
    count = len(ne)
    while count > 1 and ne[count - 1] == 1:
        count -= 1
    return count


def kept_because(name: str, ne: Sequence[int], architecture: str) -> str | None:
    """Why the tensor is never quantized ("norm", "1-D", "router" …), or None when it may be."""
    if "_norm.weight" in name:
        return "norm"
    # The place of the last "weight", not the end of the name, is what llama-quantize compares; a name without any has
    # place -1, which a name of five letters satisfies.
    if name.rfind("weight") != len(name) - 6:
        return "bias" if name.endswith("bias") else "no weight"
    if dimensions(ne) < 2:
        return "1-D"
    if len(ne) > 4:
        return f"{len(ne)}-D"
    if name in _KEPT_WHOLE:
        return _KEPT_WHOLE[name]
    found = _ANY_KEPT.search(name)
    if found:
        return _KEPT[found.group()]
    if any(fragment in name for fragment in quirks_of(architecture).kept):
        return f"kept by {architecture}"
    return image_tensor_kept(name, dimensions(ne), architecture)


def in_tower(name: str, architecture: str) -> bool:
    """Whether the tensor belongs to the vision or audio part beside a text model: no layer of the text's mix."""
    return name.startswith(("v.", "mm.", "a.")) and architecture != "clip"
