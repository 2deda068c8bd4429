"""Speed of every kernel beside ggml's own, in one run, as a Markdown table.

    python tests/benchmarks/bench_kernels.py [TYPE ...] [--rows N] [--columns N] [--rounds N]

Student-t weights (4 degrees of freedom, scale 0.02), one thread, median of the thread's processor time; the two sides
take turns, so that another program's work falls on both alike. `2 threads` is the speed by the clock of two Python
threads over halves of the rows against one: it says something on an idle machine only. Mw/s are millions of weights
per second. ggml's side is `ggml_quantize_chunk` and `to_float` of the xllamacpp package.
"""

from __future__ import annotations

import argparse
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
from surgeon_kernels.formats import FORMATS  # noqa: E402

Floats = NDArray[np.float32]


@dataclass
class Row:
    """Mweights/s of one type: ours and ggml's; `two` is how much faster two threads are than one."""

    name: str
    how: str
    ours: float
    theirs: float
    two: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def _seconds(task: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    task()
    return clock() - started


def _measure(ours: Callable[[], object], halves: list[Callable[[], object]], theirs: Callable[[], object],
             weights: int, rounds: int) -> tuple[float, float, float]:  # fmt: skip
    """Median Mweights/s of ours and of ggml's, and how much faster two threads are than one; all take turns."""
    times: list[list[float]] = [[], [], [], []]
    ours()
    with ThreadPoolExecutor(2) as pool:

        def both() -> None:
            for future in [pool.submit(half) for half in halves]:
                future.result()

        both()
        for _ in range(rounds):
            times[0].append(_seconds(ours, time.thread_time))
            times[1].append(_seconds(theirs, time.thread_time))
            times[2].append(_seconds(ours, time.perf_counter))
            times[3].append(_seconds(both, time.perf_counter))
    return weights / median(times[0]) / 1e6, weights / median(times[1]) / 1e6, median(times[2]) / median(times[3])


def _repeat(task: Callable[[], object], times: int) -> Callable[[], object]:
    def repeated() -> None:
        for _ in range(times):
            task()

    return repeated


def bench_quantize(name: str, rows: Floats, weights: Floats | None, ggml: Oracle, rounds: int) -> Row:
    """Quantize `rows`; the few rows of a slow type keep ggml's part to seconds."""
    out = np.empty((rows.shape[0], FORMATS[name].row_bytes(rows.shape[1])), np.uint8)
    middle = rows.shape[0] // 2
    ggml.prepare(name)
    repeat = 1 if name in kernels.USES_IMATRIX else 8
    tasks = [
        _repeat(lambda part=part: kernels.quantize_into(rows[part], name, out[part], weights), repeat)
        for part in (slice(None), slice(middle), slice(middle, None))
    ]
    theirs = _repeat(lambda: ggml.quantize(rows, name, weights), repeat)
    speeds = _measure(tasks[0], tasks[1:], theirs, rows.size * repeat, rounds)
    return Row(name, "plain" if weights is None else "imatrix", *speeds)


def bench_dequantize(name: str, rows: Floats, weights: Floats, ggml: Oracle, rounds: int) -> Row:
    blocks = kernels.quantize(rows, name, weights)
    out = np.empty_like(rows)
    middle = rows.shape[0] // 2
    tasks = [
        _repeat(lambda part=part: kernels.dequantize_into(blocks[part], name, out[part]), 16)
        for part in (slice(None), slice(middle), slice(middle, None))
    ]
    theirs = out.copy()
    speeds = _measure(
        tasks[0], tasks[1:], _repeat(lambda: ggml.dequantize_into(blocks, name, theirs), 16), 16 * rows.size, rounds
    )
    return Row(name, "dequantize", *speeds)


def table(rows: list[Row]) -> str:
    lines = ["| type | | Mw/s | ggml Mw/s | ratio | 2 threads |", "|---|---|---:|---:|---:|---:|"]
    lines += [
        f"| {row.name} | {row.how} | {row.ours:,.0f} | {row.theirs:,.1f} | {row.ratio:.1f} | {row.two:.2f} |"
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
                f"{median(row.two for row in chosen):.2f} x one (median)"
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
        few = rows[: max(2, options.rows // 16)] if name.startswith(("IQ1", "IQ2", "IQ3")) else rows
        if name in kernels.USES_IMATRIX:
            results.append(bench_quantize(name, few, weights, oracle(), options.rounds))
        if name not in kernels.REQUIRES_IMATRIX:
            results.append(bench_quantize(name, few, None, oracle(), options.rounds))
        if name in kernels.dequantizable and name != "F32":
            results.append(bench_dequantize(name, few, weights, oracle(), options.rounds))
        print(f"{name} measured", file=sys.stderr)
    results.sort(key=lambda row: ("imatrix", "plain", "dequantize").index(row.how))
    print(f"{_processor()}, {options.rows} x {options.columns} weights, medians of {options.rounds}\n")
    print(f"{table(results)}\n\n{_summary(results)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
