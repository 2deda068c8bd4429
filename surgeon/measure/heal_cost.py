"""What healing takes, worked out before it starts: tokens, memory, disk, time.

With T tokens, d and f the model's and ffn_down's widths, K texts and P weights of a layer:
memory  2 K + 2 matrices of sums f × (f + d), float64 up to 6144 columns, and one graph of a chunk
disk    6 streams T × d and one input T × f, float32; the layers once more, their output matrices as float32
work    2 P T for every run of a layer (the unpruned model's once, the healed one's twice), 2 T f² for the sums
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from surgeon.model.model import Model

BYTES_PER_TOKEN = 3.5  # of English prose; code has fewer
_STREAMS = 6
_EXACT_COLUMNS = 6144


@dataclass(frozen=True)
class HealCost:
    """tokens: at most, per column of the widest matrix as asked for; memory, disk: bytes; flop: multiplications × 2."""

    tokens: int
    columns: int
    memory: int
    disk: int
    flop: float

    def seconds(self) -> float:
        """At the speed this machine multiplies matrices now."""
        size = 768
        a = np.ones((size, size), np.float32)
        a @ a
        start = time.perf_counter()
        for _ in range(4):
            a @ a
        return self.flop / (4 * 2 * size**3 / (time.perf_counter() - start))


def cost(
    model: Model, pruned: frozenset[int], first: int, texts: Sequence[Path], columns: int, width: int,
    per_column: float, n_ctx: int,
) -> HealCost:  # fmt: skip
    """For healing everything from layer `first` on."""
    there = sum(text.stat().st_size for text in texts) / BYTES_PER_TOKEN
    tokens = int(min(per_column * columns + n_ctx, there))
    layers = [layer for layer in model.layers if layer.index >= first]
    before = [layer for layer in model.layers if layer.index < first]
    kept = [layer for layer in layers if layer.index not in pruned]
    sums = columns * (columns + width) * (8 if columns <= _EXACT_COLUMNS else 4)
    biggest = max(layer.nbytes for layer in layers)
    weights = [4 * columns * width * 2 for _ in kept]
    runs = sum(layer.n_elements for layer in before) + sum(
        layer.n_elements * (1 if layer.index in pruned else 2.5) for layer in layers
    )
    return HealCost(
        tokens=tokens,
        columns=columns,
        memory=(2 * len(texts) + 3) * sums + biggest + (300 << 20),
        disk=4 * tokens * (_STREAMS * width + columns) + sum(layer.nbytes for layer in layers) + sum(weights),
        flop=2.0 * tokens * runs + len(kept) * tokens * 2.0 * (columns**2 + width**2),
    )
