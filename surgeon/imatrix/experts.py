"""What one pass over a text shows of every expert: how often it was called, with what weight, and what it added.

    calls      tokens routed to the expert
    gate       Σ of the weights the router gave it
    saliency   Σ over its tokens of weight × |output|; divided by the calls: the saliency of REAP (arXiv 2510.13999)

Raw sums, float32[n_expert, n_layer] in the imatrix file, so that collections can be merged by adding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surgeon.imatrix.imatrix import Imatrix

Float64 = NDArray[np.float64]
EXPERT_TENSORS = ("surgeon.expert_calls", "surgeon.expert_gate", "surgeon.expert_saliency")


@dataclass(frozen=True, eq=False)
class ExpertSums:
    """float64[n_layer, n_expert] each; a layer without experts, or never run, has no calls."""

    calls: Float64
    gate: Float64
    saliency: Float64

    @property
    def mean_saliency(self) -> Float64:
        """Mean over an expert's tokens of weight × |output|; 0 for one that was never called."""
        means = np.zeros_like(self.saliency)
        np.divide(self.saliency, self.calls, out=means, where=self.calls > 0)
        return means

    @property
    def layers(self) -> list[int]:
        """The layers of which something is known."""
        return [int(layer) for layer in np.flatnonzero(self.calls.sum(axis=1) > 0)]

    def weight_of_least(self, layer: int, part: float) -> float:
        """The share of a layer's router weight that the least salient `part` of its experts gets; 0 without data."""
        ranked = np.argsort(self.mean_saliency[layer], kind="stable")
        total = self.gate[layer].sum()
        least = self.gate[layer][ranked[: max(1, int(len(ranked) * part))]].sum()
        return float(least / total) if total > 0 else 0.0

    def share_of_calls(self) -> Float64:
        """Of a layer's calls; 1/n_expert each where the load is even, NaN without data."""
        return _shares(self.calls)

    def pruned(self, layers: Sequence[int], gone: Mapping[int, Collection[int]]) -> ExpertSums:
        """Of a model that keeps these layers, in this order, and loses these experts of each: as many everywhere."""
        count = self.calls.shape[1] - max(map(len, gone.values()), default=0)
        kept = [[expert for expert in range(self.calls.shape[1]) if expert not in gone.get(at, ())] for at in layers]
        # A dense layer has no sums: any of its places will do.
        chosen = np.array([left[:count] for left in kept], np.intp).reshape(len(layers), count)
        places = np.array(layers, np.intp)[:, None], chosen
        return ExpertSums(self.calls[places], self.gate[places], self.saliency[places])

    def tensors(self) -> list[tuple[str, NDArray[np.float32]]]:
        """As the file keeps them."""
        arrays = (self.calls, self.gate, self.saliency)
        return [(name, values.astype(np.float32)) for name, values in zip(EXPERT_TENSORS, arrays, strict=True)]


def _shares(values: Float64) -> Float64:
    totals = values.sum(axis=1, keepdims=True)
    shares = np.full_like(values, np.nan)
    np.divide(values, totals, out=shares, where=totals > 0)
    return shares


def added(parts: Sequence[ExpertSums | None]) -> ExpertSums | None:
    """The sums of several collections; None where one lacks them or they are of different models."""
    present = [part for part in parts if part is not None]
    if not present or len(present) < len(parts) or len({part.calls.shape for part in present}) != 1:
        return None
    return ExpertSums(
        *(np.sum([getattr(part, name) for part in present], axis=0) for name in ("calls", "gate", "saliency"))
    )


def calls_of(imatrix: Imatrix, layers: int) -> Float64 | None:
    """Calls float64[layers, n_expert] from the counts of any imatrix in GGUF form, or None where it has none."""
    found = {}
    for layer in range(layers):
        entry = imatrix.entries.get(f"blk.{layer}.ffn_down_exps.weight")
        if entry is not None and len(entry.counts) > 1:
            found[layer] = entry.counts.astype(np.float64)
    if not found or len({len(counts) for counts in found.values()}) != 1:
        return None
    calls = np.zeros((layers, len(next(iter(found.values())))))
    for layer, counts in found.items():
        calls[layer] = counts
    return calls
