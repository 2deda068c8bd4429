"""Where a tensor stands, read off its name: the only place that knows how `blk.N.` is written."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Only a leading `blk.` is a layer: encoder, decoder and vision blocks (`enc.blk.`, `v.blk.`) are numbered on their own.
BLOCK = re.compile(r"blk\.([0-9]+)\.")


def split_layer(name: str) -> tuple[int | None, str]:
    """Layer and rest: (7, "ffn_down.weight") of `blk.7.ffn_down.weight`; (None, name) outside the layers."""
    match = BLOCK.match(name)
    return (int(match[1]), name[match.end() :]) if match else (None, name)


def with_layer(name: str, layers: Mapping[int, int]) -> str | None:
    """`name` with its layer's new number (old -> new); None when its layer is not in `layers` (pruned)."""
    layer, rest = split_layer(name)
    if layer is None:
        return name
    return f"blk.{layers[layer]}.{rest}" if layer in layers else None


def short_name(name: str) -> str:
    """`blk.7.ffn_down.weight` -> `ffn_down`; anything but a weight keeps its last part (`attn_q.bias`)."""
    return split_layer(name)[1].removesuffix(".weight") or name
