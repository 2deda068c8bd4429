"""Models of images and video in GGUF: which of their tensors that field keeps as they are, and how their blocks count.

llama.cpp knows none of these architectures. Their tensors are those of the original checkpoints; what is listed here is
meant to be what that field leaves in F16 or F32, because pictures fall apart where it is quantized; it was not checked
against the lists of the tools in use there.
"""

from __future__ import annotations

import re

_IN_OUT = "img_in. txt_in. time_in. vector_in. guidance_in. final_layer."
# architecture -> parts of the names of what is kept
_KEPT = {
    "flux": _IN_OUT,
    "hyvid": _IN_OUT,
    "sd1": "label_emb. time_embed. input_blocks.0.0. out.2.",
    "sdxl": "label_emb. time_embed. input_blocks.0.0. out.2.",
    "sd3": "final_layer. context_embedder. t_embedder. y_embedder. x_embedder. pos_embed proj_out. time_text_embed.",
    "aura": "t_embedder. init_x_linear. cond_seq_linear. modF. final_linear. positional_encoding register_tokens",
    "ltxv": "adaln_single. caption_projection. patchify_proj. proj_out. scale_shift_table",
    "wan": "modulation patch_embedding. text_embedding. time_projection. time_embedding. img_emb. head.",
    "hidream": "p_embedder. t_embedder. x_embedder. final_layer. caption_projection. .ff_i.gate. img_emb.",
    "cosmos": "pos_embedder x_embedder. t_embedder. t_embedding_norm final_layer.",
    "lumina2": "t_embedder. cap_embedder. x_embedder. final_layer.",
    "qwen_image": "img_in. txt_in. time_text_embed. norm_out. proj_out.",
}
KEPT = {architecture: tuple(parts.split()) for architecture, parts in _KEPT.items()}
BLOCKS = re.compile(r"((?:\w+\.)*(?:\w*blocks|layers))\.([0-9]{1,5})\.")


def kept_part(name: str, architecture: str) -> bool:
    """Whether the tensor is among those that the field leaves as they are."""
    return any(part in name for part in KEPT.get(architecture, ()))


def block_of(name: str) -> str:
    """`double_blocks.3` of `double_blocks.3.img_attn.qkv.weight`; '' outside such blocks."""
    match = BLOCKS.match(name)
    return f"{match[1]}.{int(match[2])}" if match else ""
