"""Experts silenced in the running graph: no token is routed to them, as if they were pruned."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from surgeon.engine.child.llama.graph import GGML_TYPE_F32, Node
from surgeon.engine.child.llama.model import LlamaModel
from surgeon.engine.errors import EngineError

# The router's logits, with their bias where there is one, and what selects where that is another tensor: a sigmoid
# makes 0 of −∞, to which the selection's bias is added.
_ROUTER = re.compile(r"ffn_moe_(?:logits|logits_biased|probs_biased)-([0-9]+)")


class Silencer:
    """The eval callback that overwrites the router's logits of the experts in `silenced` (layer -> numbers) by −∞."""

    def __init__(self, model: LlamaModel) -> None:
        self._binding = model.binding
        self.silenced: Mapping[int, frozenset[int]] = {}
        self.reached: set[int] = set()

    def __call__(self, address: int, ask: bool) -> bool:
        if not self.silenced:
            return not ask
        node = Node(self._binding, address)
        match = _ROUTER.fullmatch(node.name)
        numbers = self.silenced.get(int(match[1])) if match is not None else None
        if match is None or not numbers:
            return not ask
        if not ask:
            self._silence(node, sorted(numbers))
            self.reached.add(int(match[1]))
        return True

    def _silence(self, node: Node, numbers: list[int]) -> None:
        if node.type != GGML_TYPE_F32 or numbers[-1] >= node.ne[0]:
            raise EngineError(f"{node.name}: has {node.ne[0]} experts, there is none with the number {numbers[-1]}")
        values: NDArray[np.float32] = node.array().astype(np.float32)
        values[..., numbers] = -np.inf
        node.overwrite(values)

    def require_all(self) -> None:
        """Raise EngineError where a layer's router did not show in the graph."""
        missing = sorted(layer for layer, numbers in self.silenced.items() if numbers and layer not in self.reached)
        if missing:
            raise EngineError(f"the graph of this model shows no router of layer {missing[0]}: nothing was silenced")
