"""Which layers to prune: statistics against measurement, KL divergence on held-out texts, plain and refitted.

    python tests/benchmarks/bench_layer_choice.py MODEL.gguf -f CALIBRATION.txt --texts prose=P.txt code=C.txt
        [--counts 1,2,3,5] [--chunks 4] [--held-out-chunks 4] [--among 8] [--threads N] [--llama-lib DIR]

Ways to choose, all on the calibration text: `influence`, lowest block influence 1 - cos(x, y) of single layers
(ShortGPT, arXiv 2403.03853); `angular`, the block of N neighbours with the least angle between what goes in and what
comes out (Gromov et al., arXiv 2403.17887); `single`, `greedy`, `pairs` and `healed` (greedy, measured after the matrix
before each gap was refitted) are surgeon prune-scan's. Every set that was chosen is then measured on every text: as it
is, and with the matrix before each gap refitted on the 24 chunks of that text behind those measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from surgeon.engine.child.collection.imatrix_collection import FIRST_NORM, LAYER_OUTPUT
from surgeon.engine.child.evaluation.windows import read_tokens
from surgeon.engine.child.llama.binding import Binding
from surgeon.engine.child.llama.graph import Node, rows
from surgeon.engine.child.llama.model import ContextSize, LlamaModel, opened
from surgeon.engine.libraries import find_libraries

N_CTX = 512
SCANS = {
    "single": ["--order", "single"],
    "greedy": ["--order", "greedy"],
    "pairs": ["--order", "pairs"],
    "healed": ["--order", "greedy", "--healed"],
}


def streams(options: argparse.Namespace) -> NDArray[np.float32]:
    """float32[layers + 1, tokens, width]: the residual stream before the first layer and behind every layer."""
    binding = Binding(find_libraries(options.llama_lib))
    model = LlamaModel(binding, str(options.model))
    tokens = read_tokens(model, str(options.file))[: options.chunks * N_CTX].reshape(-1, N_CTX)
    found: list[list[NDArray[np.float32]]] = [[] for _ in range(model.n_layer + 1)]

    def see(address: int, ask: bool) -> bool:
        node = Node(binding, address)
        name, shown, place = node.name, node, None
        if name == FIRST_NORM and len(found[0]) == len(found[1]):
            shown, place = node.source(0) or node, 0
        elif match := LAYER_OUTPUT.fullmatch(name):
            place = int(match[1]) + 1
        if ask or place is None:
            return place is not None or not ask
        found[place].append(rows(shown.array()).copy())
        return True

    positions = np.arange(N_CTX, dtype=np.int32)
    with opened(model, ContextSize(N_CTX, 1, N_CTX, N_CTX), options.threads, see) as context:
        for chunk in tokens:
            context.clear()
            context.decode(np.ascontiguousarray(chunk), positions, np.zeros(N_CTX, np.int32), positions >= 0)
    return np.stack([np.concatenate(parts) for parts in found])


def cosines(before: NDArray[np.float32], after: NDArray[np.float32]) -> NDArray[np.float64]:
    x, y = before.astype(np.float64), after.astype(np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return np.clip((x * y).sum(axis=1) / np.maximum(norms, 1e-30), -1, 1)


def by_statistics(stream: NDArray[np.float32], counts: list[int]) -> dict[tuple[str, int], tuple[int, ...]]:
    layers = len(stream) - 1
    influence = [1 - cosines(stream[layer], stream[layer + 1]).mean() for layer in range(layers)]
    found = {}
    for count in counts:
        found["influence", count] = tuple(sorted(np.argsort(influence)[:count].tolist()))
        angles = [np.arccos(cosines(stream[at], stream[at + count])).mean() for at in range(layers - count + 1)]
        start = int(np.argmin(angles))
        found["angular", count] = tuple(range(start, start + count))
    return found


def scan(options: argparse.Namespace, *words: object) -> dict:
    """The JSON of one prune-scan."""
    engine = ["--llama-lib", options.llama_lib] if options.llama_lib else []
    command = [sys.executable, "-m", "surgeon", "prune-scan", "--json", "-m", options.model, "-t", options.threads]
    done = subprocess.run([*map(str, [*command, *engine, *words])], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    found: dict = json.loads(done.stdout)
    return found


def by_measurement(options: argparse.Namespace, counts: list[int]) -> dict[tuple[str, int], tuple[int, ...]]:
    found: dict[tuple[str, int], tuple[int, ...]] = {}
    for way, words in SCANS.items():
        among = ["--among", options.among] if way in ("greedy", "healed") else []
        for count in counts if way == "pairs" else [max(counts)]:
            report = scan(options, "-f", options.file, "--chunks", options.chunks, "--count", count, *words, *among)
            sets = {count: report["prune"]} if way == "pairs" else of_each_size(way, report["damages"], counts)
            found |= {(way, size): tuple(sorted(layers)) for size, layers in sets.items()}
            print(f"{way}: {sets}", file=sys.stderr, flush=True)
    return found


def of_each_size(way: str, damages: list[dict], counts: list[int]) -> dict[int, list[int]]:
    """The set of every size from one scan of the largest: each step of these orders keeps what the one before chose."""
    ranked = sorted(damages, key=lambda one: float(one["mean_kld"]))
    if way == "single":
        singles = [one["layers"][0] for one in ranked if len(one["layers"]) == 1]
        return {count: singles[:count] for count in counts}
    steps: list[set[int]] = [set()]
    for size in range(1, max(counts) + 1):  # what an earlier scan measured beside these sets is kept, too
        ranking = (set(one["layers"]) for one in ranked if len(one["layers"]) == size)
        steps.append(next(layers for layers in ranking if layers > steps[-1]))
    return {count: sorted(steps[count]) for count in counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("-f", "--file", type=Path, required=True)
    parser.add_argument("--texts", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--counts", default="1,2,3,5")
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--held-out-chunks", type=int, default=4)
    parser.add_argument("--among", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--llama-lib")
    options = parser.parse_args()
    counts = [int(word) for word in options.counts.split(",")]
    chosen = by_statistics(streams(options), counts) | by_measurement(options, counts)
    sets = sorted(set(chosen.values()), key=lambda one: (len(one), one))
    words = ["--layers", ",".join("+".join(map(str, one)) for one in sets), "--chunks", options.held_out_chunks]
    figures: dict[tuple[str, str, tuple[int, ...]], float] = {}
    texts = dict(word.split("=", 1) for word in options.texts)
    for name, text in texts.items():
        for how, more in (("plain", []), ("refitted", ["--healed"])):
            for one in scan(options, "-f", text, *words, *more)["damages"]:
                figures[name, how, tuple(sorted(one["layers"]))] = one["mean_kld"]
    print("| pruned | chosen by | layers | " + " | ".join(f"{name}: plain → refitted" for name in texts) + " |")
    print("|---:|---|---|" + "---|" * len(texts))
    for (way, count), layers in sorted(chosen.items(), key=lambda item: item[0][1]):
        cells = [f"{figures[name, 'plain', layers]:.3f} → {figures[name, 'refitted', layers]:.3f}" for name in texts]
        print(f"| {count} | {way} | {', '.join(map(str, layers))} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
