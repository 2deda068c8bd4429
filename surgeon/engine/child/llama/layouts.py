"""The C structs of llama.cpp that cross the boundary, and which builds have which.

llama.cpp moves the fields of its parameter structs between releases and says so nowhere, so a layout is used only for
the versions it was tried on, after its default values have been read back, and after the toy model (toy.py) gave the
logits it must give.
"""

from __future__ import annotations

import ctypes as c
from dataclasses import dataclass
from typing import Any

POINTER, BOOL, FLOAT = c.c_void_p, c.c_bool, c.c_float
EVAL_CALLBACK = c.CFUNCTYPE(c.c_bool, c.c_void_p, c.c_bool, c.c_void_p)
LOG_CALLBACK = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
Field = tuple[str, Any]


class GgmlTensor(c.Structure):
    """`struct ggml_tensor`: ne in elements, nb in bytes, fastest first."""

    _fields_ = (
        ("type", c.c_int),
        ("buffer", POINTER),
        ("ne", c.c_int64 * 4),
        ("nb", c.c_size_t * 4),
        ("op", c.c_int),
        ("op_params", c.c_int32 * 16),
        ("flags", c.c_int32),
        ("src", c.c_void_p * 10),
        ("view_src", POINTER),
        ("view_offs", c.c_size_t),
        ("data", POINTER),
        ("name", c.c_char * 64),
        ("extra", POINTER),
        ("padding", c.c_char * 8),
    )


class Batch(c.Structure):
    """`struct llama_batch`: n_tokens parallel arrays; `seq_id[i]` points to `n_seq_id[i]` sequence numbers."""

    _fields_ = (
        ("n_tokens", c.c_int32),
        ("token", POINTER),
        ("embd", POINTER),
        ("pos", POINTER),
        ("n_seq_id", POINTER),
        ("seq_id", POINTER),
        ("logits", POINTER),
    )


class ModelParams(c.Structure):
    """`struct llama_model_params`; oversize, which passing by value tolerates on x86-64 and AArch64."""

    _fields_ = (
        ("devices", POINTER),
        ("tensor_buft_overrides", POINTER),
        ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int),
        ("load_mode", c.c_int),
        ("lazy_mode", c.c_int),
        ("main_gpu", c.c_int32),
        ("tensor_split", POINTER),
        ("progress_callback", POINTER),
        ("progress_callback_user_data", POINTER),
        ("kv_overrides", POINTER),
        ("vocab_only", BOOL),
        ("check_tensors", BOOL),
        ("use_extra_bufts", BOOL),
        ("no_host", BOOL),
        ("no_alloc", BOOL),
        ("load_mtp", BOOL),
        ("_spare", c.c_char * 64),
    )


def _fields(type_: Any, names: str) -> tuple[Field, ...]:
    return tuple((name, type_) for name in names.split())


_SIZES = (
    *_fields(c.c_uint32, "n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max n_outputs_max_per_seq"),
    *_fields(c.c_int32, "n_threads n_threads_batch"),
    *_fields(c.c_int, "ctx_type rope_scaling_type pooling_type attention_type flash_attn_type"),
    *_fields(FLOAT, "rope_freq_base rope_freq_scale"),
    *_fields(FLOAT, "yarn_ext_factor yarn_attn_factor yarn_beta_fast yarn_beta_slow"),
    ("yarn_orig_ctx", c.c_uint32),
    ("defrag_thold", FLOAT),
    ("cb_eval", EVAL_CALLBACK),
    ("cb_eval_user_data", POINTER),
    *_fields(c.c_int, "type_k type_v"),
)
_REST = (
    ("abort_callback", POINTER),
    ("abort_callback_data", POINTER),
    *_fields(BOOL, "embeddings offload_kqv no_perf op_offload swa_full kv_unified"),
    ("samplers", POINTER),
    ("n_samplers", c.c_size_t),
    ("ctx_other", POINTER),
    ("_spare", c.c_char * 64),
)


class ContextParams2(c.Structure):
    """`struct llama_context_params` of llama.cpp 0.2 to 0.5 (tried: b10566, b11063, v0.5.0)."""

    _fields_ = (*_SIZES, *_REST)


class ContextParams6(c.Structure):
    """The same in 0.6 (tried: b11549): `moe_cache_size` after `type_v`."""

    _fields_ = (*_SIZES, ("moe_cache_size", c.c_size_t), *_REST)


@dataclass(frozen=True, slots=True)
class Layout:
    """One layout and the versions (`llama_version()`, major and minor) it was tried on."""

    context_params: type[c.Structure]
    first: tuple[int, int]
    last: tuple[int, int]


LAYOUTS = (Layout(ContextParams6, (0, 6), (0, 6)), Layout(ContextParams2, (0, 2), (0, 5)))
SUPPORTED = "0.2 to 0.6 (August to October 2026, builds 10566 to 11549)"

# What llama_context_default_params() must give if the fields lie where the layout says.
_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "type_k": 1,
    "type_v": 1,
    "offload_kqv": True,
    "embeddings": False,
    "samplers": None,
    "n_samplers": 0,
    "ctx_other": None,
}


def layout_for(version: str) -> Layout | None:
    """The layout of `version` ("0.6.0-dev" -> 0.6), or None for one never tried."""
    parts = version.lstrip("v").split(".")
    if len(parts) < 2 or not (parts[0].isdigit() and parts[1].isdigit()):
        return None
    number = (int(parts[0]), int(parts[1]))
    return next((layout for layout in LAYOUTS if layout.first <= number <= layout.last), None)


def wrong_default(params: c.Structure) -> str | None:
    """The first field whose default is not what llama.cpp documents, as "name = value", or None."""
    for name, expected in _DEFAULTS.items():
        found = getattr(params, name)
        if found != expected:
            return f"{name} = {found}"
    return "cb_eval is set" if params.cb_eval else None
