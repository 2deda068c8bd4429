"""A small BERT with made-up weights and a vocabulary of made-up words, which llama.cpp loads as an embedding model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf_builder import build_gguf

from surgeon.gguf.values import Value, ValueType

WIDTH, FF, LAYERS, CONTEXT = 64, 128, 2, 32
WORDS = [f"word{number}" for number in range(27)]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"▁{word}" for word in WORDS), "##s"]
TYPES = Value.array(ValueType.INT32, [3, 3, 3, 3, *[1] * (len(TOKENS) - 4)])
MEAN = 1  # enum llama_pooling_type


def toy_bert(path: Path, pooling: int | None = MEAN, **changes: np.ndarray) -> Path:
    """changes: tensors that are others."""
    kv = {
        "general.architecture": "bert", "bert.block_count": LAYERS, "bert.context_length": CONTEXT,
        "bert.embedding_length": WIDTH, "bert.feed_forward_length": FF, "bert.attention.head_count": 2,
        "bert.attention.layer_norm_epsilon": 1e-5, "bert.attention.causal": False,
        "tokenizer.ggml.model": "bert", "tokenizer.ggml.pre": "default", "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.token_type": TYPES,
        "tokenizer.ggml.padding_token_id": 0, "tokenizer.ggml.unknown_token_id": 1, "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.cls_token_id": 2, "tokenizer.ggml.seperator_token_id": 3, "tokenizer.ggml.eos_token_id": 3,
    } | ({} if pooling is None else {"bert.pooling_type": pooling})  # fmt: skip
    rng = np.random.default_rng(5)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    tensors = {
        "token_embd.weight": matrix(len(TOKENS), WIDTH),
        "token_types.weight": matrix(2, WIDTH),
        "position_embd.weight": matrix(CONTEXT, WIDTH),
    } | _norm("token_embd_norm")  # fmt: skip
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[f"{block}{name}.weight"] = matrix(WIDTH, WIDTH)
            tensors[f"{block}{name}.bias"] = np.zeros(WIDTH, np.float32)
        tensors |= {f"{block}ffn_up.weight": matrix(FF, WIDTH), f"{block}ffn_up.bias": np.zeros(FF, np.float32)}
        tensors |= {f"{block}ffn_down.weight": matrix(WIDTH, FF), f"{block}ffn_down.bias": np.zeros(WIDTH, np.float32)}
        tensors |= _norm(f"{block}attn_output_norm") | _norm(f"{block}layer_output_norm")
    return build_gguf(path, kv, tensors | changes)


def _norm(name: str) -> dict[str, np.ndarray]:
    return {f"{name}.weight": np.ones(WIDTH, np.float32), f"{name}.bias": np.zeros(WIDTH, np.float32)}
