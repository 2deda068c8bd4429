"""Metadata keys that hold one entry per layer."""

from __future__ import annotations

from surgeon.model.model import Model

# `<architecture>.<key>`: one number for all layers, or an array with exactly one per layer: llama.cpp loads no other.
EXACT_LENGTH = tuple(
    """
    attention.head_count attention.head_count_kv feed_forward_length expert_used_count expert_feed_forward_length
    swiglu_clamp_exp swiglu_clamp_shexp attention.recurrent_layers
    """.split()
)
# These and others: pruning a layer drops its entry.
PER_LAYER = frozenset(EXACT_LENGTH).union(
    """
    attention.compress_ratios attention.sliding_window_pattern attention.rope_pattern attention.indexer.types
    deepstack_mapping
    """.split()
)


def wrong_length(model: Model, block_count: int) -> str | None:
    """The first array that llama.cpp would refuse for its length, in words, or None."""
    for key in EXACT_LENGTH:
        value = model.file.kv.get(f"{model.architecture}.{key}")
        if value is not None and value.element_type is not None and value.count != block_count:
            return f"{model.architecture}.{key} has {value.count} entries for {block_count} layers"
    return None
