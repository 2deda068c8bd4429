"""Does saliency choose better? A model with experts made from the bundled dense one, a quarter of its experts silenced.

python tests/benchmarks/moe_from_dense.py CALIBRATION.txt HELDOUT.txt [--chunks 8] [--seeds 5] [--out moe.gguf]

Training a model with experts without a framework for it takes hours. This takes minutes: the neurons of every trained
FFN are parted into 16 experts by when they fire (k-means of the same size on their activations), and a router is fitted
by ridge regression to the norm of each expert's output, so that 8 of 16 are used where they matter. The imatrix and the
saliencies come from CALIBRATION; KL divergence from the model with all experts is measured on HELDOUT, with a quarter
of every layer's experts silenced: the least salient, the least called, and at random.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "core")]

from gguf_builder import build_gguf, value_of  # noqa: E402

from surgeon.engine.child.llama.binding import Binding  # noqa: E402
from surgeon.engine.child.llama.graph import Node, rows  # noqa: E402
from surgeon.engine.child.llama.model import ContextSize, LlamaModel, opened  # noqa: E402
from surgeon.engine.client import EngineRun  # noqa: E402
from surgeon.engine.libraries import find_libraries  # noqa: E402
from surgeon.engine.protocol import Engine, ExpertDamage, ExpertScanJob, Finished, ImatrixJob, PerplexityJob  # noqa: E402
from surgeon.imatrix.files import load_imatrix  # noqa: E402
from surgeon.imatrix.influence import load_influence  # noqa: E402
from surgeon.measure.collecting.imatrix_run import Collection, ImatrixRun  # noqa: E402
from surgeon.model.model import Model, load_model  # noqa: E402
from surgeon.resolve.expert_choice import choose_experts  # noqa: E402

DEMO = HERE.parents[1] / "surgeon" / "demo" / "novels-12M-F16.gguf"
EXPERTS, USED, TOKENS = 16, 8, 4096
# Logits this flat give the chosen experts nearly equal weights, as a dense FFN has; the order is not changed.
TEMPERATURE = 0.2
Array = np.ndarray


def ffn_inputs(path: Path, text: Path) -> dict[int, Array]:
    """What every FFN reads, float32[tokens, columns] by layer."""
    binding = Binding(find_libraries())
    model = LlamaModel(binding, str(path))
    found: dict[int, list[Array]] = {}

    def watch(address: int, ask: bool) -> bool:
        node = Node(binding, address)
        weight, data = node.source(0), node.source(1)
        if node.op != binding.mul_mat or weight is None or not weight.name.endswith("ffn_gate.weight"):
            return not ask
        if not ask and data is not None:
            found.setdefault(int(weight.name.split(".")[1]), []).append(rows(data.array()).copy())
        return True

    tokens = model.tokenize(text.read_bytes())[:TOKENS]
    with opened(model, ContextSize(512, 1, 512, 512), 1, watch) as context:
        for start in range(0, len(tokens) - 511, 512):
            context.clear()
            positions = np.arange(512, dtype=np.int32)
            every = np.ones(512, np.bool_)
            context.decode(tokens[start : start + 512], positions, np.zeros(512, np.int32), every)
    model.close()
    return {layer: np.concatenate(parts) for layer, parts in found.items()}


def parted(activations: Array, rng: np.random.Generator) -> Array:
    """int[experts, neurons of each]: neurons that fire together, in groups of one size."""
    features = np.abs(activations).T
    features /= np.linalg.norm(features, axis=1, keepdims=True) + 1e-9
    size = len(features) // EXPERTS
    centres = features[rng.choice(len(features), EXPERTS, replace=False)]
    groups = np.zeros((EXPERTS, size), np.int64)
    for _ in range(8):
        likeness = features @ centres.T
        room, taken = np.full(EXPERTS, size), [[] for _ in range(EXPERTS)]
        for neuron in np.argsort(-likeness.max(axis=1)):
            for expert in np.argsort(-likeness[neuron]):
                if room[expert]:
                    taken[expert].append(int(neuron))
                    room[expert] -= 1
                    break
        groups = np.array(taken)
        centres = np.array([features[group].mean(axis=0) for group in groups])
    return groups


def router(x: Array, norms: Array) -> Array:
    """Ridge regression of the experts' output norms, as logits of a small spread, float32[experts, columns]."""
    target = (norms - norms.mean(axis=0)) / norms.std() + norms.mean(axis=0) / norms.std()
    gram = x.T @ x + 1e-2 * np.trace(x.T @ x) / x.shape[1] * np.eye(x.shape[1])
    return (TEMPERATURE * np.linalg.solve(gram, x.T @ target).T).astype(np.float32)


def weights(source: Model, name: str) -> Array:
    """A tensor of F16 or F32 as float32, its rows first."""
    tensor = next(tensor for tensor in source.tensors if tensor.name == name)
    dtype = np.float16 if tensor.type_name == "F16" else np.float32
    values = np.asarray(source.file.data(tensor.info)).view(dtype).astype(np.float32)
    return values.reshape(tuple(reversed(tensor.ne)))


def make_model(out: Path, text: Path) -> Path:
    inputs, rng = ffn_inputs(DEMO, text), np.random.default_rng(0)
    source = load_model(DEMO)
    replaced = {f"blk.{layer}.ffn_{name}.weight" for layer in inputs for name in ("gate", "up", "down")}
    tensors = {tensor.name: weights(source, tensor.name) for tensor in source.tensors if tensor.name not in replaced}
    for layer, x in inputs.items():
        gate, up, down = (weights(source, f"blk.{layer}.ffn_{name}.weight") for name in ("gate", "up", "down"))
        hidden = x @ gate.T
        hidden = hidden / (1 + np.exp(-hidden)) * (x @ up.T)
        groups = parted(hidden, rng)
        norms = np.stack([np.linalg.norm(hidden[:, group] @ down[:, group].T, axis=1) for group in groups], axis=1)
        blk = f"blk.{layer}.ffn_"
        tensors[blk + "gate_inp.weight"] = router(x.astype(np.float64), norms)
        tensors[blk + "gate_exps.weight"] = np.ascontiguousarray(gate[groups])
        tensors[blk + "up_exps.weight"] = np.ascontiguousarray(up[groups])
        # The weights of the chosen sum to one; a dense FFN adds its parts as they are.
        tensors[blk + "down_exps.weight"] = np.ascontiguousarray(USED * down[:, groups].transpose(1, 0, 2))
    kv = dict(source.file.kv) | {"general.file_type": value_of(0), "llama.expert_count": value_of(EXPERTS)}
    kv |= {"llama.expert_used_count": value_of(USED), "llama.feed_forward_length": value_of(768 // EXPERTS)}
    return build_gguf(out, kv, tensors)


def perplexity(model: Path, text: Path, chunks: int) -> float:
    job = PerplexityJob(str(model), str(text), n_chunks=chunks)
    last = list(EngineRun(Engine(threads=1), job).messages())[-1]
    assert isinstance(last, Finished)
    return float(last.values["ppl"])


def damages(
    model: Path, text: Path, chunks: int, sets: list[dict[int, frozenset[int]]], folder: Path
) -> list[ExpertDamage]:
    listed = [{str(layer): sorted(gone) for layer, gone in one.items()} for one in sets]
    job = ExpertScanJob(str(model), str(text), listed, n_chunks=chunks, base=str(folder / "base.kld"))
    return [m for m in EngineRun(Engine(threads=1), job).messages() if isinstance(m, ExpertDamage)]


def least_and_random(model: Path, imatrix_path: Path, seeds: int) -> dict[str, dict[int, frozenset[int]]]:
    """A quarter of every layer's experts: by both measures, and drawn at random."""
    imatrix, influence = load_imatrix(imatrix_path), load_influence(imatrix_path, channels=False)
    assert influence is not None
    loaded = load_model(model)
    sets = {
        f"least {word}": choose_experts(loaded, "25%", by, imatrix, influence.experts).sets
        for word, by in (("salient", "saliency"), ("called", "calls"))
    }
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        sets[f"at random {seed}"] = {
            layer.index: frozenset(rng.choice(EXPERTS, EXPERTS // 4, replace=False).tolist()) for layer in loaded.layers
        }
    return sets


def compare(model: Path, calibration: Path, heldout: Path, chunks: int, seeds: int, folder: Path) -> None:
    """Collect what ranks the experts on `calibration`, measure on `heldout`, print a Markdown table."""
    out = folder / "imatrix.gguf"
    job = ImatrixJob(str(model), str(calibration), n_chunks=2 * chunks, perplexity=False)
    for _ in ImatrixRun(Engine(threads=1), Collection(job, out)).messages():
        pass
    sets = least_and_random(model, out, seeds)
    print("| a quarter silenced | mean KLD | ± | PPL |\n|---|---:|---:|---:|")
    for label, damage in zip(sets, damages(model, heldout, chunks, list(sets.values()), folder), strict=True):
        print(f"| {label} | {damage.mean_kld:.4f} | {damage.mean_kld_error:.4f} | {damage.ppl:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("calibration", type=Path)
    parser.add_argument("heldout", type=Path)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="keep the model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(options.out or folder / "moe.gguf", options.calibration)
        dense, moe = (perplexity(path, options.heldout, options.chunks) for path in (DEMO, model))
        print(f"perplexity: dense {dense:.2f}, with {USED} of {EXPERTS} experts {moe:.2f}", flush=True)
        compare(model, options.calibration, options.heldout, options.chunks, options.seeds, folder)


if __name__ == "__main__":
    main()
