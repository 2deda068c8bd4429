"""Heal a toy without layer 1: python heal_probe.py OUT.npz MODEL TEXT HEAL.

Keeps the first chunk's logits of the healed model while it runs, and of the file that is written with HEAL.
A process of its own, because llama.cpp aborts on what it cannot run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from surgeon import cli
from surgeon.engine.child.healing import job as healing
from surgeon.engine.child.healing.layer_step import LayerStep
from surgeon.engine.child.healing.selection import select
from surgeon.engine.child.llama.binding import Binding
from surgeon.engine.child.llama.model import ContextSize, LlamaModel, opened
from surgeon.engine.libraries import find_libraries
from surgeon.engine.protocol import Engine, HealJob, Message
from surgeon.measure.healing import heal_run as heals
from surgeon.measure.layer_files import restored
from surgeon.model.model import load_model

CHUNK = 32
out, model, text, heal = map(Path, sys.argv[1:])
binding = Binding(find_libraries())
steps: list[LayerStep] = []
fed: list[np.ndarray] = []


class KeptStep(LayerStep):
    def messages(self) -> Iterator[Message]:
        yield from super().messages()
        steps.append(self)


class InThisProcess:
    def __init__(self, _engine: Engine, job: HealJob, _cancelled: object) -> None:
        self.job = job

    def messages(self) -> Iterator[Message]:
        loaded = LlamaModel(binding, self.job.model)
        fed.append(select(loaded, self.job).fed[0])
        yield from healing.measure(loaded, self.job, 1)
        loaded.close()


def head(path: Path, stream: np.ndarray) -> np.ndarray:
    """The logits of a stream behind the last layer."""
    toy = load_model(path)
    norm, output = (
        restored(toy, next(tensor for tensor in toy.others if tensor.name == name))
        for name in ("output_norm.weight", "output.weight")
    )
    return (stream / np.sqrt(np.square(stream).mean(axis=1, keepdims=True) + 1e-5) * norm) @ output.T


def logits(path: Path, tokens: np.ndarray) -> np.ndarray:
    loaded = LlamaModel(binding, str(path))
    with opened(loaded, ContextSize(CHUNK, 1, CHUNK, CHUNK), 1) as context:
        every = np.ones(CHUNK, np.bool_)
        return context.decode(tokens, np.arange(CHUNK, dtype=np.int32), np.zeros(CHUNK, np.int32), every).copy()


if __name__ == "__main__":
    healing.LayerStep, heals.EngineRun = KeptStep, InThisProcess
    request = heals.HealRequest(load_model(model), frozenset({1}), (text,), heal, per_column=96, n_ctx=CHUNK)
    for _ in heals.HealRun(request, Engine(threads=1), out.parent).steps():
        pass
    written = out.with_suffix(".gguf")
    words = ["quantize", "--i-know", "--prune-layers", "1", "--heal", str(heal), str(model), str(written), "COPY", "1"]
    assert cli.run(words) == 0
    running = head(model, np.asarray(steps[-1].result.healed[:CHUNK]))
    np.savez(out, running=running, written=logits(written, fed[0]), pruned_away=logits(model, fed[0]))
