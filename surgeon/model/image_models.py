"""Models of images and video in GGUF: which of their tensors that field keeps as they are, and how their blocks count.

llama.cpp knows none of these architectures. Their tensors are those of the original checkpoints; what is listed here is
left in F16 or F32, because pictures fall apart where it is quantized. The lists, and that only matrices are quantized
(convolutions are not), are those of the tools that field makes its files with: ComfyUI-GGUF, tools/lcpp.patch and the
F32 lists of tools/convert.py, as of December 2025. qwen_image is not among them: its list follows flux and sd3.
"""

from __future__ import annotations

import re

_IN_OUT = "img_in. txt_in. time_in. vector_in. guidance_in. final_layer."
_UNET = """
    class_embedding. time_embedding. add_embedding. time_embed. label_emb. conv_in. conv_out. =input_blocks.0.0.weight
    =out.2.weight
"""
# architecture -> parts of the names of what is kept; with = before it, the whole name
_KEPT = {
    "flux": _IN_OUT,
    "hyvid": _IN_OUT,
    "sd1": _UNET,
    "sdxl": _UNET,
    "sd3": """
        final_layer. time_text_embed. context_embedder. t_embedder. y_embedder. x_embedder. =proj_out.weight =pos_embed
    """,
    "aura": """
        t_embedder. init_x_linear. =modF.1.weight =cond_seq_linear.weight =final_linear.weight =positional_encoding
        =register_tokens
    """,
    "ltxv": "adaln_single. caption_projection. patchify_proj. proj_out. scale_shift_table",
    "wan": """
        modulation. .modulation patch_embedding. text_embedding. time_projection. time_embedding. img_emb. head.
    """,
    "hidream": """
        p_embedder. t_embedder. x_embedder. final_layer. .ff_i.gate.weight caption_projection. img_emb.emb_pos
    """,
    "cosmos": "p_embedder. t_embedder. t_embedding_norm. x_embedder. pos_embedder final_layer.",
    "lumina2": "t_embedder. x_embedder. final_layer. cap_embedder. context_refiner. noise_refiner.",
    "qwen_image": "img_in. txt_in. time_text_embed. norm_out. proj_out.",
}
KEPT = {architecture: tuple(parts.split()) for architecture, parts in _KEPT.items()}
BLOCKS = re.compile(r"((?:\w+\.)*(?:\w*blocks|layers))\.([0-9]{1,5})\.")


def image_tensor_kept(name: str, dimensions: int, architecture: str) -> str | None:
    """Why the field leaves the tensor as it is, or None: also where the architecture is none of its."""
    if architecture not in KEPT:
        return None
    if dimensions != 2:
        return f"{dimensions}-D"
    kept = any(name == part[1:] if part.startswith("=") else part in name for part in KEPT[architecture])
    return f"kept in {architecture} models" if kept else None


def block_of(name: str) -> str:
    """`double_blocks.3` of `double_blocks.3.img_attn.qkv.weight`; '' outside such blocks."""
    match = BLOCKS.match(name)
    return f"{match[1]}.{int(match[2])}" if match else ""
