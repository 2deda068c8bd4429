"""Collect the sums of experts and what every router reads: python router_probe.py OUT.npz MODEL.

A process of its own, because llama.cpp aborts on what it cannot run.
"""

from __future__ import annotations

import sys

import numpy as np
from moe_probe import TOKENS

from surgeon.engine.child.collection.imatrix_collection import Collector
from surgeon.engine.child.evaluation.perplexity import PerplexitySum
from surgeon.engine.child.llama.binding import Binding
from surgeon.engine.child.llama.graph import Node, rows
from surgeon.engine.child.llama.model import ContextSize, LlamaModel, opened
from surgeon.engine.libraries import find_libraries


class Watch:
    """A Collector, and a copy of the routers' inputs, float32[tokens, columns] by layer."""

    def __init__(self, model: LlamaModel) -> None:
        self.collector = Collector(model, process_output=False)
        self.inputs: dict[str, list[np.ndarray]] = {}

    def __call__(self, address: int, ask: bool) -> bool:
        node = Node(model.binding, address)
        weight, data = node.source(0), node.source(1)
        if node.op == model.binding.mul_mat and weight is not None and weight.name.endswith("ffn_gate_inp.weight"):
            if not ask and data is not None:
                self.inputs.setdefault(weight.name.split(".")[1], []).append(rows(data.array()).copy())
            wanted = self.collector(address, ask)
            return True if ask else wanted
        return self.collector(address, ask)


if __name__ == "__main__":
    model = LlamaModel(Binding(find_libraries()), sys.argv[2])
    watch = Watch(model)
    with opened(model, ContextSize(n_ctx=256, n_batch=64, n_ubatch=24), 1, watch) as context:
        positions = np.arange(len(TOKENS), dtype=np.int32)
        context.decode(TOKENS, positions, np.zeros(len(TOKENS), np.int32), np.ones(len(TOKENS), np.bool_))
    arrays = watch.collector.snapshot(1, len(TOKENS), PerplexitySum()).arrays
    found = {"experts": arrays["experts"]}
    found |= {name.replace(":", "|"): array for name, array in arrays.items() if name.startswith("count:")}
    found |= {f"router|{layer}": np.concatenate(parts) for layer, parts in watch.inputs.items()}
    np.savez(sys.argv[1], **found)
