"""What becomes of every expert in the running graph: calls, the router's weights, weight × |output|."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from surgeon.engine.child.evaluation.log_probabilities import Float64
from surgeon.engine.child.llama.graph import Node
from surgeon.engine.errors import EngineError

WEIGHTED = re.compile(r"ffn_moe_weighted-([0-9]+)")  # the experts' outputs times the router's weights
DOWN = re.compile(r"blk\.([0-9]+)\.ffn_down_exps\.weight")

Ids = NDArray[np.generic]


class ExpertAdder:
    """Adds up, layer by layer: float64[n_layer, n_expert] `calls`, `gate`, `saliency`, once a layer with experts ran.

    A graph shows first the product with ffn_down_exps, which knows who was chosen, then the outputs, scaled and with
    their biases, times the weights. In llama4 the weights multiply the experts' input, before that product.
    """

    def __init__(self, n_layer: int) -> None:
        self._n_layer = n_layer
        self.sums: NDArray[np.float64] | None = None  # [3, n_layer, n_expert]
        self._chosen: tuple[int, Ids] | None = None
        self._weights: tuple[int, Float64] | None = None

    def start_batch(self) -> None:
        """Forget what belongs to the batch before."""
        self._chosen = self._weights = None

    def add_down(self, layer: int, n_expert: int, node: Node, chosen: Ids) -> None:
        """The product with ffn_down_exps; chosen: the expert of each (token, slot)."""
        if self._weights is not None and self._weights[0] == layer:
            self._add(layer, n_expert, chosen, self._weights[1], _lengths(node))
            self._weights = None
        else:
            if self.sums is None:
                self.sums = np.zeros((3, self._n_layer, n_expert))
            self._chosen = layer, chosen.copy()

    def add_weighted(self, layer: int, node: Node) -> None:
        """The outputs times the weights, or in llama4 the input times the weights."""
        factors = node.source(1)
        if factors is None:
            return
        weights = factors.array()[0, :, :, 0].astype(np.float64)
        if self._chosen is not None and self._chosen[0] == layer:
            assert self.sums is not None  # add_down made it
            self._add(layer, self.sums.shape[2], self._chosen[1], weights, _lengths(node))
            self._chosen = None
        else:
            self._weights = layer, weights

    def _add(self, layer: int, n_expert: int, chosen: Ids, weights: Float64, lengths: Float64) -> None:
        if self.sums is None:
            self.sums = np.zeros((3, self._n_layer, n_expert))
        if chosen.shape != weights.shape or n_expert != self.sums.shape[2]:
            raise EngineError(f"layer {layer}: {chosen.shape} experts, but {weights.shape} weights; nothing was saved")
        if layer >= self._n_layer:
            return  # of multi-token prediction
        experts = chosen.ravel().astype(np.int64)
        # In llama4 the outputs have the weights in them already.
        for row, values in enumerate((None, weights.ravel(), lengths.ravel())):
            self.sums[row, layer] += np.bincount(experts, values, n_expert)


def _lengths(node: Node) -> Float64:
    """|x| of every (token, slot), float64[tokens, slots]."""
    values = node.array()[0]
    lengths: Float64 = np.sqrt(np.einsum("tsd,tsd->ts", values, values).astype(np.float64))
    return lengths
