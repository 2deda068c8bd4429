"""Speed of every kernel beside ggml's own, in one run, as a Markdown table.

    python tests/benchmarks/bench_kernels.py [TYPE ...] [--rows N] [--columns N] [--rounds N]

Student-t weights (4 degrees of freedom, scale 0.02), one thread, median of the thread's processor time; the two sides
take turns, so that another program's work falls on both alike. Mw/s are millions of weights per second. ggml's side is
`ggml_quantize_chunk` and `to_float` of the xllamacpp package.

`2 threads` is the speed by the clock of two threads over halves of the rows against one thread over all of them, each
at work for a fifth of a second; beside it the same of ggml's function, which shows what the machine gives at that time.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median

import numpy as np
from numpy.typing import NDArray

_ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(_ROOT / "tests" / "kernels")]

from oracle import BYTE_EXACT, Oracle, oracle  # noqa: E402

import surgeon_kernels as kernels  # noqa: E402
from surgeon_kernels.formats import FORMATS, USES_CODEBOOK  # noqa: E402

Floats = NDArray[np.float32]
_THREAD_SECONDS = 0.2  # long beside the start of a thread and its turns at Python's lock


@dataclass
class Row:
    """Mweights/s of one type: ours and ggml's; how much faster two threads are than one, ours and ggml's."""

    name: str
    how: str
    ours: float
    theirs: float
    our_two: float
    their_two: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


@dataclass
class Side:
    """One side's work: over all rows, and over either half of them."""

    whole: Callable[[], object]
    halves: tuple[Callable[[], object], Callable[[], object]]


def _seconds(task: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    task()
    return clock() - started


def _measure(name: str, how: str, ours: Side, theirs: Side, weights: int, rounds: int) -> Row:
    """Median speeds by processor time, and what two threads give by the clock; the sides take turns."""
    ours.whole()
    times = [(_seconds(ours.whole, time.thread_time), _seconds(theirs.whole, time.thread_time)) for _ in range(rounds)]
    our_time, their_time = (median(side) for side in zip(*times, strict=True))
    return Row(
        name, how, weights / our_time / 1e6, weights / their_time / 1e6,
        *_two_threads((ours, our_time), (theirs, their_time), rounds=rounds),
    )  # fmt: skip


def _two_threads(*sides: tuple[Side, float], rounds: int) -> list[float]:
    """Per side, given with the seconds its work takes, how many times as fast two threads are as one."""
    with ThreadPoolExecutor(2) as pool:

        def together(*tasks: Callable[[], object]) -> None:
            for future in [pool.submit(task) for task in tasks]:
                future.result()

        ratios: list[list[float]] = [[] for _ in sides]
        for _ in range(rounds):
            for (side, seconds), found in zip(sides, ratios, strict=True):
                times = math.ceil(_THREAD_SECONDS / seconds)
                one, *halves = (_repeat(task, times) for task in (side.whole, *side.halves))
                alone = _seconds(lambda one=one: together(one), time.perf_counter)
                found.append(alone / _seconds(lambda halves=halves: together(*halves), time.perf_counter))
    return [median(found) for found in ratios]


def _repeat(task: Callable[[], object], times: int) -> Callable[[], object]:
    def repeated() -> None:
        for _ in range(times):
            task()

    return repeated


def _side(work: Callable[[slice], object], rows: int, repeat: int) -> Side:
    parts = (slice(None), slice(rows // 2), slice(rows // 2, None))
    whole, low, high = (_repeat(lambda part=part: work(part), repeat) for part in parts)
    return Side(whole, (low, high))


def bench_quantize(name: str, rows: Floats, weights: Floats | None, ggml: Oracle, rounds: int) -> Row:
    """Quantize `rows`; the few rows of a slow type keep ggml's part to seconds."""
    out = np.empty((rows.shape[0], FORMATS[name].row_bytes(rows.shape[1])), np.uint8)
    ggml.prepare(name)
    repeat = 1 if name in kernels.USES_IMATRIX else 8
    ours = _side(lambda part: kernels.quantize_into(rows[part], name, out[part], weights), len(rows), repeat)
    theirs = _side(lambda part: ggml.quantize(rows[part], name, weights), len(rows), repeat)
    how = "plain" if weights is None else "imatrix"
    return _measure(name, how, ours, theirs, rows.size * repeat, rounds)


def bench_dequantize(name: str, rows: Floats, weights: Floats, ggml: Oracle, rounds: int) -> Row:
    blocks = kernels.quantize(rows, name, weights)
    out, their_out = np.empty_like(rows), np.empty_like(rows)
    ours = _side(lambda part: kernels.dequantize_into(blocks[part], name, out[part]), len(rows), 16)
    theirs = _side(lambda part: ggml.dequantize_into(blocks[part], name, their_out[part]), len(rows), 16)
    return _measure(name, "dequantize", ours, theirs, 16 * rows.size, rounds)


def table(rows: list[Row]) -> str:
    lines = ["| type | | Mw/s | ggml Mw/s | ratio | 2 threads | ggml's |", "|---|---|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {row.name} | {row.how} | {row.ours:,.0f} | {row.theirs:,.1f} | {row.ratio:.1f} | {row.our_two:.2f} | "
        f"{row.their_two:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def _summary(rows: list[Row]) -> str:
    lines = []
    for how in ("imatrix", "plain", "dequantize"):
        chosen = [row for row in rows if row.how == how]
        if chosen:
            worst = min(chosen, key=lambda row: row.ratio)
            lines.append(
                f"{how}: geometric mean {geometric_mean(row.ratio for row in chosen):.1f} x ggml over {len(chosen)} "
                f"types, least {worst.ratio:.1f} x ({worst.name}); two threads "
                f"{median(row.our_two for row in chosen):.2f} x one (median; ggml's "
                f"{median(row.their_two for row in chosen):.2f})"
            )
    return "\n".join(lines)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="types to measure (all)")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    if not BYTE_EXACT:
        parser.error("the reference is ggml's x86-64 Linux build")
    names = [name.upper() for name in options.types] or [name for name in FORMATS if name in kernels.quantizable]
    rng = np.random.default_rng(1)
    rows = (rng.standard_t(4, (options.rows, options.columns)) * 0.02).astype(np.float32)
    weights = (rng.random(options.columns) ** 3).astype(np.float32)
    for step in kernels.warm(names, weights=True):
        print(f"\r{step.index}/{step.total} {step.name:10}", end="", file=sys.stderr)
    print(file=sys.stderr)
    results = []
    for name in names:
        few = rows[: max(2, options.rows // 16)] if name in USES_CODEBOOK else rows
        if name in kernels.USES_IMATRIX:
            results.append(bench_quantize(name, few, weights, oracle(), options.rounds))
        if name not in kernels.REQUIRES_IMATRIX:
            results.append(bench_quantize(name, few, None, oracle(), options.rounds))
        if name in kernels.dequantizable and name != "F32":
            results.append(bench_dequantize(name, rows, weights, oracle(), options.rounds))
        print(f"{name} measured", file=sys.stderr)
    results.sort(key=lambda row: ("imatrix", "plain", "dequantize").index(row.how))
    print(f"{_processor()}, {options.rows} x {options.columns} weights, medians of {options.rounds}\n")
    print(f"{table(results)}\n\n{_summary(results)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
