"""How fast models are written and in how much memory; every figure beside its reference in the same run.

python tests/benchmarks/bench_write.py [--folder TMP] [--layers 22] [--threads 2] [--rounds 3]

With 22 layers the model has 1.1 billion parameters (2.2 GB in F16) of random weights, made in a temporary folder that
is removed at the end (about 5 GB). Prints a Markdown table.

* quantize: the whole file against what its kernels alone would take, and against ggml's kernels on the same types (its
  `ggml_quantize_chunk`, without reading, converting, checking or writing).
* copy, prune: against `cp`, both with the data synced to the disk, and against `cp` that leaves it in memory.
* memory: peak RSS of a process that does nothing but the write, Python included.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "core"), str(HERE.parent / "kernels")]

from gguf_builder import llama_kv  # noqa: E402
from oracle import oracle  # noqa: E402

import surgeon_kernels  # noqa: E402
from surgeon.gguf.file import Value, ValueType  # noqa: E402
from surgeon.gguf.layout import Entry, header  # noqa: E402
from surgeon.imatrix.files import load_imatrix, save_gguf  # noqa: E402
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry  # noqa: E402
from surgeon.model.model import load_model  # noqa: E402
from surgeon.plan.plan import Plan  # noqa: E402
from surgeon.resolve.resolve import Resolution, resolve  # noqa: E402
from surgeon.write.operation import Summary, WriteOptions, write  # noqa: E402
from surgeon_kernels.formats import FORMATS, USES_IMATRIX  # noqa: E402

EMBD, FF, KV_WIDTH, VOCAB = 2048, 5632, 256, 32000
SAMPLE = (512, 2048)  # rows and columns a kernel's speed is taken on
Quantize = Callable[[NDArray[np.float32], str, NDArray[np.float32] | None], object]
F16, F32 = FORMATS["F16"].number, FORMATS["F32"].number


# ------------------------------------------------------------------ the model


def entries(layers: int, embd: int = EMBD, ff: int = FF, kv_width: int = KV_WIDTH, vocab: int = VOCAB) -> list[Entry]:
    """The tensors of a llama with grouped attention, weights in F16."""
    shapes = {"attn_q": (embd, embd), "attn_k": (embd, kv_width), "attn_v": (embd, kv_width)}
    shapes |= {"attn_output": (embd, embd), "ffn_gate": (embd, ff), "ffn_up": (embd, ff), "ffn_down": (ff, embd)}
    found = [Entry("token_embd.weight", (embd, vocab), F16, 2 * embd * vocab)]
    for layer in range(layers):
        found += [Entry(f"blk.{layer}.{short}.weight", ne, F16, 2 * ne[0] * ne[1]) for short, ne in shapes.items()]
        found += [Entry(f"blk.{layer}.{short}_norm.weight", (embd,), F32, 4 * embd) for short in ("attn", "ffn")]
    found.append(Entry("output_norm.weight", (embd,), F32, 4 * embd))
    return [*found, Entry("output.weight", (embd, vocab), F16, 2 * embd * vocab)]


def metadata(layers: int, embd: int, ff: int) -> list[tuple[str, Value]]:
    numbers = {key: value for key, value in llama_kv(layers, embd, ff, 32, 4).items() if isinstance(value, int)}
    text = [("general.architecture", Value.of(ValueType.STRING, "llama"))]
    return text + [(key, Value.of(ValueType.UINT32, value)) for key, value in numbers.items()]


def make_model(path: Path, layers: int) -> Path:
    """Normally distributed weights; a block of four million of them is read from another place for every tensor."""
    rng = np.random.default_rng(0)
    weights = np.tile((rng.standard_normal(1 << 22, np.float32) * 0.02).astype(np.float16), 2)
    tensors = entries(layers)
    layout = header(metadata(layers, EMBD, FF), tensors, 32)
    with path.open("wb") as out:
        out.write(layout.data)
        for entry, offset in zip(tensors, layout.offsets, strict=True):
            out.seek(offset)
            if entry.type_id == F32:
                out.write(np.ones(entry.ne[0], np.float32).tobytes())
                continue
            for start in range(0, entry.nbytes, 1 << 23):
                at = int(rng.integers(1 << 22))
                out.write(weights[at : at + min(1 << 22, (entry.nbytes - start) // 2)].tobytes())
        out.truncate(layout.total_bytes)
        os.fsync(out.fileno())
    return path


def make_imatrix(path: Path, layers: int) -> Path:
    rng = np.random.default_rng(1)
    found = {}
    for entry in entries(layers):
        if entry.name.startswith("blk.") and entry.type_id == F16:
            sums = rng.random((1, entry.ne[0]), np.float32) ** 4 * 1000 + 0.01
            found[entry.name] = ImatrixEntry(sums.astype(np.float32), np.full(1, 512, np.int64))
    save_gguf(Imatrix(path, found, ("random",), 10), path)
    return path


# ------------------------------------------------------------------ measuring


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def run_write(resolution: Resolution, imatrix: Imatrix | None, out: Path, threads: int) -> Summary:
    *_, summary = write(resolution, imatrix, out, WriteOptions(threads, overwrite=True), threading.Event())
    assert isinstance(summary, Summary)
    return summary


def elements_by_type(resolution: Resolution) -> Counter[str]:
    count: Counter[str] = Counter()
    for op in resolution.kept:
        if op.action == "convert":
            count[op.to_type] += op.n_elements
    return count


def kernel_seconds(count: Counter[str], quantize: Quantize, threads: int) -> float:
    """What `threads` threads would take for so many elements of each type, from their speed together on a sample."""
    rng = np.random.default_rng(2)
    rows = rng.standard_normal(SAMPLE, np.float32) * np.float32(0.02)
    weights = rng.random(SAMPLE[1], np.float32) + np.float32(0.01)
    total = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for type_name, elements in count.items():
            used = weights if type_name in USES_IMATRIX else None
            quantize(rows[:8], type_name, used)
            repeats = 4 * threads
            jobs = [(rows, type_name, used)] * repeats
            took = seconds(lambda: list(pool.map(lambda job: quantize(*job), jobs)))  # noqa: B023
            total += took * elements / (rows.size * repeats)
    return total


def measure_quantize(model: Path, imatrix: Path, out: Path, threads: int, rounds: int) -> Iterator[str]:
    weights = load_imatrix(imatrix)
    resolution = resolve(load_model(model), Plan("Q4_K_M"), weights)
    count = elements_by_type(resolution)
    for _ in surgeon_kernels.warm(count, sources={"F16"}):
        pass
    ours, kernels, theirs = [], [], []
    for _ in range(rounds):
        ours.append(seconds(lambda: run_write(resolution, weights, out, threads)))
        kernels.append(kernel_seconds(count, surgeon_kernels.quantize, threads))
        theirs.append(kernel_seconds(count, oracle().quantize, threads))
    took, alone, ggml = map(statistics.median, (ours, kernels, theirs))
    elements, nbytes = sum(count.values()), resolution.source_bytes
    yield (
        f"| Q4_K_M with imatrix, {nbytes / 1e9:.2f} GB, {threads} threads | {took:.1f} s, "
        f"{nbytes / took / 1e6:.0f} MB/s, {elements / took / 1e6:.0f} Mweights/s | "
        f"our kernels alone {alone:.1f} s: {alone / took:.2f} of their speed |"
    )
    yield f"| the same | {took:.1f} s | ggml's kernels alone {ggml:.1f} s: {ggml / took:.1f} × |"


def copy_with_cp(source: Path, out: Path, sync: bool) -> None:
    out.unlink(missing_ok=True)
    subprocess.run(["cp", "--reflink=never", source, out], check=True)
    if sync:
        subprocess.run(["sync", out], check=True)


def measure_copy(model: Path, out: Path, threads: int, rounds: int) -> Iterator[str]:
    loaded = load_model(model)
    plans = {"copy": Plan(), "prune one layer of many": Plan(pruned=frozenset({loaded.layers[-1].index // 2}))}
    for _ in surgeon_kernels.warm([], sources=[]):
        pass
    for name, plan in plans.items():
        resolution = resolve(loaded, plan)
        ours, cp, cp_synced = [], [], []
        for _ in range(rounds):
            cp_synced.append(seconds(lambda: copy_with_cp(model, out, True)))
            cp.append(seconds(lambda: copy_with_cp(model, out, False)))
            out.unlink()
            ours.append(seconds(lambda: run_write(resolution, None, out, threads)))  # noqa: B023
            out.unlink()
        share = resolution.source_bytes / loaded.nbytes
        took, synced, plain = map(statistics.median, (ours, cp_synced, cp))
        yield (
            f"| {name}, checked and synced | {took:.2f} s, {resolution.source_bytes / took / 1e6:.0f} MB/s | "
            f"cp and sync {synced:.2f} s: {synced * share / took:.2f} ×; cp alone {plain:.2f} s: "
            f"{plain * share / took:.2f} × |"
        )


def measure_memory(model: Path, imatrix: Path, out: Path, threads: int) -> Iterator[str]:
    size = model.stat().st_size / 1e9
    for file_type in ("COPY", "Q4_K_M", "Q4_K_M, kernels compiled first"):
        name, _, compiling = file_type.partition(", ")
        environment = dict(os.environ)
        if compiling:
            environment["SURGEON_CACHE_DIR"] = str(out.parent / "kernels")
        command = [sys.executable, __file__, "--peak", str(model), str(imatrix), str(out), name, str(threads)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        peak = int(done.stdout)
        yield f"| peak RSS, {file_type}, {size:.1f} GB, {threads} threads | {peak / 1024:.0f} MiB | limit 500 MiB |"


def print_peak(model: Path, imatrix: Path, out: Path, file_type: str, threads: int) -> None:
    """Write, and print this process' peak RSS in KiB."""
    weights = load_imatrix(imatrix)
    run_write(resolve(load_model(model), Plan(file_type), weights), weights, out, threads)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def measure_sparse(folder: Path) -> Iterator[str]:
    """A 30 GB model that takes no disk: open and decide."""
    embd, ff = 5120, 17920
    layout = header(metadata(48, embd, ff), entries(48, embd, ff, 1024, 152_064), 32)
    path = folder / "sparse.gguf"
    with path.open("wb") as out:
        out.write(layout.data)
        out.truncate(layout.total_bytes)
    took = seconds(lambda: resolve(load_model(path), Plan("Q4_K_M")))
    size, tensors = layout.total_bytes / 1e9, len(layout.offsets)
    yield f"| open and dry-run {size:.0f} GB, {tensors} tensors | {took:.3f} s | limit 0.5 s |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        model = make_model(folder / "model.gguf", options.layers)
        imatrix = make_imatrix(folder / "imatrix.gguf", options.layers)
        out = folder / "out.gguf"
        print("| what | ours | reference |\n|---|---|---|", flush=True)
        for row in measure_sparse(folder):
            print(row, flush=True)
        for row in measure_copy(model, out, options.threads, options.rounds):
            print(row, flush=True)
        for row in measure_memory(model, imatrix, out, options.threads):
            print(row, flush=True)
        for row in measure_quantize(model, imatrix, out, options.threads, options.rounds):
            print(row, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        model_, imatrix_, out_, file_type_, threads_ = sys.argv[2:]
        print_peak(Path(model_), Path(imatrix_), Path(out_), file_type_, int(threads_))
    else:
        main()
