"""Second moments as collected against sequential encoding, at equal tokens: KL divergence on held-out texts.

    python tests/benchmarks/bench_sequential.py MODEL.gguf TYPE --calibration A.txt --texts prose=P.txt code=C.txt
        [--chunks 8] [--calibration-chunks 24] [--shrink 0.5] [--threads N] [--folder DIR]

One pass of llama.cpp with all calibration tokens in one graph: at every product of a matrix of a layer, H is made of
its input and the matrix is encoded with feedback. `stored`: the graph goes on with the whole matrix, so every H is that
of the model as it is. `sequential`: it goes on with the product of what was encoded, so later matrices see the inputs
they will get. Both have the same tokens and shrinkage; `stock` is the same type without feedback, its importance matrix
the diagonals of `stored`. Embeddings and head stay as they are. What is measured are files of restored weights.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import surgeon_kernels as kernels
from surgeon.engine.child.evaluation.windows import read_tokens
from surgeon.engine.child.llama.binding import Binding
from surgeon.engine.child.llama.graph import Node, rows
from surgeon.engine.child.llama.model import ContextSize, LlamaModel, opened
from surgeon.engine.libraries import find_libraries
from surgeon.gguf.header import TensorInfo
from surgeon.model.model import Model, load_model

ENCODERS = ("stock", "stored", "sequential")
N_CTX = 512


class Tap:
    """The eval callback. restored: weight -> float32[n, columns] of what was encoded."""

    def __init__(self, binding: Binding, model: Model, encoder: str, options: argparse.Namespace) -> None:
        self._binding, self._model, self._encoder, self._options = binding, model, encoder, options
        self._input: tuple[int, kernels.FeedbackFactor] | None = None
        self.restored: dict[str, NDArray[np.float32]] = {}

    def __call__(self, address: int, ask: bool) -> bool:
        node = Node(self._binding, address)
        weight = node.source(0) if node.op == self._binding.mul_mat else None
        if weight is None or not weight.weight_name.startswith("blk."):
            return not ask
        if ask:
            return True
        name, data = weight.weight_name, node.source(1)
        assert data is not None  # a product has two operands
        x = rows(data.array())
        if self._input is None or self._input[0] != data.address:
            self._input = data.address, kernels.factor(x.T @ x / np.float32(len(x)), shrink=self._options.shrink)
        self.restored[name] = restored = self._encoded(name, self._input[1])
        if self._encoder == "sequential":
            node.overwrite(x @ restored.T)
        return True

    def _encoded(self, name: str, factor: kernels.FeedbackFactor) -> NDArray[np.float32]:
        values = weights(self._model, name)
        kind = self._options.type if values.shape[1] % 256 == 0 else self._options.narrow
        if self._encoder == "stock":
            blocks = kernels.quantize(values, kind, factor.diagonal)
        else:
            blocks = kernels.quantize_with_feedback(values, kind, factor)
        return kernels.dequantize(blocks, kind)


def weights(model: Model, name: str) -> NDArray[np.float32]:
    """A matrix of an F16 file, float32[rows, columns]."""
    info = info_of(model, name)
    return model.file.data(info).view("<f2").reshape(-1, info.ne[0]).astype(np.float32)


def info_of(model: Model, name: str) -> TensorInfo:
    return next(tensor.info for tensor in model.tensors if tensor.name == name)


def encode(options: argparse.Namespace, encoder: str) -> Path:
    """Write the file of restored weights, unless it is there."""
    out: Path = options.folder / f"{options.model.stem}-{options.type}-{encoder}.gguf"
    if out.exists():
        return out
    began, binding, model = time.monotonic(), Binding(find_libraries()), load_model(options.model)
    llama = LlamaModel(binding, str(options.model))
    tokens = read_tokens(llama, str(options.calibration))[: options.calibration_chunks * N_CTX]
    chunks = len(tokens) // N_CTX
    tokens = tokens[: chunks * N_CTX]
    if llama.bos is not None:
        tokens[::N_CTX] = llama.bos
    tap = Tap(binding, model, encoder, options)
    size = ContextSize(N_CTX, chunks, len(tokens), len(tokens))
    positions = np.tile(np.arange(N_CTX, dtype=np.int32), chunks)
    sequences = np.repeat(np.arange(chunks, dtype=np.int32), N_CTX)
    with opened(llama, size, options.threads, tap) as context:
        # The last layer computes rows that are asked for only: every second, so that it has enough of them.
        context.decode(tokens, positions, sequences, positions % 2 == 1)
    part = out.with_suffix(".part")
    shutil.copyfile(options.model, part)
    data = np.memmap(part, np.uint8, "r+")
    for name, values in tap.restored.items():
        info = info_of(model, name)
        data[info.offset : info.offset + info.nbytes] = values.astype("<f2").reshape(-1).view(np.uint8)
    data.flush()
    part.rename(out)
    seconds = time.monotonic() - began
    print(f"{encoder}: {len(tap.restored)} matrices, {len(tokens)} tokens, {seconds:.0f} s", flush=True)
    return out


def surgeon(*words: object) -> str:
    command = [sys.executable, "-m", "surgeon", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def measured(options: argparse.Namespace, encoder: str, name: str, text: str) -> dict[str, float]:
    """KL divergence of one file on one text."""
    base = options.folder / f"{options.model.stem}-{name}.base"
    words = ["-f", text, "-c", N_CTX, "--chunks", options.chunks, "-t", options.threads, "--kl-divergence-base", base]
    if not base.exists():
        surgeon("perplexity", "-m", options.model, *words)
    found: dict[str, float] = json.loads(
        surgeon("perplexity", "-m", encode(options, encoder), *words, "--kl-divergence", "--json")
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("type")
    parser.add_argument("--narrow", default="IQ4_NL", help="type of matrices whose rows have no blocks of 256")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--texts", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--calibration-chunks", type=int, default=24)
    parser.add_argument("--shrink", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("sequential-bench"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    ratios = []
    for word in options.texts:
        name, _, text = word.partition("=")
        found = {encoder: measured(options, encoder, name, text) for encoder in ENCODERS}
        cells = [f"{key} {one['mean_kld']:.5f} ± {one['mean_kld_error']:.5f}" for key, one in found.items()]
        ratios.append(found["sequential"]["mean_kld"] / found["stored"]["mean_kld"])
        print(f"{name}: {', '.join(cells)}; sequential/stored {ratios[-1]:.3f}", flush=True)
    print(f"geometric mean of sequential/stored {math.exp(sum(map(math.log, ratios)) / len(ratios)):.3f}")


if __name__ == "__main__":
    main()
