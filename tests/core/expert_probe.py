"""Run models with experts silenced: python expert_probe.py OUT.npz MODEL SETS MODEL SETS ...

SETS is JSON, {"layer": [experts]}; {} runs the model as it is. Token by token, so that no product of several rows is
rounded otherwise. A process of its own, because llama.cpp aborts on what it cannot run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import numpy as np
from engine_probe import TOKENS

from surgeon.engine.child.llama.binding import Binding
from surgeon.engine.child.llama.model import ContextSize, LlamaModel, opened
from surgeon.engine.child.llama.silenced_experts import Silencer
from surgeon.engine.libraries import find_libraries


def single_tokens() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Arguments of `decode`, a call for each token: models that do not attend causally take no more at a time."""
    one, every = np.zeros(1, np.int32), np.ones(1, np.bool_)
    for position, token in enumerate(TOKENS):
        yield np.array([token], np.int32), np.array([position], np.int32), one, every


def logits(binding: Binding, path: str, sets: dict[int, frozenset[int]]) -> np.ndarray:
    model = LlamaModel(binding, path)
    silencer = Silencer(model)
    silencer.silenced = sets
    try:
        with opened(model, ContextSize(n_ctx=256, n_batch=64, n_ubatch=1), 1, silencer) as context:
            rows = [context.decode(*one).copy() for one in single_tokens()]
        silencer.require_all()
        return np.concatenate(rows)
    finally:
        model.close()


if __name__ == "__main__":
    binding = Binding(find_libraries())
    runs = zip(sys.argv[2::2], sys.argv[3::2], strict=True)
    found = [
        logits(binding, path, {int(layer): frozenset(numbers) for layer, numbers in json.loads(sets).items()})
        for path, sets in runs
    ]
    np.savez(sys.argv[1], *found)
