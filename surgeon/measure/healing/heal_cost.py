"""What healing takes, worked out before it starts: tokens, memory, disk, time.

With T tokens, d and f the model's and ffn_down's widths, K texts and P weights of a layer:
memory  2 K + 2 matrices of sums f × (f + d), float64 up to 6144 columns, and one graph of a chunk
disk    6 streams T × d and one input T × f, float32; the layers once more, their output matrices as float32
work    2 P T for every run of a layer (the unpruned model's once, the healed one's twice), 2 T f² for the sums

Of E experts, f wide, each token uses u: 4 matrices of sums f × (f + d); inputs of u T × f, their matrices twice as
float32; in 6 rounds u T (2 f² + 6 f d) for the sums and what they leave, and 8 systems of f³ ⅔ for each expert in 3.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from surgeon.measure.layer_files import EXPERTS
from surgeon.model.model import Layer, Model

BYTES_PER_TOKEN = 3.5  # of English prose; code has fewer
_STREAMS = 6
_EXACT_COLUMNS = 6144


@dataclass(frozen=True)
class HealCost:
    """tokens: at most, per column of the widest matrix as asked for; memory, disk: bytes; flop: multiplications × 2.

    per_expert: tokens for each column of an expert's matrix if all experts are used alike, None without experts.
    """

    tokens: int
    columns: int
    memory: int
    disk: int
    flop: float
    per_expert: float | None = None

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
    per_column: float, n_ctx: int, *, with_experts: bool = True,
) -> HealCost:  # fmt: skip
    """For healing everything from layer `first` on."""
    there = sum(text.stat().st_size for text in texts) / BYTES_PER_TOKEN
    tokens = int(min(per_column * columns + n_ctx, there))
    layers = [layer for layer in model.layers if layer.index >= first]
    before = [layer for layer in model.layers if layer.index < first]
    kept = [layer for layer in layers if layer.index not in pruned]
    biggest = max(layer.nbytes for layer in layers)
    weights = [4 * columns * width * 2 for _ in kept]
    runs = sum(_active(model, layer) for layer in before) + sum(
        _active(model, layer) * (1 if layer.index in pruned else 2.5) for layer in layers
    )
    experts = [found for layer in kept if with_experts and (found := _experts(model, layer)) is not None]
    read = max([columns, *(one.used * (one.columns + 2) for one in experts)])
    weights += [4 * one.count * one.columns * width for one in experts]
    changes = max((4 * one.count * one.columns * width for one in experts), default=0)
    return HealCost(
        tokens=tokens,
        columns=columns,
        memory=max([(2 * len(texts) + 3) * _sums(columns, width), *(one.memory(tokens, width) for one in experts)])
        + biggest
        + (300 << 20),
        disk=4 * tokens * (_STREAMS * width + read) + sum(layer.nbytes for layer in layers) + sum(weights) + changes,
        flop=2.0 * tokens * runs
        + len(kept) * tokens * 2.0 * (columns**2 + width**2)
        + sum(one.flop(tokens, width) for one in experts),
        per_expert=min((tokens * one.used / one.count / one.columns for one in experts), default=None),
    )


def _sums(columns: int, width: int) -> int:
    """Bytes of one matrix of sums."""
    return columns * (columns + width) * (8 if columns <= _EXACT_COLUMNS else 4)


@dataclass(frozen=True)
class _Experts:
    """Of one layer: their number, columns of each one's matrix, how many a token uses."""

    count: int
    columns: int
    used: int

    def memory(self, tokens: int, width: int) -> int:
        return 4 * _sums(self.columns, width) + 32 * tokens * self.used  # and who uses which

    def flop(self, tokens: int, width: int) -> float:
        sums = 6.0 * tokens * self.used * (2 * self.columns**2 + 6 * self.columns * width)
        return sums + 16.0 * self.count * self.columns**3


def _experts(model: Model, layer: Layer) -> _Experts | None:
    tensor = next((tensor for tensor in layer.tensors if tensor.short == EXPERTS), None)
    if tensor is None:
        return None
    used = model.hparam("expert_used_count", 1)
    of_layer = used[layer.index] if isinstance(used, list) and layer.index < len(used) else used
    return _Experts(tensor.ne[2], tensor.ne[0], of_layer if isinstance(of_layer, int) else 1)


def _active(model: Model, layer: Layer) -> float:
    """Weights that a token meets in the layer."""
    experts = _experts(model, layer)
    share = experts.used / experts.count if experts else 1.0
    return sum(one.n_elements * (share if one.short.endswith("_exps") else 1.0) for one in layer.tensors)
