"""Collect a mixture-of-experts model's sums: python moe_probe.py OUT.npz MODEL; second moments go to OUT.npz.raw.1.

A process of its own, because llama.cpp aborts on what it cannot run.
"""

from __future__ import annotations

import sys

import numpy as np

from surgeon.engine.child.collection.imatrix_collection import Collector
from surgeon.engine.child.collection.moment_sums import MomentSums
from surgeon.engine.child.evaluation.perplexity import PerplexitySum
from surgeon.engine.child.llama.binding import Binding
from surgeon.engine.child.llama.model import ContextSize, LlamaModel, opened
from surgeon.engine.libraries import find_libraries
from surgeon.engine.protocol import ImatrixJob

TOKENS = np.random.default_rng(11).integers(3, 30, 48, dtype=np.int32)

if __name__ == "__main__":
    model = LlamaModel(Binding(find_libraries()), sys.argv[2])
    moments = MomentSums(ImatrixJob(sys.argv[2], "", moments=f"{sys.argv[1]}.raw", moments_halves=1), 1)
    collector = Collector(model, process_output=False, moments=moments)
    with opened(model, ContextSize(n_ctx=256, n_batch=64, n_ubatch=24), 1, collector) as context:
        positions = np.arange(len(TOKENS), dtype=np.int32)
        context.decode(TOKENS, positions, np.zeros(len(TOKENS), np.int32), np.ones(len(TOKENS), np.bool_))
    np.savez(
        sys.argv[1],
        **{name.replace(":", "|"): array for name, array in collector.snapshot(1, 48, PerplexitySum()).arrays.items()},
    )
    moments.save(1)
