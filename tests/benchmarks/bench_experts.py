"""How fast experts are pruned: a quantized model copied through, beside cp; a model of 671B parameters planned.

python tests/benchmarks/bench_experts.py [--folder TMP] [--layers 6] [--threads 2] [--rounds 3]

With 6 layers of 64 experts the model has 1.9 GB of Q4_K, made in a temporary folder that is removed at the end (5 GB).
`cp` copies the pruned file, so that both write the same number of bytes. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from bench_write import copy_with_cp, run_write, seconds

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "core")]

from gguf_builder import value_of  # noqa: E402

import surgeon_kernels  # noqa: E402
from surgeon.gguf.layout import Entry, header  # noqa: E402
from surgeon.imatrix.experts import ExpertSums  # noqa: E402
from surgeon.imatrix.imatrix import Imatrix  # noqa: E402
from surgeon.model.model import load_model  # noqa: E402
from surgeon.plan.plan import Plan, with_pruned_experts  # noqa: E402
from surgeon.resolve.expert_choice import choose_experts  # noqa: E402
from surgeon.resolve.resolve import resolve  # noqa: E402
from surgeon_kernels.formats import FORMATS  # noqa: E402

EMBD, WIDTH, EXPERTS = 2048, 1408, 64


def entry(name: str, type_name: str, *ne: int) -> Entry:
    kind = FORMATS[type_name]
    return Entry(name, ne, kind.number, kind.row_bytes(ne[0]) * int(np.prod(ne[1:], dtype=np.int64)))


def experts_of(layer: int, embd: int, width: int, count: int) -> list[Entry]:
    blk = f"blk.{layer}.ffn_"
    return [
        entry(blk + "gate_inp.weight", "F32", embd, count),
        entry(blk + "gate_exps.weight", "Q4_K", embd, width, count),
        entry(blk + "up_exps.weight", "Q4_K", embd, width, count),
        entry(blk + "down_exps.weight", "Q4_K", width - width % 256, embd, count),
    ]


def make_model(path: Path, layers: int) -> Path:
    """Random blocks with finite scales."""
    kv = {"general.architecture": "qwen3moe", "qwen3moe.block_count": layers}
    kv |= {"qwen3moe.expert_count": EXPERTS, "qwen3moe.expert_used_count": 8}
    entries = [one for layer in range(layers) for one in experts_of(layer, EMBD, WIDTH, EXPERTS)]
    layout = header([(key, value_of(value)) for key, value in kv.items()], entries, 32)
    blocks = np.random.default_rng(0).integers(0, 48, 1 << 24, np.uint8)
    with path.open("wb") as out:
        out.write(layout.data)
        for one, offset in zip(entries, layout.offsets, strict=True):
            out.seek(offset)
            for start in range(0, one.nbytes, len(blocks)):
                out.write(blocks[: min(len(blocks), one.nbytes - start)].tobytes())
        out.truncate(layout.total_bytes)
    return path


def measure_copy(model: Path, out: Path, threads: int, rounds: int) -> Iterator[str]:
    rng = np.random.default_rng(1)
    loaded = load_model(model)
    sets = {layer.index: rng.choice(EXPERTS, EXPERTS // 4, replace=False).tolist() for layer in loaded.layers}
    resolution = resolve(loaded, with_pruned_experts(Plan(), sets))
    for _ in surgeon_kernels.warm([], sources=["Q4_K"]):
        pass
    copied = out.with_name("copied.gguf")
    ours, cp, cp_synced = [], [], []
    for _ in range(rounds):
        out.unlink(missing_ok=True)
        ours.append(seconds(lambda: run_write(resolution, None, out, threads)))
        cp_synced.append(seconds(lambda: copy_with_cp(out, copied, True)))
        cp.append(seconds(lambda: copy_with_cp(out, copied, False)))
    took, synced, plain = map(statistics.median, (ours, cp_synced, cp))
    ratios = [reference / own for reference, own in zip(cp_synced, ours, strict=True)]
    yield (
        f"| 16 of 64 experts of a Q4_K model, {resolution.data_bytes / 1e9:.2f} GB written, checked and synced | "
        f"{took:.2f} s, {resolution.data_bytes / took / 1e6:.0f} MB/s | cp and sync {synced:.2f} s: "
        f"{synced / took:.2f} × ({min(ratios):.2f} to {max(ratios):.2f}); cp alone {plain:.2f} s: "
        f"{plain / took:.2f} × |"
    )


LARGE_LAYERS, LARGE_DENSE, LARGE_EXPERTS, LARGE_EMBD, LARGE_WIDTH = 61, 3, 256, 7168, 2048


def large_entries() -> list[Entry]:
    """The 1,086 tensors of a DeepSeek-V3: latent attention, 3 dense layers, 58 with experts and a shared one."""
    embd, heads = LARGE_EMBD, 128
    entries = [entry(name, "Q4_K", embd, 129280) for name in ("token_embd.weight", "output.weight")]
    entries.append(entry("output_norm.weight", "F32", embd))
    for layer in range(LARGE_LAYERS):
        blk = f"blk.{layer}."
        norms = {"attn_norm": embd, "ffn_norm": embd, "attn_q_a_norm": 1536, "attn_kv_a_norm": 512}
        entries += [entry(f"{blk}{name}.weight", "F32", length) for name, length in norms.items()]
        entries += [
            entry(blk + "attn_q_a.weight", "Q4_K", embd, 1536),
            entry(blk + "attn_q_b.weight", "Q4_K", 1536, heads * 192),
            entry(blk + "attn_kv_a_mqa.weight", "Q4_K", embd, 576),
            entry(blk + "attn_k_b.weight", "Q8_0", 128, 512, heads),
            entry(blk + "attn_v_b.weight", "Q4_K", 512, 128, heads),
            entry(blk + "attn_output.weight", "Q4_K", heads * 128, embd),
        ]
        ending, width = ("", 18432) if layer < LARGE_DENSE else ("_shexp", LARGE_WIDTH)
        for name, columns, rows in (("gate", embd, width), ("up", embd, width), ("down", width, embd)):
            entries.append(entry(f"{blk}ffn_{name}{ending}.weight", "Q4_K", columns, rows))
        if layer >= LARGE_DENSE:
            entries += experts_of(layer, embd, LARGE_WIDTH, LARGE_EXPERTS)
            entries.append(entry(blk + "exp_probs_b.bias", "F32", LARGE_EXPERTS))
    return entries


def large_model(folder: Path) -> Path:
    """A file of that model that takes no disk."""
    counts = {"block_count": LARGE_LAYERS, "leading_dense_block_count": LARGE_DENSE, "expert_count": LARGE_EXPERTS}
    counts |= {"expert_used_count": 8, "expert_group_count": 8, "expert_group_used_count": 4}
    kv = {"general.architecture": "deepseek2"} | {f"deepseek2.{key}": value for key, value in counts.items()}
    layout = header([(key, value_of(value)) for key, value in kv.items()], large_entries(), 32)
    path = folder / "large.gguf"
    with path.open("wb") as out:
        out.write(layout.data)
        out.truncate(layout.total_bytes)
    return path


def large_sums() -> ExpertSums:
    calls = np.random.default_rng(2).gamma(0.7, 400, (LARGE_LAYERS, LARGE_EXPERTS)) + 1
    calls[:LARGE_DENSE] = 0
    return ExpertSums(calls, calls / 8, calls * calls)


def measure_plan(folder: Path) -> Iterator[str]:
    """61 layers of 256 experts in 8 groups that take no disk: open, choose a quarter, decide."""
    path = large_model(folder)
    size = path.stat().st_size
    imatrix = Imatrix(folder / "none.gguf", {}, ())
    opened = seconds(lambda: load_model(path))
    model = load_model(path)
    resolve(model, Plan())
    sums = large_sums()

    def edit() -> object:
        choice = choose_experts(model, "25%", "saliency", imatrix, sums)
        return resolve(model, with_pruned_experts(Plan(), choice.sets)).total_bytes

    took, busy = [], []
    for _ in range(9):
        began = time.process_time()
        took.append(seconds(edit))
        busy.append(time.process_time() - began)
    yield (
        f"| {size / 1e9:.0f} GB, 61 layers of 256 experts: open | {opened:.3f} s | limit 0.5 s |\n"
        f"| the same: choose a quarter of the experts, types and sizes of all | {1000 * statistics.median(took):.0f} "
        f"ms, of the processor {1000 * statistics.median(busy):.0f} ms | limit 50 ms |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        print("| what | ours | reference |\n|---|---|---|", flush=True)
        for row in measure_plan(folder):
            print(row, flush=True)
        model = make_model(folder / "model.gguf", options.layers)
        for row in measure_copy(model, folder / "out.gguf", options.threads, options.rounds):
            print(row, flush=True)


if __name__ == "__main__":
    main()
