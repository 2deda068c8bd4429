"""Run models with llama.cpp: python engine_probe.py OUT.npz MODEL... stores each model's logits for the same tokens.

A process of its own, because llama.cpp aborts on what it cannot run.
"""

from __future__ import annotations

import sys

import numpy as np

from surgeon.engine.child.llama.binding import Binding
from surgeon.engine.child.llama.model import ContextSize, LlamaModel, opened
from surgeon.engine.libraries import find_libraries

TOKENS = np.array([1, 5, 9, 30, 17, 3, 22, 8, 8, 14, 29, 4, 11, 26, 7, 19], np.int32)


def logits(binding: Binding, path: str) -> np.ndarray:
    model = LlamaModel(binding, path)
    try:
        with opened(model, ContextSize(n_ctx=256, n_batch=64, n_ubatch=64), threads=1) as context:
            positions = np.arange(len(TOKENS), dtype=np.int32)
            every = np.ones(len(TOKENS), np.bool_)
            return context.decode(TOKENS, positions, np.zeros(len(TOKENS), np.int32), every).copy()
    finally:
        model.close()


if __name__ == "__main__":
    binding = Binding(find_libraries())
    np.savez(sys.argv[1], *[logits(binding, path) for path in sys.argv[2:]])
