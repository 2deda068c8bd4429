"""Repairs for a prune scan: for each gap the ffn_down before it, refitted once, so that a scan measures what is left.

The unpruned model runs once over chunks that the scan does not measure; what the layers before the gaps read and the
streams around them are kept on disk, and each gap's repair is fitted on them. While the scan runs, a repaired layer's
output is overwritten by what the repaired branch gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from surgeon.engine.child.healing.branches import Branch, heal
from surgeon.engine.child.healing.layer_step import branch_form, loaded_branch
from surgeon.engine.child.healing.ridge import Float32
from surgeon.engine.child.healing.samples import Chunks, Samples, token_weights
from surgeon.engine.child.healing.selection import held_back
from surgeon.engine.child.healing.store import Store
from surgeon.engine.child.healing.streams import FEED_FORWARD
from surgeon.engine.child.llama.binding import Binding
from surgeon.engine.child.llama.graph import Node, rows
from surgeon.engine.child.llama.model import ContextSize, LlamaModel, Tokens, opened
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import HealLayer

_NODES = re.compile(r"(ffn_inp|sa_out|l_out)-(\d+)")
_WEIGHT = re.compile(r"blk\.(\d+)\.ffn_down\.weight")
MIDDLE, OUTPUT, INPUT = "middle", "output", "input"
Place = tuple[str, int]
Gap = tuple[int, int]  # the layer before it and its last layer


def gaps(layers: list[int]) -> list[Gap]:
    """`[3, 4, 9]` -> [(2, 4), (8, 9)]; layers from the first on have none before them."""
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer for layer in layers if layer + 1 not in layers]
    return [(start - 1, end) for start, end in zip(sorted(starts), sorted(ends), strict=True) if start > 0]


def place_of(binding: Binding, node: Node) -> Place | None:
    """What a node shows: the input of ffn_down, the stream between attention and feed-forward, that behind a layer."""
    if node.op == binding.mul_mat and (weight := node.source(0)) is not None:
        match = _WEIGHT.fullmatch(weight.weight_name)
        return (INPUT, int(match[1])) if match else None
    match = _NODES.fullmatch(node.name)
    return None if match is None else (OUTPUT if match[1] == "l_out" else MIDDLE, int(match[2]))


class Repairs:
    """The repaired branches of the gaps of some sets of layers."""

    def __init__(self, model: LlamaModel, layers: list[HealLayer], folder: str, chunks: Tokens, threads: int) -> None:
        self._model, self._chunks, self._threads = model, chunks, threads
        self._layers = {layer.number: layer for layer in layers}
        self._store = Store(folder, int(chunks.size))
        self._kept: dict[Place, Float32] = {}
        self._fitted: dict[Gap, Branch] = {}

    def collect(self, wanted: set[Gap]) -> Iterator[int]:
        """Run the unpruned model over the chunks; yields how many are done."""
        befores = {before for before, _ in wanted}
        places = {(place, layer) for place in (INPUT, MIDDLE, OUTPUT) for layer in befores}
        places |= {(OUTPUT, end) for _, end in wanted}
        span, binding = slice(0), self._model.binding

        def see(address: int, ask: bool) -> bool:
            node = Node(binding, address)
            place = place_of(binding, node)
            if place is None or place not in places:
                return not ask
            if not ask:
                shown = node.source(1) if place[0] == INPUT else node
                assert shown is not None  # a product has two operands
                values = rows(shown.array())
                if place not in self._kept:
                    self._kept[place] = self._store.new(values.shape[1])
                self._kept[place][span] = values
            return True

        n_ctx = self._chunks.shape[1]
        with opened(self._model, ContextSize(n_ctx, 1, n_ctx, n_ctx), self._threads, see) as context:
            positions = np.arange(n_ctx, dtype=np.int32)
            every = np.ones(n_ctx, np.bool_)
            for number, chunk in enumerate(self._chunks):
                span = slice(number * n_ctx, (number + 1) * n_ctx)
                context.clear()
                context.decode(chunk, positions, np.zeros(n_ctx, np.int32), every)
                yield number + 1

    def branch(self, gap: Gap) -> Branch:
        """The repaired feed-forward branch of the layer before the gap. Raises EngineError where it cannot be made."""
        if gap not in self._fitted:
            before, end = gap
            parts = [self._kept.get(place) for place in ((INPUT, before), (MIDDLE, before), (OUTPUT, before))]
            inputs, middle, behind = parts
            if inputs is None or middle is None or behind is None:
                raise EngineError(
                    f"{self._model.path}: the graph of this architecture does not show the streams of layer {before}; "
                    "it cannot be healed"
                )
            n_ctx = self._chunks.shape[1]
            old = loaded_branch(self._layers[before].branches[FEED_FORWARD], self._layers[before].epsilon)
            added = behind[:n_ctx] - middle[:n_ctx]
            old = branch_form(old, np.asarray(inputs[:n_ctx]), added, before, FEED_FORWARD)
            count = len(self._chunks)
            chunks = Chunks(np.zeros(count, np.int64), np.array(held_back(count)), n_ctx)
            goal = self._kept[OUTPUT, end]
            self._fitted[gap] = heal(old, Samples(inputs, middle, goal, token_weights(goal), chunks)).branch
        return self._fitted[gap]


def wanted_gaps(layer_sets: list[list[int]]) -> set[Gap]:
    """All gaps of all sets."""
    return {gap for layers in layer_sets for gap in gaps(layers)}
