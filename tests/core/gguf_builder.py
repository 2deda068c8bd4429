"""Small GGUF files for tests, laid out by the program's own `gguf_layout`.

build_gguf(path, {"general.architecture": "llama"}, {"token_embd.weight": numpy_array, "x": ("Q4_K", (256, 4))})
toy_llama(path, layers=2)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from surgeon.gguf.file import Value, ValueType
from surgeon.gguf.layout import Entry, header
from surgeon_kernels.formats import by_name

NUMPY_TYPES = {"float32": "F32", "float16": "F16", "float64": "F64", "int32": "I32", "int8": "I8"}


def value_of(value: Any) -> Value:
    """A `Value` as it is; bool, int (uint32, int32 when negative), float32, string and lists of these are converted."""
    if isinstance(value, Value):
        return value
    if isinstance(value, list | tuple):
        return Value.array(value_of(value[0]).type if value else ValueType.INT32, value)
    if isinstance(value, bool):
        return Value.of(ValueType.BOOL, value)
    if isinstance(value, int):
        return Value.of(ValueType.INT32 if value < 0 else ValueType.UINT32, value)
    if isinstance(value, float):
        return Value.of(ValueType.FLOAT32, value)
    return Value.of(ValueType.STRING, value)


def entry_of(name: str, tensor: Any) -> tuple[Entry, bytes]:
    """(type name, ne) gives zeros, (type name, ne, bytes) these bytes, an array its values (shape reversed)."""
    if isinstance(tensor, np.ndarray):
        format_ = by_name(NUMPY_TYPES[tensor.dtype.name])
        return Entry(name, tensor.shape[::-1], format_.number, tensor.nbytes), tensor.tobytes()
    format_, ne = by_name(tensor[0]), tensor[1]
    nbytes = format_.row_bytes(ne[0]) * int(np.prod(ne[1:], dtype=np.int64))
    return Entry(name, ne, format_.number, nbytes), tensor[2] if len(tensor) > 2 else bytes(nbytes)


def build_gguf(
    path: Path,
    kv: Mapping[str, Any] | Sequence[tuple[str, Any]],
    tensors: Mapping[str, Any],
    alignment: int = 32,
) -> Path:
    """Write a GGUF; `alignment` is only the layout's, put `general.alignment` into `kv` for readers to know it."""
    pairs = [(key, value_of(value)) for key, value in (kv.items() if isinstance(kv, Mapping) else kv)]
    parts = [entry_of(name, tensor) for name, tensor in tensors.items()]
    layout = header(pairs, [entry for entry, _ in parts], alignment)
    with path.open("wb") as file:
        file.write(layout.data)
        for (_, data), offset in zip(parts, layout.offsets, strict=True):
            file.seek(offset)
            file.write(data)
        file.truncate(layout.total_bytes)
    return path


def llama_kv(layers: int = 2, embd: int = 256, ff: int = 512, heads: int = 4, kv_heads: int = 2) -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "general.name": "toy",
        "llama.block_count": layers,
        "llama.context_length": 512,
        "llama.embedding_length": embd,
        "llama.feed_forward_length": ff,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }


def llama_tensors(
    layers: int = 2, embd: int = 256, ff: int = 512, kv: int = 128, vocab: int = 64, dtype: Any = np.float16
) -> dict[str, np.ndarray]:
    """Random weights of a llama, norms F32; the same for the same arguments."""
    rng = np.random.default_rng(7)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / 16).astype(dtype)

    tensors = {"token_embd.weight": matrix(vocab, embd), "output_norm.weight": np.ones(embd, np.float32)}
    for layer in range(layers):
        shapes = {
            "attn_q": (embd, embd),
            "attn_k": (kv, embd),
            "attn_v": (kv, embd),
            "attn_output": (embd, embd),
            "ffn_gate": (ff, embd),
            "ffn_up": (ff, embd),
            "ffn_down": (embd, ff),
        }
        tensors |= {f"blk.{layer}.{norm}.weight": np.ones(embd, np.float32) for norm in ("attn_norm", "ffn_norm")}
        tensors |= {f"blk.{layer}.{short}.weight": matrix(*shape) for short, shape in shapes.items()}
    return tensors | {"output.weight": matrix(vocab, embd)}


def toy_llama(path: Path, layers: int = 2, dtype: Any = np.float16, kv: Mapping[str, Any] | None = None) -> Path:
    """A llama of `layers` layers, 256 wide; `kv` adds or replaces keys."""
    return build_gguf(path, llama_kv(layers) | dict(kv or {}), llama_tensors(layers, dtype=dtype))
